"""A dataset's files put where a task can read them: links to where they are (a mount), or copies (a download)."""

from __future__ import annotations

import fcntl
import os
import shutil
from collections.abc import Iterable
from pathlib import Path

from tfjob.errors import PreparationError

__all__ = ["clear", "copy_file", "place"]

_FICLONE = 0x40049409
"""ioctl_ficlone(2): the copy shares the blocks of the original until one of them is written to."""
_PIECE_BYTES = 1 << 30


def place(files: Iterable[tuple[str, str, int]], into: Path, *, copy: bool) -> None:
    """Make the directory `into` hold the files: as links to where they are (a mount), or as writable copies (a download).

    Done anew if `into` exists, as it does when an earlier try was killed. Raises PreparationError when a file has gone.
    """
    clear(into)
    into.mkdir(parents=True)
    made = {str(into)}
    for source, name, size in files:
        target = f"{into}/{name}"
        directory = os.path.dirname(target)
        if directory not in made:
            os.makedirs(directory, exist_ok=True)
            made.add(directory)
        try:
            if copy:
                copied = copy_file(source, target)
            else:
                copied = os.stat(source).st_size
                os.symlink(source, target)
        except OSError as error:
            raise PreparationError(f"dataset file {source} can't be used: {error.strerror}") from error
        if copied != size:
            raise PreparationError(f"dataset file {source} has changed since the job was submitted")


def clear(into: Path) -> None:
    """Remove what an earlier try left."""
    if into.is_symlink():
        into.unlink()
    elif into.exists():
        shutil.rmtree(into)


def copy_file(source: str, target: str) -> int:
    """Copy the content of a file to a new one, sharing its blocks where the file system can; returns its bytes."""
    reader = os.open(source, os.O_RDONLY | os.O_CLOEXEC)
    try:
        writer = os.open(target, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o666)
        try:
            return _copy(reader, writer)
        finally:
            os.close(writer)
    finally:
        os.close(reader)


_can_clone = True


def _copy(reader: int, writer: int) -> int:
    global _can_clone  # noqa: PLW0603  # one file system refuses it for all files: it is asked once
    if _can_clone:
        try:
            fcntl.ioctl(writer, _FICLONE, reader)
        except OSError:
            _can_clone = False
        else:
            return os.fstat(writer).st_size
    copied = 0
    try:
        while sent := os.copy_file_range(reader, writer, _PIECE_BYTES):
            copied += sent
    except OSError:
        if copied:
            raise
        while sent := os.sendfile(writer, reader, None, _PIECE_BYTES):  # across file systems that know no better
            copied += sent
    return copied
