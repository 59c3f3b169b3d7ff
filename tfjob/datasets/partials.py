"""The files that are fetched into, each locked by who fetches it."""

from __future__ import annotations

import contextlib
import fcntl
import os
from collections.abc import Callable
from typing import Final

from tfjob.datasets.wanted import Partial

__all__ = ["is_ours", "locked"]

_WAIT_S: Final = 0.1


def locked(path: str, pause: Callable[[float], None]) -> tuple[Partial, bool]:
    """Open the file that is fetched into, once nobody else fetches it; and whether somebody did.

    What `pause` raises ends the wait. Raises OSError when the file can't be made.
    """
    has_waited = False
    while True:
        descriptor = _open(path)
        try:
            while not is_ours(descriptor):
                has_waited = True
                pause(_WAIT_S)
            status = os.fstat(descriptor)
            if status.st_nlink and status.st_mode & 0o222:
                return Partial(path, descriptor, status.st_size), has_waited
            with contextlib.suppress(FileNotFoundError):
                if os.stat(path).st_ino == status.st_ino:
                    os.unlink(path)  # who made it was killed just before it became an object
        except BaseException:
            os.close(descriptor)
            raise
        os.close(descriptor)  # it has become an object meanwhile
        has_waited = True


def is_ours(descriptor: int) -> bool:
    """Take the lock of an open file, if nobody has it; whether it is ours then."""
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


def _open(path: str) -> int:
    """Open the file that is fetched into; to look at it only, where it can't be written any more."""
    try:
        return os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
    except PermissionError:
        return os.open(path, os.O_RDONLY | os.O_CLOEXEC)
