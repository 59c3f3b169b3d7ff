"""Is the run over, and if it failed, who failed first? A pure function of what the engine's poll said."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from signal import Signals
from typing import Literal

from tfjob.engines.base import TaskStatus
from tfjob.planning.plan import Plan, TaskPlan

__all__ = ["Verdict", "describe_end", "judge"]


@dataclass(frozen=True)
class Verdict:
    """How a running plan ended. For a failure, `status` is that of the task that failed first, if a task did.

    `kind` is the reason of a failure, as `retries.on` names it; None for one that would come again for sure.
    """

    outcome: Literal["completed", "failed"]
    status: TaskStatus | None = None
    message: str = ""
    kind: Literal["failure", "node_lost"] | None = None


SETTLE_S = 2.0
"""How long the failure of a task that does not end the run is doubted: a worker may fail because its chief has finished."""


def judge(
    plan: Plan,
    statuses: Iterable[TaskStatus],
    rendezvous_waited_s: float | None,
    failed_for_s: float = float("inf"),
    failure_seen: float | None = None,
) -> Verdict | None:
    """The verdict on a running plan, or None while it may still go well.

    `rendezvous_waited_s` is how long some task has been waiting for peers (None if none is): past
    `limits.rendezvous_timeout_s` the first task that has not come is the one that failed.

    `failure_seen` is when a failed task was first seen here, and `failed_for_s` how long ago that was, whatever the clocks of
    nodes say. Tasks fail within a second of a lost peer, and a lost node is known as such only after it has been silent for
    long: while a node has not been heard since, no one is blamed.
    """
    by_task = {status.task: status for status in statuses}
    failed = [
        status
        for task in plan.all_tasks
        if (status := by_task[task.name]).state == "ended" and _counts_as_failure(task, status)
    ]
    deciding = {task.name for task in plan.all_tasks if task.ends_run}
    if all(by_task[name].state == "ended" for name in deciding) and not any(s.task in deciding for s in failed):
        return Verdict("completed")
    if failed:
        first = min(failed, key=lambda status: (not status.node_lost, status.time or float("inf")))
        if not first.node_lost and failure_seen is not None and _are_silent(by_task.values(), failure_seen):
            return None
        if first.task in deciding or failed_for_s > SETTLE_S or any(s.task in deciding for s in failed):
            return Verdict("failed", first, describe_end(first), "node_lost" if first.node_lost else "failure")
        return None
    if rendezvous_waited_s is not None and rendezvous_waited_s > plan.limits.rendezvous_timeout_s:
        missing = absent(plan, by_task.values())
        if missing:
            return Verdict("failed", missing[0], _absence(plan, len(missing)), "failure")
    return None


def absent(plan: Plan, statuses: Iterable[TaskStatus]) -> list[TaskStatus]:
    """The tasks that their peers wait for: not started by the launcher yet, or started and not listening on their port.

    Empty when nobody waits: a script that never opens its port does without a cluster, which is its own business.
    """
    by_task = {status.task: status for status in statuses}
    if plan.launcher:
        if by_task[plan.launcher.name].state != "running":
            return []
        return [by_task[task.name] for task in plan.tasks if by_task[task.name].state == "pending"]
    members = [task for task in plan.tasks if task.port]
    if not any(by_task[task.name].listening for task in members):
        return []
    return [s for task in members if (s := by_task[task.name]).state != "ended" and not s.listening]


def describe_end(status: TaskStatus) -> str:
    """How a task ended, in words that follow its name: "exited with code 3"."""
    if status.note:
        return f"failed: {status.note}"
    if status.signal is not None:
        name = _signal_name(status.signal)
        more = "; the kernel kills so when memory runs out (see `dmesg`)" if name == "SIGKILL" else ""
        return f"was killed by signal {status.signal} ({name}){more}"
    if status.stopped:
        return "was told to end by a signal from outside of tfjob"
    return f"exited with code {status.exit_code}"


def _counts_as_failure(task: TaskPlan, status: TaskStatus) -> bool:
    # A launched task is ended by its launcher when another has failed: it is not the first.
    return status.failed or (status.stopped and not task.launched)


def _are_silent(statuses: Iterable[TaskStatus], since: float) -> bool:
    """Whether the node of a task that may still run has not been heard since then."""
    return any(s.state != "ended" and s.heard is not None and s.heard <= since for s in statuses)


def _absence(plan: Plan, number: int) -> str:
    others = f" (and {number - 1} more)" if number > 1 else ""
    limit = f"{plan.limits.rendezvous_timeout_s:g} s"
    if plan.launcher:
        return f"was not started by {plan.launcher.argv[0]} within {limit}{others}"
    return f"did not come to the rendezvous within {limit}{others}: its peers wait for it, and it does not listen on its port"


def _signal_name(number: int) -> str:
    try:
        return Signals(number).name
    except ValueError:
        return "unknown"
