"""A conda specification (environment.yml), read with the same care as a job file."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Any

from tfjob.spec import requirements
from tfjob.spec import schema as schemas
from tfjob.spec import text as texts
from tfjob.spec.messages import check
from tfjob.spec.mistaken import mistaken_for_conda
from tfjob.spec.packages import conda_package, pip_line
from tfjob.spec.tree import ListNode, MapNode, Node, Place, ScalarNode, Where, find, key_place, plain
from tfjob.spec.unsupported import UNSUPPORTED

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

    from tfjob.errors import Problem
    from tfjob.spec.packages import Objection

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
    if problem := mistaken_for_conda(data, shown):
        return {}, [problem]
    text, problems = texts.decode(data, shown)
    if problems:
        return {}, problems
    root, problems = texts.read(text, shown)
    if root is None:
        return {}, problems
    objections, sound = check(root, schemas.environment_schema())
    problems += [*objections, *rules(sound, (), path.parent, os.path.dirname(shown))]
    return ({}, problems) if problems else (content(sound), [])


def rules(root: Node, where: Where, folder: Path, shown_dir: str) -> list[Problem]:
    """Return what the schema does not say of the specification at `where`: pip stands in it once, and what works.

    The files it names are relative to `folder`, which problems call `shown_dir`.
    """
    return [*_packages(root, (*where, "dependencies"), folder, shown_dir), *_variables(root, (*where, "variables"))]


def _packages(root: Node, where: Where, folder: Path, shown_dir: str) -> Iterator[Problem]:
    dependencies = find(root, where)
    is_second = False
    for index, item in enumerate(dependencies.items if isinstance(dependencies, ListNode) else ()):
        if isinstance(item, MapNode):
            if is_second:
                message = "found a second list of pip packages; one is allowed"
                yield item.place.problem((*where, index), message, "Put all pip packages in one list.")
            is_second = True
            lines = item.entries.get("pip")
            for number, line in enumerate(lines.items if isinstance(lines, ListNode) else ()):
                line_where = (*where, index, "pip", number)
                yield from _objection(line, line_where, pip_line)
                if isinstance(line, ScalarNode) and not line.bad and isinstance(line.value, str):
                    yield from requirements.check(line.value, folder, shown_dir, line.place, line_where)
        else:
            yield from _objection(item, (*where, index), conda_package)


def _objection(node: Node, where: Where, judge: Callable[[str], Objection | None]) -> Iterator[Problem]:
    objection = judge(node.value) if isinstance(node, ScalarNode) and isinstance(node.value, str) else None
    if objection is not None:
        yield node.place.problem(where, *objection)


def _variables(root: Node, where: Where) -> Iterator[Problem]:
    if find(root, where) is not None:
        message = f"found variables of the environment, which are {UNSUPPORTED}"
        yield key_place(root, where).problem(where, message, "Put them under environment_variables of the job.")


def content(node: Node) -> dict[str, Any]:
    """Return a specification without problems as plain data."""
    data: dict[str, Any] = plain(node)
    data.pop("prefix", None)
    return data
