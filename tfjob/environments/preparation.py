"""Making an environment that is not there: choose a Python, solve, build, and put it where the store finds it.

Every step is done under a lock and in a folder of its own, so that several preparations at once share the work and a
killed one leaves nothing that looks finished.
"""

from __future__ import annotations

import contextlib
import dataclasses
import errno
import os
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tfjob.durable import digest_of, replace_json, replace_text
from tfjob.environments import conda_cache, fetched
from tfjob.environments.build import Recipe, build
from tfjob.environments.building import Building
from tfjob.environments.interpreters import choose, fitting
from tfjob.environments.lock import Lock
from tfjob.environments.pip_settings import configuration_files, uv_settings
from tfjob.environments.prefix import BUILDER, MARKER, Prefix, read_json, read_prefix, runs_on
from tfjob.environments.processes import interruptible
from tfjob.environments.solving import Solving
from tfjob.environments.solving import solve as solve_definition
from tfjob.environments.uv import Uv, find_uv
from tfjob.errors import PreparationError, UsageError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping

    from tfjob.environments.definition import Definition
    from tfjob.environments.interpreters import Interpreter
    from tfjob.environments.place import Place
    from tfjob.environments.store import Store

__all__ = ["prepare", "solve"]

_FULL_HINT = "Free space on that disk and submit again; nothing half-made was left behind."
_STORE_HINT = "The store must be on a disk that you can write to: set `store:` in config.yml, or TFJOB_STORE."
_OTHER_HINT = "See to what is said there and submit again; nothing half-made was left behind."
_HINTS = {errno.ENOSPC: _FULL_HINT, errno.EDQUOT: _FULL_HINT}
_HINTS |= dict.fromkeys((errno.EACCES, errno.EPERM, errno.EROFS), _STORE_HINT)
_FOLDERS = ("known", "locks", "prefixes", "used", "uv", "conda", "building")


def prepare(
    store: Store,
    definition: Definition,
    place: Place,
    *,
    lock: str | None,
    log: Callable[[str], None],
    progress: Callable[[str], None],
) -> Prefix:
    """Make what is missing of a definition's prefix and return it; see `Store.prepare`."""
    with _explained(store):
        return _Preparation(store, definition, place, log, progress).prefix(lock)


def solve(
    store: Store,
    definition: Definition,
    place: Place,
    *,
    log: Callable[[str], None],
    progress: Callable[[str], None],
) -> Lock:
    """Solve a definition; see `Store.solve`."""
    with _explained(store):
        return _Preparation(store, definition, place, log, progress).solved()


@contextlib.contextmanager
def _explained(store: Store) -> Iterator[None]:
    """End on signals as on errors, and say what a disk that is full or cannot be written means."""
    try:
        with interruptible():
            yield
    except OSError as error:
        said = error.strerror or str(error)
        if error.filename and not str(error.filename).startswith(str(store.root / "building")):
            said += f" ({error.filename})"
        raise PreparationError(
            f"the environment could not be made in {store.root}: {said}", _HINTS.get(error.errno or 0, _OTHER_HINT)
        ) from error


