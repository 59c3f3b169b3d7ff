"""Directories in which files are made ready beside their place, in a directory of the user's; none stays when they are no more used.

::

    .tfjob-download-<8 letters>/lock    empty; locked by whoever uses the directory
    .tfjob-download-<8 letters>/new/    what is made ready; it is there only after the lock was taken

Those whose user was killed are removed by the next. Where a file system has no locks they stay: nobody can know.
"""

from __future__ import annotations

import contextlib
import os
import re
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Final

from tfjob.datasets.partials import is_ours

__all__ = ["beside"]

_PREFIX: Final = ".tfjob-download-"
_OURS: Final = re.compile(rf"{re.escape(_PREFIX)}[a-z0-9_]{{8}}")  # what mkdtemp makes of the prefix
_LOCK: Final = "lock"
_NEW: Final = "new"


@contextmanager
def beside(target: Path) -> Iterator[Path]:
    """An empty directory in the directory `target`, removed at the end; what killed ones left there is removed before.

    Raises OSError where none can be made.
    """
    _remove_left(target)
    directory, lock = _locked(target)
    try:
        fresh = directory / _NEW
        fresh.mkdir()
        yield fresh
    finally:
        _remove(directory, lock)


def _locked(target: Path) -> tuple[Path, int]:
    """A new directory, and its open lock."""
    while True:
        directory = Path(tempfile.mkdtemp(dir=target, prefix=_PREFIX))
        path = directory / _LOCK
        try:
            lock = os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
        except OSError:
            directory.rmdir()
            raise
        try:
            ours = is_ours(lock) and path.exists()
        except OSError:  # there are no locks here, for those who remove either
            ours = True
        if ours:
            return directory, lock
        os.close(lock)  # somebody took it for one that a killed process left, and removes it


def _remove_left(target: Path) -> None:
    """Remove directories that nobody uses any more. What can't be removed stays."""
    left: list[str] = []
    with contextlib.suppress(OSError), os.scandir(target) as entries:
        left += [one.path for one in entries if _OURS.fullmatch(one.name) and one.is_dir(follow_symlinks=False)]
    for path in left:
        with contextlib.suppress(OSError):
            if os.lstat(path).st_uid != os.geteuid() or not {_LOCK} <= set(os.listdir(path)) <= {_LOCK, _NEW}:
                continue
            lock = os.open(f"{path}/{_LOCK}", os.O_RDWR | os.O_NOFOLLOW | os.O_CLOEXEC)
            try:
                is_unused = is_ours(lock)
            except OSError:
                is_unused = False
            if is_unused:
                _remove(Path(path), lock)
            else:
                os.close(lock)


def _remove(directory: Path, lock: int) -> None:
    """Remove a directory, its lock last: what can't be removed now is found again. Closes the lock."""
    try:
        with contextlib.suppress(OSError):
            if (directory / _NEW).exists():
                shutil.rmtree(directory / _NEW)
            (directory / _LOCK).unlink()
    finally:
        os.close(lock)  # before the directory is removed: NFS keeps files in it as long as they are open
    with contextlib.suppress(OSError):
        directory.rmdir()
