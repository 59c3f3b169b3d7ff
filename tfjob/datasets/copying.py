"""Files copied one after the other: what each of the processes does that copy the files of a dataset.

Also the program of those that are started for it (see `placing.py`). Standard library only, nothing of tfjob, and little of
the former: it starts quickly.

Its arguments are two descriptors and the number of files. From the first, a pipe, it takes turns: the first file of one and
the end, as two native ints. In the second, a file in memory, there is room for a time of 8 bytes for each file, and
behind that, marshalled, the directory to copy to and the files. It writes the times of change (ns) of what it copied to
their places; and to its stdout nothing, or, when a file can't be copied, the file and the reason, marshalled. It ends when
its stdin does.
"""

from __future__ import annotations

import _thread
import fcntl
import gc
import marshal
import os
import struct
import sys

TYPE_CHECKING = False  # typing.TYPE_CHECKING, without importing typing
if TYPE_CHECKING:
    from collections.abc import Sequence

_FICLONE = 0x40049409
"""ioctl_ficlone(2): the copy shares the blocks of the original until one of them is written to."""
_PIECE_BYTES = 1 << 30
TURN = "ii"
_TURN_BYTES = struct.calcsize(TURN)
_DIRECTORY = os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC  # to look up names in: it needs no right to list them

File = tuple[str, str, int]
"""Where it is, its path below the directory to copy to, and its bytes."""


class NotCopied(Exception):
    """A file that can't be copied, and why: the system's words, or empty where it is not the file that was asked for."""

    def __init__(self, source: str, reason: str) -> None:
        """Of `source`; see above."""
        super().__init__(source, reason)
        self.source = source
        self.reason = reason


class Copier:
    """Copies files to one directory, in any number of turns."""

    def __init__(self, into: str) -> None:
        """To the directory `into`, which is there."""
        self._into = into
        self._made = {into}
        self._from, self._to = _Place(), _Place()

    def copy(self, files: Sequence[File]) -> list[int]:
        """Copy files; the time of change (ns) of each when it had been read.

        Raises NotCopied for the first that can't be copied, or has other bytes than it is said to have: before, or after.
        """
        times = []
        for source, name, size in files:
            target = f"{self._into}/{name}"
            try:
                copied, status = self._copy(source, target, size)
            except OSError as error:
                raise NotCopied(source, error.strerror or str(error)) from error
            if copied != size or status.st_size != size:
                raise NotCopied(source, "")
            times.append(status.st_mtime_ns)
        return times

    def take_turns(self, files: Sequence[File], turns: int, times: int) -> None:
        """Copy the files of a turn, as long as there is one; the others who take turns end theirs when one can't be copied."""
        try:
            while turn := os.read(turns, _TURN_BYTES):
                start, end = struct.unpack(TURN, turn)
                found = self.copy(files[start:end])
                os.pwrite(times, struct.pack(f"{len(found)}q", *found), 8 * start)
        except BaseException:
            while os.read(turns, 1 << 12):
                pass
            raise

    def close(self) -> None:
        """Close the directories."""
        self._from.close()
        self._to.close()

    def _copy(self, source: str, target: str, size: int) -> tuple[int, os.stat_result]:
        directory = target[: target.rindex("/")]
        if directory not in self._made:
            os.makedirs(directory, exist_ok=True)
            self._made.add(directory)
        name, at = self._from.find(source)
        reader = os.open(name, os.O_RDONLY | os.O_CLOEXEC, dir_fd=at)
        try:
            name, at = self._to.find(target)
            writer = os.open(name, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o666, dir_fd=at)
            try:
                return _copy(reader, writer, size), os.fstat(reader)
            finally:
                os.close(writer)
        finally:
            os.close(reader)


class _Place:
    """The directory that files are found in one after the other. It is opened for the second of them: a path is long to look up."""

    def __init__(self) -> None:
        self._path: str | None = None
        self._descriptor: int | None = None

    def find(self, path: str) -> tuple[str, int | None]:
        """The name to open, and the directory it is to be looked up in, if it is one."""
        directory, _, name = path.rpartition("/")
        if directory != self._path:
            self.close()
            self._path = directory
            return path, None
        if self._descriptor is None:
            self._descriptor = os.open(directory or "/", _DIRECTORY)
        return name, self._descriptor

    def close(self) -> None:
        if self._descriptor is not None:
            os.close(self._descriptor)
        self._path = self._descriptor = None


_can_clone = True


def _copy(reader: int, writer: int, size: int) -> int:
    """Copy all, sharing its blocks where the file system can, and return its bytes. Nobody looks for more than `size`."""
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
            if copied == size:
                break
    except OSError:
        if copied:
            raise
        while sent := os.sendfile(writer, reader, None, _PIECE_BYTES):  # across file systems that know no better
            copied += sent
    return copied


def main() -> None:
    """Take turns until there are none."""
    gc.disable()  # it makes no garbage, and would look through the rows of all files
    turns, shared, count = map(int, sys.argv[2:])
    _thread.start_new_thread(_end_with_stdin, ())
    into, files = marshal.loads(_read(shared, 8 * count))  # noqa: S302  # who has started this has written it
    try:
        Copier(into).take_turns(files, turns, shared)
    except NotCopied as failure:
        os.write(1, marshal.dumps((failure.source, failure.reason)))
    os._exit(0)


def _read(shared: int, start: int) -> bytes:
    """What is in the file from `start` on. Its offset is that of all who have the file open: nobody may use it."""
    pieces = []
    while piece := os.pread(shared, os.fstat(shared).st_size - start, start):  # 2 GiB at once at most
        pieces.append(piece)
        start += len(piece)
    return b"".join(pieces)


def _end_with_stdin() -> None:
    """A thread that waits for nothing else: whoever started this may be killed, and another may begin anew."""
    while os.read(0, 1):
        pass
    os._exit(1)
