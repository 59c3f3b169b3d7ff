"""JobSpec + what was found on disk and on the target → ResolvedJob: every name replaced by what it stands for. Pure."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Literal

from tfjob.errors import TargetError, UsageError
from tfjob.targets.request import refuse_what_never_fits, shares

if TYPE_CHECKING:
    from pathlib import Path

    from tfjob.datasets.files import DatasetFiles
    from tfjob.environments.resolved import ResolvedEnvironment
    from tfjob.snapshot import Snapshot
    from tfjob.spec.job import JobSpec
    from tfjob.targets.definition import SlurmDefinition
    from tfjob.targets.target import Target

__all__ = ["ResolvedJob", "resolve"]


@dataclass(frozen=True)
class ResolvedJob:
    """A job whose names have been looked up: code and datasets by digest, environment by what it is made of, target by its nodes.

    `runtime` is decided: ``process`` or ``docker``.
    """

    spec: JobSpec
    code: Snapshot | None
    datasets: tuple[tuple[str, DatasetFiles], ...]
    environment: ResolvedEnvironment | None
    target: Target
    runtime: Literal["process", "docker"] = "process"


def resolve(
    spec: JobSpec,
    *,
    code: Snapshot | None,
    datasets: tuple[tuple[str, DatasetFiles], ...],
    environment: ResolvedEnvironment | None,
    target: Target,
    store: Path | None = None,
) -> ResolvedJob:
    """Put the job and what its names stand for together, refusing what the target can never run.

    `store` is where environments are kept on this machine: nodes of a cluster that do not share it get packages in images.

    Raises TargetError when the job asks for more nodes or GPUs than the target has at all, and UsageError for an
    environment that its runtime does not have and for a dataset that is to be one file and is not.
    """
    compute = spec.compute
    runtime = _runtime(spec, environment, target)
    if target.cluster is not None:
        refuse_what_never_fits(target.cluster, compute.node_count, compute.gpus_per_node)
        if store is None or not shares(target.cluster, store):
            baked = replace(compute.container, packages="baked")
            spec = replace(spec, compute=replace(compute, container=baked))
    elif target.slurm is None:
        _refuse_room(spec, target)
    for name, dataset in datasets:
        if dict(spec.dataset)[name].type == "file" and len(dataset.files) != 1:
            raise UsageError(
                f"dataset {name} is of the type file, and its paths name {_count(len(dataset.files), 'file')}",
                "Name one file, or leave the type out: the expression then stands for the directory that holds them.",
            )
    return ResolvedJob(spec, code, datasets, environment, target, runtime)


def _runtime(spec: JobSpec, environment: ResolvedEnvironment | None, target: Target) -> Literal["process", "docker"]:
    """Whether tasks run in containers: always on a cluster, elsewhere where the job or its environment says so."""
    asked = spec.compute.runtime
    in_container = environment is not None and environment.needs_container
    if target.cluster is not None and asked == "process":
        raise UsageError(
            f"compute.runtime is process, and the nodes of target {target.name} run containers",
            "Leave compute.runtime out; processes are for `compute.target: local` and for Slurm.",
        )
    if asked == "process" and environment is not None and in_container:
        what = "an image" if environment.image else "a Dockerfile"
        raise UsageError(
            f"compute.runtime is process, and the environment {environment.name or ''} is {what}".replace("  ", " "),
            "Set `compute.runtime: docker`, or leave it out.",
        )
    runtime: Literal["process", "docker"] = (
        "docker" if target.cluster is not None or asked == "docker" or in_container else "process"
    )
    if target.slurm is not None:
        _refuse_what_slurm_lacks(target.slurm, runtime)
    return runtime


def _refuse_what_slurm_lacks(target: SlurmDefinition, runtime: str) -> None:
    """Raise UsageError for what can't be done with a cluster, and for containers where the site has none."""
    if target.login is not None:
        _refuse_no_place(target)
    if runtime == "docker" and target.runtime == "none":
        raise UsageError(
            f"the job needs containers, and target {target.name} says that its nodes run none (runtime: none)",
            "Use an environment of packages, without `compute.runtime: docker`; the nodes use it where it lies.",
        )


def _refuse_no_place(target: SlurmDefinition) -> None:
    """Raise UsageError for a cluster that is used by ssh, and has no place for what is sent there."""
    if target.directory is None or not target.directory.startswith("/"):
        found = f"directory: {target.directory}" if target.directory else "it has no directory"
        raise UsageError(
            f"target {target.name} is used from elsewhere (login: {target.login}), and {found}",
            "Set the target's `directory` to an absolute path on the file system that the nodes share.",
        )


def _refuse_room(spec: JobSpec, target: Target) -> None:
    """Raise TargetError for more nodes or GPUs than were found."""
    compute = spec.compute
    if compute.node_count > len(target.nodes):
        raise TargetError(
            f"the job asks for {_count(compute.node_count, 'node')}; target {target.name} has {len(target.nodes)}",
            f"Set `compute.node_count: {len(target.nodes)}`, or start several processes on the one node with `distribution`.",
        )
    for node in target.nodes[: compute.node_count]:
        if compute.gpus_per_node > len(node.gpus):
            found = f"{node.name} has {_count(len(node.gpus), 'GPU')}" if node.gpus else f"{node.name} has no GPU"
            raise TargetError(
                f"the job asks for {_count(compute.gpus_per_node, 'GPU')} per node; {found}",
                node.gpu_note or f"Set `compute.gpus_per_node` to at most {len(node.gpus)}.",
            )


def _count(number: int, noun: str) -> str:
    return f"{number} {noun}" if number == 1 else f"{number} {noun}s"
