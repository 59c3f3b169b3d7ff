"""Data that is fetched while the environment is got ready: one does not wait for the other, and each ends the other."""

from __future__ import annotations

import json
import signal
import threading
import time
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any

import pytest
from engines.engine_bench import plan, task
from runs.test_supervision_elsewhere import ended, run, supervise
from support import eventually, has_file_of
from web_server import Hang, Slow, Status, WebServer, web_server

from tfjob.datasets.cache import Cache
from tfjob.datasets.eviction import evict
from tfjob.datasets.files import Remote, laid_out
from tfjob.durable import replace_text
from tfjob.planning.plan import DatasetPlan, Plan
from tfjob.runs.ahead import Ahead

if TYPE_CHECKING:
    import subprocess

    from tfjob.rundir import RunDirectory

    Supervise = Callable[..., subprocess.Popen[bytes]]

__all__ = ["run", "supervise"]


@pytest.fixture
def web() -> Iterator[WebServer]:
    with web_server() as server:
        yield server


def reads(*addresses: str) -> Plan:
    """A job that has these files as its dataset."""
    rows = [Remote(one, one.rpartition("/")[2], -1, "") for one in addresses]
    found = laid_out([], rows)
    dataset = DatasetPlan("d", "directory", "mount", found.digest, len(rows), -1, found.files, found.marks)
    return plan(task("true"), datasets=(dataset,))


def told(run: RunDirectory) -> list[dict[str, Any]]:
    return [json.loads(line) for line in run.events.read_text().splitlines()] if run.events.exists() else []


def has_partial(run: RunDirectory) -> bool:
    return has_file_of(run.path / "cache" / "partial", 2 << 20)


def test_data_is_there_before_the_environment_is(run: RunDirectory, supervise: Supervise, web: WebServer) -> None:
    (run.path / "environment").write_text("wait")
    supervisor = supervise(reads(web.put("a", b"content"), web.put("b", b"more")))
    eventually(lambda: len(list((run.path / "cache" / "objects").glob("*/*"))) == 2, "both files are there")
    (run.path / "environment").write_text("made")
    record = ended(run, supervisor)
    assert (record.state, record.datasets[0].file_count, record.datasets[0].size_bytes) == ("Completed", 2, 11)
    assert len(web.asked("a")) == 1
    topics = {(event["phase"], event.get("topic")) for event in told(run) if event["event"] == "progress"}
    assert ("Preparing", "data") in topics


def test_data_that_comes_later_is_waited_for(run: RunDirectory, supervise: Supervise, web: WebServer) -> None:
    record = ended(run, supervise(reads(web.put("a", bytes(60_000), Slow(10_000, 0.1)))))
    assert (record.state, record.datasets[0].size_bytes) == ("Completed", 60_000)


def test_data_that_can_not_be_had_ends_the_making_of_the_environment(
    run: RunDirectory, supervise: Supervise, web: WebServer
) -> None:
    (run.path / "environment").write_text("wait")
    address = web.put("a", b"", Status(404))
    record = ended(run, supervise(reads(address)))
    assert (record.state, record.exit_code) == ("Failed", 4)
    assert record.failure is not None
    assert address in record.failure.message
    assert "tfjob itself failed" not in record.failure.message
    assert "Traceback" not in run.supervisor_log.read_text()


def test_an_environment_that_can_not_be_made_ends_the_fetching(
    run: RunDirectory, supervise: Supervise, web: WebServer
) -> None:
    (run.path / "environment").write_text("wait")
    supervisor = supervise(reads(web.put("a", bytes(3 << 20), Hang(2 << 20))))
    eventually(lambda: has_partial(run), "some of it came")
    (run.path / "environment").write_text("fail")
    record = ended(run, supervisor)
    assert (record.state, record.exit_code) == ("Failed", 4)
    assert record.failure is not None
    assert record.failure.message == "there is no such package"
    assert has_partial(run)  # the next run goes on from there


def test_the_cache_can_be_pruned_while_an_environment_is_made(
    run: RunDirectory, supervise: Supervise, web: WebServer
) -> None:
    (run.path / "environment").write_text("wait")
    cache = Cache(run.path / "cache")
    supervisor = supervise(reads(web.put("a", b"content")))
    eventually(lambda: list((run.path / "cache" / "users").glob("*/*")), "the data is the run's")
    eventually(lambda: not evict(cache, limit_bytes=0).is_busy, "nobody keeps others from making room")
    (run.path / "environment").write_text("made")
    assert ended(run, supervisor).state == "Completed"
    assert len(web.asked("a")) == 1


