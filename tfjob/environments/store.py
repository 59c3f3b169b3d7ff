"""Where environments are kept: locks and prefixes by content, so that the same definition is built once.

::

    known/<definition>-<platform>.json    what a definition came to: its Python, lock and prefix (may be deleted)
    locks/<definition>-<python>-<platform>.txt  every package with its version and hashes
    prefixes/<key>/                       a finished environment; tfjob-prefix.json in it says what it holds
    uv/                                   uv's cache, on the same file system so that prefixes are hard links to it
    building/                             work in progress: <key>.lock is held by whoever works in <key>-<random>/

A prefix appears by a rename, complete or not at all. What a killed build leaves is in `building` only, and the next
preparation removes it.
"""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Any

from tfjob.environments.prefix import Prefix, platform_name, read_json, read_prefix

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from tfjob.environments.definition import Definition

__all__ = ["Store", "identity"]


class Store:
    """The environments under one directory, shared by the workspaces of a user. Several processes may use it at once."""

    def __init__(self, root: Path) -> None:
        """Use the directory `root`; it is made when something is put into it."""
        self.root = root.absolute()

    def find(self, definition: Definition) -> Prefix | None:
        """Return the finished prefix of a definition, None when something has to be done first. Starts no program.

        A prefix whose Python is gone or was replaced, or that something was installed into, is not found.
        """
        record = read_json(self.known(definition))
        try:
            if record is None or record["interpreter"] != identity(record["interpreter"]["path"]):
                return None
            lock = self.root / "locks" / record["lock"]
            return read_prefix(self.prefix(record["key"]), lock) if lock.exists() else None
        except (KeyError, TypeError, OSError):
            return None

    def prepare(self, definition: Definition, *, log: Callable[[str], None], progress: Callable[[str], None]) -> Prefix:
        """Return the prefix of a definition, made if it is not there. `log` gets uv's output, `progress` the steps.

        Raises PreparationError when it cannot be made, and Interrupted on SIGTERM where nobody else handles that;
        then nothing half-made is left and no program still runs.
        """
        if (prefix := self.find(definition)) is not None:
            return prefix
        from tfjob.environments.preparation import prepare  # noqa: PLC0415 (only those who build pay for it)

        return prepare(self, definition, log=log, progress=progress)

    def prefix(self, key: str) -> Path:
        """Name the directory of the prefix `key`, there or not."""
        return self.root / "prefixes" / key

    def lock(self, definition: Definition, python_version: str) -> Path:
        """Name the file of a definition's lock for a Python on this kind of machine, there or not."""
        return self.root / "locks" / f"{definition.digest()[:32]}-{python_version}-{platform_name()}.txt"

    def known(self, definition: Definition) -> Path:
        """Name the file that says what a definition came to on this kind of machine, there or not."""
        return self.root / "known" / f"{definition.digest()[:32]}-{platform_name()}.json"


def identity(interpreter: Path | str) -> dict[str, Any]:
    """Return what changes when a Python is replaced at the same place. Raises OSError when it is gone."""
    status = os.stat(interpreter)
    return {"path": str(interpreter), "size": status.st_size, "modified_ns": status.st_mtime_ns}
