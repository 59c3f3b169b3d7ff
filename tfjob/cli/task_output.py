"""What tasks print, on its way to stdout: one task's bytes as they are, several tasks' lines each marked by its task."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable
from typing import BinaryIO, TextIO

from tfjob.cli.output import colored
from tfjob.runs.follow import Chunk

__all__ = ["TaskOutput"]

_TASK_STYLES = ("cyan", "magenta", "green", "yellow", "blue")
_PROGRESS_S = 2.0
_HELD_BYTES = 1 << 20


class TaskOutput:
    """Writes what tasks print. With several tasks a line is held until it is whole, so that lines never mix.

    What is written over and over with carriage returns (a progress bar) is shown every two seconds meanwhile; of a line
    longer than 1 MiB, no more than that is held.
    """

    def __init__(
        self, names: Iterable[str], out: BinaryIO, screen: TextIO, clock: Callable[[], float] = time.monotonic
    ) -> None:
        names = list(names)
        self._out = out
        self._clock = clock
        self._marks = _make_marks(names, screen) if len(names) > 1 else {}
        self._held: dict[str, _HeldLine] = {}
        self._ends_line = True

    def write(self, chunk: Chunk) -> None:
        """Write a piece of output."""
        if not self._marks:
            self._put(chunk.data)
            return
        first, *more = chunk.data.split(b"\n")
        if more:
            *whole, rest = more
            held = self._held.pop(chunk.task, None) or _HeldLine(0)
            held.add(first)
            end = held.end()
            self._put_lines(chunk.task, [*([] if end is None else [end]), *map(_as_line, whole)])
        else:
            rest = first
        if rest:
            held = self._held.setdefault(chunk.task, _HeldLine(self._clock()))
            held.add(rest)
            if (piece := held.too_much()) is not None:
                self._put_lines(chunk.task, [piece])
        self.refresh()

    def refresh(self) -> None:
        """Show the progress bars that it is time to show."""
        for task, held in self._held.items():
            if (text := held.progress(self._clock())) is not None:
                self._put_lines(task, [text])

    def close(self) -> None:
        """Write what was held back, and end the last line."""
        for task, held in self._held.items():
            if text := held.end():
                self._put_lines(task, [text])
        self._held.clear()
        if not self._ends_line:
            self._put(b"\n")

    def _put_lines(self, task: str, lines: list[bytes]) -> None:
        mark = self._marks.get(task) or f"{task} | ".encode()
        self._put(b"".join(mark + line + b"\n" for line in lines))

    def _put(self, data: bytes) -> None:
        if data:
            self._out.write(data)
            self._out.flush()
            self._ends_line = data.endswith(b"\n")


class _HeldLine:
    """A line that has begun, as a terminal would show it: what follows a carriage return is written over what was there."""

    def __init__(self, now: float) -> None:
        self._over = b""  # the last text that a carriage return has ended
        self._pieces: list[bytes] = []  # what came since
        self._size = 0
        self._returns = self._was_cut = False
        self._shown: bytes | None = None
        self._shown_at = now

    def add(self, data: bytes) -> None:
        before, returns, after = data.rpartition(b"\r")
        if returns:
            self._returns = True
            *_, last = [b"", *filter(None, before.split(b"\r"))]
            if b"\r" not in before.rstrip(b"\r"):  # the text that was begun earlier goes on to the first return
                last = b"".join((*self._pieces, last))
            self._over = last or self._over
            self._pieces, self._size = [], 0
        if after:
            self._pieces.append(after)
            self._size += len(after)

    def progress(self, now: float) -> bytes | None:
        """What to show of a progress bar now, if it has changed and it is time."""
        if not self._returns or now - self._shown_at < _PROGRESS_S:
            return None
        self._shown_at = now
        text = self._text()
        if text in (self._shown, b""):
            return None
        self._shown = text
        return text

    def too_much(self) -> bytes | None:
        """What is held, when it is more than should be."""
        if self._size <= _HELD_BYTES:
            return None
        text = self._text()
        self._over, self._pieces, self._size = b"", [], 0
        self._was_cut = True
        return text

    def end(self) -> bytes | None:
        """What is left to write when the line ends; None if all of it has been written."""
        text = self._text()
        return None if text == self._shown or (self._was_cut and not text) else text

    def _text(self) -> bytes:
        return (b"".join(self._pieces) or self._over).replace(b"\0", b"")


def _as_line(line: bytes) -> bytes:
    """A whole line as a terminal would leave it."""
    return line.rstrip(b"\r").rpartition(b"\r")[2].replace(b"\0", b"")


def _make_marks(names: list[str], screen: TextIO) -> dict[str, bytes]:
    width = max(map(len, names))
    return {
        name: colored(f"{name.ljust(width)} | ", _TASK_STYLES[index % len(_TASK_STYLES)], screen).encode()
        for index, name in enumerate(names)
    }
