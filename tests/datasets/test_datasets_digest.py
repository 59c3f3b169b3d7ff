"""The digest of what comes in pieces, with and without a thread beside."""

from __future__ import annotations

import hashlib
import io
import os
import threading

import pytest

from tfjob.datasets.digest import Digest


@pytest.mark.parametrize("pieces", [[b""], [b"abc"], [os.urandom(1 << 20)] * 20, [os.urandom(5 << 20), b"", b"end"]])
def test_it_is_that_of_all_pieces_in_their_order(pieces: list[bytes]) -> None:
    digest = Digest(io.BytesIO(b"before"))
    for piece in pieces:
        digest.update(piece)
    whole = b"before" + b"".join(pieces)
    assert digest.hexdigest() == hashlib.sha256(whole).hexdigest()
    digest.update(b"more")
    assert digest.hexdigest() == hashlib.sha256(whole + b"more").hexdigest()


def test_pieces_are_received_into_few_places() -> None:
    content = os.urandom(30 << 20)
    digest, at, places = Digest(), 0, set()
    while at < len(content):
        room = digest.room()
        places.add(id(room.obj))
        piece = content[at : at + len(room) - at % 1000]
        room[: len(piece)] = piece
        digest.update(room[: len(piece)])
        at += len(piece)
    assert digest.hexdigest() == hashlib.sha256(content).hexdigest()
    assert len(places) <= 9
    digest.update(digest.room()[:3])
    assert len(digest.hexdigest()) == 64


def test_the_thread_beside_ends_with_it() -> None:
    before = set(threading.enumerate())  # those of other tests may end meanwhile
    digest = Digest()
    for _ in range(3):
        digest.update(bytes(5 << 20))
    (beside,) = set(threading.enumerate()) - before
    digest.close()
    assert beside not in threading.enumerate()
