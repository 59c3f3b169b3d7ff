"""Where environments are kept: locks and prefixes by content, so that the same definition is built once.

::

    known/<definition>-<place>.json       what a definition came to: its Python, lock and prefix (may be deleted)
    locks/<definition>-<…>.lock           every package with its version and hashes (see `tfjob.environments.lock`)
    prefixes/<key>/                       a finished environment; tfjob-prefix.json in it says what it holds
    used/<key>                            its time is when the prefix was last asked for
    uv/, conda/                           uv's cache, that of conda packages and of what channels list; on the same file
                                          system, so that prefixes are hard links to them
    pythons/                              Pythons that uv fetched from where the site says
    building/                             work in progress: <key>.lock is held by whoever works in <key>-<random>/

Who touches what, under which lock (all are flocks, which end with their process)::

    known/*, locks/*       written whole (a rename) by preparations, known/ without a lock and locks/ under
                           building/<solve>.lock; removed by prune, which leaves what is younger than minutes
    prefixes/<key>         made and removed under building/<key>.lock; prune also wants used/<key> alone
    used/<key>             touched by who asks for a prefix; locked, shared, by runs that use it (`Store.hold`)
    uv/                    uv's own locks; prune has uv/.lock alone
    conda/packages/        filled under conda/.lock, shared; removed from (prune, the sweep of half-unpacked packages,
                           a package of the same name that is another file) under conda/.lock alone
    conda/repodata/        rattler's own locks, under conda/.lock, shared; prune has that alone
    pythons/               uv, under building/<python>.lock
    building/<name>-*      who holds building/<name>.lock; removed by the next preparation or prune if nobody does

A dry run of prune writes nothing and makes no lock's file. A prefix appears by a rename, complete or not at all. What a
killed build leaves is in `building` (and half a package in conda/packages), and the next preparation removes it.
"""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import os
import time
from pathlib import Path
from typing import TYPE_CHECKING

from tfjob.durable import digest_of
from tfjob.environments.prefix import Prefix, read_json, read_prefix

if TYPE_CHECKING:
    from collections.abc import Callable

    from tfjob.environments.definition import Definition
    from tfjob.environments.lock import Lock
    from tfjob.environments.place import Place

__all__ = ["Store"]

_LOOKED_AT_S = 10.0
_POLL_S = 0.02


class Store:
    """The environments under one directory, shared by the workspaces of a user. Several processes may use it at once."""

    def __init__(self, root: Path) -> None:
        """Use the directory `root`; it is made when something is put into it."""
        self.root = root.absolute()

    def find(self, definition: Definition, place: Place, lock: str | None = None) -> Prefix | None:
        """Return the finished prefix of a definition for a place, None when something has to be done first.

        With the text of a `lock`, the prefix made from that. Starts no program and reads a few small files. A prefix
        whose Python is gone or was replaced, or that something was installed into, is not found.
        """
        record = read_json(self.known(definition, place, lock))
        try:
            if record is None or (record["interpreter"] is not None and not place.has(record["interpreter"])):
                return None
            kept = self.root / "locks" / record["lock"]
            prefix = read_prefix(self.prefix(record["key"]), kept) if kept.exists() else None
        except (KeyError, TypeError, OSError):
            return None
        if prefix is not None:
            self.mark_used(prefix.key)
        return prefix

    def prepare(
        self,
        definition: Definition,
        place: Place,
        *,
        lock: str | None = None,
        log: Callable[[str], None],
        progress: Callable[[str], None],
    ) -> Prefix:
        """Return the prefix of a definition for a place, made if it is not there; from the text of a `lock`, if given.

        `log` gets the output of the programs that make it, `progress` the steps. Raises PreparationError when it cannot
        be made, UsageError when the lock cannot be read or is of another definition or platform, and Interrupted on
        SIGTERM where nobody else handles that; then nothing half-made is left and no program still runs.
        """
        if (prefix := self.find(definition, place, lock)) is not None:
            return prefix
        from tfjob.environments.preparation import prepare  # noqa: PLC0415 (only those who build pay for it)

        return prepare(self, definition, place, lock=lock, log=log, progress=progress)

    def solve(
        self,
        definition: Definition,
        place: Place,
        *,
        log: Callable[[str], None],
        progress: Callable[[str], None],
    ) -> Lock:
        """Solve a definition for a place anew and return the lock; no prefix is built, and no kept lock is replaced.

        Raises PreparationError when there is no solution.
        """
        from tfjob.environments.preparation import solve  # noqa: PLC0415 (only those who solve pay for it)

        return solve(self, definition, place, log=log, progress=progress)

    def prefix(self, key: str) -> Path:
        """Name the directory of the prefix `key`, there or not."""
        return self.root / "prefixes" / key

    def kept_lock(self, definition: Definition, place: Place, python_version: str | None, text: str | None) -> Path:
        """Name the file of a definition's lock for a place, there or not: solved for a Python of it (None: for conda's), or given."""
        of = f"given-{_short(text)}" if text is not None else python_version or "conda"
        return self.root / "locks" / f"{definition.digest()[:32]}-{of}-{_tag(definition, place)}.lock"

    def known(self, definition: Definition, place: Place, lock: str | None = None) -> Path:
        """Name the file that says what a definition came to in a place, there or not."""
        of = f"-{_short(lock)}" if lock is not None else ""
        return self.root / "known" / f"{definition.digest()[:32]}-{_tag(definition, place)}{of}.json"

    def mark_used(self, key: str) -> None:
        """Note that a prefix was asked for now. A store that cannot be written keeps no such notes."""
        path = self.root / "used" / key
        try:
            path.parent.mkdir(exist_ok=True)
            path.touch()
        except OSError:
            return

    def hold(self, key: str) -> int | None:
        """Keep a prefix from being pruned until the descriptor is closed or this process ends; None where that can't be.

        It may have been pruned just before: who has found it looks again.
        """
        try:
            descriptor = os.open(self.root / "used" / key, os.O_RDONLY | os.O_CREAT | os.O_CLOEXEC, 0o644)
        except OSError:
            return None
        until = time.monotonic() + _LOOKED_AT_S
        while True:
            try:
                fcntl.flock(descriptor, fcntl.LOCK_SH | fcntl.LOCK_NB)
            except BlockingIOError:  # whoever prunes looks at it
                if time.monotonic() < until:
                    time.sleep(_POLL_S)
                    continue
                os.close(descriptor)
                return None
            except OSError:
                os.close(descriptor)
                return None
            return descriptor

    def last_used(self, key: str) -> float:
        """Return when a prefix was last asked for, or else made, in seconds since the epoch."""
        for path in (self.root / "used" / key, self.prefix(key)):
            try:
                return path.stat().st_mtime
            except OSError:
                continue
        return time.time()


def _tag(definition: Definition, place: Place) -> str:
    """Return what tells one place from another in the name of a file.

    Packages of channels may differ with the GPU driver, so another driver is another place for them.
    """
    of = [place.identity] if place.identity else []
    if place.identity and definition.needs_channel and (cuda := place.virtual_packages.get("__cuda")):
        of.append(f"cuda {cuda}")
    if not place.identity and definition.needs_channel:
        with contextlib.suppress(OSError):
            of.append(Path("/proc/driver/nvidia/version").read_text(encoding="utf-8"))
    return f"{place.platform}-{digest_of(of)[:16]}" if of else place.platform


def _short(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()[:16]
