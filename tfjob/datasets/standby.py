"""The processes that fetch small files, started before it is known which those are: they load while the run is made."""

from __future__ import annotations

import contextlib
import os
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from tfjob.datasets.wanted import Settings

__all__ = ["Standby", "process_count", "started"]

_PROGRAM: Final = "import sys; sys.path.insert(0, sys.argv[1]); from tfjob.datasets.small_files import main; main()"
_MOST: Final = 8


def process_count(files: int, settings: Settings) -> int:
    """How many processes are worth their start for so many files of the web; 0 where threads fetch them.

    They use all connections that may be open at once, but for one.
    """
    if files < settings.many:
        return 0
    processors = len(os.sched_getaffinity(0))
    return max(0, min(processors, settings.connections - 1, 2 * files // settings.many, _MOST))


def started() -> subprocess.Popen[bytes]:
    """Start one; it ends when its stdin does. Raises OSError."""
    return subprocess.Popen(
        [sys.executable, "-I", "-S", "-c", _PROGRAM, str(Path(__file__).parents[2])],
        cwd="/",
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        process_group=0,  # an interrupt of the terminal is for this process, which ends it
    )


class Standby:
    """Processes that nobody has use for yet."""

    def __init__(self) -> None:
        """Have none."""
        self._processes: list[subprocess.Popen[bytes]] = []

    def start(self, count: int) -> None:
        """Start so many, or what the system allows: who needs one more starts it."""
        with contextlib.suppress(OSError):
            for _ in range(count):
                self._processes.append(started())

    def take(self) -> subprocess.Popen[bytes]:
        """One that was started, or a new one. Raises OSError."""
        return self._processes.pop(0) if self._processes else started()

    def end(self) -> None:
        """End those that nobody took."""
        while self._processes:
            process = self._processes.pop()
            process.kill()
            process.communicate()
