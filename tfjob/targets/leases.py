"""Leases on things of this machine that two runs must not share: its GPUs, and the ports tasks listen on.

A lease is a locked file in a directory that all users of the machine share. The lock is handed down to the processes of
the run, so it is held exactly as long as one of them lives: there is no stale lease, whoever was killed.
"""

from __future__ import annotations

import fcntl
import json
import os
import tempfile
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

__all__ = ["Lease", "holder_of", "lease_directory", "try_lease"]


@dataclass(frozen=True)
class Lease:
    """A held lease: `descriptor` keeps it; give it to the processes that shall keep it too."""

    name: str
    descriptor: int

    def release(self) -> None:
        """Let go of this process's hold. Processes that inherited the descriptor still hold the lease."""
        os.close(self.descriptor)


def lease_directory() -> Path:
    """The machine's directory of leases: under /run/lock where that is writable for everybody, else the temporary directory.

    Source: Filesystem Hierarchy Standard 3.0, /var/lock (now /run/lock).
    """
    for parent in (Path("/run/lock"), Path(tempfile.gettempdir())):
        directory = parent / "tfjob"
        try:
            directory.mkdir(mode=0o1777)
            directory.chmod(0o1777)
        except FileExistsError:
            pass
        except OSError:
            continue
        if os.access(directory, os.W_OK | os.X_OK):
            return directory
    raise PermissionError(13, "no directory for leases is writable", str(directory))


def try_lease(name: str, holder: dict[str, str], directory: Path | None = None) -> Lease | None:
    """Take the lease `name`, noting who holds it (for messages only), or None if it is held."""
    path = (directory or lease_directory()) / f"{name}.lease"
    descriptor = _open(path)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        os.close(descriptor)
        return None
    os.ftruncate(descriptor, 0)
    os.pwrite(descriptor, json.dumps(holder).encode(), 0)
    return Lease(name, descriptor)


def holder_of(name: str, directory: Path | None = None) -> dict[str, str] | None:
    """Who holds the lease `name`, or None if nobody does."""
    path = (directory or lease_directory()) / f"{name}.lease"
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    except OSError:
        return None
    try:
        fcntl.flock(descriptor, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except OSError:
        try:
            found = json.loads(os.pread(descriptor, 4096, 0) or b"{}")
        except ValueError:
            found = {}
        return {str(key): str(value) for key, value in found.items()}
    else:
        return None
    finally:
        os.close(descriptor)


def _open(path: Path) -> int:
    # Without O_CREAT first: the kernel refuses O_CREAT on another user's file in a sticky directory (fs.protected_regular).
    flags = os.O_RDWR | os.O_CLOEXEC | os.O_NOFOLLOW  # anybody may put a link there
    try:
        return os.open(path, flags)
    except FileNotFoundError:
        pass
    # Whatever the umask, other users must be able to lease it later: it gets its name when its mode is right.
    descriptor, temporary = tempfile.mkstemp(dir=path.parent, prefix=".")
    os.fchmod(descriptor, 0o666)
    os.close(descriptor)
    with suppress(FileExistsError):
        os.link(temporary, path)
    os.unlink(temporary)
    return os.open(path, flags)
