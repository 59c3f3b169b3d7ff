"""The schemas of the files people write: the one source of their keys, types, defaults and explanations.

JSON files beside this one, for editors as for tfjob. Beyond JSON Schema they use ``enumDescriptions`` (editors show
them), ``x-says`` (a pattern in words), ``x-also`` (what other tools call the same thing), ``x-file`` and ``x-path`` (the
key for a YAML file or any path, where a text is the name of something registered), ``x-lone`` (the key that a value alone
is meant for, where a mapping is allowed) and ``x-limits`` (what other tools have there and is said elsewhere).
"""

from __future__ import annotations

import copy
import functools
import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from tfjob.spec.tree import Where

__all__ = ["config_schema", "default", "environment_schema", "lookup", "schema", "target_schema", "types"]


def schema() -> dict[str, Any]:
    """Return the JSON Schema (draft 2020-12) of the job file, complete in itself."""
    return copy.deepcopy(_job())


def environment_schema() -> dict[str, Any]:
    """Return the JSON Schema (draft 2020-12) of a conda environment file."""
    return copy.deepcopy(_environment())


def config_schema() -> dict[str, Any]:
    """Return the JSON Schema (draft 2020-12) of a workspace's config.yml."""
    return _read("config.schema.json")


def target_schema(kind: str | None = None) -> dict[str, Any]:
    """Return the JSON Schema (draft 2020-12) of a target file: that of one `kind`, or all of it."""
    whole = _read("target.schema.json")
    if kind is None:
        return whole
    one: dict[str, Any] = whole["$defs"][kind]
    return one


def lookup(where: Where, root: dict[str, Any] | None = None) -> dict[str, Any] | None:
    """Return what the schema (`root`, or that of the job file) says of the node at `where`; None of unknown ones."""
    found: Any = _job() if root is None else root
    for part in where:
        inner = found.get("items" if isinstance(part, int) else "additionalProperties")
        found = found.get("properties", {}).get(part, inner)
        if not isinstance(found, dict):
            return None
    return found if isinstance(found, dict) else None


def default(*where: str) -> Any:
    """Return the default of the key at `where` of the job file; None where it has none."""
    said = lookup(where)
    if said is None:
        raise KeyError(".".join(where))
    return said.get("default")


def types(said: dict[str, Any]) -> tuple[str, ...]:
    """Return the JSON types that the schema `said` allows."""
    named = said.get("type", ())
    return (named,) if isinstance(named, str) else tuple(named)


@functools.cache
def _environment() -> dict[str, Any]:
    return _read("environment.schema.json")


@functools.cache
def _job() -> dict[str, Any]:
    job = _read("job.schema.json")
    place = job["properties"]["environment"]["properties"]
    content = {key: value for key, value in _environment().items() if not key.startswith("$")}
    own = {key: value for key, value in place["conda"].items() if key != "$ref"}
    place["conda"] = {**content, **own}
    return job


def _read(name: str) -> dict[str, Any]:
    content: dict[str, Any] = json.loads(Path(__file__).with_name(name).read_text(encoding="utf-8"))
    return content
