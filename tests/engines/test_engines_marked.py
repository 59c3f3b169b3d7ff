"""The processes of a run are all found, whatever they do while they are looked for."""

from __future__ import annotations

import signal
import subprocess
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

from tfjob.engines import marked

if TYPE_CHECKING:
    import pytest


def _run() -> str:
    return f"marked-{uuid.uuid4().hex}"


@contextmanager
def sleeper(run: str) -> Iterator[subprocess.Popen[bytes]]:
    """A process that bears the run's id, or none at all."""
    process = subprocess.Popen(["sleep", "300"], env={marked.MARKER: run} if run else {})
    try:
        yield process
    finally:
        process.kill()
        process.wait()


def test_what_was_started_while_others_were_looked_at_is_killed(monkeypatch: pytest.MonkeyPatch) -> None:
    pids, run = marked._pids, _run()
    started: list[subprocess.Popen[bytes]] = []

    def listed() -> Iterator[int]:
        before = list(pids())
        if not started:
            started.append(subprocess.Popen(["sleep", "300"], env={marked.MARKER: run}))
        return iter(before)

    monkeypatch.setattr(marked, "_pids", listed)
    marked.sweep(run)
    try:
        assert started[0].wait(30) == -signal.SIGKILL
    finally:
        started[0].kill()


def test_what_becomes_another_program_is_looked_at_again(monkeypatch: pytest.MonkeyPatch) -> None:
    environment_of, run = marked._environment_of, _run()
    seen: list[int] = []

    def shown(pid: int) -> list[bytes]:
        if pid == process.pid and len(seen) < 3:
            seen.append(pid)
            return [b""]  # as it reads while the process is in execve(2)
        return environment_of(pid)

    with sleeper(run) as process:
        monkeypatch.setattr(marked, "_environment_of", shown)
        marked.sweep(run)
        assert process.wait(30) == -signal.SIGKILL


def test_what_has_no_environment_is_left_alone() -> None:
    with sleeper("") as process:
        marked.sweep(_run())
        assert process.poll() is None
        assert marked.marked_processes(_run()) == []
