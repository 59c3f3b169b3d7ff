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


def test_the_thread_beside_ends_with_it() -> None:
    before = threading.active_count()
    digest = Digest()
    for _ in range(3):
        digest.update(bytes(5 << 20))
    assert threading.active_count() == before + 1
    digest.close()
    assert threading.active_count() == before
