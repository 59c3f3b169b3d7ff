"""Named, versioned entries of a workspace: environments, and in time datasets and models, kept by one mechanism.

::

    .tfjob/environments/NAME/VERSION.json    one entry: who it is, and its content

An entry never changes once it is there; what changes gets a new version. Versions that tfjob gives count up from 1. The
latest is the one that was made last, whatever it is called. Files are made whole or not at all and are read without a
lock; who registers holds one, so that two at once get different versions, or the same one for the same content.
"""

from __future__ import annotations

import fcntl
import json
import os
import re
import shutil
import time
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

from tfjob.durable import digest_of, replace_json, replace_text
from tfjob.errors import NotFound, UsageError
from tfjob.spec.nearest import nearest
from tfjob.values import Pairs, decode, encode

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping, Sequence
    from pathlib import Path

__all__ = ["LATEST", "Assets", "Entry", "differences", "split_name"]

_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]{0,62}")
_ALLOWED = "at most 63 letters, digits, _, . and -, starting with a letter or digit"
LATEST = "latest"
_LOCK = ".lock"
_LAST = ".last"  # the highest number given, once a version has been removed
_SHOWN = 40


@dataclass(frozen=True)
class Entry:
    """One version of a named thing. `content` is plain data (JSON), `digest` its SHA-256 (hex), `created` ISO 8601 in UTC."""

    name: str
    version: str
    created: str
    content: dict[str, Any]
    digest: str
    description: str = ""
    tags: Pairs = ()
    is_new: bool = True

    @property
    def full_name(self) -> str:
        """The name that always means this version: ``name@version``."""
        return f"{self.name}@{self.version}"


