"""YAML text → a tree of values with their places, and everything wrong with the text itself.

Values have their YAML 1.2 core meaning (``1e-3`` is a number, ``2024-01-01`` is text). What YAML 1.1 readers understand
differently (``no``, ``012``, ``1:30``, ``1_000``) is a problem rather than a guess. Anchors, aliases and merge keys
(``<<``) work; how much they may expand to, how deep values may nest and how large a file may be is bounded, so that no
file takes long to refuse. Reading goes by parser events, without recursion, and nothing is ever constructed from a tag.
"""

from __future__ import annotations

import codecs
import re
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from tfjob.spec.scalars import resolve
from tfjob.spec.syntax import syntax_problem
from tfjob.spec.tree import Key, ListNode, MapNode, Node, Place, ScalarNode, Where, describe, quoted

if TYPE_CHECKING:
    from collections.abc import Iterator

    from tfjob.errors import Problem

__all__ = ["MAX_BYTES", "MAX_DEPTH", "MAX_VALUES", "decode", "read"]

MAX_BYTES = 1 << 20
MAX_DEPTH = 32
MAX_VALUES = 5_000

_UNPRINTABLE = re.compile("[^\t\n\r\x20-\x7e\x85\xa0-\ud7ff\ue000-\ufffd\U00010000-\U0010ffff]")
_UNSTORABLE = re.compile("[\x00\ud800-\udfff]")
_LINE_BREAK = re.compile("\r\n|[\n\r\x85\u2028\u2029]")
_DIRECTIVE = re.compile(r"(?:[ \t]*+(?:#[^\n]*+)?\n)*+%")
_NOTHING = re.compile(r"(?:^\.\.\.(?=\s|$)|\s++|#[^\n\r]*+)*+", re.MULTILINE)
_ITEM = re.compile("(?:\r\n|[\n\r\x85\u2028\u2029])[ \t]*(-)(?=\\s|$)")
_UTF_16_MARKS = (codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE, codecs.BOM_UTF32_BE)


def decode(data: bytes, file: str) -> tuple[str, list[Problem]]:
    """Return the bytes of `file` as text, and what is wrong with them: too many, or not UTF-8."""
    start = Place(file, 1, 1)
    if len(data) > MAX_BYTES:
        return "", [start.problem((), f"larger than {MAX_BYTES >> 20} MiB; a file of at most 1 MiB is allowed")]
    if data.startswith(_UTF_16_MARKS):
        message = "found UTF-16 or UTF-32 (by the mark at its start); UTF-8 is allowed"
        return "", [start.problem((), message, "Save the file as UTF-8.")]
    try:
        return data.decode("utf-8-sig"), []
    except UnicodeDecodeError as error:
        place = _place_at(data[: error.start].decode("utf-8", "replace"), file)
        byte = error.object[error.start]
        message = f"found the byte 0x{byte:02x}, which is not UTF-8; UTF-8 is allowed"
        return "", [place.problem((), message, "Save the file as UTF-8.")]


def read(
    text: str, file: str, *, inline: bool = False, where: Where = (), most_values: int = MAX_VALUES
) -> tuple[Node | None, list[Problem]]:
    """Return the tree of `text`, and everything wrong with it as text.

    `inline` allows only what fits on a command line: a scalar, or a list or mapping in brackets. The tree is None where
    the text cannot be read to its end; parts with a problem of their own are marked bad. `where` is the way to the
    value in what it will be part of. `most_values` is how many values the text may have, with those of its aliases.
    """
    if unprintable := _UNPRINTABLE.search(text):
        return None, [_unprintable_problem(text, unprintable, file)]
    reader = _Reader(file, inline, where, most_values)
    try:
        reader.read(text)
    except _Stopped:
        return None, reader.problems
    return reader.root, reader.problems


def _place_at(before: str, file: str) -> Place:
    """Return the place just after the text `before`."""
    lines = _LINE_BREAK.split(before)
    return Place(file, len(lines), len(lines[-1]) + 1)


