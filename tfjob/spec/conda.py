"""A conda specification (environment.yml), read with the same care as a job file."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Any

from tfjob.spec import requirements
from tfjob.spec import schema as schemas
from tfjob.spec import text as texts
from tfjob.spec.messages import check
from tfjob.spec.mistaken import mistaken_for_conda
from tfjob.spec.packages import conda_package, needs_channel, password, pip_line
from tfjob.spec.rules import reserved
from tfjob.spec.tree import ListNode, MapNode, Node, Place, ScalarNode, Where, find, key_place, plain, quoted

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
    """Return what the schema does not say of the specification at `where`: what it lacks, contradicts, and cannot have.

    The files it names are relative to `folder`, which problems call `shown_dir`.
    """
    dependencies = (*where, "dependencies")
    return [
        *_packages(root, dependencies, folder, shown_dir),
        *_channels(root, (*where, "channels"), dependencies, folder),
        *_variables(root, (*where, "variables")),
    ]


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


def _channels(root: Node, where: Where, dependencies: Where, folder: Path) -> Iterator[Problem]:
    """Find folders that are no channels, and packages without any channel to take them from."""
    channels, packages = find(root, where), find(root, dependencies)
    for index, item in enumerate(channels.items if isinstance(channels, ListNode) else ()):
        text = item.value if isinstance(item, ScalarNode) and isinstance(item.value, str) else ""
        if secret := password(text, "~/.netrc, or rattler's own store (RATTLER_AUTH_FILE)", is_channel=True):
            yield item.place.problem((*where, index), *secret)
        if text.startswith((".", "/", "~")) and not os.path.isdir(path := folder / os.path.expanduser(text)):
            message = f"found {quoted(text)}, which is no directory; a channel's directory, name or address is allowed"
            shown = str(path)
            hint = f"It is looked for as {shown if shown.isprintable() else quoted(shown)}"
            yield item.place.problem((*where, index), message, hint)
    if channels is not None and not (isinstance(channels, ListNode) and not channels.items):
        return
    items = enumerate(packages.items if isinstance(packages, ListNode) else ())
    homeless = [(index, item) for index, item in items if _is_homeless(item)]
    if homeless:
        index, item = homeless[0]
        more = f" and {len(homeless) - 1} more" if len(homeless) > 1 else ""
        message = (
            f"found the conda package {quoted(getattr(item, 'text', ''))}{more} without channels; "
            "only python and pip with plain versions are allowed without"
        )
        hint = "Add channels: [conda-forge], or where else it is; or move it to the pip list, if PyPI has it."
        yield item.place.problem((*dependencies, index), message, hint)


def _is_homeless(item: Node) -> bool:
    """Whether `item` is a conda package that only a channel of the file could have."""
    text = item.value if isinstance(item, ScalarNode) and isinstance(item.value, str) else ""
    return conda_package(text) is None and needs_channel(text)


def _variables(root: Node, where: Where) -> Iterator[Problem]:
    node = find(root, where)
    for name in node.entries if isinstance(node, MapNode) else ():
        if objection := reserved(name):
            yield key_place(root, (*where, name)).problem((*where, name), *objection)


def content(node: Node) -> dict[str, Any]:
    """Return a specification without problems as plain data; the values of variables are texts, as written."""
    data: dict[str, Any] = plain(node)
    data.pop("prefix", None)
    variables = find(node, ("variables",))
    if isinstance(variables, MapNode):
        data["variables"] = {name: getattr(value, "text", "") for name, value in variables.entries.items()}
    return data