@dataclass(frozen=True)
class Assets:
    """All entries of one kind. `root` is their directory, made when first needed; `kind` what they are called in messages."""

    root: Path
    kind: str
    reserved_prefix: str = ""

    def register(
        self,
        name: str,
        content: Mapping[str, Any],
        *,
        version: str | None = None,
        new_version: bool = False,
        description: str = "",
        tags: Pairs = (),
    ) -> Entry:
        """Keep `content` under `name` and return its entry; `is_new` is false where that very content was there already.

        Without `version` and `new_version`, only a new name or unchanged content is accepted. Raises UsageError saying
        what differs and the two ways out; for a version that exists with another content; for a name that cannot be.
        """
        self._refuse(name, version)
        plain: dict[str, Any] = json.loads(json.dumps(dict(content)))
        digest = digest_of(plain)
        with self.locked():
            known = self.versions(name)
            if version is not None:
                same = next((entry for entry in known if entry.version == version), None)
                if same is not None:
                    return self._unchanged(same, plain, digest)
            elif known and known[-1].digest == digest:
                return replace(known[-1], is_new=False)
            elif known and not new_version:
                raise self._changed(known[-1], plain)
            entry = Entry(
                name=name,
                version=version or str(1 + self._last_number(name, known)),
                created=_after(known[-1].created if known else ""),
                content=plain,
                digest=digest,
                description=description,
                tags=tags,
            )
            self._write(entry)
        return entry

    def find(self, name: str, *, also: Iterable[str] = ()) -> Entry:
        """Return the entry that ``name`` or ``name@latest`` (the version made last) or ``name@version`` means.

        Raises NotFound with the name or versions that are probably meant; `also` are names that are elsewhere.
        """
        bare, version = split_name(name)
        known = self.versions(bare)
        if not known:
            guess = nearest(bare, [*self.names(), *also])
            raise NotFound(
                f"there is no {self.kind} {bare!r} in this workspace",
                f"Did you mean {guess}?" if guess else f"See those there are: tfjob {_group(self.kind)} list.",
            )
        if version in {None, LATEST}:
            return known[-1]
        found = next((entry for entry in known if entry.version == version), None)
        if found is None:
            versions = ", ".join(entry.version for entry in reversed(known[-8:]))
            raise NotFound(
                f"the {self.kind} {bare} has no version {version!r}", f"Its versions, latest first: {versions}."
            )
        return found

    def list(self, *, all_versions: bool = False) -> tuple[Entry, ...]:
        """Return the latest version of every name, by name; with `all_versions` each name's versions, oldest first."""
        found = (self.versions(name) for name in self.names())
        return tuple(entry for known in found for entry in (known if all_versions else known[-1:]))

    def names(self) -> tuple[str, ...]:
        """Return the names that have an entry, sorted."""
        try:
            folders = sorted(path.name for path in self.root.iterdir() if _NAME.fullmatch(path.name))
        except (FileNotFoundError, NotADirectoryError):
            return ()
        return tuple(name for name in folders if any((self.root / name).glob("*.json")))

    def versions(self, name: str) -> tuple[Entry, ...]:
        """Return every version of `name`, the one made last at the end; none where nothing has that name.

        Raises UsageError for an entry that cannot be read.
        """
        if not _NAME.fullmatch(name):
            return ()
        entries = [_read(path) for path in (self.root / name).glob("*.json") if _NAME.fullmatch(path.stem)]
        return tuple(sorted((entry for entry in entries if entry), key=lambda entry: (entry.created, entry.version)))

    def remove(self, name: str) -> tuple[Entry, ...]:
        """Forget ``name`` with all its versions, or ``name@version`` alone; return what was forgotten.

        A number is not given again while the name has other versions. Runs that used them go on and can be repeated:
        they keep what they need. Raises NotFound where there is none.
        """
        bare, version = split_name(name)
        with self.locked():
            entry = self.find(name)
            gone = self.versions(bare) if version is None else (entry,)
            self._keep_number(bare, self.versions(bare))
            for one in gone:
                self._path(one).unlink(missing_ok=True)
            if not self.versions(bare):
                shutil.rmtree(self.root / bare, ignore_errors=True)
        return gone

    def _refuse(self, name: str, version: str | None) -> None:
        if not _NAME.fullmatch(name):
            raise UsageError(f"{name!r} can't be the name of {_a(self.kind)}", f"A name is {_ALLOWED}.")
        if self.reserved_prefix and name.startswith(self.reserved_prefix):
            raise UsageError(
                f"{name!r} can't be registered: names that start with {self.reserved_prefix} are tfjob's own",
                f"Choose another name, such as {name.removeprefix(self.reserved_prefix) or 'mine'}.",
            )
        if version == LATEST:
            raise UsageError(f"{LATEST!r} can't be a version: it means the one that was made last", "Choose another.")
        if version is not None and not _NAME.fullmatch(version):
            raise UsageError(f"{version!r} can't be a version of {_a(self.kind)}", f"A version is {_ALLOWED}.")

    def _unchanged(self, same: Entry, content: dict[str, Any], digest: str) -> Entry:
        """Return `same`, which has the asked version, if it has the content too."""
        if same.digest == digest:
            return replace(same, is_new=False)
        raise UsageError(
            f"the {self.kind} {same.full_name} exists with another content:{differences(same.content, content)}",
            "A version never changes: give another one, or leave it out and use --new-version.",
        )

    def _changed(self, latest: Entry, content: dict[str, Any]) -> UsageError:
        return UsageError(
            f"the {self.kind} {latest.name} exists, and its latest version {latest.version} differs:"
            f"{differences(latest.content, content)}",
            "Keep this beside it with --new-version (or --version NAME), or register it under another name.",
        )

    def _last_number(self, name: str, known: Sequence[Entry]) -> int:
        """Return the highest number that a version of `name` has, or had before it was removed."""
        try:
            kept = int((self.root / name / _LAST).read_text(encoding="ascii"))
        except (OSError, ValueError):
            kept = 0
        return max([kept, *(int(one.version) for one in known if one.version.isdecimal())])

    def _keep_number(self, name: str, known: Sequence[Entry]) -> None:
        with suppress(OSError):  # a full disk does not keep anybody from removing
            replace_text(self.root / name / _LAST, f"{self._last_number(name, known)}\n")

    def _path(self, entry: Entry) -> Path:
        return self.root / entry.name / f"{entry.version}.json"

    def _write(self, entry: Entry) -> None:
        folder = self.root / entry.name
        form = encode(entry)
        del form["is_new"]
        form["content"] = form.pop("content")  # the long part last
        try:
            folder.mkdir(exist_ok=True)
            replace_json(self._path(entry), form)
        except OSError as error:
            raise UsageError(
                f"the {self.kind} {entry.name} can't be kept in {self.root}: {error.strerror}",
                "Nothing was registered; free space or permissions there, and try again.",
            ) from error

    @contextmanager
    def locked(self) -> Iterator[None]:
        """Let nobody else register or remove meanwhile; waits for whoever does. The lock dies with its holder. Raises UsageError."""
        try:
            self.root.mkdir(parents=True, exist_ok=True)
            descriptor = os.open(self.root / _LOCK, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
        except OSError as error:
            raise UsageError(f"{self.root} can't be written: {error.strerror}") from error
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX)
            yield
        finally:
            os.close(descriptor)


