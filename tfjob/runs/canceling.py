"""A run that shall end before its time: asked for by a file in its directory, noticed by its supervisor."""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from tfjob.rundir import RunDirectory

__all__ = ["CancelRequested", "interruptible", "raise_if_canceled"]

_LOOK_S = 0.1


class _BrokenError(BaseException):
    """Work has become useless by something else that failed."""

    def __init__(self, cause: BaseException) -> None:
        super().__init__(cause)
        self.cause = cause


class CancelRequested(BaseException):
    """The run shall end: somebody made its `cancel` file, or the supervisor was told to stop."""


def raise_if_canceled(run: RunDirectory) -> None:
    """Raise CancelRequested, with the reason, if somebody has asked for the run's end."""
    if (reason := _request(run)) is not None:
        raise CancelRequested(reason)


def _request(run: RunDirectory) -> str | None:
    """Why the run shall end; None where nobody has asked for it, or a shared file system can't say so now."""
    try:
        return run.cancel_request.read_text(encoding="utf-8").strip("\0\n ") or "canceled"
    except OSError:
        return None


@contextmanager
def interruptible(run: RunDirectory, failure: Callable[[], BaseException | None] | None = None) -> Iterator[None]:
    """Let a cancel request break into work that knows nothing of it, by a signal to this thread.

    So does a `failure` of what goes on beside it, which is then raised.
    """
    raise_if_canceled(run)
    done = threading.Event()

    def broken() -> BaseException | None:
        return failure() if failure is not None else None

    def watch() -> None:
        while not done.wait(_LOOK_S):
            if _request(run) is not None or broken() is not None:
                os.kill(os.getpid(), signal.SIGUSR1)
                return

    def break_in(_number: int, _frame: object) -> None:
        raise_if_canceled(run)
        if cause := broken():
            raise _BrokenError(cause)

    before = signal.signal(signal.SIGUSR1, break_in)
    watcher = threading.Thread(target=watch, daemon=True)
    watcher.start()
    try:
        try:
            yield
        finally:
            done.set()
            watcher.join()
            signal.signal(signal.SIGUSR1, before)
    except _BrokenError as error:
        raise error.cause from None
