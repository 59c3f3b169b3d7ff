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
KINDS = ("trees", "prefixes", "images")
YOUNG_S = 3600.0
OLD_S = 86400.0


def kept_in(store: str) -> Iterator[tuple[float, int, str, str]]:
    """What is kept: when it was used last, its bytes, its kind and key."""
    for kind in KINDS:
        for key in names(os.path.join(store, kind)):
            place = os.path.join(store, kind, key)
            if key.startswith(".") or not os.path.isdir(place):
                continue
            try:
                used, size = os.stat(place + ".json").st_mtime, int(read_json(place + ".json")["size_bytes"])
                if kind == "images":  # nodes keep beside it what they have made of it
                    size = size_of(place)
            except (OSError, ValueError):  # nodes made it themselves
                try:
                    used, size = os.stat(place).st_mtime, size_of(place)
                except FileNotFoundError:  # another has just removed it
                    continue
            yield used, size, kind, key


def is_nodes_own(kind: str, key: str) -> bool:
    """Whether nodes fetch it themselves, by its name: it is never sent. See image.py."""
    return kind == "images" and key.startswith("named-")


def in_use(store: str) -> set[tuple[str, str]]:
    """What runs use. What a run left that has no directory any more is removed."""
    found = set()
    for name in names(os.path.join(store, "uses")):
        path = os.path.join(store, "uses", name)
        try:
            use = read_json(path)
        except (FileNotFoundError, ValueError):  # another trouble may hide what is used
            continue
        # In this order: a directory that is being made gets its name meanwhile.
        if is_young(path) or os.path.isdir(use["run"] + ".part") or os.path.isdir(use["run"]):
            found |= {(kind, key) for kind, key in use["wanted"]}
        else:
            unlink(path)
    return found


def is_young(path: str) -> bool:
    """Whether a file was written or touched within the hour for which a use holds without a directory."""
    try:
        return time.time() - os.stat(path).st_mtime < YOUNG_S
    except FileNotFoundError:
        return False


def make_room(store: str, limit: float, needed: float, age_s: float = OLD_S) -> list[tuple[str, str, int]]:
    """Remove what no run uses, what was not used for longest first, until there is room; returns it.

    Before it goes what came of sendings that broke so long ago, as objects, half-sent.
    """
    if limit == float("inf"):
        return []
    entries = sorted(kept_in(store))
    total = sum(size for _, size, _, _ in entries) + unfinished(store) + needed
    gone: list[tuple[str, str, int]] = []
    if total > limit:
        swept = sweep(store, age_s)
        total -= swept
        gone += [("objects", "half-sent", swept)] if swept else []
        held = in_use(store)
        for _, size, kind, key in entries:
            if total <= limit:
                break
            if (kind, key) in held:
                continue
            if drop(store, kind, key):
                gone.append((kind, key, size))
            if not os.path.isdir(os.path.join(store, kind, key)):
                total -= size
    return gone


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
    try:
        os.rename(place, gone)
    except FileNotFoundError:  # another was quicker
        return False
    if (kind, key) in in_use(store) and put_back(gone, place):
        return False
    try:
        files = read_json(place + ".files")
    except (OSError, ValueError):
        files = []
    for name in (place + ".json", place + ".files", place + ".harmed"):
        if not os.path.isdir(place):
            unlink(name)
    remove(gone)
    for _, of, _, content in files:
        if of not in ("l", "d"):
            drop_object(object_of(store, content, of), 0.0)
    return True


def put_back(gone: str, place: str) -> bool:
    """Give something its name again; returns whether it has it, and not what was sent anew meanwhile."""
    try:
        os.rename(gone, place)
    except OSError:
        if not os.path.isdir(place):
            raise
        return False
    return True


def drop_object(path: str, age_s: float) -> int:
    """Remove a content that no tree has, nor had for some time. Returns its bytes, if it was removed."""
    try:
        status = os.stat(path)
        if status.st_nlink == 1 and time.time() - status.st_ctime >= age_s:
            os.unlink(path)
            return status.st_size
    except OSError:
        pass
    return 0


