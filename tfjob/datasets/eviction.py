"""What the cache holds, and making room in it: what no run has used for longest goes, and never what a run uses."""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import time
from collections import Counter
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

from tfjob.datasets.trees import read_facts, remove_tree

if TYPE_CHECKING:
    from collections.abc import Collection, Iterator, Sequence

    from tfjob.datasets.cache import Cache

__all__ = ["CachedTree", "Evicted", "Usage", "evict", "usage"]

_NAMES = 3
_LEFTOVER_S = 7 * 24 * 3600.0


@dataclass(frozen=True)
class CachedTree:
    """The files of one dataset in the cache: bytes of the objects it holds, when it was last asked for, and runs that use it.

    `names` are the first few of the names at its top, where that was asked for.
    """

    key: str
    file_count: int
    size_bytes: int
    last_used: float
    used_by: tuple[str, ...]
    objects: dict[str, int]
    names: tuple[str, ...] = ()


@dataclass(frozen=True)
class Usage:
    """What the cache holds: its trees, the one used last at the end, its objects' bytes, and those of parts of files."""

    trees: tuple[CachedTree, ...]
    object_count: int
    size_bytes: int
    partial_bytes: int


@dataclass(frozen=True)
class Evicted:
    """What was, or would be, freed: trees by their keys, objects, bytes. `is_busy`: nothing was, others fetch just now."""

    trees: tuple[str, ...] = ()
    object_count: int = 0
    freed_bytes: int = 0
    is_busy: bool = False


def usage(cache: Cache) -> Usage:
    """What the cache holds now."""
    objects = dict(_objects(cache))
    partial = sum(_size(path) for path in _files(cache.root / "partial"))
    named = (replace(tree, names=_names(cache, tree.key)) for tree in _trees(cache))
    trees = sorted(named, key=lambda tree: tree.last_used)
    return Usage(tuple(trees), len(objects), sum(size for size, _ in objects.values()), partial)


def evict(
    cache: Cache, *, limit_bytes: int, coming: Collection[tuple[str, int]] = (), dry_run: bool = False
) -> Evicted:
    """Free what is needed for the cache to have at most `limit_bytes` once all that is `coming` has come.

    That is a (SHA-256 or anything else, bytes) for each file; one whose content is there already takes no room and stays, and where
    that is all, nothing goes. What was used last stays longest; what a run uses, or is younger than who fetches it, stays.
    Objects of no tree go first. Waits for nobody: while others fetch, nothing is freed.
    """
    if not cache.root.is_dir():
        return Evicted()
    with _alone(cache) as alone:
        if not alone:
            return Evicted(is_busy=True)
        return _evict(cache, limit_bytes, coming, dry_run=dry_run)


def _evict(cache: Cache, limit_bytes: int, coming: Collection[tuple[str, int]], *, dry_run: bool) -> Evicted:
    objects = {sha256: size for sha256, (size, _) in _objects(cache)}
    needed = sum([size for sha256, size in coming if size > 0 and sha256 not in objects])
    if coming and not needed:
        return Evicted()
    limit_bytes = max(limit_bytes - needed, 0)
    wanted = {sha256 for sha256, _ in coming} if objects else set()
    trees = sorted(_trees(cache), key=lambda tree: tree.last_used)
    users = Counter(sha256 for tree in trees for sha256 in tree.objects)
    total = sum(objects.values())
    gone_trees: list[str] = []
    free = (sha256 for sha256 in objects if sha256 not in users and sha256 not in wanted)
    gone = list(free) if total > limit_bytes else []
    freed = sum(objects[sha256] for sha256 in gone)
    for tree in trees:
        if total - freed <= limit_bytes or tree.used_by:
            continue
        gone_trees.append(tree.key)
        users.subtract(tree.objects.keys())
        own = [one for one in tree.objects if not users[one] and one in objects and one not in wanted]
        gone += own
        freed += sum(objects[sha256] for sha256 in own)
    if not dry_run:
        _free(cache, gone_trees, gone)
    return Evicted(tuple(gone_trees), len(gone), freed)


def _free(cache: Cache, trees: Sequence[str], objects: Sequence[str]) -> None:
    for key in trees:
        _remove(cache, key)
    for sha256 in objects:
        with contextlib.suppress(OSError):
            os.unlink(cache.object(sha256))
    if trees or objects:
        cache.distrust()
    _sweep(cache)


def _remove(cache: Cache, key: str) -> None:
    """Forget a tree: first what says that it is whole, then the rest."""
    for facts in (f"{key}.json", f"{key}.lock"):
        (cache.root / "trees" / facts).unlink(missing_ok=True)
    remove_tree(cache.root / "trees" / key)
    users = cache.root / "users" / key
    for link in users.glob("*"):
        link.unlink(missing_ok=True)
    with contextlib.suppress(OSError):
        users.rmdir()


def _sweep(cache: Cache) -> None:
    """Remove what killed processes left: trees half made, and, after a week, parts of files and what was told of harm."""
    for path in (cache.root / "trees").glob(".*"):
        if not any(_live_users(cache, path.name[1:65])):
            remove_tree(path)
    old = time.time() - _LEFTOVER_S
    for path in (*_files(cache.root / "partial"), *_files(cache.root / "harmed")):
        with contextlib.suppress(OSError):
            if path.stat().st_mtime < old:
                path.unlink()


def _trees(cache: Cache) -> Iterator[CachedTree]:
    for path in (cache.root / "trees").glob("*.json"):
        held = read_facts(path)
        try:
            facts = json.loads(path.read_bytes())
            last_used = path.stat().st_mtime
        except (OSError, ValueError):
            continue
        if held is None:
            continue
        key = path.stem
        used_by = tuple(_live_users(cache, key))
        yield CachedTree(key, int(facts.get("files", 0)), sum(held.values()), last_used, used_by, held)


def _names(cache: Cache, key: str) -> tuple[str, ...]:
    names = sorted(entry.name for entry in _entries(f"{cache.root}/trees/{key}"))
    return tuple(names[:_NAMES])


def _live_users(cache: Cache, key: str) -> Iterator[str]:
    """The runs that use a tree: their record is there, and does not say that they are over."""
    for link in sorted((cache.root / "users" / key).glob("*")):
        try:
            record = json.loads((Path(os.readlink(link)) / "record.json").read_bytes())
            is_over = record["ended"] is not None
        except FileNotFoundError:
            is_over = True
        except (OSError, ValueError, KeyError, TypeError):
            is_over = False  # another user's, or one that can't be read: it may use it
        if not is_over:
            yield link.name


def _objects(cache: Cache) -> Iterator[tuple[str, tuple[int, float]]]:
    """Every object: its SHA-256, bytes and inode time."""
    for directory in _entries(f"{cache.root}/objects"):
        for entry in _entries(directory.path):
            with contextlib.suppress(OSError):
                status = entry.stat()
                yield entry.name, (status.st_size, status.st_ctime)


def _entries(directory: str) -> list[os.DirEntry[str]]:
    try:
        with os.scandir(directory) as entries:
            return list(entries)
    except (FileNotFoundError, NotADirectoryError):
        return []


def _files(directory: Path) -> list[Path]:
    return [Path(entry.path) for entry in _entries(str(directory))]


def _size(path: Path) -> int:
    try:
        return path.stat().st_size
    except OSError:
        return 0


@contextlib.contextmanager
def _alone(cache: Cache) -> Iterator[bool]:
    """Whether nobody else fetches, and while inside, nobody will."""
    descriptor = os.open(cache.root / ".lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
    try:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            yield False
            return
        yield True
    finally:
        os.close(descriptor)
