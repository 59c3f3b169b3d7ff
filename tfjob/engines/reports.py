"""What an engine and the entrypoints tell each other by files: task.json to the one, the reports of how a task is to the other.

The same for tasks that are processes and tasks in containers: both see the run directory at the same path.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Final, NamedTuple

from tfjob.durable import replace_json
from tfjob.engines.base import Allocation, TaskStatus
from tfjob.entrypoint import LISTENING_S
from tfjob.planning.plan import Plan, TaskPlan, bind
from tfjob.rundir import RunDirectory

__all__ = [
    "KILLED",
    "NEVER_STARTED",
    "NOT_STARTED",
    "OUT_OF_MEMORY",
    "End",
    "Entrypoint",
    "Watch",
    "dataset_places",
    "listening_s",
    "status",
    "task_files",
    "write_tasks",
]

_LOOKS: Final = 4
"""A task looks at least so often for its port within the time of the rendezvous: who has come must not be taken for late."""
KILLED: Final = "it ended without saying how: it was killed together with the process that watched it"
NOT_STARTED: Final = "it could not be started"
NEVER_STARTED: Final = "it was never started: the supervisor died before"
OUT_OF_MEMORY: Final = "the kernel killed it: out of memory"


class Entrypoint(NamedTuple):
    """How a task's entrypoint is started where the task runs: the Python and the file there."""

    python: str
    file: str

    def argv(self, run: RunDirectory, task: str) -> list[str]:
        """The command that runs the entrypoint of `task`."""
        return [self.python, "-I", "-S", "-X", "utf8", self.file, str(run.tasks), task]


class End(NamedTuple):
    """What is known of a task that ended without a report. `note` says it in words; `node_lost` that its machine is to blame."""

    note: str
    exit_code: int | None = None
    signal: int | None = None
    node_lost: bool = False


@dataclass
class Watch:
    """What an engine knows of a run it watches.

    `adopted` is when it was taken over from another process (monotonic clock), None for one that was started here.
    """

    plan: Plan
    run: RunDirectory
    adopted: float | None = None
    stopping: bool = False
    lost: dict[str, tuple[End, float, bool]] = field(default_factory=dict)
    """Tasks that ended without a report: how, when they were seen last, and whether they had been told to end."""

    seen: dict[str, float] = field(default_factory=dict)
    """When tasks were last seen to run: their peers may fail before it is seen that they do not any more."""


def write_tasks(
    plan: Plan,
    run: RunDirectory,
    allocation: Allocation,
    values: Mapping[str, str],
    *,
    entrypoint: Entrypoint,
    more: Mapping[str, Any] | None = None,
) -> None:
    """Write task.json of every task, bound to what the run was given. `more` goes into each as it is."""
    for name, content in task_files(plan, run, allocation, values, entrypoint=entrypoint, more=more).items():
        run.task(name).mkdir(parents=True, exist_ok=True)
        replace_json(run.task(name) / "task.json", content)


def task_files(
    plan: Plan,
    run: RunDirectory,
    allocation: Allocation,
    values: Mapping[str, str],
    *,
    entrypoint: Entrypoint,
    more: Mapping[str, Any] | None = None,
) -> dict[str, dict[str, Any]]:
    """What task.json of every task holds, where `run` is the run's directory as the tasks know it."""
    found = {}
    for task in plan.all_tasks:
        bound = bind(task, {**_places(plan, run, allocation, entrypoint), **values, **dataset_places(task, plan, run)})
        found[task.name] = {
            "argv": bound.argv,
            "env": dict(bound.env),
            "cwd": str(run.work(task.name)),
            "log": str(run.log(task.name)),
            "port": allocation.ports.get(task.port) if task.port else None,
            "listening_s": listening_s(plan),
            "grace_period_s": plan.limits.grace_period_s,
            "launched": task.launched,
            **(more or {}),
        }
    return found


def listening_s(plan: Plan) -> float:
    """How long at most passes between two looks for a task's listening: well within the time that peers wait for it."""
    return min(LISTENING_S, plan.limits.rendezvous_timeout_s / _LOOKS)


