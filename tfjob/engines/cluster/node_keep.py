"""The first process of a container on a node in which something is fetched. Standard library only; any Python from 3.8.

    python -I -S node_keep.py UNUSED_S LEFT_S

The container lives as long as this does, and as long as it lives its run is taken to live. So it ends when no other program
has come within UNUSED_S seconds, and when there has been none for LEFT_S since: whoever started it is gone then.
"""

from __future__ import annotations

import os
import sys
import time

LOOK_S = 0.5


def has_others() -> bool:
    """Whether another program runs in this container, beside this one and the engine's own first process."""
    own = (1, os.getpid())
    return any(name.isdigit() and int(name) not in own for name in os.listdir("/proc"))


def main(unused_s: float, left_s: float) -> None:
    """Stay while there is a program to stay for."""
    deadline = time.monotonic() + unused_s
    while True:  # it looks before it ends: it may not have had the processor for longer than LEFT_S
        if has_others():
            deadline = time.monotonic() + left_s
        elif time.monotonic() >= deadline:
            return
        time.sleep(LOOK_S)


if __name__ == "__main__":
    main(float(sys.argv[1]), float(sys.argv[2]))
