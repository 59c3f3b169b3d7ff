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
from tfjob.engines.base import Allocation, Engine, Handle, Prepared, TaskStatus
from tfjob.engines.docker import DockerEngine
from tfjob.engines.process import ProcessEngine
from tfjob.engines.slurm.engine import SlurmEngine
from tfjob.entrypoint import stat_fields
from tfjob.planning.plan import ContainerPlan, LimitsPlan, Plan, TaskPlan
from tfjob.rundir import RunDirectory
from tfjob.targets.definition import SlurmDefinition
from tfjob.targets.target import Gpu, Node
from tfjob.values import decode, encode

GPUS = tuple(Gpu(index, f"GPU-{index}") for index in (3, 5))
NODE = Node("here", "127.0.0.1", GPUS)
IMAGE = "tfjob-test/base:bookworm"
SLURM = SlurmDefinition("lab", partition="gpu", sbatch_options=("--nodelist=node1",))
IMAGE_PATH = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"

ENGINES: Mapping[str, Callable[[Path, Mapping[str, str]], Engine]] = {
    "process": lambda leases, environ: ProcessEngine(NODE, environ=environ, lease_directory=leases),
    "docker": lambda leases, environ: DockerEngine(NODE, environ=environ, lease_directory=leases),
    "slurm": lambda leases, environ: SlurmEngine(environ=environ, cache=leases),
}
PREPARED: Mapping[str, Prepared] = {
    "process": Prepared(None, {"environment.path": os.environ["PATH"]}),
    "slurm": Prepared(None, {"environment.path": os.environ["PATH"]}),
    "docker": Prepared(None, {"environment.path": IMAGE_PATH}, image=IMAGE, python="/usr/bin/python3"),
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
        runtime="process",  # the bench names the engine
        node_count=1,
        gpus_per_node=gpus,
        code=None,
        environment=None,
        container=ContainerPlan(),
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
    prepared: Prepared
    allocation: Allocation = field(default_factory=lambda: Allocation(()))
    handle: Handle = None
    stat_of: Callable[[int], list[bytes]] = stat_fields
    """What /proc says of a process that a task knows by its pid."""

    @classmethod
    def make(cls, engine: Engine, run: RunDirectory, made: Plan, prepared: Prepared) -> Bench:
        for directory in (run.logs, run.user_logs, run.outputs, run.tasks, *(run.work(t.name) for t in made.all_tasks)):
            directory.mkdir(parents=True)
        replace_json(run.plan, encode(made))
        return cls(engine, run, made, prepared)

    def acquire(self, deadline_s: float = 60, waiting: Callable[[str], None] = lambda _: None) -> Allocation:
        if isinstance(self.engine, SlurmEngine):
            self.engine.keep(self.plan, self.run, self.prepared)  # its room is its job, which starts the tasks itself
        self.allocation = self.engine.acquire(self.plan, self.run, deadline_s, waiting)
        return self.allocation

    def start(self) -> None:
        self.acquire()
        self.handle = self.engine.start(self.plan, self.run, self.allocation, self.prepared)

    def release(self) -> None:
        for lease in self.allocation.leases:
            lease.release()
        self.allocation = Allocation(())

    def poll(self) -> dict[str, TaskStatus]:
        return {status.task: status for status in self.engine.poll(self.handle)}

    def stop(self, grace_s: float | None = None) -> None:
        self.engine.stop(self.handle, self.plan.limits.grace_period_s if grace_s is None else grace_s)

    def lives(self, pid: int) -> bool:
        """Whether a process lives that a task knows by this pid."""
        if not isinstance(self.engine, DockerEngine):
            return _lives(self.stat_of(pid))
        return any(
            container.first.lives and _lives(_stat(container.first.pid, pid))
            for container in self.handle.containers.values()
        )

    def gpus(self, *indices: int) -> str:
        """These GPUs as a task sees them that was given all of them: in a container they are numbered from 0."""
        seen = indices if isinstance(self.engine, ProcessEngine) else range(len(indices))
        return ",".join(map(str, seen))

    def log(self, name: str = "main") -> str:
        return self.run.log(name).read_text()


def _stat(first: int, pid: int) -> list[bytes]:
    try:
        return Path(f"/proc/{first}/root/proc/{pid}/stat").read_bytes().rpartition(b")")[2].split()
    except OSError:
        return []


def _lives(fields: list[bytes]) -> bool:
    return bool(fields) and fields[0] != b"Z"


def main(engine: str, directory: str, leases: str) -> None:
    run = RunDirectory(Path(directory))
    made = decode(Plan, json.loads(run.plan.read_bytes()))
    bench = Bench(ENGINES[engine](Path(leases), os.environ), run, made, PREPARED[engine])
    bench.start()
    sys.stdout.write("started\n")
    sys.stdout.flush()
    while True:
        signal.pause()


if __name__ == "__main__":
    main(*sys.argv[1:])
