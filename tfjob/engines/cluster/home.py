"""What nodes send home, in the run directory: logs, reports, and the one `outputs/` that all nodes' files are merged into.

Whose file stands where several nodes write the same path, see `tfjob.engines.cluster.owners`.

What a node says is not trusted with more than its own files: paths stay in `logs/`, `outputs/` and `work/`, no link is
followed, and after `close` nothing is taken any more, whoever comes back late.
"""

from __future__ import annotations

import errno
import os
import shutil
import threading
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

from tfjob.engines.cluster.owners import Owners, Rival, are_alike
from tfjob.rundir import RunDirectory

__all__ = ["Home"]

_KEPT: Final = ("outputs/", "logs/", "work/")
_RESERVED: Final = ("started.json", "exit.json")
_REPORT_BYTES: Final = 512
_COMPARISONS: Final = 3
"""So often a file is compared with another node's, where that one has become another in the meantime."""

_FULL: Final = (errno.ENOSPC, errno.EDQUOT)


@dataclass
class Home:
    """The run directory as nodes write into it; safe for several threads. `names` are the nodes' first tasks, in plan order."""

    run: RunDirectory
    names: Sequence[str]
    whose: Owners
    failed: dict[tuple[int, str], str] = field(default_factory=dict)
    """Files that could not be kept here, and why."""

    blocked: set[tuple[int, str]] = field(default_factory=set)
    """Logs that could not be kept here: what comes of them is not taken until their node begins again, from where they end."""

    unkept: dict[tuple[int, str], int] = field(default_factory=dict)
    """Outputs, and pieces of logs, that found no room here, with their bytes: they are to be sent again when there is room.

    What could not be kept for another reason, as a name that is too long, would not be kept then either.
    """

    _lock: threading.RLock = field(default_factory=threading.RLock)
    _parts: dict[tuple[int, str], Path] = field(default_factory=dict)
    _reserved: list[str] = field(default_factory=list)
    _closed: bool = False

    @classmethod
    def of(cls, run: RunDirectory, names: Sequence[str]) -> Home:
        """The run's home, as an earlier supervisor left it."""
        for left in run.path.glob(".home-*"):  # of a supervisor that was killed
            left.unlink(missing_ok=True)
        return cls(run, names, Owners.of(run, names))

    def save(self) -> None:
        """Keep whose file is whose, for another supervisor."""
        with self._lock:
            self.whose.save()

    def close(self) -> None:
        """Take nothing any more: what a thread still hears is not of this run's attempt."""
        with self._lock:
            self._closed = True
            for key in list(self._parts):
                self._forget_part(key)
            for path in (self._unfinished(task, name) for task in self._reserved for name in _RESERVED):
                with suppress(OSError):
                    path.unlink(missing_ok=True)
            self.save()

    def begin(self, node: int) -> None:
        """A node begins to speak, or begins again: files that it had sent in part come again from their start."""
        with self._lock:
            for key in [one for one in self._parts if one[0] == node]:
                self._forget_part(key)
            self.blocked = {one for one in self.blocked if one[0] != node}
            self.unkept = {one: size for one, size in self.unkept.items() if one[0] != node}

    def is_blocked(self, node: int) -> bool:
        """Whether something of a node's found no room here, and would find it now: the node has to begin again."""
        with self._lock:
            sizes = [size for one, size in self.unkept.items() if one[0] == node]
        # What is large is not sent again and again for nothing.
        return bool(sizes) and min(sizes) < shutil.disk_usage(self.run.path).free

    def is_receiving(self, node: int) -> bool:
        """Whether a file of a node has come in part, and is kept so far."""
        with self._lock:
            return any(one[0] == node and place != Path(os.devnull) for one, place in self._parts.items())

    # What the nodes' agents say.

    def log(self, node: int, path: str, offset: int, data: bytes) -> bool:
        """Some bytes of a log at their place: what comes a second time changes nothing. Returns whether they are kept.

        A log that can't be kept here, as on a full disk, is noted, and blocked.
        """
        if not path.startswith("logs/"):
            raise ValueError(f"a node sent a log named {path!r}")
        key = (node, _checked(path))
        with self._lock:
            if self._closed or key in self.blocked:
                return False
            try:
                self._log(node, path, offset, data)
            except OSError as error:
                self._fail(key, error, len(data))
                self.blocked.add(key)
                return False
            self.failed.pop(key, None)
            return True

    def _log(self, node: int, path: str, offset: int, data: bytes) -> None:
        is_left = path in self.whose.earlier
        place = self.whose.place(node, _checked(path))
        if place.is_symlink() or (is_left and place.exists()):  # this attempt began without it
            place.unlink()
        descriptor = os.open(place, os.O_WRONLY | os.O_CREAT | os.O_NOFOLLOW, 0o644)
        try:
            while data:
                written = os.pwrite(descriptor, data, offset)
                data, offset = data[written:], offset + written
        finally:
            os.close(descriptor)

    def reserve(self, tasks: Sequence[str]) -> None:
        """Take the disk space of tasks' reports now: how they end must be known on a full disk, too."""
        with suppress(OSError):  # which is full already
            for task in tasks:
                self.run.task(task).mkdir(parents=True, exist_ok=True)
                for name in _RESERVED:
                    self._unfinished(task, name).write_bytes(b" " * _REPORT_BYTES)
                self._reserved.append(task)

    def report(self, task: str, name: str, content: str) -> None:
        """A task's report of itself, whole or not at all."""
        directory = self.run.task(_plain(task))
        temporary = self._unfinished(task, _plain(name))
        with self._lock:
            if self._closed:
                return
            directory.mkdir(parents=True, exist_ok=True)
            with open(os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_NOFOLLOW, 0o644), "wb") as file:
                file.write(content.encode())
                file.truncate()
            temporary.replace(directory / name)

    def part(self, node: int, header: dict[str, Any], data: bytes, going: Callable[[], None] = lambda: None) -> bool:
        """A part of a file; with the last one it gets its name, if it is whole. Returns whether it has got it.

        A file that can't be kept here, as on a full disk, is noted, and given up. `going` is called while it is compared.
        """
        path = _checked(header["path"])
        key = (node, path)
        try:
            with self._lock:
                temporary = None if self._closed else self._part(key, header, data)
            return temporary is not None and self._name(key, temporary, going)
        except OSError as error:
            with self._lock:
                if not self._closed:
                    self._give_up(key, header, error)
            return False

    def _part(self, key: tuple[int, str], header: dict[str, Any], data: bytes) -> Path | None:
        """Keep a part. Returns the file when it is whole."""
        temporary = self._parts.get(key)
        if temporary is None:
            temporary = self._temporary(key[0])
            temporary.unlink(missing_ok=True)
            self._parts[key] = temporary
        with temporary.open("ab") as file:
            file.write(data)
        if not header["last"]:
            return None
        if temporary == Path(os.devnull) or not header["whole"] or temporary.stat().st_size != header["size"]:
            self._forget_part(key)
            return None
        temporary.chmod(header["mode"] | 0o600)
        os.utime(temporary, ns=(header["mtime_ns"], header["mtime_ns"]))
        return temporary

    def _name(self, key: tuple[int, str], temporary: Path, going: Callable[[], None]) -> bool:
        """Give a file its name, unless another node's that is like it has it. Large ones are compared while others are served."""
        node, path = key
        compared: Rival | None = None
        is_alike = False
        for more in reversed(range(_COMPARISONS + 1)):
            with self._lock:
                if self._closed:
                    return False
                rival = self.whose.rival(node, path)
                if rival is None or rival == compared or not more:
                    is_alike = is_alike and rival is not None and rival == compared  # nobody has changed it meanwhile
                    if is_alike and rival is not None and rival.node < node:
                        self._forget_part(key)
                    else:
                        temporary.replace(self.whose.place(node, path, is_alike=is_alike))
                        del self._parts[key]
                    self.failed.pop(key, None)
                    self.unkept.pop(key, None)
                    self.whose.save_now_and_then()
                    break
            compared, is_alike = rival, are_alike(temporary, rival.place, going)
        return True

    def _give_up(self, key: tuple[int, str], header: dict[str, Any], error: OSError) -> None:
        self._fail(key, error, header["size"])
        self._forget_part(key)
        with suppress(OSError):
            self._temporary(key[0]).unlink(missing_ok=True)
        if not header["last"]:
            self._parts[key] = Path(os.devnull)  # where the rest of it goes

    def link(self, node: int, path: str, target: str) -> None:
        """A symbolic link."""
        with self._lock:
            if self._closed:
                return
            try:
                place = self.whose.place(node, _checked(path))
                place.unlink(missing_ok=True)
                place.symlink_to(target)
                self.failed.pop((node, path), None)
                self.unkept.pop((node, path), None)
            except OSError as error:
                self._fail((node, path), error, 0)

    def directory(self, path: str) -> None:
        """A directory with nothing in it."""
        with suppress(OSError), self._lock:  # a file of another node's stands there
            if not self._closed:
                self.whose.make_directory(self.run.path / _checked(path))

    def gone(self, node: int, path: str) -> None:
        """A file that its node has removed, or begun anew."""
        with self._lock:
            if self._closed:
                return
            path = self.whose.around_files(node, _checked(path))
            self.failed.pop((node, path), None)
            self.unkept.pop((node, path), None)
            place = self.whose.forget(node, path)
            if place is not None:
                with suppress(OSError):
                    place.unlink(missing_ok=True)

    # Which logs and files are here already.

    def sizes(self, node: int, tasks: Sequence[str]) -> dict[str, int]:
        """How much of each log of a node is here."""
        found = {}
        paths = [f"logs/{task}.log" for task in tasks]
        with self._lock:
            own = [path for path, owner in self.whose.owners.items() if owner == node]
        paths += [path for path in own if path.startswith("logs/user/")]
        for path in paths:
            with suppress(OSError):
                found[path] = (self.run.path / path).stat().st_size
        return found

    def reports(self, tasks: Sequence[str], names: Sequence[str]) -> list[list[str]]:
        """Which reports of a node's tasks are here."""
        return [[task, name] for task in tasks for name in names if (self.run.task(task) / name).exists()]

    def notes(self) -> tuple[str, ...]:
        """A sentence about paths that nodes wrote differently."""
        with self._lock:
            beside = {path: list(names) for path, names in self.whose.beside.items() if names}
            failed = sorted((path, self.names[node], why) for (node, path), why in self.failed.items())
        notes = []
        if beside:
            shown = [f"{path} ({', '.join(sorted(beside[path], key=self.names.index))})" for path in sorted(beside)]
            notes.append(
                "nodes wrote different files of the same name; those of the first task stand, "
                f"the others beside them: {_some(shown)}"
            )
        if failed:
            shown = [f"{path} of {name} ({why})" for path, name, why in failed]
            notes.append(f"files of nodes could not be kept here: {_some(shown)}")
        return tuple(notes)

    def _unfinished(self, task: str, name: str) -> Path:
        return self.run.task(task) / f".{name}.home"

    def _temporary(self, node: int) -> Path:
        return self.run.path / f".home-{node}-{os.getpid()}"  # a node sends one file after the other

    def _fail(self, key: tuple[int, str], error: OSError, size_bytes: int) -> None:
        self.failed[key] = error.strerror or str(error)
        if error.errno in _FULL:
            self.unkept[key] = size_bytes

    def _forget_part(self, key: tuple[int, str]) -> None:
        temporary = self._parts.pop(key, None)
        if temporary is not None and temporary != Path(os.devnull):
            with suppress(OSError):
                temporary.unlink(missing_ok=True)


def _checked(path: str) -> str:
    """A path of a node's, if it stays where nodes may write. Raises ValueError: a container is not to be trusted with more."""
    if os.path.normpath(path) != path or not path.startswith(_KEPT) or "\0" in path:
        raise ValueError(f"a node sent a file named {path!r}")
    return path


def _plain(name: str) -> str:
    if "/" in name or name in {"", ".", ".."}:
        raise ValueError(f"a node sent a report named {name!r}")
    return name


def _some(shown: Sequence[str]) -> str:
    return ", ".join(shown[:5]) + (f" and {len(shown) - 5} more" if len(shown) > 5 else "")
