"""A dataset's files put where a task can read them: links to where they are (a mount), or copies (a download).

Many files are copied by several processes, this one among them: what it takes is mostly the system's time, and Python's part of
it can't be done for two files at once in one process.
"""

from __future__ import annotations

import fcntl
import marshal
import os
import shutil
import struct
import subprocess
import sys
from collections.abc import Iterable, Iterator, Sequence
from contextlib import closing, contextmanager, suppress
from pathlib import Path
from typing import Final

from tfjob.datasets.copying import TURN, Copier, File, NotCopied
from tfjob.errors import PreparationError

__all__ = ["clear", "copy_files", "place"]

_PROGRAM: Final = "import sys; sys.path.append(sys.argv[1]); import copying; copying.main()"
_MANY: Final = 1000
"""Files that are worth the time in which another process starts."""
_MOST: Final = 4
_MOST_TURNS: Final = 250
_FILE_BYTES: Final = 16_000
"""So many bytes take as long to copy as a file to make."""
_GETFLAGS, _SETFLAGS, _TOPDIR = 0x80086601, 0x40086602, 0x00020000
"""ioctl_iflags(2)."""


def place(files: Iterable[File], into: Path, *, copy: bool) -> Sequence[int]:
    """Make the directory `into` hold the files: as links to where they are (a mount), or as writable copies (a download).

    Returns the time of change (ns) of each file when it had been copied; none of links.
    Done anew if `into` exists, as it does when an earlier try was killed. Raises PreparationError when a file has gone.
    """
    clear(into)
    if copy:
        _make_apart(into)
    else:
        into.mkdir(parents=True)
    try:
        if copy:
            return copy_files(tuple(files), into)
        _link(files, str(into))
    except NotCopied as failure:
        if not failure.reason:
            raise PreparationError(
                f"dataset file {failure.source} has changed since the job was submitted"
            ) from failure
        raise PreparationError(f"dataset file {failure.source} can't be used: {failure.reason}") from failure
    return ()


def copy_files(files: Sequence[File], into: Path) -> Sequence[int]:
    """Copy files to an empty directory, by several processes where they are many; the time of change (ns) of each when it had been copied.

    Raises NotCopied when one can't be copied, or has other bytes than it is said to have.
    """
    others = min(len(os.sched_getaffinity(0)), _MOST) - 1
    if len(files) >= _MANY and others:
        with suppress(OSError, EOFError):  # no other can be started, or one was killed
            return _copy_together(tuple(files), str(into), others)
        clear(into)
        into.mkdir()
    with closing(Copier(str(into))) as copier:
        return copier.copy(files)


def clear(into: Path) -> None:
    """Remove what an earlier try left."""
    if into.is_symlink():
        into.unlink()
    elif into.exists():
        shutil.rmtree(into)


def _make_apart(into: Path) -> None:
    """Make a directory, on ext4 in a part of the disk where nothing was deleted lately.

    There it takes up to twenty times as long to make a file, for minutes: no inode is used again so soon, and each is looked at
    (recently_deleted in Linux's fs/ext4/ialloc.c). A run deletes its copies when it ends, and the next would lie beside them. A
    directory in one with the attribute T (chattr(1)) lies where its name says, so it gets its name afterwards. Other file systems
    do not know T.
    """
    into.parent.mkdir(parents=True, exist_ok=True)
    with suppress(OSError):
        parent = os.open(into.parent, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            (flags,) = struct.unpack("i", fcntl.ioctl(parent, _GETFLAGS, bytes(4)))
            fcntl.ioctl(parent, _SETFLAGS, struct.pack("i", flags | _TOPDIR))
        finally:
            os.close(parent)
    fresh = into.with_name(f".{os.urandom(16).hex()}")
    fresh.mkdir()
    fresh.rename(into)


def _link(files: Iterable[File], into: str) -> None:
    made = {into}
    for source, name, size in files:
        target = f"{into}/{name}"
        directory = os.path.dirname(target)
        if directory not in made:
            os.makedirs(directory, exist_ok=True)
            made.add(directory)
        try:
            found = os.stat(source).st_size
            os.symlink(source, target)
        except OSError as error:
            raise NotCopied(source, error.strerror or str(error)) from error
        if found != size:
            raise NotCopied(source, "")


def _copy_together(files: tuple[File, ...], into: str, others: int) -> Sequence[int]:
    """Copy files with as many `others`. Raises OSError when they can't be started, and EOFError when one has not come to its end."""
    times_bytes = 8 * len(files)
    with _shared(times_bytes, marshal.dumps((into, files))) as shared, _turns(files) as turns:
        with _others(others, turns, shared, len(files)) as processes, closing(Copier(into)) as copier:
            copier.take_turns(files, turns, shared)
            for process in processes:
                told = process.stdout.read() if process.stdout is not None else b""
                if told:
                    raise NotCopied(*marshal.loads(told))  # noqa: S302  # this very program has written it
                if process.wait():
                    raise EOFError
        return struct.unpack(f"{len(files)}q", os.pread(shared, times_bytes, 0))


@contextmanager
def _shared(times_bytes: int, job: bytes) -> Iterator[int]:
    """A file in memory with room for the times, and behind it what is to be done."""
    descriptor = os.memfd_create("tfjob-copies")
    try:
        with os.fdopen(os.dup(descriptor), "wb") as file:
            file.seek(times_bytes)
            file.write(job)
        yield descriptor
    finally:
        os.close(descriptor)


@contextmanager
def _turns(files: Sequence[File]) -> Iterator[int]:
    """A pipe with all turns in it, of about as much work each: who is quick takes more of them."""
    share = sum(size + _FILE_BYTES for _, _, size in files) // _MOST_TURNS
    turns, start, work = b"", 0, 0
    for end, (_, _, size) in enumerate(files, 1):
        work += size + _FILE_BYTES
        if work > share or end == len(files):
            turns += struct.pack(TURN, start, end)
            start, work = end, 0
    reading, writing = os.pipe()
    try:
        try:
            os.write(writing, turns)  # at once, and whole: it is less than the least that any pipe holds
        finally:
            os.close(writing)
        yield reading
    finally:
        os.close(reading)


@contextmanager
def _others(count: int, turns: int, shared: int, files: int) -> Iterator[list[subprocess.Popen[bytes]]]:
    """So many processes that take turns; they are ended when this is left."""
    processes: list[subprocess.Popen[bytes]] = []
    arguments = [_PROGRAM, os.path.dirname(__file__), str(turns), str(shared), str(files)]
    try:
        for _ in range(count):
            processes.append(  # noqa: PERF401  # those that were started are ended if the next can't be
                subprocess.Popen(
                    [sys.executable, "-I", "-S", "-c", *arguments],
                    stdin=subprocess.PIPE,
                    stdout=subprocess.PIPE,
                    pass_fds=(turns, shared),
                    start_new_session=True,  # a terminal's interrupt is for who has started it
                )
            )
        yield processes
    finally:
        for process in processes:
            process.kill()
            with process:  # waits, and closes what is open to it
                pass
