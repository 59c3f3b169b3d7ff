"""What a store holds, and freeing what nobody used for a while.

Most bytes of a store are hard links: the same file in several prefixes and in a cache. So bytes are counted by file,
not by name, and what is told as freed is what had no other name left.
"""

from __future__ import annotations

import contextlib
import errno
import os
import stat
import time
from collections import Counter
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING

from tfjob.durable import is_locked
from tfjob.environments.building import Building
from tfjob.environments.conda_cache import LOCK, alone, half_unpacked
from tfjob.environments.prefix import MARKER, read_json
from tfjob.errors import PreparationError

if TYPE_CHECKING:
    from collections.abc import Iterator

    from tfjob.environments.store import Store

__all__ = ["Pruned", "StoredPrefix", "prune", "total_bytes", "usage"]

_DAY_S = 86_400
_FRESH_S = 600  # a lock is written before what refers to it
_BLOCK_BYTES = 512
_POINTER_MAX_BYTES = 1 << 20
_FILE_ID = tuple[int, int]


@dataclass(frozen=True)
class StoredPrefix:
    """A prefix of a store: `size_bytes` are what it takes on the disk, `own_bytes` what no other prefix shares.

    What it shares with a cache counts as its own: when the prefix goes, pruning removes that too.
    """

    key: str
    path: Path
    python_version: str
    packages: int
    final: Path
    size_bytes: int
    own_bytes: int
    created: str
    last_used: datetime


@dataclass(frozen=True)
class Pruned:
    """What pruning removed, or would: bytes the disk has back, the keys of prefixes, how many packages of the caches.

    `kept` are the keys of prefixes old enough that stayed because a run or another tfjob has them.
    """

    freed_bytes: int
    prefixes: tuple[str, ...]
    cached_packages: int
    kept: tuple[str, ...]


def usage(store: Store) -> tuple[StoredPrefix, ...]:
    """Return every finished prefix of a store, the last used first. Looks at each file of each."""
    markers = {path: marker for path in _listed(store.root / "prefixes") if (marker := read_json(path / MARKER))}
    files = {path: {_id(status): _bytes(status) for _, status in _entries(path)} for path in markers}
    holders = Counter(one for held in files.values() for one in held)
    found = []
    for path, marker in markers.items():
        held = files[path]
        found.append(
            StoredPrefix(
                key=path.name,
                path=path,
                python_version=str(marker.get("python", "")),
                packages=len(marker.get("packages", ())),
                final=Path(str(marker.get("final", path))),
                size_bytes=sum(held.values()),
                own_bytes=sum(size for one, size in held.items() if holders[one] == 1),
                created=str(marker.get("created", "")),
                last_used=datetime.fromtimestamp(store.last_used(path.name), UTC),
            )
        )
    return tuple(sorted(found, key=lambda one: one.last_used, reverse=True))


def total_bytes(store: Store) -> int:
    """Return what the whole store takes on the disk, its caches too; a file with several names counts once."""
    return sum({_id(status): _bytes(status) for _, status in _entries(store.root)}.values())


def prune(
    store: Store,
    *,
    unused_days: float,
    dry_run: bool = False,
    keep: frozenset[str] = frozenset(),
    keep_images: frozenset[Path] = frozenset(),
) -> Pruned:
    """Remove what nobody asked for in `unused_days` days: prefixes, their locks, what the caches hold for no prefix.

    `keep` are the keys that live runs use, `keep_images` the directories of images for Slurm's nodes. What another tfjob is
    building now stays. With `dry_run` nothing is removed and nothing written; the answer is what would be. Raises
    PreparationError when the store cannot be written.
    """
    if not store.root.is_dir():
        return Pruned(0, (), 0, ())
    try:
        pruning = _Pruning(store, time.time() - unused_days * _DAY_S, dry_run)
        pruning.prefixes(keep)
        pruning.records()
        pruning.uv_cache()
        pruning.conda_cache()
        pruning.images(keep_images)
    except OSError as error:
        if error.errno not in {errno.EROFS, errno.EACCES, errno.EPERM}:
            raise
        raise PreparationError(
            f"the store {store.root} cannot be pruned: {error.strerror}", "It belongs to somebody else: ask them to."
        ) from error
    return Pruned(pruning.freed_bytes, tuple(pruning.removed), pruning.cached, tuple(pruning.kept))


