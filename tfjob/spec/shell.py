r"""Values inside a shell line: what an expression in `command` becomes, whatever quotes it stands in.

A value never changes what the line does: written outside of quotes it is one word; inside quotes it stays inside them.
(Here-documents and quotes inside of ``$( )`` inside of quotes are read as plain text; use the task's variables there.)

>>> print(fill("echo ${{ a }} '${{ a }}' \"${{ a }}\"", {"a": "two $words"}.get, literal, final=True))
echo 'two $words' 'two $words' "two \$words"
"""

from __future__ import annotations

import re
import shlex
from collections.abc import Callable
from typing import Literal

from tfjob.spec.expressions import Reference, parse, substitute

__all__ = ["Quotes", "fill", "literal", "variable"]

Quotes = Literal["", "'", '"']
"""The quotes that are open at some place of a shell line."""

_SPECIAL_IN_DOUBLE = re.compile(r'([\\"$`])')


def fill(
    template: str, value_of: Callable[[str], str | None], form: Callable[[str, Quotes], str], *, final: bool
) -> str:
    """`substitute` for a shell line: each value in the `form` that suits the quotes it stands in."""
    quotes: Quotes = ""
    at_references: list[Quotes] = []
    for piece in parse(template):
        if isinstance(piece, Reference):
            at_references.append(quotes)
        else:
            quotes = _open_after(piece, quotes)
    places = iter(at_references)

    def suited(name: str) -> str | None:
        place = next(places)
        value = value_of(name)
        return None if value is None else form(value, place)

    return substitute(template, suited, final=final)


def literal(value: str, quotes: Quotes) -> str:
    """The text `value` itself."""
    if not quotes:
        return shlex.quote(value)
    return value.replace("'", "'\\''") if quotes == "'" else _SPECIAL_IN_DOUBLE.sub(r"\\\1", value)


def variable(name: str, quotes: Quotes) -> str:
    """The value of the shell variable `name`."""
    return {"": f'"${{{name}}}"', '"': f"${{{name}}}", "'": f"'\"${{{name}}}\"'"}[quotes]


def _open_after(text: str, quotes: Quotes) -> Quotes:
    """The quotes open after `text`, which begins inside of `quotes` (POSIX shell, 2.2 Quoting and 2.3 Token Recognition)."""
    position = 0
    while position < len(text):
        character = text[position]
        if character == "\\" and quotes != "'":
            position += 1
        elif character == quotes:
            quotes = ""
        elif not quotes and character == "'":
            quotes = "'"
        elif not quotes and character == '"':
            quotes = '"'
        elif not quotes and character == "#" and (position == 0 or text[position - 1] in " \t\n;&|("):
            position = text.find("\n", position)  # a comment: its apostrophes open nothing
            if position < 0:
                break
        position += 1
    return quotes
