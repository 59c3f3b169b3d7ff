"""A build on the screen while it happens, for commands that build outside of a run.

What the command prints as its result goes to stdout; all of this goes to stderr: on a terminal the step that lasts,
with its time, and the build's own output above it; piped, a plain line each.
"""

from __future__ import annotations

import sys
import time
from contextlib import contextmanager
from typing import TYPE_CHECKING

from tfjob.cli.output import colored, duration, step_of, uses_color

if TYPE_CHECKING:
    from collections.abc import Iterator

__all__ = ["BuildScreen", "building"]


class BuildScreen:
    """Shows one build: `progress` takes the step it is at, `log` its output."""

    def __init__(self, title: str, *, quiet: bool = False) -> None:
        from tfjob.cli.live import Spinner  # noqa: PLC0415  # only where something is built

        self._began = time.monotonic()
        self._title = title
        self._quiet = quiet
        self._last = ""
        self._spinner = Spinner(title, sys.stderr) if uses_color(sys.stderr) and not quiet else None

    def progress(self, message: str) -> None:
        """Say what the build is at."""
        if self._spinner:
            self._spinner.update(message)
        elif step_of(message) != self._last and not self._quiet:
            print(f"tfjob: {message}", file=sys.stderr, flush=True)
        self._last = step_of(message)

    def log(self, line: str) -> None:
        """Show a line of the build's own output."""
        if self._spinner:
            self._spinner.print(f"  {line}")
        elif not self._quiet:
            print(f"  {line}", file=sys.stderr, flush=True)

    def close(self, *, is_done: bool) -> None:
        """Take the spinner away; say how long it took."""
        if self._spinner:
            self._spinner.stop()
        if is_done and not self._quiet:
            taken = duration(time.monotonic() - self._began)
            print(colored(f"  {self._title}  {taken}", "dim", sys.stderr), file=sys.stderr, flush=True)


@contextmanager
def building(title: str, *, quiet: bool = False) -> Iterator[BuildScreen]:
    """Show a build that goes on inside; how long it took, if it was done."""
    screen = BuildScreen(title, quiet=quiet)
    is_done = False
    try:
        yield screen
        is_done = True
    finally:
        screen.close(is_done=is_done)
