"""A file as a tree of values that know where they stand.

Every value and every key has a `Place` (file, line, column), every scalar also its text as written, so that an argument
``0.10`` stays ``0.10``. Nodes are frozen: a change (an override, a replaced expression) makes a new tree. A node marked
`bad` already has a problem of its own; later checks pass over it.

A `Where` is the way to a node from the root, keys and indexes, shown as ``dataset.digits.paths[0]``.
"""

from __future__ import annotations

import json
import re
from dataclasses import dataclass, field
from dataclasses import replace as changed
from typing import TYPE_CHECKING, Any, NamedTuple

from tfjob.errors import Problem

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

__all__ = [
    "Key",
    "ListNode",
    "MapNode",
    "Node",
    "Place",
    "ScalarNode",
    "Where",
    "describe",
    "find",
    "key_place",
    "plain",
    "put",
    "quoted",
    "rebuilt",
    "show",
    "spoiled",
    "walk",
]

Where = tuple[str | int, ...]

_BARE_KEY = re.compile(r"[A-Za-z0-9_$-]+")
_SHOWN_LENGTH = 60


class Place(NamedTuple):
    """A position in a file; `line` and `column` count from 1."""

    file: str
    line: int
    column: int

    def problem(self, where: Where, message: str, hint: str = "") -> Problem:
        """Return the problem `message` with the node at `where`, standing here."""
        return Problem(self.file, self.line, self.column, show(where), message, hint)


@dataclass(frozen=True, slots=True)
class ScalarNode:
    """A text, number, truth value or null. `text` is as written; `plain` says that it was written without quotes."""

    value: str | float | bool | None
    text: str
    place: Place
    plain: bool = False
    bad: bool = False


@dataclass(frozen=True, slots=True)
class ListNode:
    """A list of nodes."""

    items: tuple[Node, ...]
    place: Place
    bad: bool = False


class Key(NamedTuple):
    """How a key of a mapping was written: where, and whether without quotes."""

    place: Place
    plain: bool = False


@dataclass(frozen=True, slots=True)
class MapNode:
    """A mapping in file order; `keys` has an entry for each of `entries`."""

    entries: dict[str, Node]
    keys: dict[str, Key]
    place: Place
    bad: bool = field(default=False)


Node = ScalarNode | ListNode | MapNode


def show(where: Where) -> str:
    """Return `where` as people write it: ``tags."a.b"[3]``; the same text is accepted by ``--set``."""
    shown = ""
    for part in where:
        if isinstance(part, int):
            shown += f"[{part}]"
        else:
            name = part if _BARE_KEY.fullmatch(part) else json.dumps(_shortened(part), ensure_ascii=False)
            shown += f".{name}" if shown else name
    return shown


def quoted(text: str) -> str:
    """Return `text` in double quotes on one line, shortened where it is long."""
    return json.dumps(_shortened(text), ensure_ascii=False)


def _shortened(text: str) -> str:
    return text if len(text) <= _SHOWN_LENGTH else f"{text[: _SHOWN_LENGTH - 1]}…"


def describe(node: Node) -> str:
    """Return in words what `node` is, to follow "found"."""
    if isinstance(node, MapNode):
        return "a mapping (keys with values)" if node.entries else "an empty mapping"
    if isinstance(node, ListNode):
        return "a list" if node.items else "an empty list"
    if node.value is None:
        return "nothing (null)"
    if isinstance(node.value, bool):
        return node.text
    if isinstance(node.value, str):
        return f"text {quoted(node.value)}" if node.value else "empty text"
    return f"the number {_shortened(node.text)}"


def plain(node: Node) -> Any:
    """Return `node` as plain data: dictionaries, lists and scalars."""
    if isinstance(node, MapNode):
        return {key: plain(value) for key, value in node.entries.items()}
    if isinstance(node, ListNode):
        return [plain(item) for item in node.items]
    return node.value


def _child(node: Node, part: str | int) -> Node | None:
    if isinstance(node, MapNode) and isinstance(part, str):
        return node.entries.get(part)
    if isinstance(node, ListNode) and isinstance(part, int) and 0 <= part < len(node.items):
        return node.items[part]
    return None


def find(root: Node, where: Where) -> Node | None:
    """Return the node at `where`, or None where there is none."""
    node: Node | None = root
    for part in where:
        node = _child(node, part) if node is not None else None
    return node


def key_place(root: Node, where: Where) -> Place:
    """Return where the key of `where` stands, or the item of a list; for something missing, what would hold it."""
    node, place = root, root.place
    for part in where:
        child = _child(node, part)
        if child is None:
            break
        place = node.keys[part].place if isinstance(node, MapNode) and isinstance(part, str) else child.place
        node = child
    return place


def put(root: Node, where: Where, node: Node, key: Key | None = None) -> Node:
    """Return `root` with `node` at `where`, whose parent exists; `key` is how its key is written, if that changes."""
    if not where:
        return node
    part, rest = where[0], where[1:]
    if isinstance(root, MapNode) and isinstance(part, str):
        child = put(root.entries[part], rest, node, key) if rest else node
        keys = root.keys if rest or key is None else {**root.keys, part: key}
        return changed(root, entries={**root.entries, part: child}, keys=keys)
    if isinstance(root, ListNode) and isinstance(part, int):
        child = put(root.items[part], rest, node, key) if rest else node
        return changed(root, items=(*root.items[:part], child, *root.items[part + 1 :]))
    raise KeyError(show(where))


def rebuilt(root: Node, change: Callable[[Where, Node], Node], where: Where = ()) -> Node:
    """Return `root` with `change` applied to every node, from the outside in; what it replaces is not entered."""
    node = change(where, root)
    if node is not root or isinstance(node, ScalarNode):
        return node
    if isinstance(node, ListNode):
        items = tuple(rebuilt(item, change, (*where, index)) for index, item in enumerate(node.items))
        return changed(node, items=items)
    entries = {key: rebuilt(value, change, (*where, key)) for key, value in node.entries.items()}
    return changed(node, entries=entries)


def spoiled(node: Node) -> ScalarNode:
    """Return what stands for `node` once it has a problem of its own."""
    return ScalarNode(None, "", node.place, bad=True)


def walk(root: Node, where: Where = ()) -> Iterator[tuple[Where, Node]]:
    """Yield every node below and with `root`, in file order, each with the way to it."""
    yield where, root
    if isinstance(root, MapNode):
        for key, value in root.entries.items():
            yield from walk(value, (*where, key))
    elif isinstance(root, ListNode):
        for index, item in enumerate(root.items):
            yield from walk(item, (*where, index))
