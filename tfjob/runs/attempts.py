"""Trying a run again that failed: whether it is, and what is kept of the attempt that failed.

The attempt that goes on has the usual places in the run directory. One that failed is put away from there before the
next begins, so that nothing of it is overwritten or mistaken for the new one's: its logs, its tasks' reports, and what
its tasks wrote outside of what is kept. `outputs` stays as it is: a script with checkpoints goes on from there.
"""

from __future__ import annotations

import time
from pathlib import Path

from tfjob.planning.plan import Plan
from tfjob.rundir import RunDirectory
from tfjob.runs.record import Attempt, Failure, Record, iso
from tfjob.runs.verdict import Verdict
from tfjob.runs.working import clear_work

__all__ = ["attempt_of", "is_tried_again", "left_by_attempts", "put_away"]


def is_tried_again(plan: Plan, record: Record, verdict: Verdict) -> bool:
    """Whether the run starts again after this verdict: for a reason it was asked to, and not too often."""
    retries = plan.retries
    if retries is None or verdict.outcome != "failed" or verdict.kind not in retries.on:
        return False
    return sum(attempt.failure.kind is not None for attempt in record.attempts) < retries.most


def attempt_of(record: Record, failure: Failure) -> Attempt:
    """The attempt that goes on by the record, ended now by `failure`."""
    return Attempt(
        number=len(record.attempts) + 1,
        nodes=tuple(dict.fromkeys(task.node for task in record.tasks)),
        started=next((phase.started for phase in record.phases if phase.name == "Running"), None),
        ended=iso(time.time()),
        failure=failure,
    )


def put_away(plan: Plan, run: RunDirectory, snapshots: Path, number: int) -> None:
    """Move what attempt `number`, of which nothing runs any more, has left to where it is kept.

    Can be done again after it was interrupted.
    """
    _put_away_logs(plan, run, number)
    kept, part = run.attempts / str(number), run.attempts / f".{number}"
    if not kept.is_dir():
        part.mkdir(parents=True, exist_ok=True)
        clear_work(plan, run, snapshots)
        for name in ("tasks", "work"):
            if (run.path / name).exists() and not (part / name).exists():
                (run.path / name).rename(part / name)
        part.rename(kept)
    run.tasks.mkdir(exist_ok=True)


def left_by_attempts(run: RunDirectory) -> tuple[str, ...]:
    """The files that attempts wrote outside of what is kept, by their paths under the run directory."""
    left = (file for file in run.attempts.glob("*/work/**/*") if file.is_symlink() or not file.is_dir())
    return tuple(sorted(file.relative_to(run.path).as_posix() for file in left))


def _put_away_logs(plan: Plan, run: RunDirectory, number: int) -> None:
    kept, part = run.attempt_logs(number), run.logs / f".attempt-{number}"
    if kept.is_dir():
        return
    part.mkdir(parents=True, exist_ok=True)
    for task in plan.all_tasks:
        if run.log(task.name).exists():
            run.log(task.name).rename(part / f"{task.name}.log")
    part.rename(kept)
