"""Runs a Plan as processes of this machine: no container, nothing installed, a process group and a working copy a task."""

from __future__ import annotations

import subprocess
import sys
import time
from collections.abc import Iterable, Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from signal import SIGKILL, SIGTERM
from typing import Any, Final

from tfjob import entrypoint
from tfjob.engines.base import STOP_MARGIN_S, Allocation, Prepared, TaskStatus, Waiting, tell_nobody
from tfjob.engines.inherited import inherited_environment
from tfjob.engines.marked import MARKER, signal_process, sweep
from tfjob.engines.reports import End, Entrypoint, Watch, status, write_tasks
from tfjob.engines.room import Room
from tfjob.planning.plan import Plan, TaskPlan
from tfjob.rundir import RunDirectory
from tfjob.targets.leases import Lease
from tfjob.targets.target import Node

__all__ = ["ProcessEngine", "sweep"]

_START_S: Final = 15.0
"""A task has said that it started by then, or never will."""

_ENTRYPOINT: Final = Entrypoint(sys.executable, entrypoint.__file__)


@dataclass
class _Handle(Watch):
    children: dict[str, subprocess.Popen[bytes]] = field(default_factory=dict)


class ProcessEngine:
    """The engine of the target `local` without containers. `environ` is where tasks' few inherited variables come from."""

    shares_run_directory: Final = True

    def __init__(self, node: Node, *, environ: Mapping[str, str], lease_directory: Path | None = None) -> None:
        self._room = Room(node, environ, lease_directory)
        self._environ = environ

    def acquire(self, plan: Plan, run: RunDirectory, deadline_s: float, waiting: Waiting) -> Allocation:
        """Lease the plan's GPUs and ports. Raises TargetError when the GPUs were not free within `deadline_s`."""
        return self._room.acquire(plan, run, deadline_s, waiting)

    def start(
        self,
        plan: Plan,
        run: RunDirectory,
        allocation: Allocation,
        prepared: Prepared,
        told: Waiting = tell_nobody,
    ) -> _Handle:
        """Write every task's file, then start those the engine starts."""
        del told  # nothing takes long
        write_tasks(plan, run, allocation, prepared.values, entrypoint=_ENTRYPOINT)
        handle = _Handle(plan, run)
        environment = inherited_environment(self._environ, plan.secrets)
        environment[MARKER] = run.id  # every process of the run bears it: see `sweep`
        try:
            for task in plan.started_tasks:
                handle.children[task.name] = _start_task(task, run, environment, allocation.leases)
        except BaseException:
            self.stop(handle, 0)  # all or none
            raise
        return handle

    def adopt(self, plan: Plan, run: RunDirectory) -> _Handle:
        """Go on with tasks another supervisor started: all there is to know is in their report files."""
        return _Handle(plan, run, adopted=time.monotonic())

    def poll(self, handle: _Handle) -> tuple[TaskStatus, ...]:
        """Read each task's reports, and whether its process lives."""
        return tuple(_status(handle, task) for task in handle.plan.all_tasks)

    def notes(self, handle: _Handle) -> tuple[str, ...]:  # noqa: ARG002  # the Protocol's
        """Nothing is to be said of it."""
        return ()

    def stop(self, handle: _Handle, grace_s: float) -> None:
        """SIGTERM to every task, which kills what remains after the grace period; then SIGKILL to whatever bears the run's id.

        A launcher is told last: it would end its tasks at once, and they shall have their grace.
        """
        self.poll(handle)  # what is lost by now was not told to end
        handle.stopping = True
        deadline = time.monotonic() + grace_s + STOP_MARGIN_S
        launched = [task for task in handle.plan.all_tasks if task.launched]
        others = [task for task in handle.plan.all_tasks if not task.launched]
        for tasks in (launched, others):
            _ask_to_end(handle, tasks, deadline)
        for pid in _living(handle, handle.plan.all_tasks):
            signal_process(pid, SIGKILL)
        sweep(handle.run.id)
        for child in handle.children.values():
            with suppress(subprocess.TimeoutExpired):
                child.wait(timeout=1)


def _start_task(
    task: TaskPlan, run: RunDirectory, environment: Mapping[str, str], leases: tuple[Lease, ...]
) -> subprocess.Popen[bytes]:
    with run.supervisor_log.open("ab") as log:
        return subprocess.Popen(
            _ENTRYPOINT.argv(run, task.name),
            env=environment,
            cwd=run.path,
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=log,
            start_new_session=True,
            pass_fds=[lease.descriptor for lease in leases],
        )


def _status(handle: _Handle, task: TaskPlan) -> TaskStatus:
    child = handle.children.get(task.name)
    gone = child is not None and child.poll() is not None
    number = -child.returncode if child and child.returncode and child.returncode < 0 else None
    return status(
        handle,
        task,
        gone=gone,
        lives=_is_alive,
        explain=lambda end: End(end.note, end.exit_code, number),
        patience_s=_START_S,
    )


def _is_alive(report: dict[str, Any]) -> bool:
    fields = entrypoint.stat_fields(report["pid"])
    return bool(fields) and fields[0] not in (b"Z", b"X") and int(fields[19]) == report["start_ticks"]


def _ask_to_end(handle: _Handle, tasks: Iterable[TaskPlan], deadline: float) -> None:
    """SIGTERM to each task, once, and to one that starts meanwhile; wait until none runs, or the time is over."""
    told: set[str] = set()
    while True:
        left = [(task.name, pid) for task in tasks for pid in _living(handle, [task])]
        for name, pid in left:
            if name not in told:
                signal_process(pid, SIGTERM)
                told.add(name)
        if not left or time.monotonic() >= deadline:
            return
        time.sleep(0.02)


def _living(handle: _Handle, tasks: Iterable[TaskPlan]) -> Iterator[int]:
    """The pids of those tasks' entrypoints that still run."""
    for task in tasks:
        child = handle.children.get(task.name)
        if child is not None and child.poll() is not None:
            continue
        report = handle.run.read_task_file(task.name, "started.json")
        if report is not None and _is_alive(report):
            yield report["pid"]
        elif child is not None and report is None:
            yield child.pid
