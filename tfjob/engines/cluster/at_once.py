"""Doing the same for several nodes at the same time."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

__all__ = ["at_once"]

_T = TypeVar("_T")
_R = TypeVar("_R")


def at_once(do: Callable[[_T], _R], things: Sequence[_T]) -> list[_R]:
    """Do something for each thing, for all at the same time. Raises the first error when all have been tried."""
    if len(things) == 1:
        return [do(things[0])]
    with ThreadPoolExecutor(min(len(things), 64) or 1) as pool:
        done = [pool.submit(do, thing) for thing in things]
        errors = [error for one in done if (error := one.exception())]
        if errors:
            raise errors[0]
        return [one.result() for one in done]
