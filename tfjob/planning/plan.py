"""The Plan: every task of a job, down to its arguments and environment, before anything has started.

`tfjob plan` prints it, `tfjob submit` hands it to an engine, `tfjob rerun` hands it over again; there is no second path.

Strings in a Plan are templates. What only a started run knows stands in them as an expression, and `bind` replaces it:

=========================  =====================================================================
``run.id`` ``run.dir``      the run and its directory
``outputs.dir`` ``logs.dir`` what the script's ./outputs and ./logs are
``outputs.NAME``            a named output
``dataset.NAME``            where a dataset is for this task
``environment.path``        PATH, with the environment's programs first
``environment.prefix``      the directory the environment is in
``node.K.address``          where peers reach node K
``node.K.name``             its name
``node.K.interface``        the name of its network interface with that address
``mpi.subnets``             the networks of the nodes' addresses (CIDR), each once, with commas
``restart.count``           how often the run was started again: 0 at first
``port.TASK``               the port that task listens on, such as ``port.worker-0``
``gpus.TASK``               the GPUs it may see, as CUDA_VISIBLE_DEVICES wants them
``entrypoint``...           the program tfjob puts beside the user's command
=========================  =====================================================================
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import PurePosixPath
from typing import Literal

from tfjob.environments.definition import Definition
from tfjob.spec.expressions import substitute
from tfjob.targets.definition import ClusterDefinition, SlurmDefinition
from tfjob.values import Pairs

__all__ = [
    "ALLOCATION_TIMEOUT_S",
    "CodePlan",
    "ContainerPlan",
    "DatasetPlan",
    "DockerfilePlan",
    "EnvironmentPlan",
    "LimitsPlan",
    "Plan",
    "RetriesPlan",
    "TaskPlan",
    "bind",
]

PLAN_VERSION = 2
ALLOCATION_TIMEOUT_S = 600.0
"""How long a job waits for room that does not say, but on Slurm."""


@dataclass(frozen=True)
class TaskPlan:
    """One process of the job on one node.

    `node` counts nodes from 0. `port` is the name of the port the task listens on for its peers, if it does.
    `ends_run`: the run is over when all tasks that have it set have ended; the others (parameter servers, and the
    workers beside a chief) are ended then. `launched`: the launcher starts this task, not the engine.
    """

    name: str
    type: str
    index: int
    node: int
    argv: tuple[str, ...]
    env: Pairs = ()
    gpus: int = 0
    port: str | None = None
    ends_run: bool = True
    launched: bool = False


@dataclass(frozen=True)
class CodePlan:
    """The snapshot of the source directory that every task gets a working copy of. `digest` is a SHA-256 in hex."""

    digest: str
    directory: str
    file_count: int
    size_bytes: int
    left_out: tuple[str, ...] = ()


@dataclass(frozen=True)
class DatasetPlan:
    """One dataset: the files it names now. Each file is (source, path in the dataset, bytes).

    A source is an absolute path of this machine, or an address; its bytes are -1 where only fetching tells. `marks` says
    for each file what its content must be (see `tfjob.datasets.files.Remote`); there are none without any address.
    `registered` is the ``name@version`` that the job names.
    """

    name: str
    type: str
    mode: str
    digest: str
    file_count: int
    size_bytes: int
    files: tuple[tuple[str, str, int], ...] = ()
    marks: tuple[str, ...] = ()
    registered: str | None = None


@dataclass(frozen=True)
class DockerfilePlan:
    """A user's Dockerfile: what is built, from which files, with which arguments. `digest` is of all of it (SHA-256, hex)."""

    path: str
    context: str
    arguments: Pairs
    digest: str


@dataclass(frozen=True)
class EnvironmentPlan:
    """The environment as asked: packages on a base, a Dockerfile, or a finished image. `digest` names what is asked for.

    `name` is the registered one it came from, with its version. `base` is the image that the packages are put on in
    containers. `has_lock`: a lock came with it, and stands in the run directory.
    """

    digest: str
    name: str | None = None
    definition: Definition | None = None
    base: str | None = None
    dockerfile: DockerfilePlan | None = None
    image: str | None = None
    has_lock: bool = False


@dataclass(frozen=True)
class ContainerPlan:
    """How the job's containers are started. `packages`: mounted from this machine's store, or baked into the image."""

    shm_size: str = "2g"
    docker_args: tuple[str, ...] = ()
    packages: Literal["mounted", "baked"] = "mounted"


@dataclass(frozen=True)
class LimitsPlan:
    """Limits in seconds; None is none. Only Slurm's queue is waited in without a limit."""

    timeout_s: float | None
    rendezvous_timeout_s: float
    allocation_timeout_s: float | None
    grace_period_s: float


@dataclass(frozen=True)
class RetriesPlan:
    """How often a run that failed is started again, at most, and for which reasons."""

    most: int
    on: tuple[Literal["node_lost", "failure"], ...]


@dataclass(frozen=True)
class Plan:
    """Everything a run will be. `tasks` are the user's processes; `launcher` the one that starts them, under MPI.

    `cluster` or `slurm` is the definition of the target as it was when the job was planned, narrowed to what the job asks for
    with `node_type`, `priority` and `target_properties`; for `local` there is none of all these.
    """

    name: str
    experiment: str
    description: str
    tags: Pairs
    properties: Pairs
    target: str
    runtime: str
    node_count: int
    gpus_per_node: int
    code: CodePlan | None
    environment: EnvironmentPlan | None
    datasets: tuple[DatasetPlan, ...]
    tasks: tuple[TaskPlan, ...]
    launcher: TaskPlan | None
    keep: tuple[str, ...]
    named_outputs: tuple[str, ...]
    secrets: tuple[str, ...]
    limits: LimitsPlan
    container: ContainerPlan | None = None
    retries: RetriesPlan | None = None
    cluster: ClusterDefinition | None = None
    slurm: SlurmDefinition | None = None
    node_type: str | None = None
    priority: str = "normal"
    target_properties: Pairs = ()
    file_outputs: tuple[str, ...] = ()
    version: int = PLAN_VERSION

    @property
    def output_directories(self) -> tuple[str, ...]:
        """The named outputs that are made before tasks start; those that are one file are the task's to write."""
        return tuple(name for name in self.named_outputs if name not in self.file_outputs)

    @property
    def started_tasks(self) -> tuple[TaskPlan, ...]:
        """The tasks the engine itself starts: the launcher alone where there is one."""
        return (self.launcher,) if self.launcher else self.tasks

    @property
    def all_tasks(self) -> tuple[TaskPlan, ...]:
        """Every task that has a log and an end of its own, the launcher last."""
        return (*self.tasks, self.launcher) if self.launcher else self.tasks

    @property
    def kept(self) -> tuple[str, ...]:
        """The directories of a working copy that are links to places in the run's outputs: `outputs`, those to keep not in another."""
        named = dict.fromkeys(map(PurePosixPath, ("outputs", *self.keep)))
        return tuple(str(path) for path in named if not any(parent in named for parent in path.parents))


def bind(task: TaskPlan, values: Mapping[str, str]) -> TaskPlan:
    """The task with every expression replaced by its value. Raises UnknownName if one has none: a bug of the engine."""
    return replace(
        task,
        argv=tuple(substitute(argument, values, final=True) for argument in task.argv),
        env=tuple((name, substitute(value, values, final=True)) for name, value in task.env),
    )
