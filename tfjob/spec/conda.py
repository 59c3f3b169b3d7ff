"""A conda specification (environment.yml), read with the same care as a job file."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from tfjob.spec import schema as schemas
from tfjob.spec import text as texts
from tfjob.spec.messages import check
from tfjob.spec.tree import ListNode, MapNode, Node, Place, ScalarNode, Where, find, plain

if TYPE_CHECKING:
    from pathlib import Path

    from tfjob.errors import Problem

__all__ = ["content", "load", "read", "rules"]


def load(path: Path, *, shown: str = "") -> dict[str, Any]:
    """Return the conda specification in the file at `path` as plain data; `shown` is its name in problems.

    Raises InvalidFile with everything that is wrong with it, a file that cannot be read included.
    """
    from tfjob.errors import InvalidFile  # noqa: PLC0415  # beside its only use

    data, problems = read(path, shown=shown or str(path))
    if problems:
        raise InvalidFile(problems)
    return data


def read(path: Path, *, shown: str) -> tuple[dict[str, Any], list[Problem]]:
    """Return the conda specification in the file at `path` as plain data, and everything wrong with it."""
    try:
        with path.open("rb") as file:
            data = file.read(texts.MAX_BYTES + 1)
    except OSError as error:
        message = f"cannot be read: {error.strerror or error}; a readable file is allowed"
        return {}, [Place(shown, 1, 1).problem((), message)]
    text, problems = texts.decode(data, shown)
    if problems:
        return {}, problems
    root, problems = texts.read(text, shown)
    if root is None:
        return {}, problems
    objections, sound = check(root, schemas.environment_schema())
    problems += [*objections, *rules(sound)]
    return ({}, problems) if problems else (content(sound), [])


def rules(root: Node, where: Where = ()) -> list[Problem]:
    """Return what the schema cannot say of the specification at `where`: pip stands in it once."""
    dependencies = find(root, (*where, "dependencies"))
    items = dependencies.items if isinstance(dependencies, ListNode) else ()
    mappings = [index for index, item in enumerate(items) if isinstance(item, MapNode)]
    return [
        items[index].place.problem(
            (*where, "dependencies", index),
            "found a second list of pip packages; one is allowed",
            "Put all pip packages in one list.",
        )
        for index in mappings[1:]
    ]


def content(node: Node) -> dict[str, Any]:
    """Return a specification without problems as plain data, its variables as written."""
    data: dict[str, Any] = plain(node)
    data.pop("prefix", None)
    variables = find(node, ("variables",))
    if isinstance(variables, MapNode):
        entries = variables.entries.items()
        data["variables"] = {name: value.text for name, value in entries if isinstance(value, ScalarNode)}
    return data
