"""What takes long, done while a cancel is looked for."""

from __future__ import annotations

import threading

import pytest

from tfjob.engines.cluster.at_once import patiently


class Canceled(BaseException):
    """As a cancel is told."""


def test_what_was_done_or_went_wrong_is_told() -> None:
    assert patiently(lambda: 5, lambda: None) == 5

    def fails() -> None:
        raise ValueError("full")

    with pytest.raises(ValueError, match="full"):
        patiently(fails, lambda: None)


def test_who_gives_up_does_not_wait() -> None:
    may_end = threading.Event()

    def cancel() -> None:
        raise Canceled

    with pytest.raises(Canceled):
        patiently(may_end.wait, cancel)
    may_end.set()
