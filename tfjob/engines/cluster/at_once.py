"""Doing the same for several nodes at the same time."""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from typing import Final, TypeVar

from tfjob.dockerapi.api import RefusalError
from tfjob.errors import TargetError

__all__ = ["at_once", "patiently", "try_at_once"]

_LOOK_S: Final = 0.2

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


def try_at_once(do: Callable[[_T], object], things: Sequence[_T]) -> None:
    """The same, as far as the engines answer and do it."""

    def try_it(thing: _T) -> None:
        with suppress(TargetError, RefusalError, OSError):  # the last of this machine: no room, too many open files
            do(thing)

    at_once(try_it, things)


def patiently(do: Callable[[], _R], waiting: Callable[[], None]) -> _R:
    """Do what may take long. `waiting` is called meanwhile, and may raise to give up: then the rest goes on by itself."""
    done: list[_R] = []
    errors: list[BaseException] = []

    def work() -> None:
        try:
            done.append(do())
        except BaseException as error:  # noqa: BLE001  # raised again below
            errors.append(error)

    thread = threading.Thread(target=work, daemon=True)
    thread.start()
    while thread.is_alive():
        thread.join(_LOOK_S)
        waiting()
    if errors:
        raise errors[0]
    return done[0]
