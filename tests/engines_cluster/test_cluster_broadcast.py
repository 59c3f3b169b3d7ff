"""One stream, several receivers: slow ones, ones that fail, and a source that does."""

from __future__ import annotations

import threading
from collections.abc import Iterator

import pytest
from support import eventually

from tfjob.engines.cluster.broadcast import GivenUpError, broadcast

CHUNKS = [bytes([number]) * 1000 for number in range(200)]


def test_everyone_gets_all_of_it() -> None:
    got: list[list[bytes]] = [[], [], []]
    gate = threading.Event()

    def slow(chunks: Iterator[bytes]) -> None:
        gate.wait(0.2)
        got[2].extend(chunks)

    broadcast(CHUNKS, [got[0].extend, got[1].extend, slow])
    assert got == [CHUNKS] * 3
    broadcast(CHUNKS, [])


def test_one_that_fails_keeps_no_other_waiting() -> None:
    got: list[bytes] = []

    def fails(chunks: Iterator[bytes]) -> None:
        next(chunks)
        raise ValueError("full")

    with pytest.raises(ValueError, match="full"):
        broadcast(CHUNKS, [fails, got.extend])
    assert got == CHUNKS


def test_when_all_have_failed_the_rest_is_not_read() -> None:
    read = []

    def source() -> Iterator[bytes]:
        for number in range(1_000_000):
            read.append(number)
            yield b"x"

    def fails(_chunks: Iterator[bytes]) -> None:
        raise ValueError("full")

    with pytest.raises(ValueError, match="full"):
        broadcast(source(), [fails, fails])
    assert len(read) < 1000


def test_a_source_that_fails_leaves_nobody_with_half_of_it() -> None:
    ends: list[str] = []

    def source() -> Iterator[bytes]:
        yield from CHUNKS
        raise KeyError("gone")

    def receive(chunks: Iterator[bytes]) -> None:
        try:
            list(chunks)
            ends.append("whole")
        except GivenUpError:
            ends.append("broken")
            raise

    with pytest.raises(KeyError):
        broadcast(source(), [receive, receive])
    eventually(lambda: len(ends) == 2, "both have heard of it")
    assert ends == ["broken", "broken"]


def test_who_waits_for_a_receiver_can_give_up() -> None:
    release = threading.Event()

    def stuck(_chunks: Iterator[bytes]) -> None:
        release.wait(60)

    def cancel() -> None:
        raise KeyboardInterrupt

    for chunks in (CHUNKS, CHUNKS[:1]):  # while it is given more, and when it has all
        with pytest.raises(KeyboardInterrupt):
            broadcast(chunks, [stuck], cancel)
    release.set()
