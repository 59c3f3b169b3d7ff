"""The store's cache of conda packages: who uses it when, and what may be in it.

rattler unpacks NAME into ``.NAMExxxxxx``, renames that to ``NAME``, and keeps the hash of the package's file at the end
of ``NAME.lock``. It writes that hash first: so the file alone does not say that this is what was unpacked.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import shutil
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator
    from pathlib import Path

    from tfjob.environments.lock import CondaRecord

__all__ = ["LOCK", "alone", "half_unpacked", "in_use", "is_unpacked", "sweep"]

# The file of the cache that is locked by whoever uses it, and by whoever removes from it alone.
LOCK = ".lock"


@contextlib.contextmanager
def in_use(cache: Path, wanted: Iterable[CondaRecord] = ()) -> Iterator[None]:
    """Keep others from removing what is in the cache meanwhile; waits for one who does.

    What has the name of a `wanted` package and is another file goes first: rattler, ended while it replaces that, would
    later take it for the new one.
    """
    with (cache / LOCK).open("w") as file:
        stale = [record for record in wanted if _is_another(cache, record)]
        if stale:
            fcntl.flock(file, fcntl.LOCK_EX)
            for record in stale:
                if _is_another(cache, record):
                    shutil.rmtree(_folder(cache, record))
        fcntl.flock(file, fcntl.LOCK_SH)
        yield


@contextlib.contextmanager
def alone(lock: Path, *, writes: bool = True) -> Iterator[bool]:
    """Hold the lock of a cache, or of something else, alone if nobody uses it now, and say whether; without a lock's file it is not held.

    Who only looks opens it for reading (`writes` False), which a store of somebody else allows.
    """
    try:
        descriptor = os.open(lock, (os.O_RDWR if writes else os.O_RDONLY) | os.O_CLOEXEC)
    except FileNotFoundError:
        yield False
        return
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        yield False
    else:
        yield True
    finally:
        os.close(descriptor)


def sweep(cache: Path) -> None:
    """Remove what ended downloads left, if nobody uses the cache now."""
    if not half_unpacked(cache):
        return
    with contextlib.suppress(PermissionError), alone(cache / LOCK) as is_alone:  # somebody else's is theirs to sweep
        for path in half_unpacked(cache) if is_alone else ():
            shutil.rmtree(path, ignore_errors=True)


def half_unpacked(cache: Path) -> list[Path]:
    """Return the folders that rattler unpacks into; where nobody uses the cache, they are left-overs."""
    return sorted(path for path in (cache / "packages").glob(".*") if path.is_dir() and not path.is_symlink())


def is_unpacked(cache: Path, record: CondaRecord) -> bool:
    """Whether the cache has a locked package, whole."""
    return _hash(cache, record) == record.sha256 and (_folder(cache, record) / "info" / "index.json").is_file()


def _is_another(cache: Path, record: CondaRecord) -> bool:
    """Whether the cache has another package than the locked one under its name."""
    return _folder(cache, record).is_dir() and _hash(cache, record) != record.sha256


def _folder(cache: Path, record: CondaRecord) -> Path:
    return cache / "packages" / f"{record.name}-{record.version}-{record.build}"


def _hash(cache: Path, record: CondaRecord) -> str:
    """Return the SHA-256 (hex) that rattler keeps of a package's file; empty without one."""
    folder = _folder(cache, record)
    try:
        return folder.with_name(f"{folder.name}.lock").read_bytes()[-32:].hex()
    except FileNotFoundError:
        return ""
