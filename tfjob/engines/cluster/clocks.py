"""Times that nodes write, by this machine's clock: theirs may be seconds or hours ahead or behind, each another one."""

from __future__ import annotations

import json
import time
from collections import deque
from typing import Any, Final

__all__ = ["NodeClock"]

_WORDS: Final = 64
"""So many words are kept: a minute of them, in which no clock drifts by much."""
_ANSWERS: Final = 8
"""So many answers are kept, however long ago they came: what is said unasked may all be late, behind outputs say."""


_WAY_S: Final = 60.0
"""What is so little behind, and was not asked for, may just have been on its way for so long."""


class NodeClock:
    """How far a node's clock is ahead of ours, by what its agent says the time is.

    What it says is heard later than it was said, and said later than it was asked for. So each word gives a least, and an
    answer also a most; a clock that may be right by them is taken to be right.
    """

    def __init__(self) -> None:
        self._least: deque[float] = deque(maxlen=_WORDS)
        self._most: deque[float] = deque(maxlen=_ANSWERS)

    def hear(self, theirs: float, asked: float | None = None) -> None:
        """Hear the time by the node's clock, which was asked for at a time of ours if it is an answer."""
        self._least.append(theirs - time.time())
        if asked is not None:
            self._most.append(theirs - asked)

    @property
    def ahead_s(self) -> float:
        """By how many seconds the node's clock is ahead; 0 where nothing is known of it."""
        if not self._least:
            return 0.0
        least, most = max(self._least), min(self._most, default=float("inf"))
        if most == float("inf"):
            return 0.0 if -_WAY_S < least < 0 else least
        if most < least:  # one of the clocks was set meanwhile
            return self._least[-1]
        return min(max(0.0, least), most)

    def latest(self, theirs: float) -> float:
        """When it was at the latest by our clock that theirs said so."""
        return min(time.time(), theirs - max(self._least, default=0.0))

    def by_ours(self, report: str) -> str:
        """A task's report with its time by our clock. What is no report stays as it is."""
        ahead_s = self.ahead_s
        if not ahead_s:
            return report
        try:
            content: dict[str, Any] = json.loads(report)
            content["time"] = round(content["time"] - ahead_s, 6)
        except (ValueError, KeyError, TypeError):
            return report
        return json.dumps(content)
