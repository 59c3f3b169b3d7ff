"""The processes of a run: each bears the run's id in its environment, wherever it went and whatever became of its parents."""

from __future__ import annotations

import os
import time
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from signal import SIGKILL
from typing import Final

__all__ = ["MARKER", "marked_processes", "signal_process", "sweep"]

MARKER: Final = "TFJOB_RUN_ID"
"""The variable that every process of a run is started with."""


def marked_processes(run_id: str) -> list[int]:
    """The pids of this user's processes that bear the run's id, those in containers of this machine among them.

    Processes of other users can't be read, and are not ours. The caller itself is left out.
    """
    marker = f"{MARKER}={run_id}".encode()
    return [pid for pid in _pids() if marker in _environment_of(pid)]


def sweep(run_id: str) -> None:
    """SIGKILL every process that bears the run's id: what escaped from its task by any way.

    Done until none is found, as one may just have forked.
    """
    for _ in range(50):
        found = marked_processes(run_id)
        if not found:
            return
        for pid in found:
            signal_process(pid, SIGKILL)
        time.sleep(0.02)


def signal_process(pid: int, number: int) -> None:
    """Send a signal to a process that may be gone by now, or has become another user's (sudo)."""
    with suppress(ProcessLookupError, PermissionError):
        os.kill(pid, number)


def _pids() -> Iterator[int]:
    me = os.getpid()
    return (int(name) for name in os.listdir("/proc") if name.isdigit() and int(name) != me)


def _environment_of(pid: int) -> list[bytes]:
    try:
        return Path(f"/proc/{pid}/environ").read_bytes().split(b"\0")
    except OSError:
        return []
