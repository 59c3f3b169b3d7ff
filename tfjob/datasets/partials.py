"""The files that are fetched into, each under a lock: who wants the same one waits until nobody fetches it.

One becomes an object when it is read-only and renamed. Where the first was done and the second was not, because somebody was
killed or the disk is full, what is there is of no use: who has its lock next removes it.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
from typing import TYPE_CHECKING, Final

from tfjob.datasets.wanted import Partial

if TYPE_CHECKING:
    from collections.abc import Callable

__all__ = ["is_ours", "locked"]

_WAIT_S: Final = 0.1
_AGAIN_S: Final = 0.01
_WRITABLE: Final = 0o222


def locked(path: str, pause: Callable[[float], None]) -> tuple[Partial, bool]:
    """Open the file that is fetched into, once nobody else fetches it; and whether somebody did.

    Raises OSError when it can't be written, and what `pause` raises, which waits so many seconds.
    """
    has_waited = False
    while True:
        descriptor = _opened(path)
        try:
            while not is_ours(descriptor):
                has_waited = True
                pause(_WAIT_S)
            status = os.fstat(descriptor)
            if status.st_nlink and status.st_mode & _WRITABLE:
                return Partial(path, descriptor, status.st_size), has_waited
            with contextlib.suppress(FileNotFoundError):
                if os.path.samestat(os.stat(path), status):  # it has not become an object
                    os.unlink(path)
        except BaseException:
            os.close(descriptor)
            raise
        os.close(descriptor)
        has_waited = True
        pause(_AGAIN_S)


def _opened(path: str) -> int:
    """The file, to be written, or only to be read where it is read-only: for its lock."""
    flags = os.O_RDWR | os.O_CREAT | os.O_CLOEXEC
    try:
        return os.open(path, flags, 0o644)
    except PermissionError:
        try:
            descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
        except FileNotFoundError:  # it has just become an object; or it can't be made, which is told now
            return os.open(path, flags, 0o644)
        if os.fstat(descriptor).st_mode & _WRITABLE:  # for others
            os.close(descriptor)
            raise
        return descriptor


def is_ours(descriptor: int) -> bool:
    """Take the lock of an open file, if nobody has it; whether it is ours then."""
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True
