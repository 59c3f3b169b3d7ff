"""Text that comes from elsewhere (names of files, words of programs), made safe for a line that people read.

What a terminal would obey, what would break a line or a column, and bytes that are no text are shown by their numbers.
"""

from __future__ import annotations

__all__ = ["escaped", "in_line", "in_lines"]

_SHORT = {"\n": "\\n", "\r": "\\r", "\t": "\\t", "…": "..."}
_TURNING = frozenset("\u061c\u200e\u200f\u2028\u2029\u202a\u202b\u202c\u202d\u202e\u2066\u2067\u2068\u2069")
"""Letters that break a line, or turn the direction of what follows them."""


def in_line(text: str) -> str:
    """The text as a part of one line, with everything escaped that would not stay in it."""
    if text.isprintable():
        return text
    return "".join(escaped(letter) if _is_unsafe(letter) else letter for letter in text)


def in_lines(text: str) -> str:
    """The text with its lines and tabs as they are, and everything else escaped that a terminal would obey."""
    if text.isprintable():
        return text
    return "".join(escaped(letter) if letter not in "\n\t" and _is_unsafe(letter) else letter for letter in text)


def escaped(text: str) -> str:
    r"""Every letter by its number, as Python writes it; a byte that is no text (PEP 383) as that byte: ``\xff``."""
    return "".join(_SHORT.get(letter) or _number(ord(letter)) for letter in text)


def _number(code: int) -> str:
    if 0xDC80 <= code <= 0xDCFF:
        code -= 0xDC00
    return f"\\x{code:02x}" if code < 0x100 else f"\\u{code:04x}" if code < 0x10000 else f"\\U{code:08x}"


def _is_unsafe(letter: str) -> bool:
    code = ord(letter)
    return code < 0x20 or 0x7F <= code < 0xA0 or 0xD800 <= code < 0xE000 or letter in _TURNING
