"""Time in which a program could do something. Standard library only; any Python from 3.8; imports nothing of tfjob."""

from __future__ import annotations

import threading
import time

STOPPED_S = 5.0  # longer than a program that runs is without a look at its clock


class Clock:
    """A monotonic clock that leaves out how long the program stood still, because Slurm suspended its job (scontrol(1)).

    Somebody looks at it every two or three seconds at least; the longest look too late is not counted.
    """

    def __init__(self) -> None:
        self.lock = threading.Lock()
        self.looked = time.monotonic()
        self.stood_s = 0.0

    def now(self) -> float:
        """Seconds since some moment."""
        with self.lock:
            now = time.monotonic()
            if now - self.looked > STOPPED_S:
                self.stood_s += now - self.looked
            self.looked = now
            return now - self.stood_s