@pytest.mark.parametrize("environment", ["wait", "made"])
def test_a_cancel_ends_both(run: RunDirectory, supervise: Supervise, web: WebServer, environment: str) -> None:
    (run.path / "environment").write_text(environment)
    supervisor = supervise(reads(web.put("a", bytes(3 << 20), Hang(2 << 20))))
    eventually(lambda: has_partial(run), "some of it came")
    replace_text(run.cancel_request, "enough")  # it must not be seen before its content
    record = ended(run, supervisor)
    assert (record.state, record.failure and record.failure.message) == ("Canceled", "enough")


def test_a_killed_supervisor_is_followed_by_one_that_goes_on(
    run: RunDirectory, supervise: Supervise, web: WebServer
) -> None:
    (run.path / "environment").write_text("wait")
    supervisor = supervise(reads(web.put("a", bytes(3 << 20), Hang(2 << 20), None)))
    eventually(lambda: has_partial(run), "some of it came")
    supervisor.kill()
    supervisor.wait()
    (run.path / "environment").write_text("made")
    record = ended(run, supervise())
    assert (record.state, record.takeovers) == ("Completed", 1)
    assert web.asked("a")[-1]["Range"] == f"bytes={2 << 20}-"


class TestAhead:
    def test_who_waits_gets_what_came_of_it(self) -> None:
        ahead = Ahead(lambda _: 3)
        assert ahead.result() == 3
        assert ahead.end()

    def test_who_waits_gets_its_error_once_it_has_one(self) -> None:
        def fails(_: Callable[[], None]) -> int:
            raise ValueError("no")

        ahead = Ahead(fails)
        assert isinstance(eventually(ahead.failure, "it failed"), ValueError)
        with pytest.raises(ValueError, match="no"):
            ahead.result()

    def test_one_that_nobody_wants_ends_and_has_not_failed(self) -> None:
        begun, goes_on = threading.Event(), threading.Event()

        def work(check: Callable[[], None]) -> None:
            begun.set()
            while not goes_on.wait(0.01):
                check()

        ahead = Ahead(work)
        begun.wait()
        assert ahead.end()
        assert ahead.failure() is None

    def test_who_waits_can_be_interrupted_and_still_see_its_end(self) -> None:
        begun, ended = threading.Event(), threading.Event()

        def work(check: Callable[[], None]) -> None:
            begun.set()
            try:
                while True:
                    time.sleep(0.01)
                    check()
            finally:
                time.sleep(0.2)
                ended.set()

        def interrupt(*_: object) -> None:
            raise InterruptedError

        def wait_to_be_interrupted(ahead: Ahead[None]) -> None:
            threading.Timer(0.1, signal.pthread_kill, (threading.main_thread().ident, signal.SIGUSR1)).start()
            ahead.result()

        before = signal.signal(signal.SIGUSR1, interrupt)
        try:
            ahead = Ahead(work)
            begun.wait()
            with pytest.raises(InterruptedError):
                wait_to_be_interrupted(ahead)
        finally:
            signal.signal(signal.SIGUSR1, before)
        assert ahead.end()
        assert ended.is_set()

    def test_one_that_does_not_look_is_left_to_itself(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr("tfjob.runs.ahead._PATIENCE_S", 0.01)
        begun, goes_on = threading.Event(), threading.Event()

        def work(_: Callable[[], None]) -> None:
            begun.set()
            goes_on.wait()

        ahead = Ahead(work)
        begun.wait()
        assert not ahead.end()
        goes_on.set()

    @pytest.mark.parametrize("is_slow", [False, True])
    def test_what_is_needed_at_once_is_done_by_who_needs_it(
        self, monkeypatch: pytest.MonkeyPatch, is_slow: bool
    ) -> None:
        monkeypatch.setattr("tfjob.runs.ahead._SOON_S", 0.0 if is_slow else 1000.0)
        begun = threading.Event()

        def work(_: Callable[[], None]) -> int:
            begun.set()
            return threading.get_ident()

        ahead = Ahead(work)
        if is_slow:
            begun.wait()
        assert (ahead.result() == threading.get_ident()) != is_slow

    def test_one_that_has_not_begun_never_does(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr("tfjob.runs.ahead._SOON_S", 1000.0)
        ahead = Ahead(lambda _: pytest.fail("it began"))
        assert ahead.end()
        assert ahead.failure() is None
