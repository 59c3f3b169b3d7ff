"""Leases on things of this machine that two runs must not share: its GPUs, and the ports tasks listen on.

A lease is a locked byte of a file in a directory that all users of the machine share. The lock belongs to the open file
(fcntl_locking(2), "open file description locks"), and that is handed down to the processes of the run: it is held
exactly as long as one of them lives. There is no stale lease, whoever was killed, and no file to remove.

A GPU has a file of its own, which says who holds it. A port, leased under the name ``port-NUMBER``, is the byte of
that number of one file, `ports.lease`, which stays empty.
"""

from __future__ import annotations

import errno
import fcntl
import json
import os
import stat
import struct
import tempfile
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

__all__ = ["Lease", "holder_of", "lease_directory", "try_lease"]

_PLACES = (Path("/run/lock"), Path("/tmp"))  # noqa: S108  # the same for all users, so not TMPDIR
_SHARED = stat.S_ISVTX | 0o777
_FLOCK = "hhqqi0q"  # struct flock with 64-bit offsets: type, whence, start, length, pid; padded as C does


@dataclass(frozen=True)
class Lease:
    """A held lease: `descriptor` keeps it; give it to the processes that shall keep it too."""

    name: str
    descriptor: int

    def release(self) -> None:
        """Let go of this process's hold. Processes that inherited the descriptor still hold the lease."""
        os.close(self.descriptor)


def lease_directory() -> Path:
    """The machine's directory of leases: in /run/lock where every user may write there, else in /tmp.

    The choice depends on nothing of the user's: two who looked in different places would lease the same GPU.
    Raises PermissionError when what is there can't be shared. Source: Filesystem Hierarchy Standard 3.0, /var/lock (now
    /run/lock).
    """
    parent = next((place for place in _PLACES if _is_shared(place)), _PLACES[-1])
    directory = parent / "tfjob"
    if not os.path.lexists(directory):
        _make_shared(directory)
    if directory.is_symlink() or not _is_shared(directory):
        raise PermissionError(errno.EACCES, "not a directory that all users can write to", str(directory))
    return directory


def try_lease(name: str, holder: dict[str, str], directory: Path | None = None) -> Lease | None:
    """Take the lease `name`, noting who holds it (for messages only, and not of ports), or None if it is held."""
    path, byte = _place(name, directory)
    descriptor = _open(path)
    try:
        fcntl.fcntl(descriptor, fcntl.F_OFD_SETLK, _lock(byte))
    except OSError as error:
        os.close(descriptor)
        if error.errno in (errno.EAGAIN, errno.EACCES):
            return None
        raise
    if not _is_port(name):
        with suppress(OSError):  # a full disk
            os.ftruncate(descriptor, 0)
            os.pwrite(descriptor, json.dumps(holder).encode(), 0)
    return Lease(name, descriptor)


def holder_of(name: str, directory: Path | None = None) -> dict[str, str] | None:
    """Who holds the lease `name`, or None if nobody does. Never in the way of somebody who takes it."""
    path, byte = _place(name, directory)
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW)
    except OSError:
        return None
    try:
        answer = fcntl.fcntl(descriptor, fcntl.F_OFD_GETLK, _lock(byte))
        if struct.unpack(_FLOCK, answer)[0] == fcntl.F_UNLCK:
            return None
        found = json.loads(os.pread(descriptor, 4096, 0) or b"{}")
        return {str(key): str(value) for key, value in found.items()}
    except (ValueError, AttributeError):  # it is being written, or is no text of ours
        return {}
    finally:
        os.close(descriptor)


def _place(name: str, directory: Path | None) -> tuple[Path, int]:
    directory = directory or lease_directory()
    if _is_port(name):
        return directory / "ports.lease", int(name.removeprefix("port-"))
    return directory / f"{name}.lease", 0


def _is_port(name: str) -> bool:
    return name.removeprefix("port-").isdecimal()


def _lock(byte: int) -> bytes:
    return struct.pack(_FLOCK, fcntl.F_WRLCK, os.SEEK_SET, byte, 1, 0)


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


def _is_shared(directory: Path) -> bool:
    try:
        mode = directory.stat().st_mode
    except OSError:
        return False
    return stat.S_ISDIR(mode) and mode & _SHARED == _SHARED


def _make_shared(directory: Path) -> None:
    """Make it with its mode, whatever the umask; another user may do the same at this moment."""
    fresh = Path(tempfile.mkdtemp(dir=directory.parent, prefix=".tfjob-"))
    fresh.chmod(_SHARED)
    try:
        fresh.rename(directory)
    except OSError:
        fresh.rmdir()
