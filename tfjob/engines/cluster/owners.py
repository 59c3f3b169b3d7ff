"""Whose file is whose in a run's directory, where the files of all its nodes are merged.

Two nodes may write the same path. The node whose task comes first in the plan (the chief, rank 0) has it; what another
wrote differently stands beside it, with the name of that node's first task at the end: `model.h5.worker-1`. Where one
has a file and another a directory, who came first has the name.

An attempt begins with the outputs of the one before on every node. What none of its nodes has written is nobody's: the first to
change it has it, and it is removed when the node that wrote it before removes it.
"""

from __future__ import annotations

import json
import os
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

from tfjob.durable import replace_json
from tfjob.rundir import RunDirectory

__all__ = ["Owners", "Rival", "are_alike"]

_STATE: Final = "merged.json"
_SAVE_S: Final = 1.0
_CHUNK_BYTES: Final = 1 << 20


@dataclass(frozen=True)
class Rival:
    """A file of another node's, as it was when it was looked at."""

    node: int
    place: Path
    inode: int
    size_bytes: int
    mtime_ns: int


@dataclass
class Owners:
    """Nodes by the paths that are theirs; asked by one thread at a time. `names` are the nodes' first tasks, in plan order."""

    run: RunDirectory
    names: Sequence[str]
    owners: dict[str, int] = field(default_factory=dict)
    earlier: dict[str, int] = field(default_factory=dict)
    """Paths that an earlier attempt left, and nobody has written since: whose they were."""

    beside: dict[str, list[str]] = field(default_factory=dict)
    """Paths that several nodes wrote differently, with the names of those that stand beside."""

    _attempt: int = 1
    _changed: bool = False
    _saved: float = 0.0

    @classmethod
    def of(cls, run: RunDirectory, names: Sequence[str]) -> Owners:
        """What is known of a run, as an earlier supervisor left it."""
        found = cls(run, names, _attempt=run.restart_count + 1)
        with suppress(OSError, ValueError, KeyError):
            state = json.loads((run.path / _STATE).read_bytes())
            found.earlier, found.beside = dict(state.get("earlier", {})), dict(state["beside"])
            if state.get("attempt") == found._attempt:
                found.owners = dict(state["owners"])
            else:
                found.earlier |= state["owners"]
        return found

    def save(self) -> None:
        """Keep it, for another supervisor."""
        with suppress(OSError):  # on a full disk it must do without
            state = {"attempt": self._attempt, "owners": self.owners, "earlier": self.earlier, "beside": self.beside}
            replace_json(self.run.path / _STATE, state, force=False)
            self._changed, self._saved = False, time.monotonic()

    def save_now_and_then(self) -> None:
        """Keep it, if it has changed and was not kept just now."""
        if self._changed and time.monotonic() - self._saved > _SAVE_S:
            self.save()

    def rival(self, node: int, path: str) -> Rival | None:
        """The file of another node's that has the name which a node's file is to have, as it is now."""
        path = self.around_files(node, path)
        place = self.run.path / path
        owner = self.owners.get(path)
        if owner is None or owner == node or not place.is_file():
            return None
        status = place.stat()
        return Rival(owner, place, status.st_ino, status.st_size, status.st_mtime_ns)

    def place(self, node: int, path: str, *, is_alike: bool = False) -> Path:
        """Where a node's file goes. `is_alike`: what it wrote is what its rival has."""
        path = self.around_files(node, path)
        place = self.run.path / path
        owner = self.owners.get(path)
        self.make_directory(place.parent)
        if place.is_dir() and not place.is_symlink() and not _removed_empty(place):
            return self._aside(path, node)
        if owner is None or owner == node or (is_alike and node < owner):
            return self._take(path, node)
        if owner < node:
            return self._aside(path, node)
        if place.exists():
            place.replace(self._aside(path, owner))
        return self._take(path, node)

    def around_files(self, node: int, path: str) -> str:
        """The path, where one of the directories in it is a file of another node's: beside that."""
        parts = path.split("/")
        for count in range(2, len(parts)):
            parent = "/".join(parts[:count])
            place = self.run.path / parent
            if place.is_symlink() or not place.is_file():
                continue
            if self._owner(parent) != node:
                beside = self._aside(parent, node).relative_to(self.run.path).as_posix()
                return self.around_files(node, "/".join([beside, *parts[count:]]))
        return path

    def make_directory(self, directory: Path) -> None:
        """Make a directory of the run. No link that a node sent may lead another node's files out of it."""
        for parent in reversed([directory, *directory.parents]):
            if parent.is_relative_to(self.run.path) and parent != self.run.path and parent.is_symlink():
                parent.unlink()
                self.owners.pop(parent.relative_to(self.run.path).as_posix(), None)
        directory.mkdir(parents=True, exist_ok=True)

    def forget(self, node: int, path: str) -> Path | None:
        """A node has removed a file. Returns what goes with it, if it had one of its own."""
        if self._owner(path) == node:
            self.owners.pop(path, None)
            self.earlier.pop(path, None)
            self._changed = True
            return self.run.path / path
        if self.names[node] in self.beside.get(path, ()):
            self.beside[path].remove(self.names[node])
            self._changed = True
            return self.run.path / f"{path}.{self.names[node]}"
        return None

    def _owner(self, path: str) -> int | None:
        return self.owners.get(path, self.earlier.get(path))

    def _take(self, path: str, node: int) -> Path:
        self._changed = self._changed or self.owners.get(path) != node
        self.owners[path] = node
        self.earlier.pop(path, None)
        return self.run.path / path

    def _aside(self, path: str, node: int) -> Path:
        names = self.beside.setdefault(path, [])
        if self.names[node] not in names:
            names.append(self.names[node])
            self._changed = True
        return self.run.path / f"{path}.{self.names[node]}"


def are_alike(one: Path, other: Path, going: Callable[[], None]) -> bool:
    """Whether two files have the same content; one that is just being removed is like none. `going` is called now and then."""
    with one.open("rb") as first:
        try:
            second = other.open("rb")
        except FileNotFoundError:
            return False
        with second:
            if os.fstat(first.fileno()).st_size != os.fstat(second.fileno()).st_size:
                return False
            while data := first.read(_CHUNK_BYTES):
                going()
                if data != second.read(_CHUNK_BYTES):
                    return False
    return True


def _removed_empty(directory: Path) -> bool:
    """Remove a directory that has no files in it. Returns whether it is gone."""
    there = list(os.walk(directory, topdown=False))
    if any(
        files or any(os.path.islink(os.path.join(parent, name)) for name in names) for parent, names, files in there
    ):
        return False
    for parent, _, _ in there:
        os.rmdir(parent)
    return True
