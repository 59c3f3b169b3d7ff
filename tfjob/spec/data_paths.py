"""The paths of a dataset, in a job file and in a dataset file: each a text, or a mapping with its SHA-256."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, NamedTuple

from tfjob.spec.addresses import address_objection, scheme_of, shown_address
from tfjob.spec.tree import ListNode, MapNode, Node, ScalarNode, Where, find, quoted

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from tfjob.errors import Problem

__all__ = ["DataPath", "absolute_paths", "against_disk", "against_rules", "data_paths"]


class DataPath(NamedTuple):
    """One path: the way to it, its node, and the node of its SHA-256."""

    where: Where
    node: ScalarNode
    sha256: ScalarNode | None = None


def data_paths(root: Node, where: Where) -> Iterator[DataPath]:
    """Yield the sound paths of the list, or of the one scalar, at `where`."""
    node = find(root, where)
    items = list(enumerate(node.items)) if isinstance(node, ListNode) else []
    if isinstance(node, ScalarNode) and not node.bad:
        yield DataPath(where, node)
    for index, item in items:
        at = (*where, index)
        if isinstance(item, ScalarNode) and not item.bad:
            yield DataPath(at, item)
        elif isinstance(item, MapNode):
            path, sha256 = item.entries.get("path"), item.entries.get("sha256")
            if isinstance(path, ScalarNode) and not path.bad:
                is_sound = isinstance(sha256, ScalarNode) and not sha256.bad
                yield DataPath((*at, "path"), path, sha256 if is_sound and isinstance(sha256, ScalarNode) else None)


def absolute_paths(root: Node, where: Where, base_dir: Path) -> tuple[tuple[str, str | None], ...]:
    """Return each path, as an absolute glob or an address, with its SHA-256."""
    from tfjob.spec import files  # noqa: PLC0415  # it imports the rules, which import this

    return tuple(
        (
            one.node.text if scheme_of(one.node.text) else files.absolute_pattern(base_dir, one.node.text),
            one.sha256.text if one.sha256 else None,
        )
        for one in data_paths(root, where)
    )


def against_rules(root: Node, where: Where) -> Iterator[Problem]:
    """Yield what is wrong with addresses, with two sums of one path and with the sum of a glob."""
    import glob  # noqa: PLC0415  # 6 ms

    sums: dict[str, str] = {}
    for one in data_paths(root, where):
        text = one.node.text
        if scheme_of(text) and (objection := address_objection(text)):
            yield one.node.place.problem(one.where, *objection)
        if one.sha256 is None:
            continue
        at = (*one.where[:-1], "sha256")
        if not scheme_of(text) and glob.has_magic(text):
            message = f"found a sha256 for {quoted(text)}, which may be many files; the sum of one file is allowed"
            yield one.sha256.place.problem(at, message, "Name the file, or remove the sum.")
        if sums.setdefault(text, one.sha256.text) != one.sha256.text:
            shown = shown_address(text) if scheme_of(text) else text
            message = f"found another sha256 for {quoted(shown)} than before; one for each path is allowed"
            yield one.sha256.place.problem(at, message, "Remove one of them.")


def against_disk(root: Node, where: Where, base_dir: Path) -> Iterator[Problem]:
    """Yield the paths of this machine that match nothing, or only directories without a file."""
    import glob  # noqa: PLC0415  # 6 ms

    from tfjob.spec import files  # noqa: PLC0415  # it imports the rules, which import this

    for one in data_paths(root, where):
        text = one.node.text
        if scheme_of(text):
            continue
        pattern = files.absolute_pattern(base_dir, text)
        matches = glob.iglob(pattern, recursive=True)
        first = next(matches, None)
        if first is not None and (_holds_a_file(first) or any(map(_holds_a_file, matches))):
            continue
        if first is not None:
            message = f"found {quoted(text)}, which has no file in it; a path with files is allowed"
            yield one.node.place.problem(one.where, message, f"It is looked for as {files.shown(pattern)}")
        elif glob.has_magic(text):
            message = f"found {quoted(text)}, which matches nothing; a glob that matches files is allowed"
            yield one.node.place.problem(one.where, message, f"It is looked for as {files.shown(pattern)}")
        else:
            path = files.absolute(base_dir, text)
            yield files.missing(one.node, one.where, path, "file or directory", os.path.lexists)


def _holds_a_file(path: str) -> bool:
    """Whether `path` is a file or a directory with one somewhere in it; of a link or what can't be read only fetching tells."""
    if not os.path.isdir(path):
        return True
    unread: list[OSError] = []
    for directory, folders, names in os.walk(path, onerror=unread.append):
        if names or any(os.path.islink(os.path.join(directory, folder)) for folder in folders):
            return True
    return bool(unread)
