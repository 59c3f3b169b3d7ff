"""What Slurm's states of a job mean (squeue(1), "JOB STATE CODES")."""

from __future__ import annotations

from typing import Any, Final

from tfjob.engines.slurm.client import SlurmClient
from tfjob.engines.slurm.report import End

__all__ = ["COMES_UP", "GOES_ON", "LIVING", "WAITS", "accounted_end", "end_of_state", "forgotten_end"]

WAITS: Final = frozenset({"PENDING", "REQUEUED", "REQUEUE_HOLD", "SPECIAL_EXIT", "RESV_DEL_HOLD", "SUSPENDED"})
COMES_UP: Final = frozenset({"CONFIGURING", "POWER_UP_NODE"})
GOES_ON: Final = frozenset({"RUNNING", "COMPLETING", "STAGE_OUT", "SIGNALING", "RESIZING", "STOPPED"})
LIVING: Final = WAITS | COMES_UP | GOES_ON
"""The states of a job that is not over."""


def end_of_state(state: str, nodes: str) -> End:
    """What a state of Slurm's that is an end means (squeue(1), "JOB STATE CODES")."""
    ends: dict[str, tuple[Any, str, str | None]] = {
        "COMPLETED": ("failed", "its job ended without a word", None),
        "FAILED": ("failed", "its job failed; see slurm/job.log in the run directory", "failure"),
        "CANCELLED": ("canceled", "canceled from outside of tfjob: its job was ended by scancel", "canceled"),
        "TIMEOUT": ("failed", "it reached the time limit that Slurm gave it", "time_limit"),
        "DEADLINE": ("failed", "it could not start before the deadline that Slurm was given", "time_limit"),
        "PREEMPTED": ("failed", "Slurm preempted it: a job of higher priority took its nodes", "preempted"),
        "NODE_FAIL": ("failed", f"a node was lost ({nodes})", "node_lost"),
        "BOOT_FAIL": ("failed", f"a node could not be started ({nodes})", "node_lost"),
        "OUT_OF_MEMORY": ("failed", "it used more memory than Slurm gave it", "failure"),
        "REVOKED": ("failed", "Slurm gave it to another cluster", None),
    }
    outcome, message, kind = ends.get(state, ("failed", f"Slurm says {state}", None))
    return End(outcome, message, None, kind)


def accounted_end(client: SlurmClient, job: str) -> End | None:
    """How a job ended that has gone from the queue, by accounting; None where there is none, or it does not say that now."""
    said = client.accounting("--jobs", job, "--allocations", "--format=State,NodeList")
    if said and (line := said.strip().splitlines()):
        state, _, nodes = line[-1].partition("|")
        if (word := state.split()[0]) not in LIVING:  # it went on when the controller last told of it
            return end_of_state(word, nodes)
    return None


def forgotten_end(job: str) -> End:
    """How a job ended of which nobody knows it."""
    return End("failed", f"Slurm no longer knows its job {job}, and the job left no word of how it ended", None, None)
