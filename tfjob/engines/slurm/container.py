"""What the programs of a job must know of its containers, as the JSON they read. Which runtime it is, each node finds out."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any, Final

from tfjob.dockerapi.reach import engine_of_tools
from tfjob.engines.base import Mount, Prepared, Waiting
from tfjob.engines.container import Shape
from tfjob.engines.dataset_mounts import dataset_mounts
from tfjob.engines.docker_errors import explained
from tfjob.engines.image_files import accounts
from tfjob.engines.inherited import travelling_environment
from tfjob.engines.slurm.archive import ARCHIVE, keep_image
from tfjob.engines.slurm.gang import FLAGS
from tfjob.engines.submitter import Submitter, submitter
from tfjob.planning.plan import ContainerPlan, Plan
from tfjob.rundir import RunDirectory
from tfjob.spec.docker_arguments import parse

__all__ = ["container_elsewhere", "container_of", "only_docker", "ready_container"]

_PYTHON: Final = "python3"


def ready_container(
    plan: Plan, run: RunDirectory, prepared: Prepared, *, images: Path, environ: Mapping[str, str], told: Waiting
) -> dict[str, Any]:
    """What nodes must know of a job's containers, with its image where they find it.

    Raises PreparationError when that can't be written, TargetError when the Docker Engine that has it does not answer.
    """
    shape = Shape(plan, run, prepared, submitter(), environ)
    archive = None
    if prepared.image is not None:
        with engine_of_tools(environ) as api, explained(api, plan, prepared):
            archive = keep_image(prepared.image, images, api, told)
            shape = accounts(shape, api, images.parent / "accounts")
    return container_of(
        plan,
        prepared,
        archive=archive,
        images=images,
        who=shape.submitter,
        accounts=shape.mounts,
        mounts=(*prepared.mounts, *dataset_mounts(plan.datasets, run.datasets)),
        environ=environ,
    )


def container_elsewhere(
    plan: Plan,
    run: RunDirectory,
    there: RunDirectory,
    prepared: Prepared,
    *,
    images: Path,
    who: Submitter,
    environ: Mapping[str, str],
) -> dict[str, Any]:
    """The same for a cluster that is used from elsewhere: `there` is the run's directory on it, `images` its directory of them.

    Mounts of `prepared` are the cluster's own. Files of accounts are made in the run's directory here, and go there with it.
    """
    shape, archive = Shape(plan, run, prepared, who, environ), None
    if prepared.image is not None:
        with engine_of_tools(environ) as api, explained(api, plan, prepared):
            shape = accounts(shape, api, None)
        archive = images / prepared.image.removeprefix("sha256:") / ARCHIVE
    made = [replace(one, source=str(there.path / Path(one.source).relative_to(run.path))) for one in shape.mounts]
    return container_of(
        plan,
        prepared,
        archive=archive,
        images=images,
        who=who,
        accounts=made,
        mounts=prepared.mounts,
        environ=environ,
    )


def container_of(
    plan: Plan,
    prepared: Prepared,
    *,
    archive: Path | None,
    images: Path,
    who: Submitter,
    accounts: Iterable[Mount],
    mounts: Iterable[Mount],
    environ: Mapping[str, str],
) -> dict[str, Any]:
    """The part of gang.json about containers. Pure.

    `archive` is the image on the shared file system, None where the nodes fetch it by its name; `images` the directory there for
    what nodes make of images they fetched. `accounts` is mounted where a container has the user's number.
    """
    asked = plan.container or ContainerPlan()
    arguments = parse(asked.docker_args)
    given = [
        (mount["Source"], mount["Target"], mount.get("ReadOnly", False))
        for mount in arguments.mounts
        if mount["Type"] == "bind"
    ]
    return {
        "runtime": plan.slurm.runtime if plan.slurm else "auto",
        "image": prepared.image,
        "reference": plan.environment.image if plan.environment else None,
        "archive": str(archive) if archive else None,
        "directory": str(archive.parent if archive else images),
        "python": [prepared.python or _PYTHON, *FLAGS],
        "path": prepared.values.get("environment.path"),
        "mounts": [(one.source, one.target, one.read_only) for one in mounts],
        "given_mounts": given,
        "variables": sorted(travelling_environment(environ, plan.secrets)),
        "shm_size": asked.shm_size,
        "arguments": list(asked.docker_args),
        "environment": list(arguments.environment),
        "only_docker": list(only_docker(asked)),
        "user": {
            "uid": who.uid,
            "gid": who.gid,
            "groups": [gid for gid, _ in who.groups],
            "name": who.name,
            "home": who.home,
        },
        "accounts": [(one.source, one.target) for one in accounts],
    }


def only_docker(container: ContainerPlan) -> tuple[str, ...]:
    """The arguments of `docker run` that runtimes have nothing for which are not like Docker: all but variables and bind mounts."""
    found = parse(container.docker_args)
    named = [*found.host, *found.labels, *found.ulimits]
    others = [mount["Target"] for mount in found.mounts if mount["Type"] != "bind"]
    return tuple(named + others)
