"""How an attempt at the gang is ended, and its step. Standard library only; any Python from 3.8; imports nothing of tfjob."""

from __future__ import annotations

import signal
import time

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

    from tfjob.engines.slurm.program import slurm
else:  # they lie beside this file
    import slurm

# What srun is sent, and how long it may then take.
CLOSING = ((None, 10.0), (signal.SIGTERM, 5.0), (signal.SIGKILL, 5.0))
MARGIN_S = 2.0  # beyond what tasks are given to end
CLEAR_UP_S = 120.0  # for a node that says that it clears up; engine.py waits longer
QUIET_S = 20.0  # of a node that does not say so any more
LIMIT_MARGIN_S = 10.0  # before Slurm's time limit: to end srun, and to say how the run ended


def end_gang(attempt: Any) -> None:
    """End what still runs of a batch.Attempt: ranks before their launcher, which would not leave them their grace; then the step."""
    attempt.is_ending = True
    deadline = attempt.clock.now() + attempt.gang["limits"]["grace_period_s"] + MARGIN_S
    for word, launched in (("stop launched", True), ("stop", False)):
        attempt.tell(word)
        while attempt.has_begun and attempt.clock.now() < deadline and attempt.step.poll() is None:
            names = [task["name"] for task in attempt.gang["tasks"] if task["launched"] == launched]
            # What is launched may never have been; what a node starts itself is about to be.
            if all(attempt.statuses[name]["state"] in ("ended", "pending" if launched else "") for name in names):
                break
            attempt.take(0.05)
    attempt.tell("end")
    close_step(attempt)


def close_step(attempt: Any) -> None:
    """Wait for the step of a batch.Attempt to end: its programs kill what they started first."""
    with attempt.lock:
        try:
            if attempt.step.input is not None:
                attempt.step.input.close()
        except OSError:
            pass  # what was not told yet has nobody to hear it
        attempt.step.input = None
    for number, wait_s in CLOSING:
        if number is not None:
            attempt.step.send(number)
        until = time.monotonic() + wait_s
        while attempt.step.poll() is None and time.monotonic() < until:
            attempt.take(0.02)
        if number is None:
            wait_for_clearing_up(attempt)
        if attempt.step.poll() is not None:
            break
    attempt.drain()


def wait_for_clearing_up(attempt: Any) -> None:
    """Wait as long as a node says that it removes what it made of its container, which takes long on a slow disk.

    Not where Slurm ends the job: it kills batch.py soon after it has said so (slurm.conf(5), KillWait; GraceTime of a
    partition that is preempted), and soon after its time limit.
    """
    until: float | None = None
    while attempt.step.poll() is None and not (attempt.is_hurried or attempt.signaled):
        now = time.monotonic()
        if now - attempt.cleared > QUIET_S:
            break
        if until is None:
            left_s = slurm.time_left_s()
            until = now + (CLEAR_UP_S if left_s is None else min(CLEAR_UP_S, left_s - LIMIT_MARGIN_S))
        if now >= until:
            break
        attempt.take(0.02)
