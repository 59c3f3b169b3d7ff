"""Is an attempt over, and is it sure what came of it? Standard library only; any Python from 3.8; imports nothing of tfjob.

verdict.py says what the tasks' ends mean; this, whether they are all that is to be known: a failure may come of a node that is
lost, and any end of Slurm's SIGTERM.
"""

from __future__ import annotations

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

    from tfjob.engines.slurm.program import slurm
    from tfjob.engines.slurm.program.verdict import absent, failures, judge
else:  # they lie beside this file
    import slurm
    from verdict import absent, failures, judge

LOST_S = 60.0  # without a word of a node while a failure on another is doubted
STOP_S = 1.0  # so long the others go on meanwhile
DOUBT_S = 5.0  # for Slurm to say whether it ends a job whose tasks have ended


class Ended(Exception):
    """The gang is over, or shall be: `outcome` says how, `kind` why, as retries name it."""

    def __init__(self, outcome: str, message: str, task: str | None = None, kind: str | None = None) -> None:
        super().__init__(message)
        self.outcome, self.message, self.task, self.kind = outcome, message, task, kind


def judge_gang(attempt: Any, now: float) -> None:
    """Raise Ended if the gang of a batch.Attempt is over."""
    missing = absent(attempt.gang, attempt.statuses)
    attempt.waiting_since = (attempt.waiting_since or now) if missing else None
    if failures(attempt.gang, attempt.statuses):
        attempt.failed_since = attempt.failed_since or now
    waited_s = now - attempt.waiting_since if attempt.waiting_since else 0.0
    found = judge(attempt.gang, attempt.statuses, waited_s, now - attempt.failed_since if attempt.failed_since else 0.0)
    if found is None or found[0] == "completed":
        attempt.doubted_since = None
    elif doubts(attempt, now):
        return
    if found is not None:
        look_for_end(attempt)
        raise Ended(*found)


def doubts(attempt: Any, now: float) -> bool:
    """Whether a failure may not be the first: others fail within a second of a lost peer, and Slurm misses a node after minutes.

    Nobody is blamed before every node that may still run tasks has looked at them since. Raises Ended for one that does not.
    """
    if attempt.doubted_since is None:
        attempt.doubted_since, attempt.looked = now, set()
        attempt.tell("look")
    if now - attempt.doubted_since > STOP_S and failures(attempt.gang, attempt.statuses) and not attempt.is_stopping:
        attempt.is_stopping = True
        attempt.stop()  # whoever was the first
    running = {task["node"] for task in attempt.gang["tasks"] if attempt.statuses[task["name"]]["state"] != "ended"}
    silent = sorted(running - attempt.looked)
    if silent and now - attempt.doubted_since > LOST_S:
        names = ", ".join(attempt.hellos[node]["name"] for node in silent)
        raise Ended("slurm", f"a node was lost: {names}", kind="node_lost")
    return bool(silent)


def look_for_end(attempt: Any) -> None:
    """Raise Ended if Slurm is ending the job: its SIGTERM reaches tasks before it reaches the programs that know what it means.

    They fail of it then, or save and end as if all were done.
    """
    attempt.stop()
    attempt.state.save()
    asked = slurm.job(DOUBT_S)
    if slurm.is_ending(asked):
        raise attempt.ending(asked)