def _unprintable_problem(text: str, found: re.Match[str], file: str) -> Problem:
    character = found.group()
    hint = "Remove it, or write it as an escape in double quotes."
    if character == "\x00":
        hint = "Is the file UTF-16, or not a text file? Save it as UTF-8."
    message = f"found the control character U+{ord(character):04X}; printable text is allowed"
    return _place_at(text[: found.start()], file).problem((), message, hint)


class _Stopped(Exception):  # not an error of its own: the problem is already recorded
    """The rest of the text cannot be read."""


@dataclass(slots=True)
class _Open:
    """A list or mapping whose end has not been seen."""

    place: Place
    where: Where
    anchor: str | None
    is_map: bool
    items: list[Node] = field(default_factory=list)
    entries: dict[str, Node] = field(default_factory=dict)
    keys: dict[str, Key] = field(default_factory=dict)
    merged: list[Node] = field(default_factory=list)
    key: str | None = None  # the key whose value comes next
    expects_key: bool = True
    drops_value: bool = False  # the key had a problem: its value is read but not kept
    merges_value: bool = False
    size: int = 1
    height: int = 1

    def next_where(self) -> Where:
        if not self.is_map:
            return (*self.where, len(self.items))
        return (*self.where, self.key) if self.key is not None else self.where


class _Reader:
    """Builds the tree from parser events; `problems` grows as it goes."""

    def __init__(self, file: str, inline: bool, where: Where, most_values: int) -> None:
        self.file = file
        self.text = ""
        self.inline = inline
        self.where = where
        self.most_values = most_values
        self.problems: list[Problem] = []
        self.root: Node | None = None
        self.open: list[_Open] = []
        self.anchors: dict[str, tuple[Node, int, int]] = {}
        self.total = 0

    def read(self, text: str) -> None:
        import yaml  # noqa: PLC0415  # 20 ms that commands without a file do not pay

        self._refuse_directives(text)
        self.text = text
        end = 0
        try:
            for event in _events(text):
                if isinstance(event, yaml.ScalarEvent):
                    self._scalar(event)
                elif isinstance(event, yaml.AliasEvent):
                    self._alias(event)
                elif isinstance(event, yaml.CollectionStartEvent):
                    self._start(event, is_map=isinstance(event, yaml.MappingStartEvent))
                elif isinstance(event, yaml.CollectionEndEvent):
                    self._end()
                elif isinstance(event, yaml.DocumentEndEvent):
                    end = event.end_mark.index  # type: ignore[union-attr]  # events of a parser have marks
                    break
        except yaml.YAMLError as error:
            self.problems.append(syntax_problem(error, text, self.file, self._where()))
            raise _Stopped from None
        self._refuse_rest(text, end)
        if self.root is None:
            message = "found nothing but comments or empty lines" if text.strip() else "found an empty file"
            self._stop(Place(self.file, 1, 1), (), f"{message}; keys with values are allowed")

    def _where(self) -> Where:
        return self.open[-1].next_where() if self.open else self.where

    def _place(self, mark: Any) -> Place:
        return Place(self.file, mark.line + 1, mark.column + 1)

    def _stop(self, place: Place, where: Where, message: str, hint: str = "") -> None:
        self.problems.append(place.problem(where, message, hint))
        raise _Stopped

    def _refuse_directives(self, text: str) -> None:
        if found := _DIRECTIVE.match(text):
            message = "found a YAML directive (a line that starts with %); plain YAML is allowed"
            self._stop(_place_at(text[: found.end() - 1], self.file), (), message, "Remove the line.")

    def _refuse_rest(self, text: str, end: int) -> None:
        """Refuse what follows the first document: tfjob reads one."""
        rest = _NOTHING.match(text, end)
        position = rest.end() if rest else end
        if position >= len(text):
            return
        place = _place_at(text[:position], self.file)
        if text.startswith("---", position):
            message = "found a second document (after ---); one document in a file is allowed"
            self._stop(place, self.where, message, "Put each job in a file of its own.")
        message = "found more text after the end of the value; one value is allowed"
        self._stop(place, self.where, message, "Quote the whole text if it belongs together.")

    def _anchor_is_free(self, event: Any) -> str | None:
        if event.tag is not None:
            tag = re.sub("^tag:yaml.org,2002:", "!!", event.tag)  # as it is written
            message = f"found the tag {quoted(tag)}; values without tags are allowed"
            self.problems.append(self._place(event.start_mark).problem(self._where(), message, "Remove the tag."))
        anchor: str | None = event.anchor
        if anchor is not None:
            self.anchors.pop(anchor, None)
        return anchor

    def _count(self, size: int, place: Place) -> None:
        self.total += size
        if self.total > self.most_values:
            message = (
                f"more than {self.most_values:,} values (aliases expanded); at most {self.most_values:,} are allowed"
            )
            self._stop(place, self._where(), message, "Keep data in files of its own.")

    def _start(self, event: Any, *, is_map: bool) -> None:
        place = self._place(event.start_mark)
        if self.inline and not event.flow_style:
            form = ("a mapping", "{key: value}") if is_map else ("a list", "[first, second]")
            message = f"found {form[0]} without brackets; a single value, {form[1]} is allowed"
            self._stop(place, self.where, message, 'If it is one text, put it in double quotes: "…".')
        self._count(1, place)
        anchor = self._anchor_is_free(event)
        self.open.append(_Open(place, self._where(), anchor, is_map))
        if len(self.open) > MAX_DEPTH:
            self._stop(place, (), f"nested deeper than {MAX_DEPTH} levels; at most {MAX_DEPTH} are allowed")

    def _end(self) -> None:
        done = self.open.pop()
        node: Node
        if done.is_map:
            self._merge(done)
            node = MapNode(done.entries, done.keys, done.place)
        else:
            node = ListNode(tuple(done.items), done.place)
        self._add(node, done.anchor, done.size, done.height)

    def _alias(self, event: Any) -> None:
        place = self._place(event.start_mark)
        if event.anchor not in self.anchors:
            if any(frame.anchor == event.anchor for frame in self.open):
                message, hint = f"*{event.anchor} stands inside the value that it repeats", "Remove it."
            else:
                message, hint = f"*{event.anchor} repeats &{event.anchor}, which is not there", ""
            allowed = "; a name that stands before, as &name, is allowed"
            self.problems.append(
                place.problem(self._where(), message + allowed, hint or f'If it is a text, write "*{event.anchor}".')
            )
            self._add(ScalarNode(None, "", place, bad=True), None, 1, 1)
            return
        node, size, height = self.anchors[event.anchor]
        if len(self.open) + height - 1 > MAX_DEPTH:
            self._stop(place, self._where(), f"nested deeper than {MAX_DEPTH} levels; at most {MAX_DEPTH} are allowed")
        self._count(size, place)
        self._add(node, None, size, height)

    def _scalar(self, event: Any) -> None:
        place = self._place(event.start_mark)
        self._count(1, place)
        anchor = self._anchor_is_free(event)
        is_plain = event.style in (None, "")
        text: str = event.value
        if _UNSTORABLE.search(text):
            message = "found a NUL character or half a surrogate pair in the text; neither can be passed to a program"
            self.problems.append(place.problem(self._where(), message, "Remove it."))
            self._add(ScalarNode(text, text, place, bad=True), anchor, 1, 1)
            return
        if not is_plain:
            self._add(ScalarNode(text, text, place), anchor, 1, 1)
            return
        if event.start_mark.line != event.end_mark.line and (item := self._item_in(event)):
            self.problems.append(item)
            self._add(ScalarNode(text, text, place, bad=True), anchor, 1, 1)
            return
        value, trap = resolve(text)
        is_key = bool(self.open) and self.open[-1].is_map and self.open[-1].expects_key
        if trap and not is_key:
            self.problems.append(place.problem(self._where(), trap.message, trap.hint))
        self._add(ScalarNode(value, text, place, plain=True, bad=trap is not None), anchor, 1, 1)

    def _item_in(self, event: Any) -> Problem | None:
        """The problem that a line of an unquoted text starts as an item of a list does, which YAML makes part of the text."""
        start = event.start_mark.index
        found = _ITEM.search(self.text, start, event.end_mark.index)
        if found is None:
            return None
        message = "found - at the start of a line that goes on with the text before; an item in the column of the others is allowed"
        hint = "Indent it as the item before, or put the whole text in quotes."
        return _place_at(self.text[: found.start(1)], self.file).problem(self._where(), message, hint)

    def _add(self, node: Node, anchor: str | None, size: int, height: int) -> None:
        """Put a finished node where it belongs: the root, the next item, the next key or that key's value."""
        if anchor is not None:
            self.anchors[anchor] = (node, size, height)
        if not self.open:
            self.root = node
            return
        frame = self.open[-1]
        frame.size += size
        frame.height = max(frame.height, height + 1)
        if not frame.is_map:
            frame.items.append(node)
        elif frame.expects_key:
            self._key(frame, node)
        else:
            if frame.merges_value:
                frame.merged.append(node)
            elif not frame.drops_value and frame.key is not None:
                frame.entries[frame.key] = node
            frame.key, frame.expects_key, frame.drops_value, frame.merges_value = None, True, False, False

    def _key(self, frame: _Open, node: Node) -> None:
        frame.expects_key = False
        if not isinstance(node, ScalarNode):
            message = f"found {describe(node)} as a key; text is allowed"
            self._drop_key(frame, node.place, message, 'If this is an expression, quote it: "${{ … }}".')
            return
        key = node.text
        if node.plain and key == "<<":
            frame.merges_value = True
        elif node.plain and (node.value is None or key == ""):
            self._drop_key(frame, node.place, "found nothing (null) as a key; text is allowed", "Name the key.")
        elif node.plain and not isinstance(node.value, str):
            message = f"found {describe(node)} as a key; text is allowed"
            self._drop_key(frame, node.place, message, f"Quote it: {quoted(key)}.")
        elif node.bad:
            trap = resolve(key)[1] if node.plain else None
            if trap is None or trap.is_word:  # words such as `on` may be keys that the schema knows: judged there
                self._new_key(frame, key, node)
            else:
                self._drop_key(frame, node.place, trap.message, f"Quote it: {quoted(key)}.")
        else:
            self._new_key(frame, key, node)

    def _drop_key(self, frame: _Open, place: Place, message: str, hint: str) -> None:
        frame.drops_value = True
        self.problems.append(place.problem(frame.where, message, hint))

    def _new_key(self, frame: _Open, key: str, node: ScalarNode) -> None:
        frame.key = key
        if key in frame.keys:
            first = frame.keys[key].place
            message = f"found a second time, after line {first.line}, column {first.column}; once is allowed"
            self.problems.append(node.place.problem((*frame.where, key), message, "Remove one of the two."))
            frame.drops_value = True
        else:
            frame.keys[key] = Key(node.place, node.plain)

    def _merge(self, frame: _Open) -> None:
        """Add the entries of the mappings named by ``<<`` that are not written out."""
        for node in frame.merged:
            for source in node.items if isinstance(node, ListNode) else (node,):
                if not isinstance(source, MapNode):
                    message = f"<< merges {describe(source)}; a mapping, or a list of mappings, is allowed"
                    self.problems.append(source.place.problem(frame.where, message))
                    continue
                for key, value in source.entries.items():
                    if key not in frame.entries:
                        frame.entries[key] = value
                        frame.keys.setdefault(key, source.keys[key])


def _events(text: str) -> Iterator[Any]:
    import yaml  # noqa: PLC0415  # see above

    loader: Any = getattr(yaml, "CSafeLoader", yaml.SafeLoader)
    return iter(yaml.parse(text, Loader=loader))
