"""What there is to say of one environment: what is asked for, what it was locked to, what of it is built here."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from tfjob.cli.environment_builds import asked_for
from tfjob.cli.output import plural, size
from tfjob.errors import TfjobError, UsageError

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from tfjob.environments.definition import Definition
    from tfjob.environments.place import Place
    from tfjob.environments.resolved import ResolvedEnvironment

__all__ = ["Facts", "describe"]

_NOT_IN_ROWS = {"name", "digest", "lock", "has_stale_lock"}


@dataclass(frozen=True)
class Facts:
    """An environment for people (a title, rows of a name and a text, packages with versions) and for programs (a document)."""

    title: str
    rows: tuple[tuple[str, str], ...]
    packages: tuple[tuple[str, str], ...]
    document: dict[str, Any]


def describe(what: str) -> Facts:
    """Look up the environment that `what` names and all that is known of it here. Builds, pulls and solves nothing."""
    asked, store = asked_for(what)
    document: dict[str, Any] = {"name": asked.name or what, "digest": asked.digest(), **_asked(asked)}
    if asked.lock is not None:
        document["has_stale_lock"] = _is_stale(asked)
    rows = [(name, _shown(value)) for name, value in document.items() if name not in _NOT_IN_ROWS and value]
    if asked.lock is not None:
        stale = "  (of another definition: lock it again)" if document["has_stale_lock"] else ""
        rows.append(("lock", f"{asked.lock_path or 'registered with it'}{stale}"))
    packages: dict[str, str] = {}
    if asked.definition is not None:
        document["built"] = [*_built(asked, asked.definition, store)]
        rows += [("built", _line(one, asked)) for one in document["built"]] or [
            ("built", "nowhere yet: tfjob env build")
        ]
        packages = next((one["versions"] for one in document["built"]), _locked(asked))
    return Facts(document["name"], tuple(rows), tuple(sorted(packages.items())), document)


def _asked(asked: ResolvedEnvironment) -> dict[str, Any]:
    facts: dict[str, Any] = {"image": asked.image}
    if asked.dockerfile is not None:
        source = asked.dockerfile
        facts |= {"dockerfile": str(source.path), "context": str(source.context), "arguments": dict(source.arguments)}
    if asked.definition is not None:
        definition = asked.definition
        facts |= {
            "base": asked.base,
            "python": definition.python or "any",
            "channels": list(definition.channels),
            "conda": list(definition.packages),
            "pip": list(definition.requirements),
            "lock": asked.lock,
        }
    return {**{name: value for name, value in facts.items() if value}, "variables": dict(asked.variables)}


def _built(asked: ResolvedEnvironment, definition: Definition, store: Path) -> Iterator[dict[str, Any]]:
    """Each prefix and image made of the environment on this machine."""
    from tfjob.environments.lock import Lock  # noqa: PLC0415  # only for this
    from tfjob.environments.place import Machine  # noqa: PLC0415
    from tfjob.environments.prefix import MARKER, read_json  # noqa: PLC0415
    from tfjob.environments.store import Store  # noqa: PLC0415

    places: list[tuple[str, Place]] = [("process", Machine())]
    if (base := _base_at_hand(asked, store)) is not None:
        places.append(("docker", base))
    for runtime, place in places:
        prefix = Store(store).find(definition, place, asked.lock)
        if prefix is None:
            continue
        lock, marker = Lock.read(prefix.lock), read_json(prefix.path / MARKER) or {}
        yield {
            "runtime": runtime,
            "key": prefix.key,
            "prefix": str(prefix.path),
            "size_bytes": marker.get("size_bytes", 0),
            "python": prefix.python_version,
            "base": lock.base if lock else None,
            "versions": dict(lock.packages) if lock else {},
            "image": _image(prefix.key) if runtime == "docker" else None,
        }


def _base_at_hand(asked: ResolvedEnvironment, store: Path) -> Place | None:
    """The environment's base image, if a Docker Engine answers and has it."""
    from tfjob.images.base import base_image  # noqa: PLC0415  # only where containers are looked at
    from tfjob.images.engine import find_image  # noqa: PLC0415

    try:
        if find_image(asked.base or "") is None:
            return None
        return base_image(asked.base or "", store_root=store, log=_nobody, progress=_nobody)
    except TfjobError:
        return None


def _image(key: str) -> dict[str, Any] | None:
    from tfjob.images.engine import find_image  # noqa: PLC0415

    found = find_image(f"tfjob/env:{key}")
    return {"tag": f"tfjob/env:{key}", "id": found["Id"], "size_bytes": found["Size"]} if found else None


def _locked(asked: ResolvedEnvironment) -> dict[str, str]:
    from tfjob.environments.lock import Lock  # noqa: PLC0415

    return dict(Lock.parse(asked.lock).packages) if asked.lock is not None and not _is_stale(asked) else {}


def _is_stale(asked: ResolvedEnvironment) -> bool:
    try:
        asked.require_fresh_lock()
    except UsageError:
        return True
    return False


def _line(built: dict[str, Any], asked: ResolvedEnvironment) -> str:
    where = "for processes" if built["runtime"] == "process" else f"for containers on {asked.base}"
    count = plural(len(built["versions"]), "package")
    image = built["image"]
    baked = f"; image {image['tag']}, {size(image['size_bytes'])}" if image else ""
    return f"{where}: {built['key'][:12]}, Python {built['python']}, {count}, {size(built['size_bytes'])}{baked}"


def _shown(value: Any) -> str:
    if isinstance(value, dict):
        return ", ".join(f"{name}={text}" for name, text in value.items())
    return ", ".join(value) if isinstance(value, list) else str(value)


def _nobody(_: str) -> None:
    """What is told to nobody."""
