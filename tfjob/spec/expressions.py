"""Expressions in texts: ``${{ dataset.digits }}``.

An expression is ``${{``, a dotted name, ``}}``; spaces inside do not matter. Dollar signs before ``{{`` are read
in pairs, each pair one dollar of plain text: ``$${{`` is the text ``${{``, and ``$$${{ x.y }}`` a dollar before the
value. A text with expressions is a template; some names are known when a job is loaded, others only when it runs, so a
template may be filled in two steps with the same result.

>>> substitute("--run ${{run.id}} ${{ env.HOME }} $${{", {"env.HOME": "/root"}, final=False)
'--run ${{ run.id }} /root $${{'
>>> substitute("--run ${{ run.id }} $${{", {"run.id": "r1"}, final=True)
'--run r1 ${{'
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping
from typing import NamedTuple

from tfjob.spec.tree import quoted

__all__ = ["ExpressionError", "Reference", "UnknownName", "escape", "names", "parse", "substitute"]

_OPENING = re.compile(r"(?<!\$)(\$++)\{\{")
_NAME = re.compile(r"\s*([A-Za-z_][A-Za-z0-9_-]*(?:\.[A-Za-z0-9_][A-Za-z0-9_-]*)*)\s*\}\}")

Values = Mapping[str, str] | Callable[[str], str | None]


class ExpressionError(ValueError):
    """A template that cannot be read or filled; the message says what was found and what is allowed."""


class UnknownName(ExpressionError):  # reads as what it is
    """A template names something that has no value."""

    def __init__(self, name: str) -> None:
        """Take the name that has no value."""
        super().__init__(f"{name} has no value")
        self.name = name


class Reference(NamedTuple):
    """The place of a value in a template."""

    name: str


def parse(template: str) -> tuple[str | Reference, ...]:
    """Return the plain texts (escapes undone) and references that `template` consists of, in order.

    Raises ExpressionError where an expression is not closed or holds no name.
    """
    return tuple(_pieces(template))


def names(template: str) -> tuple[str, ...]:
    """Return the names that `template` refers to, each once, in order. Raises ExpressionError as `parse` does."""
    return tuple(dict.fromkeys(piece.name for piece in _pieces(template) if isinstance(piece, Reference)))


def substitute(template: str, values: Values, *, final: bool) -> str:
    """Return `template` with the names that have a value replaced by it, as plain text whatever it holds.

    With `final` the result is plain text, and a name without a value raises UnknownName. Otherwise the result is a
    template again, with the names that have no value yet left in it. Raises ExpressionError as `parse` does.
    """
    value_of = values if callable(values) else values.get
    result: list[str] = []
    plain: list[str] = []
    for piece in _pieces(template):
        value = piece if isinstance(piece, str) else value_of(piece.name)
        if value is not None:
            plain.append(value)
        elif final:
            raise UnknownName(piece.name if isinstance(piece, Reference) else piece)
        elif isinstance(piece, Reference):
            result += (_escaped("".join(plain), before_reference=True), f"${{{{ {piece.name} }}}}")
            plain.clear()
    rest = "".join(plain)
    return "".join((*result, rest if final else escape(rest)))


def escape(text: str) -> str:
    """Return the template that stands for exactly `text`."""
    return _escaped(text, before_reference=False)


def _escaped(text: str, *, before_reference: bool) -> str:
    doubled = _OPENING.sub(lambda match: f"{match.group(1) * 2}{{{{", text)
    if not before_reference:
        return doubled
    return doubled + "$" * (len(doubled) - len(doubled.rstrip("$")))


def _pieces(template: str) -> Iterator[str | Reference]:
    position = 0
    for opening in _OPENING.finditer(template):
        if opening.start() < position:
            continue
        dollars = len(opening.group(1))
        text = template[position : opening.start()] + "$" * (dollars // 2)
        if dollars % 2 == 0:
            yield text + "{{"
            position = opening.end()
            continue
        if text:
            yield text
        name = _NAME.match(template, opening.end())
        if name is None:
            raise ExpressionError(_malformed(template, opening.end()))
        yield Reference(name.group(1))
        position = name.end()
    if position < len(template):
        yield template[position:]


def _malformed(template: str, start: int) -> str:
    end = template.find("}}", start)
    if end < 0:
        return "found ${{ without }} after it; ${{ name }}, or $${{ for the text itself, is allowed"
    inside = template[start:end].strip()
    if not inside:
        return "found ${{ }} without a name; a name such as ${{ run.id }} is allowed"
    return f"found {quoted(inside)} between ${{{{ and }}}}; a dotted name such as run.id is allowed"
