"""What an unquoted word of YAML means: YAML 1.2 core, and the traps where YAML 1.1 readers see something else.

>>> resolve("1e-3")[0], resolve("2024-01-01")[0], resolve("true")[0]
(0.001, '2024-01-01', True)
>>> print(resolve("1_000")[1].message)
found 1_000, which YAML 1.1 reads as the number 1000 and YAML 1.2 as text; a decimal number, or quoted text, is allowed
"""

from __future__ import annotations

import math
import re
from typing import NamedTuple

__all__ = ["Trap", "resolve"]

_CONSTANTS: dict[str, bool | None] = {
    **dict.fromkeys(("", "~", "null", "Null", "NULL")),
    **dict.fromkeys(("true", "True", "TRUE"), True),
    **dict.fromkeys(("false", "False", "FALSE"), False),
}
_WORDS = {**dict.fromkeys(("yes", "on", "y"), "true"), **dict.fromkeys(("no", "off", "n"), "false")}
_NUMBER_LENGTH = 64  # longer runs of digits are text: no setting is such a number

_INTEGER = re.compile(r"[-+]?[0-9]+")
_FLOAT = re.compile(r"[-+]?(?:\.[0-9]+|[0-9]+(?:\.[0-9]*)?)(?:[eE][-+]?[0-9]+)?")
_HEXADECIMAL = re.compile(r"0x[0-9a-fA-F]+")

_LEADING_ZERO = re.compile(r"([-+]?)0+([0-9]+)")
_OCTAL = re.compile(r"0o([0-7]+)")
_BINARY = re.compile(r"[-+]?0b[01_]+")
_UNDERSCORED = re.compile(r"[-+]?[0-9][0-9_]*_[0-9_]*(?:\.[0-9_]*)?|0x[0-9a-fA-F_]*_[0-9a-fA-F_]*")
_SEXAGESIMAL = re.compile(r"([-+]?)([0-9][0-9_]*(?::[0-5]?[0-9])+)(\.[0-9_]*)?")
_NOT_FINITE = re.compile(r"[-+]?\.(?:inf|Inf|INF)|\.(?:nan|NaN|NAN)")


class Trap(NamedTuple):
    """Why an unquoted text is not accepted. `is_word` marks the words (``no``, ``on``) that may well be keys."""

    message: str
    hint: str
    is_word: bool = False


def resolve(text: str) -> tuple[str | float | bool | None, Trap | None]:
    """Return the value of the unquoted `text`, and the trap it is, if it is one."""
    if text in _CONSTANTS:
        return _CONSTANTS[text], None
    if len(text) > _NUMBER_LENGTH:
        return text, None
    if trap := _trap(text):
        return text, trap
    return _number(text), None


def _number(text: str) -> str | float:
    if _INTEGER.fullmatch(text):
        return int(text)
    if _HEXADECIMAL.fullmatch(text):
        return int(text, 16)
    return float(text) if _FLOAT.fullmatch(text) else text


def _trap(text: str) -> Trap | None:
    reading = _WORDS.get(text.lower())
    if reading:
        found = f"found {text} without quotes, which YAML 1.1 reads as {reading}"
        allowed = "quoted text, true or false is allowed"
        return Trap(f"{found}; {allowed}", f'Write "{text}" for the text, or {reading}.', is_word=True)
    if not any(character.isdigit() for character in text) and not _NOT_FINITE.fullmatch(text):
        return None
    return _number_trap(text)


def _number_trap(text: str) -> Trap | None:
    quoted = f'"{text}" for the text'
    if (match := _LEADING_ZERO.fullmatch(text)) and match.group(2):
        number = f"{match.group(1)}{int(match.group(2))}"
        digits = match.group(2)
        old = f"{match.group(1)}{int(digits, 8)} (octal)" if not set(digits) & set("89") else "text"
        message = f"found {text}, which YAML 1.1 reads as {old} and YAML 1.2 as {number}"
        allowed = "a number without leading zeros, or quoted text, is allowed"
        return Trap(f"{message}; {allowed}", f"Write {number} or {quoted}.")
    if match := _OCTAL.fullmatch(text):
        number = str(int(match.group(1), 8))
        message = f"found {text}, which YAML 1.1 reads as text and YAML 1.2 as {number} (octal)"
    elif _BINARY.fullmatch(text) and text.strip("+-_").replace("_", "") != "0b":
        number = str(int(text.replace("_", ""), 2))
        message = f"found {text}, which YAML 1.1 reads as {number} (binary) and YAML 1.2 as text"
    elif _UNDERSCORED.fullmatch(text):
        number = text.replace("_", "")
        message = f"found {text}, which YAML 1.1 reads as the number {number} and YAML 1.2 as text"
    elif match := _SEXAGESIMAL.fullmatch(text):
        number = _sexagesimal(match)
        message = f"found {text}, which YAML 1.1 reads as the number {number} (base 60) and YAML 1.2 as text"
    elif _NOT_FINITE.fullmatch(text) or (_FLOAT.fullmatch(text) and math.isinf(float(text))):
        message = f"found {text}, which is no finite number; a finite number, or quoted text, is allowed"
        return Trap(message, f"Write {quoted}.")
    else:
        return None
    return Trap(f"{message}; a decimal number, or quoted text, is allowed", f"Write {number} or {quoted}.")


def _sexagesimal(match: re.Match[str]) -> str:
    total = 0
    for part in match.group(2).replace("_", "").split(":"):
        total = total * 60 + int(part)
    fraction = (match.group(3) or "").replace("_", "").rstrip(".")
    return f"{match.group(1).replace('+', '')}{total}{fraction}"
