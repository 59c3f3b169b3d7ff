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

_LOOK_S: Final = 0.02
_DYING_S: Final = 10.0
"""So long at most what was killed is waited for, which may have no processor to die on."""
_BECOMING_S: Final = 2.0
"""So long after the last of them was found processes without an environment, which may be anybody's, are looked at again."""
_YOUNG_S: Final = 10.0
_PF_EXITING: Final = 0x4  # flags of a process: include/linux/sched.h
_PF_KTHREAD: Final = 0x200000


def marked_processes(run_id: str) -> list[int]:
    """The pids of this user's processes that bear the run's id, those in containers of this machine among them.

    Processes of other users can't be read, and are not ours. The caller itself is left out.
    """
    return _seen(run_id)[0]


def sweep(run_id: str) -> None:
    """SIGKILL every process that bears the run's id: what escaped from its task by any way.

    Done until none is found twice in a row: one may have forked while the others were looked at, and have died of something
    else before it was looked at itself. A process that is becoming another program shows no environment meanwhile, and is
    looked at again.
    """
    none_found, began, limit_s = 0, time.monotonic(), _BECOMING_S
    while none_found or time.monotonic() - began < limit_s:
        found, becoming = _seen(run_id)
        if found:
            limit_s = min(_DYING_S, time.monotonic() - began + _BECOMING_S)
        for pid in found:
            signal_process(pid, SIGKILL)
        none_found = 0 if found or becoming else none_found + 1
        if none_found == 2:
            return
        if not none_found:
            time.sleep(_LOOK_S)


def signal_process(pid: int, number: int) -> None:
    """Send a signal to a process that may be gone by now, or has become another user's (sudo)."""
    with suppress(ProcessLookupError, PermissionError):
        os.kill(pid, number)


def _seen(run_id: str) -> tuple[list[int], bool]:
    """The pids of the processes that bear the run's id, and whether there are any of which that can't be seen just now."""
    marker = f"{MARKER}={run_id}".encode()
    found, becoming = [], False
    for pid in _pids():
        environment = _environment_of(pid)
        if marker in environment:
            found.append(pid)
        elif environment == [b""]:
            becoming = becoming or _is_becoming(pid)
    return found, becoming


def _is_becoming(pid: int) -> bool:
    """Whether a young process of this user that shows no environment is about to have one: it is in execve(2).

    Neither those of the kernel nor those that have ended ever have one. Source: proc(5), /proc/pid/stat.
    """
    try:
        fields = Path(f"/proc/{pid}/stat").read_bytes().rpartition(b")")[2].split()
        age_s = time.clock_gettime(time.CLOCK_BOOTTIME) - int(fields[19]) / os.sysconf("SC_CLK_TCK")
    except (OSError, IndexError):
        return False
    return not int(fields[6]) & (_PF_KTHREAD | _PF_EXITING) and fields[0] not in (b"Z", b"X") and age_s < _YOUNG_S


def _pids() -> Iterator[int]:
    me = os.getpid()
    return (int(name) for name in os.listdir("/proc") if name.isdigit() and int(name) != me)


def _environment_of(pid: int) -> list[bytes]:
    try:
        return Path(f"/proc/{pid}/environ").read_bytes().split(b"\0")
    except OSError:
        return []
