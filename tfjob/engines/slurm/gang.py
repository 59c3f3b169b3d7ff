"""What the job's programs need of a Plan, as the JSON they read: everything bound that is known before Slurm chooses nodes. Pure."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final

from tfjob.engines.base import Prepared
from tfjob.engines.reports import dataset_places, listening_s
from tfjob.planning.plan import Plan, TaskPlan, bind
from tfjob.rundir import RunDirectory

__all__ = ["FLAGS", "gang_of", "program_directory", "python_of"]

_PYTHON: Final = "python3"

FLAGS: Final = ("-E", "-s", "-S", "-X", "utf8")
"""Nothing of the user's or the site's Python is loaded; the directory of the program itself is."""


def program_directory(run: RunDirectory) -> str:
    """Where the job's programs lie."""
    return str(run.path / "slurm" / "program")


def python_of(plan: Plan, values: Mapping[str, str]) -> str:
    """The Python of the nodes that runs the programs: the environment's, which they all see, or the first on their PATH.

    An environment that is made for containers may not run outside of them.
    """
    prefix = values.get("environment.prefix") if plan.runtime != "docker" else None
    return f"{prefix}/bin/python3" if prefix else _PYTHON


def gang_of(
    plan: Plan, run: RunDirectory, prepared: Prepared, container: dict[str, Any] | None = None
) -> dict[str, Any]:
    """The gang as the programs read it: a value for gang.json. `container` is what nodes must know of it, where tasks are in one.

    What only the started job knows (nodes, ports, GPUs, the nodes' PATH, which attempt it is) stands in the texts as its
    name between two NUL characters, which no argument and no variable of a process can hold.
    """
    python = python_of(plan, prepared.values)
    inside = str(container["python"][0]) if container else python
    places = _places(plan, run, prepared, inside)
    path = [f"{prepared.values['environment.prefix']}/bin"] if "environment.prefix" in prepared.values else []
    return {
        "run": run.id,
        "node_count": plan.node_count,
        "launcher": plan.launcher.name if plan.launcher else None,
        "needs_addresses": plan.launcher is None and any(task.port for task in plan.tasks),
        "path": [] if container else path,
        "container": container,
        "limits": {
            "timeout_s": plan.limits.timeout_s,
            "rendezvous_timeout_s": plan.limits.rendezvous_timeout_s,
            "grace_period_s": plan.limits.grace_period_s,
        },
        "retries": {"most": plan.retries.most, "on": list(plan.retries.on)} if plan.retries else None,
        "requeues": plan.retries is not None and "node_lost" in plan.retries.on,
        "work": {"code": str(run.code) if plan.code else None, "links": _links(plan, run)},
        "tasks": [_task(task, plan, run, places) for task in plan.all_tasks],
    }


def _task(task: TaskPlan, plan: Plan, run: RunDirectory, places: Mapping[str, str]) -> dict[str, Any]:
    bound = bind(task, _Late({**places, **dataset_places(task, plan, run)}))
    return {
        "name": task.name,
        "node": task.node,
        "gpus": task.gpus,
        "port": task.port,
        "ends_run": task.ends_run,
        "launched": task.launched,
        "launcher": task is plan.launcher,
        "file": {
            "argv": list(bound.argv),
            "env": dict(bound.env),
            "cwd": str(run.work(task.name)),
            "log": str(run.log(task.name)),
            "listening_s": listening_s(plan),
            "grace_period_s": plan.limits.grace_period_s,
            "launched": task.launched,
        },
    }


def _links(plan: Plan, run: RunDirectory) -> list[tuple[str, str]]:
    """What of a working copy is a link, and where it leads."""
    kept = [(name, run.outputs if name == "outputs" else run.outputs / name) for name in plan.kept]
    return [(name, str(place)) for name, place in (("logs", run.user_logs), *kept)]


class _Late(dict[str, str]):
    """Values by name; a name without one stands for itself until the job runs."""

    _LATE = ("node.", "port.", "gpus.", "environment.path", "restart.count")

    def get(self, name: str, default: Any = None) -> Any:
        if name in self:
            return self[name]
        return f"\0{name}\0" if name.startswith(self._LATE) else default


def _places(plan: Plan, run: RunDirectory, prepared: Prepared, python: str) -> dict[str, str]:
    known = {
        name: value for name, value in prepared.values.items() if name not in ("environment.path", "restart.count")
    }
    return {
        **known,
        "run.id": run.id,
        "run.dir": str(run.path),
        "outputs.dir": str(run.outputs),
        "logs.dir": str(run.user_logs),
        **{f"outputs.{name}": str(run.outputs / name) for name in plan.named_outputs},
        "entrypoint.python": python,
        "entrypoint.file": f"{program_directory(run)}/entrypoint.py",
    }
