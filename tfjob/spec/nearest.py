"""The known word that somebody probably meant."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

__all__ = ["nearest"]

_MAX_LENGTH = 80  # longer words are no slips of the finger, and comparing them takes long


def nearest(word: str, known: Iterable[str], fits: Callable[[str], bool] | None = None) -> str | None:
    """Return the one of `known` that is most like `word`, or None if none is much like it.

    With `fits`, the one that also fits: it is asked from the most like to the least. Of two that are as like, the first by
    the alphabet is: of an environment for CPUs and its sibling for GPUs, the one that runs everywhere.

    >>> nearest("node_cuont", ["node_count", "node_type"])
    'node_count'
    """
    import difflib  # noqa: PLC0415  # 10 ms, needed only for what is wrong

    if len(word) > _MAX_LENGTH:
        return None
    by_lowercase = {candidate.lower(): candidate for candidate in known}
    found = difflib.get_close_matches(word.lower(), by_lowercase, n=len(by_lowercase) or 1, cutoff=0.65)
    matcher = difflib.SequenceMatcher(b=word.lower())

    def unlike(one: str) -> float:
        matcher.set_seq1(one)
        return -matcher.ratio()

    found.sort(key=lambda one: (unlike(one), one))
    return next((by_lowercase[one] for one in found if fits is None or fits(by_lowercase[one])), None)
