"""What the YAML parser says, in words that help: where it is, what is wrong there, what to do.

The only place that reads libyaml's messages. One that is not known here is passed on as it is, with its place.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Any

from tfjob.spec.tree import Place, Where, quoted

if TYPE_CHECKING:
    from tfjob.errors import Problem

__all__ = ["syntax_problem"]

_QUOTE_EXPRESSION = 'Inside [ ] and { } an expression needs quotes: "${{ … }}".'

# The parser's message → what was found; what is allowed, and a hint. {line} and {column} are of the construct's start.
_MESSAGES = {
    "mapping values are not allowed in this context": (
        'found ": " where no key can stand; one "key: value" on a line is allowed',
        'Put text that holds ": " in double quotes; else check the indentation of this line and the one before.',
    ),
    "did not find expected key": (
        "found no key of the mapping that starts at line {line}, where one should be; a key in its column is allowed",
        "Check the indentation; text that goes on after a closing quote belongs into one pair of quotes.",
    ),
    "did not find expected '-' indicator": (
        "this line does not belong to the list that starts at line {line}; items with - in its column are allowed",
        "Indent it like the other items, or give the list a key of its own.",
    ),
    "did not find expected ',' or ']'": (
        "the [ of line {line}, column {column} is not closed here; a comma or ] is allowed",
        "Close it with ], or put a comma before this.",
    ),
    "did not find expected ',' or '}'": (
        "the { of line {line}, column {column} is not closed here; a comma or } is allowed",
        "Close it with }, or put a comma before this.",
    ),
    "found unexpected end of stream": (
        "the quote opened here is not closed; text between two quotes of one kind is allowed",
        "Add the closing quote.",
    ),
    "could not find expected ':'": (
        'this line is no "key: value"; a key, a colon and a space are allowed',
        "Add the colon, or indent the line if it goes on with the text before.",
    ),
    "found unknown escape character": (
        r"found a backslash in double quotes that starts no escape; \n, \t, \", \\ and other escapes are allowed",
        r"Use single quotes, or write \\ for a backslash.",
    ),
    "block sequence entries are not allowed in this context": (
        'found "- " on the line of its key; a list that starts on the next line, or [a, b], is allowed',
        'Put the items on lines of their own, or quote the text: "- …".',
    ),
    "did not find expected node content": (
        "found a bracket or comma where a value should be; a value is allowed",
        "Remove it, or put the text in quotes.",
    ),
    "did not find expected <document start>": (
        "found more text after the end of the value; one value is allowed",
        "Put the whole text in one pair of quotes if it belongs together.",
    ),
    "did not find expected alphabetic or numeric character": (
        "found * or & without a name after it; *name repeats what &name marks",
        'If it is a text such as *.py, put it in quotes: "*.py".',
    ),
    "exceeded maximum nesting depth": ("nested deeper than 32 levels; at most 32 are allowed", ""),
    "found undefined tag handle": (
        "found a tag (a word that starts with !); values without tags are allowed",
        "Remove it, or put the text in quotes.",
    ),
}


def syntax_problem(error: Exception, text: str, file: str, where: Where) -> Problem:
    """Return the problem that the parser's `error` about `text` means; `where` is how far reading had come."""
    mark: Any = getattr(error, "problem_mark", None)
    start: Any = getattr(error, "context_mark", None) or mark
    said: str = getattr(error, "problem", None) or str(error).splitlines()[0]
    if mark is None:
        return Place(file, 1, 1).problem(where, f"not readable as YAML: {said}")
    lines = re.split("\r\n|[\n\r\x85\u2028\u2029]", text)
    line = lines[mark.line] if mark.line < len(lines) else ""
    place = Place(file, mark.line + 1, mark.column + 1)
    if mark.line >= len(lines):  # the end of the text
        place = Place(file, len(lines), len(lines[-1]) + 1)
    if tab := re.match(r" *(\t)", line):
        message = "found a tab before the first word of the line; spaces are allowed"
        return Place(file, mark.line + 1, tab.start(1) + 1).problem(where, message, "Indent with spaces.")
    if said == "found unexpected end of stream":
        place = Place(file, start.line + 1, start.column + 1)
    if said == "could not find expected ':'":  # noticed on the line after the one that is meant
        place = Place(file, start.line + 1, start.column + 1)
        line = lines[start.line] if start.line < len(lines) else ""
    message, hint = _explain(said, line[mark.column : mark.column + 1])
    if "expected ',' or" in said and "${{" in line:
        hint = _QUOTE_EXPRESSION
    message = message.replace("{line}", str(start.line + 1)).replace("{column}", str(start.column + 1))
    return place.problem(where, message, hint)


def _explain(said: str, character: str) -> tuple[str, str]:
    if said in _MESSAGES:
        return _MESSAGES[said]
    if said.startswith("found character") and character:
        if character == "\t":
            return "found a tab where only spaces may stand; spaces are allowed", "Use spaces."
        return f"found text that starts with {quoted(character)}; it is allowed in quotes", "Put the text in quotes."
    return f"not readable as YAML: {said}", "Put text with special characters in quotes."
