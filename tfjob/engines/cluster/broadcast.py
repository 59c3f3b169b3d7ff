"""One stream of bytes, read once and sent to several receivers at the same time; the slowest sets the pace."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterable, Iterator
from queue import Empty, Full, Queue
from typing import Final

__all__ = ["GivenUpError", "broadcast"]

_AHEAD: Final = 16
_LOOK_S: Final = 0.2
_END_S: Final = 1.0


class GivenUpError(Exception):
    """For receivers: there will be no more, and what they have is not whole. No OSError, which who sends takes for its peer's."""


class _Receiver:
    """One of those who receive: a thread that takes chunks from a short queue."""

    def __init__(self, receive: Callable[[Iterator[bytes]], None]) -> None:
        self._receive = receive
        self._queue: Queue[bytes | None] = Queue(_AHEAD)
        self._broken = False
        self.error: BaseException | None = None
        self.thread = threading.Thread(target=self._run, daemon=True)

    def put(self, chunk: bytes | None, waiting: Callable[[], None]) -> None:
        """Give it a chunk, or None for the end; one that has given up needs none."""
        while self.thread.is_alive():
            try:
                self._queue.put(chunk, timeout=_LOOK_S)
            except Full:
                waiting()
                continue
            return

    def finish(self, waiting: Callable[[], None]) -> None:
        """Wait until it has done with what it got."""
        while self.thread.is_alive():
            self.thread.join(_LOOK_S)
            waiting()

    def abandon(self) -> None:
        """There will be no more, and no end: what it has is not whole."""
        self._broken = True

    def _run(self) -> None:
        try:
            self._receive(self._chunks())
        except BaseException as error:  # noqa: BLE001  # raised again by `broadcast`
            self.error = error

    def _chunks(self) -> Iterator[bytes]:
        while True:
            try:
                chunk = self._queue.get(timeout=_LOOK_S)
            except Empty:
                if self._broken:
                    raise GivenUpError from None
                continue
            if chunk is None:
                return
            yield chunk


def _nobody() -> None:
    """Take the place of a `waiting` that nobody listens to."""


def broadcast(
    source: Iterable[bytes],
    receivers: Iterable[Callable[[Iterator[bytes]], None]],
    waiting: Callable[[], None] = _nobody,
) -> None:
    """Give every receiver all of `source`. Raises the first receiver's error when all are done, or the source's at once.

    `waiting` is called now and then while a receiver is waited for, and may raise to give up.
    """
    threads = [_Receiver(receive) for receive in receivers]
    for one in threads:
        one.thread.start()
    try:
        _give(source, threads, waiting)
        for one in threads:
            one.finish(waiting)
    except BaseException:
        for one in threads:
            one.abandon()
        for one in threads:
            one.thread.join(_END_S)  # so that what they were at can be removed
        raise
    errors = [one.error for one in threads if one.error is not None]
    if errors:
        raise errors[0]


def _give(source: Iterable[bytes], threads: Iterable[_Receiver], waiting: Callable[[], None]) -> None:
    for chunk in source:
        for one in threads:
            one.put(chunk, waiting)
        if not any(one.thread.is_alive() for one in threads):
            return  # nobody wants the rest
    for one in threads:
        one.put(None, waiting)
