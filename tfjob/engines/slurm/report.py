"""What the job's own programs say of a run, read from the one file that they replace: `slurm/state.json`."""

from __future__ import annotations

import errno
import json
import os
import time
from contextlib import suppress
from dataclasses import dataclass
from typing import Any, Final, Literal

from tfjob.durable import replace_json
from tfjob.engines.base import TaskStatus
from tfjob.planning.plan import Plan, TaskPlan
from tfjob.rundir import RunDirectory

__all__ = ["End", "Report", "begin_report", "close_report", "read_report", "statuses_of"]

_LOST: Final = "it ended without saying how: it was killed together with the program that watched it"
_TRIES: Final = 3
_NEW: Final = {"phase": "new", "attempts": [], "attempt": -1, "tasks": {}, "end": None}
_OUT_OF_MEMORY: Final = "the kernel killed it: out of memory"


@dataclass(frozen=True)
class End:
    """How an attempt ended. `outcome` slurm: Slurm ended it, and its queue knows whether that is the run's end.

    `kind` is why: failure, node_lost, time_limit, preempted, canceled, requeued, or nothing that is known.
    """

    outcome: Literal["completed", "failed", "canceled", "slurm"]
    message: str
    task: str | None = None
    kind: str | None = None
    time: float = 0.0


@dataclass(frozen=True)
class Report:
    """How a run is. `phase` is starting, running, ending, over, lost or failed; `attempt` counts from 0.

    While the phase is ending, `end` is what has come of it, and the job's programs wait for the nodes to be done.

    `message` says what takes long while nodes are made ready.
    """

    phase: str
    job: str = ""
    attempt: int = 0
    nodes: tuple[tuple[str, str], ...] = ()
    tasks: dict[str, dict[str, Any]] | None = None
    started: float | None = None
    end: End | None = None
    message: str = ""
    attempts: tuple[Report, ...] = ()

    @property
    def is_over(self) -> bool:
        """Whether this is the last word of the job's programs."""
        return self.phase == "over"

    @property
    def verdict(self) -> End | None:
        """What the run had come to by itself, if it had, before the job's programs were done with its nodes or were killed."""
        return self.end if self.phase == "ending" and self.end is not None and self.end.outcome != "slurm" else None


def begin_report(run: RunDirectory) -> None:
    """Write that nothing was said yet, as `program/state.py` would.

    NFS believes for up to a minute that a file is not there which was not there before, but looks again at one that is opened.
    """
    replace_json(run.path / "slurm" / "state.json", _NEW, force=False)


def close_report(run: RunDirectory, message: str) -> None:
    """Write that the run is over, for a job that may begin later all the same: it then does nothing."""
    end = {"outcome": "failed", "message": message, "task": None, "kind": None, "time": time.time()}
    replace_json(run.path / "slurm" / "state.json", {**_NEW, "phase": "over", "end": end}, force=False)


def read_report(run: RunDirectory) -> Report | None:
    """What the job's programs last said, None before they said anything. Raises OSError when that can't be known now."""
    file = run.path / "slurm" / "state.json"
    failed: OSError | None = None
    for _ in range(_TRIES):
        try:
            value = json.loads(file.read_bytes())
            return None if value.get("phase") == "new" else _report(value)
        except OSError as error:
            if error.errno not in (errno.ENOENT, errno.ESTALE):  # stale: a node replaced it while it was open here
                raise
            failed = error
            with suppress(OSError):  # NFS asks its server about a directory that is opened
                os.close(os.open(file.parent, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC))
    if failed is None or failed.errno == errno.ENOENT:
        return None
    raise failed


def statuses_of(plan: Plan, report: Report | None, *, is_over: bool = False) -> tuple[TaskStatus, ...]:
    """How every task is, in plan order. With `is_over` nothing runs any more, whatever the last word was."""
    tasks = (report.tasks if report else None) or {}
    return tuple(_status(task, tasks.get(task.name, {"state": "pending"}), is_over=is_over) for task in plan.all_tasks)


def _status(task: TaskPlan, said: dict[str, Any], *, is_over: bool) -> TaskStatus:
    state, note, stopped = said["state"], "", said.get("stopped", False)
    if said.get("lost"):
        note = "" if stopped else _LOST
    elif said.get("out_of_memory"):
        note = _OUT_OF_MEMORY
    if is_over and (state == "running" or (state == "pending" and not task.launched)):
        state, stopped, note = "ended", True, ""  # its node's program could not say how it ended
    return TaskStatus(
        task.name,
        state,
        exit_code=said.get("exit_code"),
        signal=said.get("signal"),
        time=said.get("time"),
        started=said.get("started"),
        listening=said.get("listening", False),
        stopped=stopped,
        note=note,
    )


def _report(value: dict[str, Any]) -> Report:
    end = value.get("end")
    return Report(
        phase=value.get("phase", "failed"),
        job=value.get("job", ""),
        attempt=value.get("attempt", 0),
        nodes=tuple((node["name"], node["address"]) for node in value.get("nodes") or ()),
        tasks=value.get("tasks"),
        started=value.get("started"),
        end=End(end["outcome"], end["message"], end["task"], end["kind"], end.get("time", 0.0)) if end else None,
        message=value.get("message", ""),
        attempts=tuple(map(_report, value.get("attempts", ()))),
    )