class _Pruning:
    """One pruning of a store; what is older than `before` (seconds since the epoch) goes."""

    def __init__(self, store: Store, before: float, dry_run: bool) -> None:
        self.store = store
        self.before = before
        self.dry_run = dry_run
        self.freed_bytes = 0
        self.cached = 0
        self.removed: list[str] = []
        self.kept: list[str] = []
        self._taken: Counter[_FILE_ID] = Counter()  # names that a dry run would have removed, by file
        self._building = Building(store.root / "building")
        if not dry_run:
            self._building.folder.mkdir(exist_ok=True)
            self._building.sweep()

    def prefixes(self, keep: frozenset[str]) -> None:
        """Remove prefixes, each in one step for those who look for it: renamed, then emptied."""
        for path in _listed(self.store.root / "prefixes"):
            key = path.name
            if self.store.last_used(key) > self.before:
                continue
            if key in keep:
                self.kept.append(key)
                continue
            with self._held(key) as is_held:
                mark = self.store.root / "used" / key  # never made here: its time says when it was used
                with alone(mark, writes=False) as is_alone:  # no run begins to use it meanwhile: `Store.hold`
                    if not (is_held and (is_alone or not mark.exists())):
                        self.kept.append(key)
                        continue
                    if self.store.last_used(key) > self.before:  # asked for while nobody held it
                        continue
                    gone = path
                    if not self.dry_run:
                        gone = self._building.folder / f"{key}-pruned"
                        path.rename(gone)
                self._remove(gone)
                self.removed.append(key)

    @contextlib.contextmanager
    def _held(self, key: str) -> Iterator[bool]:
        """Keep others from building a prefix meanwhile, and say whether nobody does; a dry run only looks."""
        if self.dry_run:
            yield not is_locked(self._building.folder / f"{key}.lock")
            return
        holds = self._building.try_hold(key)
        try:
            yield holds is not None
        finally:
            if holds is not None:
                self._building.let_go(key, holds)

    def records(self) -> None:
        """Remove what is known of prefixes that are gone, then locks that nothing refers to."""
        root, gone = self.store.root, set(self.removed)
        locks = set()
        for folder in ("known", "locks"):  # what writers that were killed left; one at work has its file for moments
            for path in _listed(root / folder):
                if path.name.startswith(".") and _modified_s(path) <= time.time() - _DAY_S:
                    self._remove(path)
        for path in _written(root / "known", ".json"):
            record = read_json(path) or {}
            key = str(record.get("key"))
            if key in gone or not self.store.prefix(key).exists():
                self._remove(path)
            else:
                locks.add(record.get("lock"))
        old = min(self.before, time.time() - _FRESH_S)
        for path in _written(root / "locks", ".lock"):
            if path.name not in locks and _modified_s(path) <= old:
                self._remove(path)
        for path in _listed(root / "used"):
            if path.name in gone or not self.store.prefix(path.name).exists():
                self._remove(path)

    def uv_cache(self) -> None:
        """Remove the unpacked packages of uv's cache that are in no prefix; uv gets a package anew when it is missing.

        uv itself holds the cache's lock, shared, while it runs; whoever has it alone keeps uv waiting.
        """
        cache = self.store.root / "uv"
        with alone(cache / ".lock", writes=not self.dry_run) as is_alone:
            if not is_alone:
                return
            unused = [path for path in _listed(cache / "archive-v0") if self._is_unused(path)]
            # What points to them goes first: uv would take a package for one that cannot be read.
            for bucket in (*cache.glob("wheels-v*"), *cache.glob("sdists-v*")):
                for pointer in _pointers(bucket, {path.name for path in unused}):
                    self._remove(pointer)
            for path in unused:
                self._remove(path)
            self.cached += len(unused)

    def conda_cache(self) -> None:
        """Remove the conda packages that are in no prefix, and lists of channels that nobody asked for."""
        cache = self.store.root / "conda"
        with alone(cache / LOCK, writes=not self.dry_run) as is_alone:
            if not is_alone:
                return
            for path in half_unpacked(cache):
                self._remove(path)
            for path in _listed(cache / "packages"):
                if path.is_dir() and not path.name.startswith(".") and self._is_unused(path):
                    self._remove(path)
                    self._remove(path.with_name(f"{path.name}.lock"))
                    self.cached += 1
                elif path.suffix == ".lock" and not path.name.startswith(".") and not path.with_suffix("").exists():
                    self._remove(path)
            for path in _listed(cache / "repodata"):
                if _modified_s(path) <= self.before:
                    self._remove(path)

    def images(self, keep: frozenset[Path]) -> None:
        """Remove images that were written here for nodes of Slurm, with what those made of them: each use notes its time."""
        kept = {path.resolve() for path in keep}
        for path in _listed(self.store.root / "images"):
            is_used = path.resolve() in kept or is_locked(path / "archive.lock")
            if not is_used and _modified_s(path) <= self.before:
                self._remove(path)

    def _is_unused(self, path: Path) -> bool:
        """Whether a package of a cache is old enough, and no prefix has a file of it."""
        return _modified_s(path) <= self.before and all(self._links(status) == 1 for _, status in _files(path))

    def _links(self, status: os.stat_result) -> int:
        """Return how many names a file has left."""
        return status.st_nlink - self._taken[_id(status)]

    def _remove(self, path: Path) -> None:
        """Remove a file, or a folder with all that is in it, and count what that frees."""
        folders = []
        for name, status in list(_entries(path)):  # every folder before what is in it
            if stat.S_ISDIR(status.st_mode):
                self.freed_bytes += _bytes(status)
                folders.append(name)
                continue
            if self.dry_run:
                self.freed_bytes += _bytes(status) if self._links(status) == 1 else 0
                self._taken[_id(status)] += 1
                continue
            with contextlib.suppress(FileNotFoundError):
                left = os.lstat(name).st_nlink if status.st_nlink > 1 else 1  # two names of it may go in one folder
                os.unlink(name)
                self.freed_bytes += _bytes(status) if left == 1 else 0
        for name in () if self.dry_run else reversed(folders):
            os.rmdir(name)


