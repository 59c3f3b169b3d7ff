"""What the engine makes of the queue's words and the job's report."""

from __future__ import annotations

import errno
import json
import os
import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from engines.engine_bench import task
from engines_slurm.slurm_commands import calls, commands
from engines_slurm.slurm_plans import slurm_plan

from tfjob.engines.base import Prepared
from tfjob.engines.slurm import submitting
from tfjob.engines.slurm.engine import Handle, JobView, SlurmEngine
from tfjob.engines.slurm.programs import PROGRAMS
from tfjob.engines.slurm.report import read_report
from tfjob.errors import TargetError
from tfjob.rundir import RunDirectory
from tfjob.runs.record import Record, iso, read_record, write_record
from tfjob.runs.slurm import SlurmSupervision

NO_ACCOUNTING = "echo 'Slurm accounting storage is disabled' >&2; exit 1"


class Site:
    """A run on a Slurm that says what a test wants."""

    def __init__(self, directory: Path) -> None:
        self.bin = directory / "bin"
        self.run = RunDirectory(directory / "run-1")
        (self.run.path / "slurm").mkdir(parents=True)
        self.plan = slurm_plan(task("true", name="main"))
        client = commands(self.bin, sbatch="echo 7", sacct=NO_ACCOUNTING, scancel="true", sinfo="true", scontrol="true")
        self.says("")
        self.engine = SlurmEngine(
            environ={**os.environ, "PATH": f"{self.bin}:{os.environ['PATH']}"}, cache=directory / "cache", client=client
        )

    def says(self, state: str, *, node_list: str = "n1", reason: str = "None") -> None:
        line = f"7|{state}|1|gpu|10|ada|N/A|N/A|{node_list}|{reason}"
        commands(self.bin, squeue=f"echo '{line}'" if state else "true")

    def reports(self, **facts: Any) -> None:
        known = {"phase": "running", "job": "7", "attempt": 0, "attempts": [], "tasks": {}, "end": None}
        nodes = [{"name": "n1", "address": "10.0.0.1"}]
        (self.run.path / "slurm" / "state.json").write_text(json.dumps({**known, "nodes": nodes, **facts}))

    def look(self) -> JobView:
        """How the job is as Slurm says now, after the time its last word is waited for."""
        for name in ("mine", "pending", "nodes"):
            (self.run.path.parent / "cache" / f"slurm-{name}.json").unlink(missing_ok=True)
        handle = self.engine.submit(self.plan, self.run)
        handle.over_since = time.monotonic() - 120
        return self.engine.look(handle)


@pytest.fixture
def site(tmp_path: Path) -> Site:
    return Site(tmp_path)


def test_a_job_is_submitted_once(site: Site) -> None:
    site.says("RUNNING")
    for _ in range(3):
        site.look()
    assert [call for call in calls(site.bin) if call.startswith("sbatch")] == [
        f"sbatch --parsable {site.run.path}/slurm/job.sh"
    ]


def test_a_job_whose_id_was_not_noted_is_found_by_its_name(site: Site) -> None:
    (site.run.path / "slurm" / "submitting").touch()
    commands(site.bin, squeue="echo 9")
    assert site.engine.submit(site.plan, site.run).job == "9"
    found = "squeue --noheader --me --states=all --name=run-1 --format=%i"
    assert calls(site.bin) == ["scontrol show config", found]


def test_ending_a_run_that_was_never_submitted_submits_nothing(site: Site) -> None:
    handle = site.engine.adopt(site.plan, site.run)
    site.engine.stop(handle, 0)
    assert site.engine.look(handle).stage == "over"
    assert calls(site.bin) == []


