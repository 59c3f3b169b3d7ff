"""``--set compute.node_count=2``: changes to a file's tree before anything is checked.

The way is keys and ``[index]``, keys with other characters in double quotes (``tags."a.b"``); the value is YAML as it
stands between brackets: a scalar, ``[a, b]`` or ``{a: b}``. What is set has the override as its place, so that later
problems point at it.
"""

from __future__ import annotations

import json
import re
from typing import TYPE_CHECKING

from tfjob.spec import schema as schemas
from tfjob.spec.nearest import nearest
from tfjob.spec.text import MAX_DEPTH, read
from tfjob.spec.tree import Key, ListNode, MapNode, Node, Place, ScalarNode, Where, describe, find, put, quoted, show

if TYPE_CHECKING:
    from collections.abc import Sequence

    from tfjob.errors import Problem

__all__ = ["apply", "shown"]

_BARE = re.compile(r'[^.\[\]="\s]+')
_QUOTED = re.compile(r'"(?:[^"\\]|\\.)*"')
_INDEX = re.compile(r"\[([0-9]{1,9})\]")
_NO_INDEX = re.compile(r"\[(?![0-9]+\])([^\]]*)\]")
_OPTION = re.compile(r"--?[A-Za-z]")
_SIMPLE = re.compile(r"[A-Za-z0-9_.+-]{1,20}")
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
    if hint := _script_hint(root, where, override[value_start:]):
        message = f"found the unknown key {quoted(str(where[0]))}; see `tfjob schema` for the allowed ones"
        raise _Refused(Place(file, 1, columns[0]).problem(where, message, hint))
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
            message = _no_way(override, position, expects_key=expects_key or not parts)
            raise _Refused(Place(file, 1, position + 1).problem(tuple(parts), message))
        columns.append(position + 1)
        parts.append(int(index.group(1)) if index else _unquoted(match.group(), file, position))
        position = match.end()
        if override[position : position + 1] == "=":
            return tuple(parts), columns, position + 1
        expects_key = override[position : position + 1] == "."
        position += expects_key


def _no_way(override: str, position: int, *, expects_key: bool) -> str:
    """Say why `override` cannot be read on from `position`."""
    if "=" not in override:
        return "found no =; KEY=VALUE is allowed, such as compute.node_count=2"
    index = None if expects_key else _NO_INDEX.match(override, position)
    if index:
        written = index.group(1) if _SIMPLE.fullmatch(index.group(1)) else quoted(index.group(1))
        return f"found the index {written}; a whole number from 0 is allowed"
    found = "found no key here" if expects_key else "found text that is no key after the one before"
    return f'{found}; KEY.KEY[INDEX]=VALUE is allowed, keys with other characters in double quotes ("a.b")'


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


def _script_hint(root: Node, where: Where, value: str) -> str:
    """Say how to set what `where` seems to mean: a parameter, or an option of the script. Empty if it means neither."""
    if len(where) != 1 or schemas.lookup(where) is not None or find(root, where) is not None:
        return ""
    key = str(where[0])
    value = value.strip() if value.isprintable() and len(value) <= _SHOWN_LENGTH else "VALUE"
    if find(root, ("parameters", key)) is not None:
        return f"Parameters are set by name: {show(('parameters', key))}={value}."
    arguments = find(root, ("arguments",))
    items = arguments.items if isinstance(arguments, ListNode) else ()
    texts = [item.text if isinstance(item, ScalarNode) else "" for item in items]
    for index, text in enumerate(texts):
        option, equals, _ = text.partition("=")
        if not option.startswith("-") or _bare(option) != _bare(key):
            continue
        if equals:
            return f"Arguments of the script are set by index: arguments[{index}]={option}={value}."
        if index + 1 < len(texts) and not _OPTION.match(texts[index + 1]):
            return f"Arguments of the script are set by index: arguments[{index + 1}]={value}."
        return f"Arguments of the script are set by index; {option} is arguments[{index}]."
    return "Arguments of the script are set by index: arguments[N]=VALUE." if texts and key.startswith("-") else ""


def _bare(option: str) -> str:
    return option.lstrip("-").replace("-", "_").lower()


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
            _refuse_index(root, part, where[:depth], places[depth])
        elif not isinstance(node, MapNode):
            message = f"found {describe(node)} where {quoted(part)} should be a key; a mapping is allowed"
            hint = f"Set {show(where[:depth])} to a mapping first, or whole." if depth else ""
            raise _Refused(places[depth].problem(where[:depth], message, hint))
    return _attach(root, where, places[-1], value)


def _refuse_index(root: Node, index: int, where: Where, place: Place) -> None:
    """Raise if what is at `where` has no item `index`."""
    node = find(root, where)
    if not isinstance(node, ListNode):
        is_missing = isinstance(node, MapNode) and not node.entries
        found = "nothing" if is_missing or node is None else describe(node)
        message = f"found {found} where [{index}] should be an item; an index of a list is allowed"
        guess = _known_like(root, where) if is_missing else None
        hint = f"Did you mean {guess}?" if guess else f"Set the whole list: {show(where)}=[…]."
        raise _Refused(place.problem(where, message, hint))
    if index >= len(node.items):
        count = len(node.items)
        indexes = f"[0] to [{count - 1}] are allowed" if count else "it has no items to set"
        message = f"found the index {index} of a list of length {count}; {indexes}"
        raise _Refused(place.problem((*where, index), message, f"Set the whole list: {show(where)}=[…]."))


def _known_like(root: Node, where: Where) -> str | None:
    """Return the way to the key beside `where` that an unknown last key of it probably means."""
    said, beside = schemas.lookup(where[:-1]) or {}, find(root, where[:-1])
    known = list(said.get("properties", ()))
    if where[-1] in known:
        return None
    known += [key for key in (beside.entries if isinstance(beside, MapNode) else ()) if key != where[-1]]
    guess = nearest(str(where[-1]), known)
    return guess and show((*where[:-1], guess))


def _attach(root: Node, where: Where, place: Place, node: Node) -> Node:
    parent, last = find(root, where[:-1]), where[-1]
    if isinstance(parent, MapNode) and isinstance(last, str) and last not in parent.entries:
        grown = MapNode({**parent.entries, last: node}, {**parent.keys, last: Key(place)}, parent.place)
        return put(root, where[:-1], grown)
    return put(root, where, node, Key(place))
