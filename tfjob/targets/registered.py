"""The compute targets of a workspace, by name: a file each, which commands replace whole.

::

    .tfjob/compute/NAME.json    one target: its definition, and when it was created and changed

A target has no versions: it is a description of machines, which are what they are. A run keeps the definition it was
planned with.
"""

from __future__ import annotations

import fcntl
import json
import os
import re
import time
from contextlib import contextmanager
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

from tfjob.assets import differences
from tfjob.durable import replace_json
from tfjob.errors import NotFound, UsageError
from tfjob.spec.nearest import nearest
from tfjob.targets.definition import ClusterDefinition, SlurmDefinition
from tfjob.targets.local import LOCAL
from tfjob.values import decode, encode

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

__all__ = ["Registered", "Targets"]

_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]{0,62}")
_KINDS: dict[str, type[ClusterDefinition | SlurmDefinition]] = {"docker": ClusterDefinition, "slurm": SlurmDefinition}
_LOCK = ".lock"


@dataclass(frozen=True)
class Registered:
    """A target as it is kept. Times are ISO 8601 in UTC; `is_new` and `is_changed` say what a command has done."""

    definition: ClusterDefinition | SlurmDefinition
    created: str
    updated: str
    is_new: bool = False
    is_changed: bool = False


@dataclass(frozen=True)
class Targets:
    """All targets of a workspace but `local`. `root` is their directory, made when first needed; None is no workspace."""

    root: Path | None

    def names(self) -> tuple[str, ...]:
        """Return the names of all targets, `local` not among them, sorted."""
        try:
            paths = list(self.root.glob("*.json")) if self.root else []
        except OSError:
            return ()
        return tuple(sorted(path.stem for path in paths if _NAME.fullmatch(path.stem)))

    def find(self, name: str) -> Registered | None:
        """Return the target, or None where there is none of that name. Raises UsageError for a file that can't be read."""
        if self.root is None or not _NAME.fullmatch(name):
            return None
        path = self.root / f"{name}.json"
        try:
            form = json.loads(path.read_bytes())
            definition = decode(_KINDS[form["definition"]["kind"]], form["definition"])
            return Registered(definition, str(form["created"]), str(form["updated"]))
        except FileNotFoundError:
            return None
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise UsageError(
                f"{path} can't be read: {type(error).__name__}: {error}",
                f"Create it anew: tfjob compute delete {name}, then tfjob compute create {name} -f FILE",
            ) from error

    def get(self, name: str) -> Registered:
        """Return the target. Raises NotFound with the name that is probably meant, and those there are."""
        found = self.find(name)
        if found is None:
            raise self.unknown(name)
        return found

    def unknown(self, name: str) -> NotFound:
        """Return the error for a name that no target has."""
        known = (LOCAL, *self.names())
        guess = nearest(name, known)
        meant = f"Did you mean {guess}? " if guess else ""
        make = f"Create it: tfjob compute create {name} -f FILE" if _NAME.fullmatch(name) else ""
        return NotFound(
            f"there is no compute target {name!r}", f"{meant}Known targets: {', '.join(known)}. {make}".strip()
        )

    def create(self, definition: ClusterDefinition | SlurmDefinition) -> Registered:
        """Keep a target that is new; one that is there with the same definition is found, and nothing changes.

        Raises UsageError saying what differs where it is there with another.
        """
        with self._locked() as root:
            known = self.find(definition.name)
            if known is None:
                return self._write(root, Registered(definition, _now(), "", is_new=True, is_changed=True))
            if known.definition == definition:
                return known
        raise UsageError(
            f"the compute target {definition.name} exists and differs:{_compared(known.definition, definition)}",
            "Change it with `tfjob compute update`, or create this under another name.",
        )

    def update(self, definition: ClusterDefinition | SlurmDefinition) -> tuple[Registered, str]:
        """Replace the definition of a target; also returns what has changed, in lines. Raises NotFound where there is none."""
        with self._locked() as root:
            known = self.get(definition.name)
            if known.definition == definition:
                return known, ""
            changes = _compared(known.definition, definition)
            return self._write(root, replace(known, definition=definition, is_changed=True)), changes

    def delete(self, name: str) -> None:
        """Forget a target, also one whose file is damaged. Raises NotFound where there is none."""
        with self._locked() as root:
            if name not in self.names():
                raise self.unknown(name)
            (root / f"{name}.json").unlink(missing_ok=True)

    def _write(self, root: Path, target: Registered) -> Registered:
        target = replace(target, updated=_now())
        form = {"definition": encode(target.definition), "created": target.created, "updated": target.updated}
        try:
            replace_json(root / f"{target.definition.name}.json", form)
        except OSError as error:
            raise UsageError(
                f"the compute target {target.definition.name} can't be kept in {root}: {error.strerror}",
                "Nothing was changed; free space or permissions there, and try again.",
            ) from error
        return target

    @contextmanager
    def _locked(self) -> Iterator[Path]:
        """Let nobody else change targets meanwhile; waits for whoever does. The lock dies with its holder."""
        root = self.root
        if root is None:
            raise self.unknown("")
        try:
            root.mkdir(parents=True, exist_ok=True)
            descriptor = os.open(root / _LOCK, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
        except OSError as error:
            raise UsageError(f"{root} can't be written: {error.strerror}") from error
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX)
            yield root
        finally:
            os.close(descriptor)


def _compared(old: Any, new: Any) -> str:
    return differences(_document(old), _document(new))


def _document(definition: ClusterDefinition | SlurmDefinition) -> dict[str, Any]:
    """Return a definition as its file would say it: what is not given is left out, and nodes are by name."""
    form: dict[str, Any] = {key: value for key, value in encode(definition).items() if value not in (None, "", [], {})}
    if isinstance(definition, ClusterDefinition):
        nodes = ({key: value for key, value in node.items() if value not in (None, {})} for node in form["nodes"])
        form["nodes"] = {node.pop("name"): node for node in nodes}
    return form


def _now() -> str:
    return datetime.fromtimestamp(time.time(), UTC).isoformat(timespec="seconds")