@pytest.mark.parametrize(
    ("state", "stage", "message"),
    [
        ("PENDING", "waiting", "waiting for 1 node; 0 free; position 1"),
        ("REQUEUED", "waiting", "waiting for 1 node; 0 free; position 1"),
        ("CONFIGURING", "coming", "nodes are being started: n1"),
        ("RUNNING", "running", "on n1"),
        ("COMPLETING", "running", "on n1"),
    ],
)
def test_a_job_that_is_not_over(site: Site, state: str, stage: str, message: str) -> None:
    site.says(state)
    view = site.look()
    assert (view.stage, view.message) == (stage, message)


@pytest.mark.parametrize(
    ("state", "outcome", "kind", "words"),
    [
        ("CANCELLED", "canceled", "canceled", "ended by scancel"),
        ("TIMEOUT", "failed", "time_limit", "time limit"),
        ("PREEMPTED", "failed", "preempted", "Slurm preempted it"),
        ("NODE_FAIL", "failed", "node_lost", "a node was lost (n1)"),
        ("BOOT_FAIL", "failed", "node_lost", "a node could not be started (n1)"),
        ("OUT_OF_MEMORY", "failed", "failure", "more memory than Slurm gave it"),
        ("FAILED", "failed", "failure", "see slurm/job.log"),
        ("COMPLETED", "failed", None, "ended without a word"),
        ("SOMETHING_NEW", "failed", None, "Slurm says SOMETHING_NEW"),
    ],
)
def test_a_job_that_slurm_ended(site: Site, state: str, outcome: str, kind: str | None, words: str) -> None:
    site.reports(phase="running")
    site.says(state)
    view = site.look()
    assert view.stage == "over"
    assert view.end is not None
    assert (view.end.outcome, view.end.kind) == (outcome, kind)
    assert words in view.end.message


def test_the_jobs_own_last_word_counts(site: Site) -> None:
    site.reports(phase="over", end={"outcome": "failed", "message": "boo", "task": "main", "kind": "failure"})
    site.says("FAILED")
    view = site.look()
    assert view.end is not None
    assert (view.stage, view.end.message, view.end.task) == ("over", "boo", "main")


@pytest.mark.parametrize(("state", "unseen_s"), [("COMPLETED", 40.0), ("FAILED", 0.0), ("", 40.0)])
def test_a_last_word_may_be_seen_late(site: Site, state: str, unseen_s: float) -> None:
    site.says(state)
    handle = site.engine.submit(site.plan, site.run)
    handle.over_since = time.monotonic() - unseen_s
    view = site.engine.look(handle)
    assert (view.stage, view.message) == ("running", "Slurm says that job 7 is over; its last word is waited for")
    site.reports(phase="over", end={"outcome": "completed", "message": "", "task": None, "kind": None})
    view = site.engine.look(handle)
    assert view.end is not None
    assert (view.stage, view.end.outcome) == ("over", "completed")


