"""What is kept on the file system of Slurm's nodes: how it lies there, who uses it, and what of it goes. See keeping.py."""

from __future__ import annotations

import errno
import fcntl
import json
import os
import shutil
import stat
import time

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterator
    from typing import Any

OBJECT_TIME_NS = 10**18
"""The time of change of every object. One with another time was written to."""
YOUNG_S = 3600.0
OLD_S = 86400.0


def kept_in(store: str) -> Iterator[tuple[float, int, str, str]]:
    """What is kept: when it was used last, its bytes, its kind and key."""
    for kind in names(store):
        if kind in ("uses", "objects"):
            continue
        for key in names(os.path.join(store, kind)):
            place = os.path.join(store, kind, key)
            if key.startswith(".") or not os.path.isdir(place):
                continue
            try:
                used, size = os.stat(place + ".json").st_mtime, int(read_json(place + ".json")["size_bytes"])
            except (OSError, ValueError):  # nodes made it themselves
                used, size = os.stat(place).st_mtime, size_of(place)
            yield used, size, kind, key


def in_use(store: str) -> set[tuple[str, str]]:
    """What runs use. What a run left that has no directory any more is removed."""
    found = set()
    for name in names(os.path.join(store, "uses")):
        path = os.path.join(store, "uses", name)
        try:
            use = read_json(path)
            is_young = time.time() - os.stat(path).st_mtime < YOUNG_S
        except (OSError, ValueError):
            continue
        if is_young or os.path.isdir(use["run"]) or os.path.isdir(use["run"] + ".part"):
            found |= {(kind, key) for kind, key in use["wanted"]}
        else:
            os.unlink(path)
    return found


def is_there(place: str) -> bool:
    """Whether something is kept, and nothing was written to it as far as is known."""
    return os.path.isdir(place) and not os.path.exists(place + ".harmed")


def drop(store: str, kind: str, key: str) -> bool:
    """Remove one thing that is kept, unless a run has begun to use it, or sends it. Returns whether it is gone."""
    lock = try_lock(os.path.join(store, kind, f".{key}.lock"))
    if lock is None:
        return False
    try:
        return drop_alone(store, kind, key)
    finally:
        if lock >= 0:
            os.close(lock)


def drop_alone(store: str, kind: str, key: str) -> bool:
    """The same, while nobody sends it."""
    place = os.path.join(store, kind, key)
    gone = os.path.join(store, kind, f".{key}.gone-{os.getpid()}")
    os.rename(place, gone)
    if (kind, key) in in_use(store) and not os.path.isdir(place):
        os.rename(gone, place)
        return False
    try:
        files = read_json(place + ".files")
    except (OSError, ValueError):
        files = []
    for name in (place + ".json", place + ".files", place + ".harmed"):
        if os.path.exists(name):
            os.unlink(name)
    remove(gone)
    for _, of, _, content in files:
        if of not in ("l", "d"):
            drop_object(object_of(store, content, of), 0.0)
    return True


def drop_object(path: str, age_s: float) -> None:
    """Remove a content that no tree has, nor had for some time."""
    try:
        status = os.stat(path)
        if status.st_nlink == 1 and time.time() - status.st_ctime >= age_s:
            os.unlink(path)
    except OSError:
        pass


def sweep(store: str) -> None:
    """Remove what was left by who was interrupted a day ago."""
    objects = os.path.join(store, "objects")
    for two in names(objects):
        for name in names(os.path.join(objects, two)):
            drop_object(os.path.join(objects, two, name), OLD_S)
    for kind in names(store):
        for name in names(os.path.join(store, kind)):
            path = os.path.join(store, kind, name)
            if name.startswith(".") and (".gone-" in name or ".part-" in name) and is_old(path):
                remove(path)


def is_old(path: str) -> bool:
    """Whether something has lain for a day."""
    try:
        return time.time() - os.stat(path).st_mtime > OLD_S
    except OSError:
        return False


