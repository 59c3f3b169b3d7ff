"""Processes in containers as this machine's kernel knows them: looked at and signalled without asking the Docker Engine.

So a run can be watched and ended while the engine hangs or restarts, and a look costs nothing.
Source: pid_namespaces(7), proc(5).
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

from tfjob.entrypoint import stat_fields

__all__ = ["HostProcess", "find_in_container", "has_child", "is_first_of_a_container"]


class HostProcess(NamedTuple):
    """A process of this machine: a pid, and the start time (ticks since boot) that tells it from a later one of that pid."""

    pid: int
    start_ticks: int

    @classmethod
    def of(cls, pid: int) -> HostProcess | None:
        """The process that has this pid now."""
        fields = stat_fields(pid)
        return cls(pid, int(fields[19])) if fields else None

    @property
    def lives(self) -> bool:
        """Whether it has not ended."""
        fields = stat_fields(self.pid)
        return bool(fields) and fields[0] not in {b"Z", b"X"} and int(fields[19]) == self.start_ticks


def is_first_of_a_container(pid: int) -> bool:
    """Whether a process is number 1 of a pid namespace inside of ours."""
    numbers = _numbers(pid)
    return len(numbers) > 1 and numbers[-1] == "1"


def has_child(pid: int) -> bool:
    """Whether a process has started another one that runs."""
    try:
        return bool(Path(f"/proc/{pid}/task/{pid}/children").read_text(encoding="ascii"))
    except OSError:
        return True  # it has ended, or we may not know


def find_in_container(first: HostProcess, pid: int, start_ticks: int) -> HostProcess | None:
    """The process that is known by `pid` in the container whose first process is `first`, or None if it has ended."""
    for candidate in _pids():
        fields = stat_fields(candidate)
        if not fields or int(fields[19]) != start_ticks or _numbers(candidate)[-1:] != [str(pid)]:
            continue
        if _namespace(candidate) == _namespace(first.pid):
            return HostProcess(candidate, start_ticks)
    return None


def _pids() -> Iterator[int]:
    return (int(name) for name in os.listdir("/proc") if name.isdigit())


def _numbers(pid: int) -> list[str]:
    """A process's pids, from our pid namespace inwards."""
    try:
        with open(f"/proc/{pid}/status", encoding="utf-8", errors="replace") as file:
            return next((line.split()[1:] for line in file if line.startswith("NSpid:")), [])
    except OSError:
        return []


def _namespace(pid: int) -> str:
    """What names a process's pid namespace; empty if we may not know."""
    try:
        return os.readlink(f"/proc/{pid}/ns/pid")
    except OSError:
        return ""
