"""A user's Dockerfile as far as tfjob must understand it: its instructions with their lines, and what it starts from."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import TYPE_CHECKING

from tfjob.images.dockerfile_stages import Stages

if TYPE_CHECKING:
    from collections.abc import Mapping

__all__ = ["Instruction", "instructions", "line_of", "parents"]

_DIRECTIVE = re.compile(r"#\s*(syntax|escape|check)\s*=\s*(\S+)\s*", re.IGNORECASE)
# Words as the builder splits them: a heredoc is a word of its own, outside of quotes.
_WORD = re.compile(r"(?:\"(?:\\.|[^\"\\])*\"|'[^']*'|\\.|[^\s\"'\\])+")
_HEREDOC = re.compile(r"\d*<<(-?)([\"']?)([A-Za-z_]\w*)\2")
_VARIABLE = re.compile(r"\$(?:(\w+)|\{(\w+)(?::?([-+])([^}]*))?\})")
_MIN_MATCH = 4


@dataclass(frozen=True)
class Instruction:
    """One instruction on one line of text; `line` is where it starts, from 1."""

    line: int
    text: str


def instructions(text: str) -> tuple[Instruction, ...]:
    """Return a Dockerfile's instructions, lines that continue put together, without comments."""
    found: list[Instruction] = []
    escape = "\\"
    for line in text.splitlines():
        match = _DIRECTIVE.fullmatch(line.strip())
        if match is None:
            break
        escape = match[2] if match[1].lower() == "escape" else escape
    parts: list[str] = []
    start = 0
    ends: list[tuple[str, str]] = []  # of heredocs: "-" where tabs before the last line do not count, and that line
    for number, line in enumerate(text.splitlines(), 1):
        words = line.strip()
        if ends:
            if (line.lstrip("\t") if ends[0][0] else line) == ends[0][1]:
                ends.pop(0)
            continue
        if not words or words.startswith("#"):
            continue
        if not parts:
            start = number
        goes_on = words.endswith(escape)
        parts.append(words[:-1].strip() if goes_on else words)
        if not goes_on:
            whole = " ".join(" ".join(parts).split())
            found.append(Instruction(start, whole))
            parts = []
            takes = whole.split(" ", 1)[0].upper() in {"RUN", "COPY", "ADD"}
            ends = _heredocs(whole) if takes else []
    if parts:
        found.append(Instruction(start, " ".join(" ".join(parts).split())))
    return tuple(found)


def _heredocs(instruction: str) -> list[tuple[str, str]]:
    matches = [_HEREDOC.fullmatch(word) for word in _WORD.findall(instruction)]
    return [(match[1], match[3]) for match in matches if match is not None]


def parents(text: str, arguments: Mapping[str, str], *, needed_only: bool = False) -> tuple[str, ...]:
    """Return the images a Dockerfile is made of, its build arguments put in; not its own stages, not ``scratch``.

    They are what stages start from and what ``COPY --from``, ``ADD --from`` and ``RUN --mount=…,from=`` name; with
    `needed_only`, those that the last stage needs. Where a name can only be known by the builder, it stands as far as
    it is known and is no name of an image: there is a ``$`` in it, or it is not complete.
    """
    stages = Stages(arguments)
    for one in instructions(text):
        verb, _, rest = one.text.partition(" ")
        stages.take(verb.upper(), rest)
    return stages.images(needed_only=needed_only)


def line_of(text: str, step: str) -> int | None:
    """Return the line of the instruction that a builder shows as `step`, which it may have cut short; None if unknown."""
    wanted = " ".join(step.split()).removesuffix("...").rstrip()
    for one in instructions(text):
        if one.text == wanted:
            return one.line
    for one in instructions(text):
        if len(wanted) >= _MIN_MATCH and (one.text.startswith(wanted) or _same_verb_and_end(one.text, wanted)):
            return one.line
    return None


def _same_verb_and_end(instruction: str, step: str) -> bool:
    """Whether a step is the instruction with its variables filled in, as far as that can be told without them."""
    if "$" not in instruction:
        return False
    pattern = "".join(".*" if part.startswith("$") else re.escape(part) for part in _split(instruction))
    return re.match(pattern, step) is not None


def _split(text: str) -> list[str]:
    parts: list[str] = []
    at = 0
    for match in _VARIABLE.finditer(text):
        parts += [text[at : match.start()], match[0]]
        at = match.end()
    return [*parts, text[at:]]
