"""Is the gang over, and who failed first? The rules of tfjob/runs/verdict.py, which judges runs elsewhere; a test compares them.

Standard library only; any Python from 3.8; imports nothing of tfjob.
"""

from __future__ import annotations

import time

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

SETTLE_S = 3.0  # how long the failure of a task that does not end the run is doubted


def judge(
    gang: dict[str, Any], statuses: dict[str, dict[str, Any]], waited_s: float, failed_for_s: float = float("inf")
) -> tuple[Any, ...] | None:
    """How the gang ended: outcome, message, task to blame, kind of failure; None while it may still go well.

    `waited_s` is how long some task has been waiting for its peers, `failed_for_s` how long ago one was first seen to have failed.
    """
    tasks = gang["tasks"]
    ended = [task for task in tasks if statuses[task["name"]]["state"] == "ended"]
    failed = failures(gang, statuses)
    blamed = [task for task in failed if task["ends_run"]]
    if not blamed and all(task in ended for task in tasks if task["ends_run"]):
        return ("completed", "")
    if failed:
        times = {task["name"]: statuses[task["name"]].get("time") or time.time() for task in failed}
        first = min(times, key=lambda name: times[name])
        if blamed or failed_for_s > SETTLE_S:
            return ("failed", "", first, "failure")
        return None
    missing = absent(gang, statuses)
    limit_s = gang["limits"]["rendezvous_timeout_s"]
    if missing and waited_s > limit_s:
        others = f" (and {len(missing) - 1} more)" if len(missing) > 1 else ""
        message = f"did not come to the rendezvous within {limit_s:g} s{others}"
        message += ": its peers wait for it, and it does not listen on its port"
        if gang["launcher"]:
            message = f"was not started by mpirun within {limit_s:g} s{others}"
        return ("failed", message, missing[0], "failure")
    return None


def failures(gang: dict[str, Any], statuses: dict[str, dict[str, Any]]) -> list[dict[str, Any]]:
    """The tasks that have failed."""
    ended = [task for task in gang["tasks"] if statuses[task["name"]]["state"] == "ended"]
    return [task for task in ended if has_failed(task, statuses[task["name"]])]


def has_failed(task: dict[str, Any], status: dict[str, Any]) -> bool:
    """Whether a task that ended counts as a failure. A rank that mpirun ended because of another is not the first."""
    if status.get("stopped"):
        return not task["launched"]
    return bool(status.get("exit_code") != 0)


def absent(gang: dict[str, Any], statuses: dict[str, dict[str, Any]]) -> list[str]:
    """The tasks that their peers wait for."""
    tasks, launcher = gang["tasks"], gang["launcher"]
    if launcher:
        if statuses[launcher]["state"] != "running":
            return []
        return [task["name"] for task in tasks if task["launched"] and statuses[task["name"]]["state"] == "pending"]
    members = [task["name"] for task in tasks if task["port"]]
    if not any(statuses[name].get("listening") for name in members):
        return []
    return [name for name in members if statuses[name]["state"] != "ended" and not statuses[name].get("listening")]
