"""A dataset file → a `DatasetFile`, or every problem it has, each with its place.

What paths are is the job schema's own: a dataset file names them as a job does.
"""

from __future__ import annotations

import copy
import functools
import json
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tfjob.errors import InvalidFile, Problem, UsageError
from tfjob.spec import schema as schemas
from tfjob.spec import text as texts
from tfjob.spec.data_paths import absolute_paths, against_disk, against_rules
from tfjob.spec.messages import check
from tfjob.spec.tree import Key, ListNode, MapNode, Node, Place, ScalarNode, find
from tfjob.spec.view import View
from tfjob.values import Pairs

__all__ = ["DatasetFile", "dataset_file_schema", "load", "of_arguments"]

_COMMAND_LINE = "the command line"


@dataclass(frozen=True)
class DatasetFile:
    """A dataset as asked: who it is and its paths, absolute globs or addresses; `sha256` are the sums that some must have."""

    paths: tuple[str, ...]
    sha256: Pairs = ()
    name: str | None = None
    version: str | None = None
    description: str = ""
    tags: Pairs = ()


def load(path: Path | str) -> DatasetFile:
    """Return the dataset in the file at `path`.

    Raises InvalidFile with every problem of the file, and UsageError where there is no file.
    """
    path = Path(path)
    text, problems = texts.decode(_bytes(path), str(path))
    if problems:
        raise InvalidFile(problems)
    root, problems = texts.read(text, str(path))
    if root is None:
        raise InvalidFile(problems)
    if isinstance(root, MapNode) and {"script", "command"} & set(root.entries):
        message = "this looks like a job file, not a dataset file"
        hint = "Put what stands under a name in its dataset: into a file of its own."
        raise InvalidFile([root.place.problem((), message, hint)])
    return _checked(root, Path(os.path.abspath(path)).parent, problems)


def of_arguments(paths: list[str], base_dir: Path) -> DatasetFile:
    """Return the dataset of paths that the command line names. Raises InvalidFile with everything that is wrong with them."""
    items = tuple(ScalarNode(path, path, Place(_COMMAND_LINE, 1, number)) for number, path in enumerate(paths, start=1))
    place = Place(_COMMAND_LINE, 1, 1)
    root = MapNode({"paths": ListNode(items, place)}, {"paths": Key(place)}, place)
    return _checked(root, base_dir, [])


def dataset_file_schema() -> dict[str, Any]:
    """Return the JSON Schema (draft 2020-12) of the dataset file, complete in itself."""
    return copy.deepcopy(_schema())


def _checked(root: Node, base_dir: Path, problems: list[Problem]) -> DatasetFile:
    against_schema, sound = check(root, _schema())
    problems = [*problems, *map(_with_keys, against_schema)]
    problems += [*against_rules(sound, ("paths",)), *against_disk(sound, ("paths",), base_dir)]
    if problems:
        raise InvalidFile(sorted(dict.fromkeys(problems), key=lambda one: one[:3]))
    paths = absolute_paths(sound, ("paths",), base_dir)
    return DatasetFile(
        paths=tuple(dict.fromkeys(path for path, _ in paths)),
        sha256=tuple((path, sha256) for path, sha256 in paths if sha256),
        name=_text(sound, "name"),
        version=_text(sound, "version"),
        description=(_text(sound, "description") or "").strip(),
        tags=View(sound).pairs("tags"),
    )


@functools.cache
def _schema() -> dict[str, Any]:
    said: dict[str, Any] = json.loads(Path(__file__).with_name("dataset_file.schema.json").read_text(encoding="utf-8"))
    job = schemas.schema()
    for key, one in said["properties"].items():
        if "$ref" in one:
            found: Any = job
            for part in str(one["$ref"]).partition("#/")[2].split("/"):
                found = found[part]
            said["properties"][key] = {**found, **{name: value for name, value in one.items() if name != "$ref"}}
    return said


def _with_keys(problem: Problem) -> Problem:
    """Return a problem that points at `tfjob schema`, which is of job files, with the keys themselves in its place."""
    keys = [key for key in _schema()["properties"] if not key.startswith("$")]
    listed = f"{', '.join(keys[:-1])} or {keys[-1]} is allowed"
    return problem._replace(message=problem.message.replace("see `tfjob schema` for the allowed ones", listed))


def _text(root: Node, key: str) -> str | None:
    node = find(root, (key,))
    return node.text if isinstance(node, ScalarNode) and not node.bad and node.value is not None else None


def _bytes(path: Path) -> bytes:
    try:
        with path.open("rb") as file:
            return file.read(texts.MAX_BYTES + 1)
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or error
        raise UsageError(f"the dataset file {path} cannot be read: {reason}", "Give the path of a file.") from None
