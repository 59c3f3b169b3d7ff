"""Files that survive what goes wrong: replaced whole or not at all, appended line by line, locked by whoever is alive.

Everything tfjob must not lose goes through here. A reader never sees half a file; a killed writer leaves the old one;
a lock dies with the processes that hold it, so there are no stale locks to clean up.
"""

from __future__ import annotations

import errno
import fcntl
import hashlib
import json
import os
import tempfile
from pathlib import Path
from typing import Any

__all__ = [
    "NoLocksError",
    "append_line",
    "digest_of",
    "file_digest",
    "force",
    "is_locked",
    "replace_json",
    "replace_text",
    "take_lock",
    "try_lock",
    "umask",
]


_NO_LOCKS = (errno.ENOSYS, errno.EOPNOTSUPP, errno.ENOLCK, errno.EINVAL)


class NoLocksError(OSError):
    """The file system has no locks, or not now: whether somebody else is at work can't be known."""


def replace_text(path: Path, text: str, *, force: bool = True) -> None:
    """Write `text` to `path` (UTF-8) so that the file is either the old one or the new one, never part of it.

    With `force` it is on the disk when this returns; without, a power loss may bring the old file back.
    Raises OSError when the disk is full or the directory is not writable; the old file is then untouched.
    """
    _replace(path, text.encode(), force=force)


def replace_json(path: Path, value: Any, *, force: bool = True) -> None:
    """Write `value` as indented JSON, replacing the file atomically (see `replace_text`)."""
    _replace(path, _utf8(json.dumps(value, indent=2, ensure_ascii=False) + "\n"), force=force)


def _replace(path: Path, data: bytes, *, force: bool) -> None:
    descriptor, temporary = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
    try:
        with os.fdopen(descriptor, "wb") as file:
            file.write(data)
            file.flush()
            if force:
                os.fsync(file.fileno())
        Path(temporary).chmod(0o644 & ~umask())
        os.replace(temporary, path)
    except BaseException:
        Path(temporary).unlink(missing_ok=True)
        raise


def force(path: Path) -> None:
    """See that a file is on the disk as it is now, whoever wrote it. Raises OSError when it can't be, or is not there."""
    for one in (path, path.parent):
        descriptor = os.open(one, os.O_RDONLY | os.O_CLOEXEC)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)


def append_line(path: Path, line: str) -> None:
    """Append one line in a single write, so that lines of several writers never mix.

    Raises OSError when the disk is full; the part of the line that still fitted is then taken back.
    """
    descriptor = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o644)
    try:
        data = _utf8(line + "\n")
        written = os.write(descriptor, data)
        if written != len(data):
            end = os.lseek(descriptor, 0, os.SEEK_CUR)
            if os.fstat(descriptor).st_size == end:
                os.ftruncate(descriptor, end - written)
            raise OSError(28, "No space left on device", str(path))
    finally:
        os.close(descriptor)


def take_lock(path: Path) -> int | None:
    """Take the lock `path` if nobody holds it: a descriptor that holds it until closed, or None.

    The lock belongs to the open file: processes that inherit the descriptor hold it too, and the kernel
    lets go of it when the last of them ends, however it ends. Raises NoLocksError where the file system has none
    (Lustre that is mounted without flock), for who would wait for ever for one that is held.
    """
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        os.close(descriptor)
        if error.errno in _NO_LOCKS:
            raise NoLocksError(error.errno, error.strerror, str(path)) from error
        return None  # held, in the words of this file system; or trouble that may pass
    return descriptor


def try_lock(path: Path) -> int | None:
    """Take the lock `path` as `take_lock` does; None also where the file system has no locks."""
    try:
        return take_lock(path)
    except NoLocksError:
        return None


def is_locked(path: Path) -> bool:
    """Whether some living process holds the lock `path`. Takes nothing and creates nothing."""
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    except FileNotFoundError:
        return False
    try:
        fcntl.flock(descriptor, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except OSError:
        return True
    else:
        return False
    finally:
        os.close(descriptor)


def digest_of(value: Any) -> str:
    """The SHA-256 (hex) of a JSON value in its canonical form: keys sorted, no spaces."""
    text = json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=False)
    return hashlib.sha256(_utf8(text)).hexdigest()


def file_digest(path: Path) -> str:
    """The SHA-256 (hex) of a file's bytes."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _utf8(text: str) -> bytes:
    """JSON text as UTF-8. What Python makes of a file name that is no UTF-8 (PEP 383) stands in it as its JSON escape."""
    return text.encode("utf-8", "backslashreplace")


def umask() -> int:
    """This process's umask. It can be read by setting it, which others would notice, or here (proc(5))."""
    for line in Path("/proc/self/status").read_bytes().splitlines():
        if line.startswith(b"Umask:"):
            return int(line.split()[1], 8)
    return 0o022
