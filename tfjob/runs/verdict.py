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


SETTLE_S = 3.0
"""How long the failure of a task that does not end the run is doubted: a worker may fail because its chief has finished."""

FIRST_S = 1.0
"""How long who failed first is not told while others run: one of them may have failed before, and not have said so yet."""

HELD_S = 30.0
"""How long the end of a task may be held back on its node, behind its log, before others are judged without it."""


def judge(
    plan: Plan,
    statuses: Iterable[TaskStatus],
    rendezvous_waited_s: float | None,
    failed_for_s: float = float("inf"),
    failure_seen: float | None = None,
    *,
    late_seen: float | None = None,
) -> Verdict | None:
    """The verdict on a running plan, or None while it may still go well.

    `rendezvous_waited_s` is how long some task has been waiting for peers (None if none is): past
    `limits.rendezvous_timeout_s` the first task that has not come is the one that failed.

    `failure_seen` is when a failed task was first seen here, and `failed_for_s` how long ago that was, whatever the clocks of
    nodes say. Tasks fail within a second of a lost peer, and a lost node is known as such only after it has been silent for
    long: while a node has not been heard since, no one is blamed; nor for a while as long as what it saw since has not all come.
    In the same way `late_seen` is when `rendezvous_waited_s` was first past its limit.
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
        is_early = failed_for_s < FIRST_S and any(s.state != "ended" for s in by_task.values())
        if not first.node_lost and (is_early or _are_silent(by_task.values(), failure_seen, failed_for_s)):
            return None
        if first.task in deciding or failed_for_s > SETTLE_S or any(s.task in deciding for s in failed):
            return Verdict("failed", first, describe_end(first), "node_lost" if first.node_lost else "failure")
        return None
    late_s = (rendezvous_waited_s or 0.0) - plan.limits.rendezvous_timeout_s
    if rendezvous_waited_s is not None and late_s > 0:
        missing = absent(plan, by_task.values())
        if missing and not _are_silent(missing, late_seen, late_s):
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


def _are_silent(statuses: Iterable[TaskStatus], since: float | None, for_s: float) -> bool:
    """Whether the node of a task that may still run has not been heard since then, `for_s` ago, or still has to tell of before."""
    if since is None:
        return False
    living = [status for status in statuses if status.state != "ended"]
    heard = [status.heard for status in living] + [status.looked for status in living if for_s < HELD_S]
    return any(at is not None and at <= since for at in heard)


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
