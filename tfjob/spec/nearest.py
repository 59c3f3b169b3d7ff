"""The known word that somebody probably meant."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterable

__all__ = ["nearest"]

_MAX_LENGTH = 80  # longer words are no slips of the finger, and comparing them takes long


def nearest(word: str, known: Iterable[str]) -> str | None:
    """Return the one of `known` that is most like `word`, or None if none is much like it.

    >>> nearest("node_cuont", ["node_count", "node_type"])
    'node_count'
    """
    import difflib  # noqa: PLC0415  # 10 ms, needed only for what is wrong

    if len(word) > _MAX_LENGTH:
        return None
    by_lowercase = {candidate.lower(): candidate for candidate in known}
    found = difflib.get_close_matches(word.lower(), by_lowercase, n=1, cutoff=0.65)
    return by_lowercase[found[0]] if found else None
