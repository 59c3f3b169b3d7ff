"""The last lines of a log."""

from __future__ import annotations

import os
from pathlib import Path
from typing import BinaryIO

__all__ = ["TAIL_LINES", "last_lines"]

TAIL_LINES = 20
_BLOCK_BYTES = 64 * 1024
_MOST_BYTES = 4 * 1024 * 1024
_LINE_CHARACTERS = 2_000


def last_lines(path: Path, count: int = TAIL_LINES) -> tuple[str, ...]:
    """The last `count` lines of a log; a carriage return starts its line over, as on a terminal.

    At most 4 MiB are looked at, and of a longer line its last 2,000 characters are told.
    """
    try:
        with path.open("rb") as file:
            data = _end(file, count)
    except OSError:
        return ()
    lines = data.decode("utf-8", "replace").split("\n")
    if not lines[-1]:
        lines.pop()
    return tuple(_shown(line) for line in lines[-count:])


def _end(file: BinaryIO, count: int) -> bytes:
    """The end of the file that holds its last `count` lines, or as much of them as may be looked at."""
    position = size = file.seek(0, os.SEEK_END)
    blocks: list[bytes] = []
    newlines = 0
    # One newline may end the last line and one ends the line before the first.
    while position > 0 and newlines <= count and size - position < _MOST_BYTES:
        begin = max(position - _BLOCK_BYTES, 0)
        file.seek(begin)
        blocks.append(file.read(position - begin))
        newlines += blocks[-1].count(b"\n")
        position = begin
    return b"".join(reversed(blocks))


def _shown(line: str) -> str:
    text = line.rstrip("\r").rpartition("\r")[2]
    return text if len(text) <= _LINE_CHARACTERS else "…" + text[1 - _LINE_CHARACTERS :]
