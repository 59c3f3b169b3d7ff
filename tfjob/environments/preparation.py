"""Making an environment that is not there: choose a Python, solve, build, and put it where the store finds it.

Every step is done under a lock and in a folder of its own, so that several preparations at once share the work and a
killed one leaves nothing that looks finished.
"""

from __future__ import annotations

import contextlib
import errno
import os
import shutil
import tempfile
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tfjob.durable import is_locked, replace_json, try_lock
from tfjob.environments.build import BUILDER, Recipe, build
from tfjob.environments.interpreters import choose, installed
from tfjob.environments.lock import Lock, solve
from tfjob.environments.pip_settings import configuration_files, uv_settings
from tfjob.environments.prefix import MARKER, Prefix, read_json, read_prefix
from tfjob.environments.processes import interruptible
from tfjob.environments.store import Store, identity
from tfjob.environments.uv import Uv, find_uv
from tfjob.errors import PreparationError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping

    from tfjob.environments.definition import Definition

__all__ = ["prepare"]

_POLL_S = 0.05
_FOLDERS = ("known", "locks", "prefixes", "uv", "building")


def prepare(
    store: Store, definition: Definition, *, log: Callable[[str], None], progress: Callable[[str], None]
) -> Prefix:
    """Make what is missing of a definition's prefix and return it; see `Store.prepare`."""
    try:
        with interruptible():
            return _Preparation(store, definition, log, progress).prefix()
    except OSError as error:
        full = error.errno in {errno.ENOSPC, errno.EDQUOT}
        raise PreparationError(
            f"the environment could not be made in {store.root}: {error.strerror or error}",
            "Free space on that disk and submit again; nothing half-made was left behind."
            if full
            else "The store must be on a disk that you can write to: set `store:` in config.yml, or TFJOB_STORE.",
        ) from error


class _Preparation:
    """One definition on its way to a prefix."""

    def __init__(
        self, store: Store, definition: Definition, log: Callable[[str], None], progress: Callable[[str], None]
    ) -> None:
        self.store = store
        self.definition = definition
        self.log = log
        self.progress = progress
        self.building = store.root / "building"

    def prefix(self) -> Prefix:
        for folder in _FOLDERS:
            (self.store.root / folder).mkdir(parents=True, exist_ok=True)
        self._sweep()
        interpreter = choose(self.definition.python, installed(os.environ))
        settings = uv_settings(os.environ, configuration_files(os.environ))
        uv = Uv(find_uv(), self.store.root / "uv", settings)
        into = self.store.lock(self.definition, interpreter.version_text)
        with self._holding(self.definition.digest()[:32]) as (work, holds):
            lock = Lock.read(into)
            if lock is None:
                for note in settings.notes:
                    self.log(note)
                self.progress("solving")
                lock = solve(self.definition, interpreter, into=into, work=work, uv=uv, log=self.log, holds=holds)
        key = lock.key(interpreter, BUILDER)
        final = self.store.prefix(key)
        if (prefix := read_prefix(final, lock.path)) is None:
            with self._holding(key) as (work, holds):
                if (prefix := read_prefix(final, lock.path)) is None:
                    recipe = Recipe(key, self.definition, lock, interpreter, final, self._earlier(key))
                    stage = build(recipe, work, uv=uv, log=self.log, progress=self.progress, holds=holds)
                    prefix = _place(stage, final, lock.path)
        known = {"interpreter": identity(interpreter.path), "lock": lock.path.name, "key": key}
        replace_json(self.store.known(self.definition), known)
        return prefix

    def _earlier(self, key: str) -> dict[Path, Mapping[str, Any]]:
        """Return the metadata of the other finished prefixes, the newest first."""
        found = {}
        for path in (self.store.root / "prefixes").iterdir():
            marker = read_json(path / MARKER) if path.name != key else None
            if marker is not None:
                found[path] = marker
        return dict(sorted(found.items(), key=lambda one: str(one[1].get("created")), reverse=True))

    @contextlib.contextmanager
    def _holding(self, name: str) -> Iterator[tuple[Path, int]]:
        """Hold the lock `name` of `building` and give an empty folder to work in, removed at the end.

        Waits for whoever has the lock, and says so. The folder's name starts with the lock's, by which `_sweep` knows
        a folder nobody works in. The lock's file is removed while it is held; so a lock counts only if its file is
        still the one under its name.
        """
        path = self.building / f"{name}.lock"
        waits = False
        while True:
            holds = try_lock(path)
            if holds is not None:
                if _is_same_file(path, holds):
                    break
                os.close(holds)
                continue
            if not waits:
                self.progress("waiting for another tfjob that builds this environment")
                waits = True
            time.sleep(_POLL_S)
        try:
            for left in path.parent.glob(f"{name}-*"):
                shutil.rmtree(left, ignore_errors=True)
            work = Path(tempfile.mkdtemp(prefix=f"{name}-", dir=path.parent))
            try:
                yield work, holds
            finally:
                shutil.rmtree(work, ignore_errors=True)
        finally:
            path.unlink(missing_ok=True)
            os.close(holds)

    def _sweep(self) -> None:
        """Remove what killed preparations left in `building`."""
        for path in self.building.iterdir():
            lock = path if path.suffix == ".lock" else path.with_name(f"{path.name.partition('-')[0]}.lock")
            if path != lock and not is_locked(lock):
                shutil.rmtree(path, ignore_errors=True)
            elif path == lock and (holds := try_lock(lock)) is not None:
                if _is_same_file(lock, holds):
                    lock.unlink(missing_ok=True)
                os.close(holds)


def _place(stage: Path, final: Path, lock: Path) -> Prefix:
    """Rename a built prefix to where it is found. One that stands there is used if finished, else replaced."""
    if final.exists():
        if (prefix := read_prefix(final, lock)) is not None:
            return prefix
        final.rename(stage.parent / "replaced")
    stage.rename(final)
    prefix = read_prefix(final, lock)
    if prefix is None:
        raise PreparationError(f"the environment {final} was changed while it was being made", "Submit again.")
    return prefix


def _is_same_file(path: Path, descriptor: int) -> bool:
    try:
        return os.path.samestat(path.stat(), os.fstat(descriptor))
    except FileNotFoundError:
        return False
