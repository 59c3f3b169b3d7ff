"""``--set compute.node_count=2``: changes to a file's tree before anything is checked.

The way is keys and ``[index]``, keys with other characters in double quotes (``tags."a.b"``); the value is YAML as it
stands between brackets: a scalar, ``[a, b]`` or ``{a: b}``. What is set has the override as its place, so that later
problems point at it.
"""

from __future__ import annotations

import json
import re
from typing import TYPE_CHECKING

from tfjob.spec.text import MAX_DEPTH, read
from tfjob.spec.tree import Key, ListNode, MapNode, Node, Place, ScalarNode, Where, describe, find, put, quoted, show

if TYPE_CHECKING:
    from collections.abc import Sequence

    from tfjob.errors import Problem

__all__ = ["apply", "shown"]

_BARE = re.compile(r'[^.\[\]="\s]+')
_QUOTED = re.compile(r'"(?:[^"\\]|\\.)*"')
_INDEX = re.compile(r"\[([0-9]{1,9})\]")
_SHOWN_LENGTH = 100


def apply(root: Node, overrides: Sequence[str]) -> tuple[Node, list[Problem]]:
    """Return `root` with `overrides` made in order, and what is wrong with those that cannot be made."""
    problems: list[Problem] = []
    for override in overrides:
        try:
            root = _set(root, override)
        except _Refused as refused:
            problems += refused.problems
    return root, problems


def shown(override: str) -> str:
    """Return the name of `override` in the places of problems."""
    text = override if override.isprintable() else json.dumps(override)[1:-1]
    return f"--set {text if len(text) <= _SHOWN_LENGTH else text[: _SHOWN_LENGTH - 1] + '…'}"


class _Refused(Exception):  # carries problems to `apply`, never leaves this module
    def __init__(self, *problems: Problem) -> None:
        super().__init__()
        self.problems = problems


def _set(root: Node, override: str) -> Node:
    file = shown(override)
    where, columns, value_start = _way(override, file)
    value = _value(override, value_start, file, where)
    return _put(root, where, [Place(file, 1, column) for column in columns], value)


def _way(override: str, file: str) -> tuple[Where, list[int], int]:
    """Return the way that `override` names, the column of each of its parts, and where its value starts."""
    parts: list[str | int] = []
    columns: list[int] = []
    position, expects_key = 0, True
    while True:
        index = _INDEX.match(override, position) if parts and not expects_key else None
        key = (_QUOTED.match(override, position) or _BARE.match(override, position)) if expects_key else None
        match = index or key
        if match is None:
            message = "found no key here" if expects_key else "found text that is no key after the one before"
            allowed = 'KEY.KEY[INDEX]=VALUE is allowed, keys with other characters in double quotes ("a.b")'
            place = Place(file, 1, position + 1)
            raise _Refused(place.problem(tuple(parts), f"{message}; {allowed}"))
        columns.append(position + 1)
        parts.append(int(index.group(1)) if index else _unquoted(match.group(), file, position))
        position = match.end()
        if override[position : position + 1] == "=":
            return tuple(parts), columns, position + 1
        expects_key = override[position : position + 1] == "."
        position += expects_key


def _unquoted(key: str, file: str, position: int) -> str:
    if not key.startswith('"'):
        return key
    try:
        return str(json.loads(key, strict=False))
    except ValueError:
        message = r"found a backslash that starts no escape; \" and \\ and other escapes of JSON are allowed"
        raise _Refused(Place(file, 1, position + 1).problem((), message)) from None


def _value(override: str, start: int, file: str, where: Where) -> Node:
    place = Place(file, 1, start + 1)
    if not override[start:].strip():
        raise _Refused(place.problem(where, "found no value; a value is allowed", 'Write "" for an empty text.'))
    node, problems = read(" " * start + override[start:], file, inline=True, where=where)
    if problems or node is None:
        raise _Refused(*problems)
    if isinstance(node, ScalarNode) and node.plain and " #" in override[start:]:
        message = "found a comment (after #) in the value; one value is allowed"
        raise _Refused(place.problem(where, message, "Put a text with # in double quotes."))
    return node


def _put(root: Node, where: Where, places: list[Place], value: Node) -> Node:
    """Return `root` with `value` at `where`, making mappings that are missing."""
    if len(where) > MAX_DEPTH:
        message = f"nested deeper than {MAX_DEPTH} levels; at most {MAX_DEPTH} are allowed"
        raise _Refused(places[MAX_DEPTH].problem(where[:MAX_DEPTH], message))
    for depth, part in enumerate(where):
        node = find(root, where[:depth])
        if node is None or (isinstance(node, ScalarNode) and node.value is None and not node.bad and depth):
            node = MapNode({}, {}, places[depth - 1])
            root = _attach(root, where[:depth], places[depth - 1], node)
        if isinstance(part, int):
            _refuse_index(node, part, where[:depth], places[depth])
        elif not isinstance(node, MapNode):
            message = f"found {describe(node)} where {quoted(part)} should be a key; a mapping is allowed"
            hint = f"Set {show(where[:depth])} to a mapping first, or whole." if depth else ""
            raise _Refused(places[depth].problem(where[:depth], message, hint))
    return _attach(root, where, places[-1], value)


def _refuse_index(node: Node, index: int, where: Where, place: Place) -> None:
    if not isinstance(node, ListNode):
        is_missing = isinstance(node, MapNode) and not node.entries
        found = "nothing" if is_missing else describe(node)
        message = f"found {found} where [{index}] should be an item; an index of a list is allowed"
        raise _Refused(place.problem(where, message, f"Set the whole list: {show(where)}=[…]."))
    if index >= len(node.items):
        count = len(node.items)
        indexes = f"[0] to [{count - 1}] are allowed" if count else "it has no items to set"
        message = f"found the index {index} of a list of length {count}; {indexes}"
        raise _Refused(place.problem((*where, index), message, f"Set the whole list: {show(where)}=[…]."))


def _attach(root: Node, where: Where, place: Place, node: Node) -> Node:
    parent, last = find(root, where[:-1]), where[-1]
    if isinstance(parent, MapNode) and isinstance(last, str) and last not in parent.entries:
        grown = MapNode({**parent.entries, last: node}, {**parent.keys, last: Key(place)}, parent.place)
        return put(root, where[:-1], grown)
    return put(root, where, node, Key(place))