def _pointers(bucket: Path, archives: set[str]) -> Iterator[Path]:
    """Give the files of uv's cache that say which of these unpacked packages a wheel is: links, and small files beside them."""
    names = [name.encode() for name in archives]
    for text, status in list(_files(bucket)) if names else ():
        path = Path(text)
        if path.is_symlink():
            if path.readlink().name in archives:
                yield path
        elif path.suffix in {".rev", ".http"} and status.st_size < _POINTER_MAX_BYTES:
            content = path.read_bytes()
            if any(name in content for name in names):
                yield path


def _written(folder: Path, suffix: str) -> list[Path]:
    """Return the finished files of a folder, not those that are being written."""
    return [path for path in _listed(folder) if path.suffix == suffix and not path.name.startswith(".")]


def _listed(folder: Path) -> list[Path]:
    try:
        return sorted(folder.iterdir())
    except (FileNotFoundError, NotADirectoryError):
        return []


def _files(folder: Path) -> Iterator[tuple[str, os.stat_result]]:
    """Give every file under a folder (links not followed), with its status."""
    return ((name, status) for name, status in _entries(folder) if not stat.S_ISDIR(status.st_mode))


def _entries(path: Path) -> Iterator[tuple[str, os.stat_result]]:
    """Give a file, or a folder and all that is under it, with their status; what vanishes meanwhile is passed over."""
    with contextlib.suppress(FileNotFoundError):
        status = path.lstat()
        yield str(path), status
        folders = [str(path)] if stat.S_ISDIR(status.st_mode) else []
        while folders:
            with contextlib.suppress(FileNotFoundError), os.scandir(folders.pop()) as entries:
                for entry in entries:
                    with contextlib.suppress(FileNotFoundError):
                        yield entry.path, entry.stat(follow_symlinks=False)
                        if entry.is_dir(follow_symlinks=False):
                            folders.append(entry.path)


def _id(status: os.stat_result) -> _FILE_ID:
    return status.st_dev, status.st_ino


def _bytes(status: os.stat_result) -> int:
    """Return what a file takes on the disk."""
    return status.st_blocks * _BLOCK_BYTES


def _modified_s(path: Path) -> float:
    try:
        return path.lstat().st_mtime
    except FileNotFoundError:
        return time.time()
