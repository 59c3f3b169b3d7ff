"""A place to run tasks by an engine: its run directory, a machine with GPUs nobody has, leases of its own.

python engine_bench.py ENGINE RUN_DIRECTORY LEASES     start the run's plan, say "started", and wait to be killed
"""

from __future__ import annotations

import json
import os
import signal
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from tfjob.durable import replace_json
from tfjob.engines.base import Allocation, Engine, Handle, TaskStatus
from tfjob.engines.process import ProcessEngine
from tfjob.planning.plan import LimitsPlan, Plan, TaskPlan
from tfjob.rundir import RunDirectory
from tfjob.targets.target import Gpu, Node
from tfjob.values import decode, encode

GPUS = tuple(Gpu(index, f"GPU-{index}") for index in (3, 5))
VALUES = {"environment.path": os.environ["PATH"]}

ENGINES: Mapping[str, Callable[[Path, Mapping[str, str]], Engine]] = {
    "process": lambda leases, environ: ProcessEngine(
        Node("here", "127.0.0.1", GPUS), environ=environ, lease_directory=leases
    )
}


def task(*argv: str, name: str = "main", **keys: Any) -> TaskPlan:
    """A task whose command is `argv`, or the shell line that it is if it is one word."""
    command = argv if len(argv) > 1 else ("bash", "-c", *argv)
    gpus = (("CUDA_VISIBLE_DEVICES", f"${{{{ gpus.{name} }}}}"),) if name != "launcher" else ()
    env = (("PATH", "${{ environment.path }}"), *gpus, *keys.pop("env", ()))
    return TaskPlan(name, "main", keys.pop("index", 0), 0, command, env=env, **keys)


def plan(*tasks: TaskPlan, gpus: int = 0, grace_s: float = 10, **keys: Any) -> Plan:
    made = Plan(
        name="bench",
        experiment="bench",
        description="",
        tags=(),
        properties=(),
        target="local",
        runtime="process",
        node_count=1,
        gpus_per_node=gpus,
        code=None,
        environment=None,
        datasets=(),
        tasks=tasks,
        launcher=None,
        keep=("outputs",),
        named_outputs=(),
        secrets=(),
        limits=LimitsPlan(None, 60.0, 60.0, grace_s),
    )
    return replace(made, **keys)


@dataclass
class Bench:
    """One run of a plan by an engine."""

    engine: Engine
    run: RunDirectory
    plan: Plan
    allocation: Allocation = field(default_factory=lambda: Allocation(()))
    handle: Handle = None

    @classmethod
    def make(cls, engine: Engine, parent: Path, made: Plan, run_id: str) -> Bench:
        run = RunDirectory(parent / run_id)
        for directory in (run.logs, run.user_logs, run.outputs, run.tasks, *(run.work(t.name) for t in made.all_tasks)):
            directory.mkdir(parents=True)
        replace_json(run.plan, encode(made))
        return cls(engine, run, made)

    def acquire(self, deadline_s: float = 60, waiting: Callable[[str], None] = lambda _: None) -> Allocation:
        self.allocation = self.engine.acquire(self.plan, self.run, deadline_s, waiting)
        return self.allocation

    def start(self) -> None:
        self.acquire()
        self.handle = self.engine.start(self.plan, self.run, self.allocation, VALUES)

    def release(self) -> None:
        for lease in self.allocation.leases:
            lease.release()
        self.allocation = Allocation(())

    def poll(self) -> dict[str, TaskStatus]:
        return {status.task: status for status in self.engine.poll(self.handle)}

    def stop(self, grace_s: float | None = None) -> None:
        self.engine.stop(self.handle, self.plan.limits.grace_period_s if grace_s is None else grace_s)

    def log(self, name: str = "main") -> str:
        return self.run.log(name).read_text()


def main(engine: str, directory: str, leases: str) -> None:
    run = RunDirectory(Path(directory))
    made = decode(Plan, json.loads(run.plan.read_bytes()))
    bench = Bench(ENGINES[engine](Path(leases), os.environ), run, made)
    bench.start()
    sys.stdout.write("started\n")
    sys.stdout.flush()
    while True:
        signal.pause()


if __name__ == "__main__":
    main(*sys.argv[1:])
