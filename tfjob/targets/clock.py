"""How far another machine's clock is from ours, from answers that tell the time in whole seconds."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Final, NamedTuple

__all__ = ["Skew", "measure_skew"]

_SAMPLES: Final = 6
_PAUSE_S: Final = 0.17  # with the samples, about a second: one of them is near the moment the second changes


class Skew(NamedTuple):
    """The other clock is `seconds` ahead of ours (behind, where negative), give or take `error_s`."""

    seconds: float
    error_s: float


def measure_skew(
    their_time: Callable[[], float],
    *,
    now: Callable[[], float] = time.time,
    pause: Callable[[float], None] = time.sleep,
) -> Skew:
    """Ask several times, and combine what each answer allows.

    An answer d (whole seconds) between our times a and b says that the difference is between d - b and d + 1 - a.

    >>> moments = iter([10.0, 10.2] * 6)
    >>> measure_skew(lambda: 12.0, now=lambda: next(moments), pause=lambda _: None)
    Skew(seconds=2.4, error_s=0.6)
    """
    least, most = float("-inf"), float("inf")
    for sample in range(_SAMPLES):
        if sample:
            pause(_PAUSE_S)
        before = now()
        told = their_time()
        after = now()
        least, most = max(least, told - after), min(most, told + 1 - before)
    if least > most:  # a clock was set meanwhile
        least, most = most, least
    return Skew(round((least + most) / 2, 2), round((most - least) / 2, 2))
