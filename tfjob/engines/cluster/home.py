"""What nodes send home, in the run directory: logs, reports, and the one `outputs/` that all nodes' files are merged into.

Two nodes may write the same path. The node whose task comes first in the plan (the chief, rank 0) has it; what another
wrote differently stands beside it, with the name of that node's first task at the end: `model.h5.worker-1`.
"""

from __future__ import annotations

import filecmp
import json
import os
import threading
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

from tfjob.durable import replace_json
from tfjob.rundir import RunDirectory

__all__ = ["Home"]

_STATE: Final = "merged.json"
_KEPT: Final = ("outputs/", "logs/", "work/")


@dataclass
class Home:
    """The run directory as nodes write into it; safe for several threads. `names` are the nodes' first tasks, in plan order."""

    run: RunDirectory
    names: Sequence[str]
    owners: dict[str, int] = field(default_factory=dict)
    beside: dict[str, list[str]] = field(default_factory=dict)
    """Paths that several nodes wrote differently, with the names of those that stand beside."""

    _lock: threading.RLock = field(default_factory=threading.RLock)
    _parts: dict[tuple[int, str], Path] = field(default_factory=dict)

    @classmethod
    def of(cls, run: RunDirectory, names: Sequence[str]) -> Home:
        """The run's home, as an earlier supervisor left it."""
        home = cls(run, names)
        with suppress(OSError, ValueError, KeyError):
            state = json.loads((run.path / _STATE).read_bytes())
            home.owners, home.beside = dict(state["owners"]), dict(state["beside"])
        return home

    def save(self) -> None:
        """Keep whose file is whose, for another supervisor."""
        with self._lock:
            replace_json(self.run.path / _STATE, {"owners": self.owners, "beside": self.beside}, force=False)

    # What the nodes' agents say.

    def log(self, node: int, path: str, offset: int, data: bytes) -> None:
        """Some bytes of a log at their place: what comes a second time changes nothing."""
        with self._lock:
            place = self._place(node, path, None)
            descriptor = os.open(place, os.O_WRONLY | os.O_CREAT, 0o644)
            try:
                os.pwrite(descriptor, data, offset)
            finally:
                os.close(descriptor)

    def report(self, task: str, name: str, content: str) -> None:
        """A task's report of itself, whole or not at all."""
        directory = self.run.task(_plain(task))
        directory.mkdir(parents=True, exist_ok=True)
        temporary = directory / f".{_plain(name)}.home"
        temporary.write_text(content, encoding="utf-8")
        temporary.replace(directory / name)

    def part(self, node: int, header: dict[str, Any], data: bytes) -> None:
        """A part of a file; with the last one it gets its name, if it is whole."""
        path = _checked(header["path"])
        with self._lock:
            temporary = self._parts.get((node, path))
            if temporary is None:
                temporary = self.run.path / f".home-{node}-{len(self._parts)}-{os.getpid()}"
                temporary.unlink(missing_ok=True)
                self._parts[node, path] = temporary
            with temporary.open("ab") as file:
                file.write(data)
            if not header["last"]:
                return
            del self._parts[node, path]
            if not header["whole"]:
                temporary.unlink(missing_ok=True)
                return
            temporary.chmod(header["mode"] | 0o600)
            os.utime(temporary, ns=(header["mtime_ns"], header["mtime_ns"]))
            temporary.replace(self._place(node, path, temporary))

    def link(self, node: int, path: str, target: str) -> None:
        """A symbolic link."""
        with self._lock:
            place = self._place(node, _checked(path), None)
            place.unlink(missing_ok=True)
            place.symlink_to(target)

    def directory(self, path: str) -> None:
        """A directory with nothing in it."""
        with suppress(OSError), self._lock:  # a file of another node's stands there
            self._make_directory(self.run.path / _checked(path))

    def gone(self, node: int, path: str) -> None:
        """A file that its node has removed, or begun anew."""
        with self._lock:
            if self.owners.get(_checked(path)) == node:
                del self.owners[path]
                with suppress(OSError):
                    (self.run.path / path).unlink(missing_ok=True)
                return
            aside = self.run.path / f"{path}.{self.names[node]}"
            if self.names[node] in self.beside.get(path, ()):
                self.beside[path].remove(self.names[node])
                with suppress(OSError):
                    aside.unlink(missing_ok=True)

    # Which logs and files are here already.

    def sizes(self, node: int, tasks: Sequence[str]) -> dict[str, int]:
        """How much of each log of a node is here."""
        found = {}
        paths = [f"logs/{task}.log" for task in tasks]
        paths += [path for path, owner in self.owners.items() if owner == node and path.startswith("logs/user/")]
        for path in paths:
            with suppress(OSError):
                found[path] = (self.run.path / path).stat().st_size
        return found

    def reports(self, tasks: Sequence[str], names: Sequence[str]) -> list[list[str]]:
        """Which reports of a node's tasks are here."""
        return [[task, name] for task in tasks for name in names if (self.run.task(task) / name).exists()]

    def notes(self) -> tuple[str, ...]:
        """A sentence about paths that nodes wrote differently."""
        several = sorted(path for path, names in self.beside.items() if names)
        if not several:
            return ()
        shown = ", ".join(
            f"{path} ({', '.join(sorted(self.beside[path], key=self.names.index))})" for path in several[:5]
        )
        more = f" and {len(several) - 5} more" if len(several) > 5 else ""
        return (
            f"nodes wrote different files of the same name; those of the first task stand, the others beside them: {shown}{more}",
        )

    def _place(self, node: int, path: str, content: Path | None) -> Path:
        """Where a node's file goes. `content` is what it wrote, None for what can't be compared."""
        path = _checked(path)
        place = self.run.path / path
        owner = self.owners.get(path)
        self._make_directory(place.parent)
        if owner is None or owner == node:
            self.owners[path] = node
            return place
        if content is not None and place.is_file() and filecmp.cmp(content, place, shallow=False):
            return place if owner < node else self._take(path, node)
        if owner < node:
            return self._aside(path, node)
        place.replace(self._aside(path, owner)) if place.exists() else None
        return self._take(path, node)

    def _make_directory(self, directory: Path) -> None:
        """Make a directory of the run. No link that a node sent may lead another node's files out of it."""
        for parent in reversed([directory, *directory.parents]):
            if parent.is_relative_to(self.run.path) and parent != self.run.path and parent.is_symlink():
                parent.unlink()
        directory.mkdir(parents=True, exist_ok=True)

    def _take(self, path: str, node: int) -> Path:
        self.owners[path] = node
        return self.run.path / path

    def _aside(self, path: str, node: int) -> Path:
        names = self.beside.setdefault(path, [])
        if self.names[node] not in names:
            names.append(self.names[node])
        return self.run.path / f"{path}.{self.names[node]}"


def _checked(path: str) -> str:
    """A path of a node's, if it stays where nodes may write. Raises ValueError: a container is not to be trusted with more."""
    if os.path.normpath(path) != path or not path.startswith(_KEPT):
        raise ValueError(f"a node sent a file named {path!r}")
    return path


def _plain(name: str) -> str:
    if "/" in name or name in {"", ".", ".."}:
        raise ValueError(f"a node sent a report named {name!r}")
    return name