def split_name(name: str) -> tuple[str, str | None]:
    """Split ``name@version`` into its parts; the version is None where none is given.

    >>> split_name("tf@3"), split_name("tf")
    (('tf', '3'), ('tf', None))
    """
    bare, at, version = name.partition("@")
    return bare, version if at else None


def _read(path: Path) -> Entry | None:
    """Return the entry in the file at `path`; None where it has just been removed."""
    try:
        return decode(Entry, json.loads(path.read_bytes()))
    except FileNotFoundError:
        return None
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise UsageError(f"{path} can't be read: {error}", "Repair the file, or remove it.") from error


def _after(created: str) -> str:
    """Return the time now, later than `created` in any case: the clock may be set back, and the order must not change."""
    now = datetime.fromtimestamp(time.time(), UTC)
    if created and now <= (last := datetime.fromisoformat(created)):
        now = datetime.fromtimestamp(last.timestamp() + 1e-3, UTC)
    return now.isoformat(timespec="microseconds")


def differences(old: Any, new: Any, where: str = "") -> str:
    """Say in lines what differs, a line for each value: ``- dependencies[1]: "numpy" → "numpy<2"``."""
    lines = list(_compare(old, new, where))
    more = [f"… and {len(lines) - 8} more"] if len(lines) > 9 else []
    return "".join(f"\n  - {line}" for line in (lines[:8] + more if more else lines))


def _compare(old: Any, new: Any, where: str) -> Iterator[str]:
    if isinstance(old, dict) and isinstance(new, dict):
        yield from _compare_keys(old, new, where)
    elif isinstance(old, list) and isinstance(new, list):
        yield from _compare_items(old, new, where)
    else:
        yield f"{where}: {_shown(old)} → {_shown(new)}"


def _compare_keys(old: dict[str, Any], new: dict[str, Any], where: str) -> Iterator[str]:
    for key in dict.fromkeys([*old, *new]):
        inner = f"{where}.{key}" if where else str(key)
        if key not in new:
            yield f"{inner}: {_shown(old[key])} → nothing"
        elif key not in old:
            yield f"{inner}: nothing → {_shown(new[key])}"
        elif old[key] != new[key]:
            yield from _compare(old[key], new[key], inner)


def _compare_items(old: list[Any], new: list[Any], where: str) -> Iterator[str]:
    if len(old) == len(new) and any(isinstance(one, dict | list) for one in old):
        for index, (one, other) in enumerate(zip(old, new, strict=True)):
            if one != other:
                yield from _compare(one, other, f"{where}[{index}]")
        return
    gone, come = [one for one in old if one not in new], [one for one in new if one not in old]
    yield from (f"{where}: without {_shown(one)}" for one in gone)
    yield from (f"{where}: with {_shown(one)}" for one in come)
    if not gone and not come:
        yield f"{where}: in another order"


def _shown(value: Any) -> str:
    text = json.dumps(value, ensure_ascii=False)
    return text if len(text) <= _SHOWN else f"{text[: _SHOWN - 1]}…"


def _group(kind: str) -> str:
    return {"environment": "env"}.get(kind, kind)


def _a(kind: str) -> str:
    return f"an {kind}" if kind[0] in "aeiou" else f"a {kind}"
