"""What the operating system refuses, in words: the path, the reason, and what to do about it."""

from __future__ import annotations

import errno
import os
import pwd
import shutil
import stat

from tfjob.cli.output import shown_path, size

__all__ = ["explain"]

_HINTS = {
    errno.EROFS: "Its file system is mounted read-only.",
    errno.EDQUOT: "This user's share of the disk is used up: remove something.",
    errno.EIO: "The disk or the connection to it has failed: see `dmesg`.",
    errno.ESTALE: "The file server has lost it: mount it again.",
    errno.EMFILE: "This user may not open more files: see `ulimit -n`.",
    errno.ENFILE: "The machine may not open more files.",
    errno.ENOMEM: "The machine is out of memory.",
    errno.EAGAIN: "The machine, or this user, may not start more processes: see `ulimit -u`.",
    errno.ELOOP: "Its symbolic links lead in a circle.",
    errno.ENAMETOOLONG: "",
    errno.ENOENT: "",
    errno.ENOTDIR: "",
    errno.EISDIR: "",
    errno.EEXIST: "",
    errno.ETXTBSY: "",
    errno.ENOEXEC: "It is not a program of this machine.",
}


def explain(error: OSError | RuntimeError) -> tuple[str, str] | None:
    """(message, hint) for an error that the machine has caused, None for one that must be a bug of tfjob."""
    if isinstance(error, RuntimeError):
        is_home = "home directory" in str(error)  # pathlib's only word on it
        return ("this user has no home directory", "Set HOME to a directory that can be written.") if is_home else None
    if error.errno is None:
        return None
    path = error.filename2 or error.filename
    text = os.fsdecode(path) if isinstance(path, str | bytes | os.PathLike) else ""
    reason = error.strerror or os.strerror(error.errno)
    if not text and error.errno == errno.ENOENT and not _is_somewhere():
        return f"the current folder: {reason}", "It was removed: change to another one."
    hint = _hint(error.errno, text)
    return None if hint is None else (f"{shown_path(text)}: {reason}" if text else reason, hint)


def _hint(number: int, path: str) -> str | None:
    if number in (errno.EACCES, errno.EPERM):
        return _owner(path) if path else ""
    return _room(path) if number == errno.ENOSPC else _HINTS.get(number)


def _is_somewhere() -> bool:
    try:
        os.getcwd()
    except OSError:
        return False
    return True


def _owner(path: str) -> str:
    """Whose the path, or the nearest of its parents that can be seen, is."""
    path = os.path.abspath(path)
    while True:
        try:
            found = os.stat(path)
            break
        except OSError:
            if path == os.path.dirname(path):
                return ""
            path = os.path.dirname(path)
    mode = stat.filemode(found.st_mode)
    return f"{shown_path(path)} belongs to {_user(found.st_uid)} ({mode}); you are {_user(os.geteuid())}."


def _user(number: int) -> str:
    try:
        return pwd.getpwuid(number).pw_name
    except KeyError:
        return f"user {number}"


def _room(path: str) -> str:
    path = os.path.abspath(path) if path else ""
    while path and not os.path.exists(path):
        path = os.path.dirname(path)
    if not path:
        return "Free some space."
    return f"{size(shutil.disk_usage(path).free)} are free there: remove something."
