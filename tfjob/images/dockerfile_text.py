"""A user's Dockerfile as far as tfjob must understand it: its instructions with their lines, and what it starts from."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Mapping

__all__ = ["Instruction", "instructions", "line_of", "parents"]

_DIRECTIVE = re.compile(r"#\s*(syntax|escape|check)\s*=\s*(\S+)\s*", re.IGNORECASE)
_HEREDOC = re.compile(r"<<-?\s*([\"']?)([A-Za-z_]\w*)\1")
_VARIABLE = re.compile(r"\$(?:(\w+)|\{(\w+)(?::?([-+])([^}]*))?\})")
_FROM = re.compile(r"FROM\s+(?:--\S+\s+)*(\S+)(?:\s+AS\s+(\S+))?\s*", re.IGNORECASE)
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
    ends: list[str] = []
    for number, line in enumerate(text.splitlines(), 1):
        words = line.strip()
        if ends:
            if words == ends[0]:
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
            ends = [word for _, word in _HEREDOC.findall(whole)] if takes else []
    if parts:
        found.append(Instruction(start, " ".join(" ".join(parts).split())))
    return tuple(found)


def parents(text: str, arguments: Mapping[str, str]) -> tuple[str, ...]:
    """Return the images a Dockerfile starts from, its build arguments put in; not its own stages, not ``scratch``."""
    values: dict[str, str] = {}
    stages: set[str] = set()
    found: dict[str, None] = {}
    for one in instructions(text):
        verb, _, rest = one.text.partition(" ")
        if verb.upper() == "ARG" and not stages and not found:
            name, has_default, default = rest.partition("=")
            values[name] = arguments.get(name, _filled(default.strip("\"'"), values) if has_default else "")
        elif (match := _FROM.fullmatch(one.text)) is not None:
            image = _filled(match[1], values)
            if image and image != "scratch" and image.lower() not in stages:
                found[image] = None
            stages.add((match[2] or f"stage {one.line}").lower())
    return tuple(found)


def _filled(text: str, values: Mapping[str, str]) -> str:
    """Put variables into a text as Docker does: ``$NAME``, ``${NAME}``, ``${NAME:-default}``, ``${NAME:+other}``."""

    def value(match: re.Match[str]) -> str:
        known = values.get(match[1] or match[2], "")
        if match[3] == "-":
            return known or match[4]
        if match[3] == "+":
            return match[4] if known else ""
        return known

    return _VARIABLE.sub(value, text)


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