def test_the_server_is_asked_for_a_report_that_is_not_there(site: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    opened = os.open

    def opening(path: Any, *arguments: Any, **keys: Any) -> int:
        """As on NFS: what has come is seen once the directory is opened."""
        if path == site.run.path / "slurm":
            site.reports()
        return opened(path, *arguments, **keys)

    monkeypatch.setattr(os, "open", opening)
    report = read_report(site.run)
    assert report is not None
    assert report.phase == "running"


def test_a_job_that_was_preempted_and_ended_in_order_is_told_so(site: Site) -> None:
    site.reports(
        phase="lost", end={"outcome": "slurm", "message": "Slurm preempted it", "task": None, "kind": "preempted"}
    )
    site.says("FAILED")
    view = site.look()
    assert view.end is not None
    assert (view.end.outcome, view.end.kind) == ("failed", "preempted")


@pytest.mark.parametrize(("kind", "message"), [("node_lost", "a node was lost: n2"), ("", "a node was lost (n[1-2])")])
def test_which_node_was_lost_the_job_knows_better(site: Site, kind: str, message: str) -> None:
    site.reports(phase="lost", end={"outcome": "slurm", "message": "a node was lost: n2", "task": None, "kind": kind})
    site.says("NODE_FAIL", node_list="n[1-2]")
    view = site.look()
    assert view.end is not None
    assert (view.end.outcome, view.end.kind, view.end.message) == ("failed", "node_lost", message)


@pytest.mark.parametrize("state", ["CANCELLED", "TIMEOUT", "PREEMPTED", "NODE_FAIL", "FAILED", ""])
@pytest.mark.parametrize(("outcome", "kind"), [("completed", None), ("failed", "failure")])
def test_a_job_that_slurm_killed_while_its_nodes_cleared_up_ended_as_it_had(
    site: Site, state: str, outcome: str, kind: str | None
) -> None:
    site.reports(phase="ending", end={"outcome": outcome, "message": "as it was", "task": None, "kind": kind})
    site.says("RUNNING")
    assert site.look().stage == "running"  # something may still be left on its nodes
    site.says(state)
    view = site.look()
    assert view.end is not None
    assert (view.stage, view.end.outcome, view.end.kind, view.end.message) == ("over", outcome, kind, "as it was")


@pytest.mark.parametrize("state", ["CANCELLED", "TIMEOUT", "PREEMPTED", "NODE_FAIL"])
def test_what_it_had_come_to_before_may_be_seen_late_too(
    site: Site, monkeypatch: pytest.MonkeyPatch, state: str
) -> None:
    monkeypatch.setattr("tfjob.engines.slurm.engine._REST_S", 60.0)
    site.reports(phase="running")
    site.says(state)
    handle = site.engine.submit(site.plan, site.run)
    assert site.engine.look(handle).stage == "running"
    site.reports(phase="over", end={"outcome": "failed", "message": "boo", "task": "main", "kind": "failure"})
    view = site.engine.look(handle)
    assert view.end is not None
    assert (view.stage, view.end.message) == ("over", "boo")


def test_but_not_where_nothing_has_begun(site: Site) -> None:
    site.says("CANCELLED")
    assert site.engine.look(site.engine.submit(site.plan, site.run)).stage == "over"


class TestSubmissionsWithoutAnAnswer:
    TIMED_OUT = "echo 'error: Batch job submission failed: Socket timed out on send/recv operation' >&2; exit 1"

    @pytest.fixture(autouse=True)
    def short(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(submitting, "_ASK_S", 0.05)
        monkeypatch.setattr(submitting, "_AGAIN_S", 0.01)

    def test_a_job_that_slurm_took_is_followed(self, site: Site, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(submitting, "_ASK_S", 60.0)
        later = f"[ $(wc -l <{site.bin}/calls) -lt 6 ] || echo 7"
        commands(site.bin, sbatch=self.TIMED_OUT, squeue=later)
        said: list[str] = []
        site.engine.tell = said.append
        assert site.engine.submit(site.plan, site.run).job == "7"
        assert len([call for call in calls(site.bin) if call.startswith("sbatch")]) == 1
        assert said[0].endswith("Socket timed out on send/recv operation; Slurm is asked whether it has the job")

    def test_an_sbatch_that_hung_is_asked_about_too(self, site: Site, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr("tfjob.engines.slurm.client._SUBMIT_PATIENCE_S", 0.2)
        commands(site.bin, sbatch="exec sleep 60", squeue="echo 7")
        assert site.engine.submit(site.plan, site.run).job == "7"

    def test_one_whose_number_was_not_said_is_looked_for(self, site: Site) -> None:
        commands(site.bin, sbatch="echo Submitted batch job 7", squeue="echo 7")
        (site.run.path / "slurm").mkdir(exist_ok=True)
        assert site.engine.submit(site.plan, site.run).job == "7"

    @pytest.mark.parametrize("squeue", ["true", TIMED_OUT], ids=["no job", "no answer"])
    def test_one_that_may_be_queued_is_taken_back_and_told_of(self, site: Site, squeue: str) -> None:
        run = site.run
        for directory in (run.outputs, run.tasks, run.logs):
            directory.mkdir()
        commands(site.bin, sbatch=self.TIMED_OUT, squeue=squeue)
        write_record(run, Record(run.id, "lab", "lab", "Preparing", iso(time.time()), str(run.path), "lab"))
        snapshots = run.path / "snapshots"
        prepared = Prepared(None, {"environment.path": "/bin"})
        SlurmSupervision(run, site.plan, engine=site.engine, prepare=lambda _: prepared, snapshots=snapshots).go()
        assert [call for call in calls(site.bin) if call.startswith("scancel")] == ["scancel --me --name=run-1"]
        record = read_record(run)
        assert (record.state, record.notes) == (
            "Failed",
            ("whether Slurm has its job is not known; if it has one, end it: scancel --me --name=run-1",),
        )
        state = json.loads((run.path / "slurm" / "state.json").read_text())
        assert state["phase"] == "over"  # a job that begins after all does nothing

    def test_one_that_is_refused_leaves_nothing(self, site: Site) -> None:
        commands(site.bin, sbatch="echo 'error: invalid partition specified: gqu' >&2; exit 1", squeue="true")
        with pytest.raises(TargetError, match="invalid partition"):
            site.engine.submit(site.plan, site.run)
        handle = site.engine.adopt(site.plan, site.run)
        site.engine.look(handle)
        assert site.engine.notes(handle) == ()
        assert not [call for call in calls(site.bin) if call.startswith("scancel")]

    def test_without_sbatch_nothing_is_asked(self, site: Site) -> None:
        engine = SlurmEngine(environ={"PATH": str(site.run.path)}, cache=site.run.path / "cache")
        with pytest.raises(TargetError, match="sbatch is not on PATH"):
            engine.submit(site.plan, site.run)

    def test_a_job_that_has_begun_says_its_number_itself(self, site: Site) -> None:
        (site.run.path / "slurm" / "submitting").touch()
        commands(site.bin, squeue=self.TIMED_OUT)
        site.reports(job="9")
        assert site.engine.submit(site.plan, site.run).job == "9"


class TestSeveralClusters:
    """Login nodes of several clusters have one home directory, and a workspace in it."""

    def other(self, site: Site, squeue: str) -> SlurmEngine:
        """The engine on a login node of the cluster b."""
        there = site.bin.with_name("there")
        commands(there, sbatch="echo 7", scontrol="echo 'ClusterName = b'", squeue=squeue, scancel="true")
        environ = {**os.environ, "PATH": f"{there}:{os.environ['PATH']}"}
        return SlurmEngine(environ=environ, cache=site.run.path.parent / "cache")

    @pytest.fixture
    def site(self, site: Site) -> Site:
        """The run is one of the cluster a."""
        commands(site.bin, scontrol="echo 'ClusterName             = a'")
        site.says("RUNNING")
        return site

    def test_what_the_queue_of_one_says_is_not_taken_for_the_others(self, site: Site) -> None:
        handle = site.engine.submit(site.plan, site.run)
        handle.begun = (-1, 0.0)
        assert self.other(site, "true")._queue.job("7", 60) is None
        handle.over_since = time.monotonic() - 1000
        assert site.engine.look(handle).stage == "running"

    def test_a_job_of_another_is_neither_judged_nor_ended(self, site: Site) -> None:
        site.engine.submit(site.plan, site.run)
        engine = self.other(site, "true")
        handle = engine.adopt(site.plan, site.run)
        for stage, reports in (("waiting", False), ("running", True)):
            if reports:
                site.reports()
            view = engine.look(handle)
            words = "its job 7 is of the cluster a, and Slurm here is b: follow it from a login node of a"
            assert (view.stage, view.is_known, view.away) == (stage, False, words)
        engine.stop(handle, 0.0)
        assert engine.notes(handle) == (f"Slurm was not asked to end it: {words}",)
        assert calls(site.bin.with_name("there")) == ["scontrol show config"]

    def test_a_job_that_is_seen_alive_again_was_never_over(self, site: Site) -> None:
        handle = site.engine.submit(site.plan, site.run)
        for state, is_doubted in (("", True), ("RUNNING", False), ("", True)):
            site.says(state)
            handle.begun = (-1, time.time())
            assert site.engine.look(handle).stage == "running"
            assert (handle.over_since is not None, handle.told_asked is not None) == (is_doubted, is_doubted)


class TestAFileSystemThatFails:
    """What the supervisor does while its shared file system fails."""

    def fail(self, monkeypatch: pytest.MonkeyPatch, name: str, number: int, times: int = 1000) -> None:
        """Let files of this name fail to be read, so often."""
        reading, left = Path.read_bytes, [number] * times

        def read_bytes(path: Path) -> bytes:
            if path.name == name and left:
                raise OSError(left.pop(), os.strerror(number))
            return reading(path)

        monkeypatch.setattr(Path, "read_bytes", read_bytes)

    def test_a_report_that_was_replaced_while_it_was_read_is_read_again(
        self, site: Site, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        site.reports()
        self.fail(monkeypatch, "state.json", errno.ESTALE, times=1)
        report = read_report(site.run)
        assert report is not None
        assert report.phase == "running"

    @pytest.mark.parametrize("number", [errno.EIO, errno.ETIMEDOUT, errno.ESTALE])
    def test_a_report_that_can_not_be_read_ends_no_run(
        self, site: Site, monkeypatch: pytest.MonkeyPatch, number: int
    ) -> None:
        site.says("RUNNING")
        site.reports()
        handle = site.engine.submit(site.plan, site.run)
        assert site.engine.look(handle).stage == "running"
        with monkeypatch.context() as patch:
            self.fail(patch, "state.json", number)
            view = site.engine.look(handle)
            assert (view.stage, view.report and view.report.nodes) == ("running", (("n1", "10.0.0.1"),))
            site.says("COMPLETED")
            (site.run.path.parent / "cache" / "slurm-mine.json").unlink()
            handle.over_since = time.monotonic() - 1000
            view = site.engine.look(handle)
            words = f"Slurm says that job 7 is over; its last word can't be read now: {os.strerror(number)}"
            assert (view.stage, view.message) == ("running", words)
        site.reports(phase="over", end={"outcome": "completed", "message": "", "task": None, "kind": None})
        view = site.engine.look(handle)
        assert view.end is not None
        assert (view.stage, view.end.outcome) == ("over", "completed")

    def test_the_record_goes_on(self, site: Site, monkeypatch: pytest.MonkeyPatch) -> None:
        """A supervisor follows its job to its end, and nothing that fails on the way is the end of it."""
        run = site.run
        for directory in (run.outputs, run.tasks, run.logs):
            directory.mkdir()
        run.supervisor_lock.touch()
        (run.path / "slurm" / "submitting").touch()
        (run.path / "slurm" / "job.json").write_text('{"job": "7"}')
        site.says("RUNNING")
        site.reports(tasks={"main": {"state": "running"}})
        write_record(run, Record(run.id, "lab", "lab", "Scaling", iso(time.time()), str(run.path), "lab"))
        supervision = SlurmSupervision(
            run, site.plan, engine=site.engine, prepare=lambda _: Prepared(None, {}), snapshots=run.path / "snapshots"
        )
        looked: list[str] = []
        look = site.engine.look

        def failing(*_: object, **__: object) -> None:
            raise OSError(errno.EIO, os.strerror(errno.EIO))

        def looking(handle: Handle) -> JobView:
            view = look(handle)
            looked.append(view.stage)
            if len(looked) == 2:
                patch.undo()
                site.reports(phase="over", end={"outcome": "completed", "message": "", "task": None, "kind": None})
            return view

        monkeypatch.setattr(site.engine, "look", looking)
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(os, "utime", failing)
            patch.setattr(os, "statvfs", failing)
            patch.setattr("tfjob.runs.chronicle.write_record", failing)
            patch.setattr("tfjob.runs.chronicle.append_event", failing)
            patch.setattr(Path, "read_text", failing)
            supervision.go()
        record = read_record(run)
        assert (record.state, record.failure, record.notes) == ("Completed", None, ())


class TestStopping:
    @pytest.fixture
    def moments(self, monkeypatch: pytest.MonkeyPatch) -> list[float]:
        """The moments that pass while the engine waits: the clock goes by what it sleeps."""
        past: list[float] = []
        monotonic, now = time.monotonic(), time.time()
        clock = SimpleNamespace(
            sleep=past.append, monotonic=lambda: monotonic + sum(past), time=lambda: now + sum(past)
        )
        monkeypatch.setattr("tfjob.engines.slurm.engine.time", clock)
        monkeypatch.setattr("tfjob.engines.slurm.queue.time", clock)
        return past

    @pytest.mark.parametrize("state", ["NODE_FAIL", "CANCELLED", ""])
    def test_a_job_that_is_gone_is_not_waited_for(self, site: Site, moments: list[float], state: str) -> None:
        site.reports(phase="ending")
        site.says(state)
        (site.bin / "squeue").rename(site.bin / "later")
        site.says("RUNNING")
        commands(site.bin, scancel=f"cp {site.bin}/later {site.bin}/squeue")  # gone as soon as it was asked to end
        handle = site.engine.submit(site.plan, site.run)
        site.engine.stop(handle, 30.0)
        assert handle.view.stage == "over"
        assert sum(moments) < 15

    def test_one_that_clears_up_is(self, site: Site, moments: list[float]) -> None:
        site.says("RUNNING")
        site.reports(phase="ending")
        site.engine.stop(site.engine.submit(site.plan, site.run), 0.0)
        assert sum(moments) > 150


def test_a_job_that_slurm_forgot_left_no_word(site: Site) -> None:
    site.reports(phase="running")
    view = site.look()
    assert view.end is not None
    assert view.end.message == "Slurm no longer knows its job 7, and the job left no word of how it ended"


def test_unless_accounting_knows(site: Site) -> None:
    commands(site.bin, sacct="echo 'CANCELLED by 1000|n[1-2]'")
    site.reports(phase="running")
    view = site.look()
    assert view.end is not None
    assert view.end.outcome == "canceled"


def test_accounting_that_failed_is_asked_again_while_the_last_word_is_waited_for(
    site: Site, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("tfjob.engines.slurm.engine._ACCOUNTING_S", -1.0)
    commands(site.bin, sacct=NO_ACCOUNTING)
    handle = site.engine.submit(site.plan, site.run)
    assert site.engine.look(handle).stage == "running"
    commands(site.bin, sacct="echo 'CANCELLED by 1000|n[1-2]'")
    view = site.engine.look(handle)
    assert view.end is not None
    assert view.end.outcome == "canceled"


def test_and_not_at_every_look(site: Site) -> None:
    handle = site.engine.submit(site.plan, site.run)
    for _ in range(3):
        site.engine.look(handle)
    assert len([call for call in calls(site.bin) if call.startswith("sacct")]) == 1


def test_a_slurm_that_does_not_answer_ends_no_run(site: Site) -> None:
    site.reports(phase="running")
    commands(site.bin, squeue="exit 1")
    assert site.look().stage == "running"


def test_what_the_job_needs_lies_in_the_run_directory(site: Site) -> None:
    site.engine.keep(site.plan, site.run, Prepared(None, {"environment.path": "/bin"}))
    found = sorted(
        path.relative_to(site.run.path / "slurm").as_posix()
        for path in site.run.path.rglob("*")
        if path.is_file() and path.suffix != ".pyc"
    )
    programs = sorted(f"program/{name}" for name in (*PROGRAMS, "run_files.py", "entrypoint.py"))
    assert found == ["gang.json", "job.sh", *programs, "state.json"]
    assert read_report(site.run) is None