def status(
    watch: Watch,
    task: TaskPlan,
    *,
    gone: bool,
    lives: Callable[[dict[str, Any]], bool],
    explain: Callable[[End], End] = lambda end: end,
    patience_s: float = 5.0,
) -> TaskStatus:
    """How one task is, by its reports and by what the engine sees.

    `gone`: what the engine started for it has ended. `lives` is asked, with what started.json says, whether the task's
    entrypoint runs; `explain` may say more of one that ended without a word. An adopted task that has said nothing
    within `patience_s` never will.
    """
    now = time.time()
    report = watch.run.read_task_file(task.name, "started.json")
    alive = not gone and report is not None and lives(report)
    # Read after the look at the process: it may just have ended.
    result = watch.run.read_task_file(task.name, "exit.json")
    started = report["time"] if report else None
    listening = (watch.run.task(task.name) / "listening").exists()
    if result:
        return TaskStatus(
            task.name,
            "ended",
            exit_code=result["exit_code"],
            signal=result["signal"],
            time=result["time"],
            started=started,
            listening=listening,
            stopped=result["stopped"],
            note=OUT_OF_MEMORY if result.get("out_of_memory") else "",
        )
    if alive:
        watch.seen[task.name] = now
        return TaskStatus(task.name, "running", started=started, listening=listening)
    if report:
        return _lost(watch, task, started, lambda: explain(End(KILLED)))
    if gone:
        return _lost(watch, task, started, lambda: explain(End(NOT_STARTED)))
    if watch.adopted is not None and not task.launched and time.monotonic() - watch.adopted > patience_s:
        return _lost(watch, task, started, lambda: End(NEVER_STARTED))
    return TaskStatus(task.name, "pending")


def _lost(watch: Watch, task: TaskPlan, started: float | None, end: Callable[[], End]) -> TaskStatus:
    """How a task is that ended without a report: what was found out when that was first seen."""
    if task.name not in watch.lost:
        # A launched task may have been killed as what its launcher left behind: then it ended after it.
        seen = time.time() if task.launched else watch.seen.get(task.name, time.time())
        watch.lost[task.name] = (end(), seen, watch.stopping)
    found, seen, stopped = watch.lost[task.name]
    return TaskStatus(
        task.name,
        "ended",
        exit_code=found.exit_code,
        signal=found.signal,
        time=seen,
        started=started,
        stopped=stopped,
        note="" if stopped else found.note,
        node_lost=found.node_lost and not stopped,
    )


def _places(plan: Plan, run: RunDirectory, allocation: Allocation, entrypoint: Entrypoint) -> dict[str, str]:
    """The values of the plan's expressions that are the same for every task."""
    return {
        "run.id": run.id,
        "run.dir": str(run.path),
        "restart.count": str(run.restart_count),
        "outputs.dir": str(run.outputs),
        "logs.dir": str(run.user_logs),
        **{f"outputs.{name}": str(run.outputs / name) for name in plan.named_outputs},
        **{f"node.{index}.address": node.address for index, node in enumerate(allocation.nodes)},
        **{f"node.{index}.name": node.name for index, node in enumerate(allocation.nodes)},
        **{f"port.{name}": str(port) for name, port in allocation.ports.items()},
        **{f"gpus.{name}": ",".join(map(str, indices)) for name, indices in allocation.gpus.items()},
        "entrypoint.python": entrypoint.python,
        "entrypoint.file": entrypoint.file,
    }


def dataset_places(task: TaskPlan, plan: Plan, run: RunDirectory) -> dict[str, str]:
    """Where each dataset is for this task: a directory, or the one file in it if the job asks for a file."""
    places = {}
    for dataset in plan.datasets:
        directory = (
            run.datasets / task.name / dataset.name if dataset.mode == "download" else run.datasets / dataset.name
        )
        is_file = dataset.type == "file"
        places[f"dataset.{dataset.name}"] = str(directory / dataset.files[0][1] if is_file else directory)
    return places
