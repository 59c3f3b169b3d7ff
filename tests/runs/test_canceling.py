from __future__ import annotations

import errno
import threading
from contextlib import suppress
from pathlib import Path

import pytest

from tfjob.rundir import RunDirectory
from tfjob.runs.canceling import CancelRequested, interruptible, raise_if_canceled
from tfjob.runs.run import request_cancel


@pytest.fixture
def run(tmp_path: Path) -> RunDirectory:
    directory = RunDirectory(tmp_path / "job-1")
    directory.path.mkdir()
    return directory


def test_a_request_is_there_with_its_reason_or_not_at_all(run: RunDirectory) -> None:
    seen: set[str] = set()
    is_over = threading.Event()

    def look() -> None:
        while not is_over.is_set():
            with suppress(FileNotFoundError):
                seen.add(run.cancel_request.read_text())

    reader = threading.Thread(target=look)
    reader.start()
    for _ in range(300):
        request_cancel(run, "enough")
        run.cancel_request.unlink()
    is_over.set()
    reader.join()
    assert seen <= {"enough\n"}


def test_a_full_disk_has_room_for_a_request(run: RunDirectory, monkeypatch: pytest.MonkeyPatch) -> None:
    def is_full(*_: object, **__: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr("tfjob.runs.run.replace_text", is_full)
    run.reserve.write_bytes(bytes(4096))
    request_cancel(run, "enough")
    assert run.cancel_request.read_text() == "enough\n"
    assert not run.reserve.exists()
    with pytest.raises(CancelRequested, match="enough"):
        raise_if_canceled(run)


def test_what_fails_beside_it_breaks_into_work_that_knows_nothing_of_it(run: RunDirectory) -> None:
    error = ValueError("no")
    failures = [None, None, error]
    never = threading.Event()

    def failure() -> BaseException | None:
        return failures.pop(0) if failures[1:] else failures[0]

    with pytest.raises(ValueError, match="no") as caught, interruptible(run, failure):
        never.wait(60)
    assert caught.value is error