def sweep(store: str, age_s: float) -> int:
    """Remove what was left so long ago by who was interrupted. Returns its bytes."""
    swept = 0
    for path in left(store):
        # What goes may still be put back, where a run has begun to use it. A new name changes the time of the directory itself.
        least_s = max(age_s, YOUNG_S) if ".gone-" in path else age_s
        try:
            status = os.stat(path)
        except FileNotFoundError:
            continue
        if time.time() - max(status.st_mtime, status.st_ctime) >= least_s:
            swept += own_bytes(path, 1)  # of the rest the objects are swept
            remove(path)
    return swept + sum(drop_object(path, age_s) for path in objects_of(store))


def unfinished(store: str) -> int:
    """The bytes of what is coming, of what is going, and of contents that no tree has."""
    found = sum(own_bytes(path, 2) for path in left(store))  # of which one is the object
    for path in objects_of(store):
        try:
            status = os.stat(path)
        except FileNotFoundError:
            continue
        found += status.st_size if status.st_nlink == 1 else 0
    return found


def left(store: str) -> Iterator[str]:
    """What is coming or going, or was left of that."""
    for kind in KINDS:
        for name in names(os.path.join(store, kind)):
            if name.startswith(".") and (".gone-" in name or ".part-" in name):
                yield os.path.join(store, kind, name)


def objects_of(store: str) -> Iterator[str]:
    """All contents, and what is coming of them."""
    objects = os.path.join(store, "objects")
    for two in names(objects):
        for name in names(os.path.join(objects, two)):
            yield os.path.join(objects, two, name)


def own_bytes(path: str, most_links: int) -> int:
    """The bytes of the files in a directory that have no more links."""
    return sum(status.st_size for status in statuses(path) if status.st_nlink <= most_links)


def note_harm(store: str) -> list[list[str]]:
    """Look at all trees, when one was written to: others may have the same files. Those that no run uses are removed, others marked.

    Who sends one that is marked puts it in its place. Returns them all.
    """
    found = []
    for key in names(os.path.join(store, "trees")):
        place = os.path.join(store, "trees", key)
        if key.startswith(".") or not os.path.isdir(place) or not os.path.exists(place + ".files"):
            continue
        try:
            is_harmed = not is_sound(place)
        except FileNotFoundError:  # another removes it
            continue
        if is_harmed:
            found.append(["trees", key])
            if (("trees", key) in in_use(store) or not drop(store, "trees", key)) and os.path.isdir(place):
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
                try:
                    os.chmod(os.path.join(parent, name), 0o700)
                except FileNotFoundError:
                    pass  # another removes it too
    shutil.rmtree(path, onerror=unless_gone)


def unless_gone(_function: Any, _path: str, found: Any) -> None:
    """Go on where another has removed it."""
    if not isinstance(found[1], FileNotFoundError):
        raise found[1]


def unlink(path: str) -> None:
    """Remove a file, if it is there."""
    try:
        os.unlink(path)
    except FileNotFoundError:
        pass


def own_directory(path: str) -> None:
    """Make a directory that nobody else may look into, or make it one."""
    os.makedirs(path, mode=0o700, exist_ok=True)
    mode = stat.S_IMODE(os.stat(path).st_mode)
    if mode & 0o777 != 0o700:
        os.chmod(path, mode & ~0o777 | 0o700)  # a site may count by groups, which the rest of the mode passes on


def size_of(path: str) -> int:
    """The bytes of all files in a directory."""
    return sum(status.st_size for status in statuses(path))


def statuses(path: str) -> Iterator[os.stat_result]:
    """All files in a directory, without what another removes meanwhile."""
    for parent, _, files in os.walk(path):
        for name in files:
            try:
                yield os.lstat(os.path.join(parent, name))
            except FileNotFoundError:
                pass


def names(directory: str) -> list[str]:
    """What is in a directory; nothing where there is none."""
    try:
        return sorted(os.listdir(directory))
    except (FileNotFoundError, NotADirectoryError):
        return []


def note_use(place: str) -> None:
    """Note that something is used."""
    touch(place + ".json" if os.path.exists(place + ".json") else place)


def touch(path: str) -> None:
    """Give a file the time of now, if it is there. What a run uses is written again by `place`."""
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