def note_harm(store: str) -> list[list[str]]:
    """Look at all trees, when one was written to: others may have the same files. Those that no run uses are removed, others marked.

    Who sends one that is marked puts it in its place. Returns them all.
    """
    found = []
    for key in names(os.path.join(store, "trees")):
        place = os.path.join(store, "trees", key)
        if (
            not key.startswith(".")
            and os.path.isdir(place)
            and os.path.exists(place + ".files")
            and not is_sound(place)
        ):
            found.append(["trees", key])
            if ("trees", key) in in_use(store) or not drop(store, "trees", key):
                write_json(place + ".harmed", {})
    return found


def is_sound(place: str) -> bool:
    """Whether a tree has its files and no others, and none was written to."""
    wanted = {name: (kind, size, content) for name, kind, size, content in read_json(place + ".files")}
    seen = 0
    for parent, directories, files in os.walk(place):
        links = [name for name in directories if os.path.islink(os.path.join(parent, name))]
        for name in files + links:
            path = os.path.join(parent, name)
            kind, size, content = wanted.get(os.path.relpath(path, place), ("", -1, ""))
            status = os.lstat(path)
            is_link = stat.S_ISLNK(status.st_mode)
            if kind == "l":
                is_same = is_link and os.readlink(path) == content
            else:
                is_same = not is_link and (status.st_size, status.st_mtime_ns) == (size, OBJECT_TIME_NS)
            if not is_same:
                return False
            seen += 1
    return bool(seen == sum(kind != "d" for kind, _, _ in wanted.values()))


def object_of(store: str, content: str, kind: str) -> str:
    """Where a content is."""
    if len(content) != 64 or not content.isalnum():
        raise ValueError("no SHA-256: " + content)
    return os.path.join(store, "objects", content[:2], content + kind)


def use_of(store: str, run: str) -> str:
    """The file that says what a run uses. Ids of runs are of their workspace, whose name is above them."""
    return os.path.join(store, "uses", "-".join(run.split("/")[-2:]))


def try_lock(path: str) -> int | None:
    """A descriptor that holds a lock; None where another holds it, -1 where the file system has no locks."""
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        os.close(descriptor)
        return None if isinstance(error, BlockingIOError) else -1
    return descriptor


def link_object(path: str, target: str, size: int) -> bool:
    """Have a content in a tree, if it is there and nothing has written to it."""
    try:
        link_or_copy(path, target)
        status = os.stat(path)
    except FileNotFoundError:
        return False
    if (status.st_size, status.st_mtime_ns) == (size, OBJECT_TIME_NS):
        return True
    os.unlink(target)
    os.unlink(path)
    return False


def link_or_copy(path: str, target: str) -> None:
    """Make a hard link; a copy where the file has as many as can be, or the file system has none."""
    try:
        os.link(path, target)
    except OSError as error:
        if error.errno not in (errno.EMLINK, errno.EPERM, errno.EOPNOTSUPP, errno.ENOSYS, errno.EXDEV):
            raise
        shutil.copy2(path, target)


def remove(path: str) -> None:
    """Remove a directory, also one that can't be written; nothing where there is none."""
    if not os.path.isdir(path):
        return
    for parent, directories, _ in os.walk(path):
        for name in [".", *directories]:
            if not os.path.islink(os.path.join(parent, name)):
                os.chmod(os.path.join(parent, name), 0o700)
    shutil.rmtree(path)


def size_of(path: str) -> int:
    """The bytes of all files in a directory."""
    found = [os.lstat(os.path.join(parent, name)) for parent, _, files in os.walk(path) for name in files]
    return sum(status.st_size for status in found)


def names(directory: str) -> list[str]:
    """What is in a directory; nothing where there is none."""
    try:
        return sorted(os.listdir(directory))
    except OSError:
        return []


def note_use(place: str) -> None:
    """Note that something is used."""
    touch(place + ".json" if os.path.exists(place + ".json") else place)


def touch(path: str) -> None:
    """Give a file the time of now, if it is there."""
    try:
        os.utime(path)
    except OSError:
        pass


def read_json(path: str) -> Any:
    """A file of JSON."""
    with open(path, encoding="utf-8") as file:
        return json.load(file)


def write_json(path: str, value: Any) -> None:
    """Replace a file of JSON."""
    part = f"{path}.{os.getpid()}"
    with open(part, "w", encoding="utf-8") as file:
        json.dump(value, file)
    os.rename(part, path)
