"""Work that is begun before anybody needs its outcome, in a thread beside the one that goes on."""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Generic, TypeVar

__all__ = ["Ahead"]

_Outcome = TypeVar("_Outcome")
_PATIENCE_S = 15.0
_SOON_S = 0.05


class _NotWantedError(BaseException):
    """Nobody waits for the outcome any more."""


class Ahead(Generic[_Outcome]):
    """Something that is being worked out. `work` is given a function that it calls now and then, so that it can be ended.

    Who needs the outcome at once does the work alone: two threads that have much to do in Python keep each other waiting.
    """

    def __init__(self, work: Callable[[Callable[[], None]], _Outcome]) -> None:
        """Begin soon."""
        self._work = work
        self._turn = threading.Lock()
        self._is_taken = False
        self._is_needed = threading.Event()
        self._is_not_wanted = threading.Event()
        self._is_over = (
            threading.Event()
        )  # no join: one that a signal's handler breaks out of takes the thread for ended
        self._outcomes: list[_Outcome] = []
        self._error: BaseException | None = None
        threading.Thread(target=self._go, daemon=True).start()

    def failure(self) -> BaseException | None:
        """What kept it from being worked out, as soon as that is known."""
        return self._error

    def result(self) -> _Outcome:
        """Have the outcome. Raises what the work raised; a signal's handler may break in."""
        self._is_needed.set()
        if self._take():
            self._is_over.set()
            return self._work(lambda: None)
        self._is_over.wait()
        if self._error is not None:
            raise self._error
        return self._outcomes[0]

    def end(self) -> bool:
        """See that it has ended, whatever came of it. Returns whether it has, in a time that people wait."""
        self._is_not_wanted.set()
        self._is_needed.set()
        return self._take() or self._is_over.wait(_PATIENCE_S)

    def _take(self) -> bool:
        """Whether the work is for who asks: nobody else has it."""
        with self._turn:
            is_mine, self._is_taken = not self._is_taken, True
        return is_mine

    def _go(self) -> None:
        if self._is_needed.wait(_SOON_S) or not self._take():
            return
        try:
            self._outcomes.append(self._work(self._check))
        except _NotWantedError:
            pass
        except BaseException as error:  # noqa: BLE001  # it is raised again by who waits for the outcome
            self._error = error
        finally:
            self._is_over.set()

    def _check(self) -> None:
        if self._is_not_wanted.is_set():
            raise _NotWantedError