class _Preparation:
    """One definition on its way to a prefix for a place."""

    def __init__(
        self,
        store: Store,
        definition: Definition,
        place: Place,
        log: Callable[[str], None],
        progress: Callable[[str], None],
    ) -> None:
        self.store = store
        self.definition = definition
        self.place = place
        self.log = log
        self.progress = progress
        self.building = Building(store.root / "building")
        for folder in _FOLDERS:
            (store.root / folder).mkdir(parents=True, exist_ok=True)
        self.building.sweep()
        conda_cache.sweep(store.root / "conda")
        settings = uv_settings(os.environ, configuration_files(os.environ))
        self.notes = settings.notes
        self.uv = Uv(find_uv(), store.root / "uv", settings, place)

    def prefix(self, given: str | None) -> Prefix:
        """Return the prefix, from the text of a lock or from the one that is kept or solved now."""
        if given is not None:
            lock, interpreter = self._given(given)
        else:
            interpreter = self._python()
            lock = None
        self._tell_uv(interpreter)
        into = self._into(interpreter, given)
        lock = self._kept(lock, into, interpreter)
        key = self._key(lock, interpreter)
        path = self.store.prefix(key)
        if (prefix := read_prefix(path, into)) is None:
            with self.building.holding(key, self.progress) as (work, holds):
                if (prefix := read_prefix(path, into)) is None:
                    recipe = Recipe(
                        key=key,
                        definition=self.definition,
                        lock=lock,
                        kept=into,
                        place=self.place,
                        interpreter=interpreter,
                        final=self.place.final(path),
                        root=self.store.root,
                        earlier=self._earlier(key),
                    )
                    stage = build(recipe, work, uv=self.uv, log=self.log, progress=self.progress, holds=holds)
                    prefix = _place(stage, path, into)
        python = self.place.identity_of(interpreter) if interpreter is not None else None
        if not into.exists():  # pruned while the prefix was built
            replace_text(into, lock.text)
        known = {"interpreter": python, "lock": into.name, "key": key}
        replace_json(self.store.known(self.definition, self.place, given), known)
        self.store.mark_used(key)
        return prefix

    def solved(self) -> Lock:
        """Return a new lock."""
        interpreter = self._python()
        self._tell_uv(interpreter)
        into = self._into(interpreter, None)
        with self.building.holding(digest_of(["solve", into.name])[:32], self.progress) as (work, holds):
            return self._solve(interpreter, into, work, holds)

    def _tell_uv(self, interpreter: Interpreter | None) -> None:
        """Have uv choose packages for the place and its Python where it can't see what they are."""
        told = (*self.uv.settings.arguments, *self.place.uv_arguments(interpreter))
        self.uv = dataclasses.replace(self.uv, settings=dataclasses.replace(self.uv.settings, arguments=told))

    def _into(self, interpreter: Interpreter | None, given: str | None) -> Path:
        version = interpreter.version_text if interpreter is not None else None
        return self.store.kept_lock(self.definition, self.place, version, given)

    def _kept(self, given: Lock | None, into: Path, interpreter: Interpreter | None) -> Lock:
        """Return the lock to use: the one given, kept now; the one that is kept; or a new one."""
        if given is not None:
            if Lock.read(into) is None:
                replace_text(into, given.text)
            return given
        with self.building.holding(digest_of(["solve", into.name])[:32], self.progress) as (work, holds):
            lock = Lock.read(into)
            if lock is None:
                lock = self._solve(interpreter, into, work, holds)
                replace_text(into, lock.text)
            return lock

    def _solve(self, interpreter: Interpreter | None, into: Path, work: Path, holds: int) -> Lock:
        for note in self.notes:
            self.log(note)
        self.progress("solving")
        solving = Solving(self.place, self.store.root, work, into, self.uv, self.log, holds)
        return solve_definition(self.definition, interpreter, solving)

    def _python(self) -> Interpreter | None:
        """Return the Python of the place to use; None when it shall come from the definition's channels.

        Raises PreparationError when there is no such Python.
        """
        definition, place = self.definition, self.place
        if definition.needs_channel:
            return None
        there = (*place.interpreters, *fetched.interpreters(self.store.root, place))
        found = fitting(definition.python, there)
        if found is None and definition.channels:
            return None
        if found is None and fetched.is_possible(place):
            with self.building.holding(digest_of(["python", definition.python])[:32], self.progress) as (work, holds):
                self.progress(f"fetching Python {fetched.plain(definition.python)}".rstrip())
                fetched.fetch(self.store.root, definition.python, self.uv, work=work, log=self.log, holds=holds)
            there = (*place.interpreters, *fetched.interpreters(self.store.root, place))
        return found or choose(definition.python, there, place=place.name, can_install=not place.identity)

    def _given(self, text: str) -> tuple[Lock, Interpreter | None]:
        """Return the lock that `text` is, and the Python of the place it was solved for.

        A Python of the same minor version takes the same files; that it is another is said. So does a newer C library. Raises
        UsageError for a lock of another definition or platform, PreparationError when the place has no such Python.
        """
        lock, place = Lock.parse(text), self.place
        again = "Make a lock of this definition, for this platform: `tfjob env lock`."
        if lock.definition != self.definition.digest():
            raise UsageError(
                "the lock is of another definition; this one changed since it was locked, or never was", again
            )
        if not runs_on(lock.platform, place.platform):
            raise UsageError(f"the lock is for {lock.platform}; {place.name} is {place.platform}", again)
        if lock.conda is not None:
            return lock, None
        there = (*place.interpreters, *fetched.interpreters(self.store.root, place))
        for interpreter in there:
            if interpreter.version_text == lock.python_version:
                return lock, interpreter
        minor = ".".join(lock.python_version.split(".")[:2])
        near = fitting(f"=={minor}.*", there)
        if near is None:
            has = ", ".join(sorted({one.version_text for one in there})) or "none"
            raise PreparationError(
                f"the lock is for Python {lock.python_version}, and {place.name} has no {minor} (it has {has})",
                "Install that Python, or lock for one that is there: `tfjob env lock`.",
            )
        self.progress(f"the lock was made with Python {lock.python_version}; {place.name} has {near.version_text}")
        return lock, near

    def _key(self, lock: Lock, interpreter: Interpreter | None) -> str:
        """Return the name of the prefix made from a lock: 32 hex digits.

        It depends on all that decides what is in the prefix: the files, the Python (one of the place and where it is,
        or conda's), the place, where the prefix is seen if it has its own Python, and the code that builds.
        """
        place = self.place
        parts: list[Any] = [lock.digest(), place.identity, place.platform, BUILDER]
        if interpreter is not None:
            parts += [interpreter.version_text, interpreter.cache_tag, str(interpreter.path)]
            parts += [] if place.starts(interpreter) else ["without bytecode"]
        else:
            parts += ["conda", str(place.final(self.store.prefix("key")))]
        return digest_of(parts)[:32]

    def _earlier(self, key: str) -> dict[Path, Mapping[str, Any]]:
        """Return the metadata of the other finished prefixes, the newest first."""
        found = {}
        for path in (self.store.root / "prefixes").iterdir():
            marker = read_json(path / MARKER) if path.name != key else None
            if marker is not None:
                found[path] = marker
        return dict(sorted(found.items(), key=lambda one: str(one[1].get("created")), reverse=True))


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
