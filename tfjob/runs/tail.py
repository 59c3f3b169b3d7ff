"""The last lines of a log."""

from __future__ import annotations

import os
from pathlib import Path

__all__ = ["TAIL_LINES", "last_lines"]

TAIL_LINES = 20
_READ_BYTES = 64 * 1024


def last_lines(path: Path, count: int = TAIL_LINES) -> tuple[str, ...]:
    """The last `count` lines of a log, from its last 64 KiB; a carriage return starts its line over, as on a terminal."""
    try:
        with path.open("rb") as file:
            size = file.seek(0, os.SEEK_END)
            file.seek(max(size - _READ_BYTES, 0))
            data = file.read()
    except OSError:
        return ()
    lines = data.decode("utf-8", "replace").split("\n")
    if size > _READ_BYTES:
        lines = lines[1:]  # its start was not read
    if lines and not lines[-1]:
        lines.pop()
    return tuple(line.rstrip("\r").rpartition("\r")[2] for line in lines[-count:])
