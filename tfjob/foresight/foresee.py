"""What is known to fail, told before a job is submitted: pairings of packages, distribution and script; CUDA and driver.

The rules are data (`pairings.yml`, `cuda.yml`). Here is only what they are held against: the job, the
versions of a lock where one is known, the Python files of the code directory, the driver of the nodes.
"""

from __future__ import annotations

import re
import shutil
from pathlib import Path
from typing import TYPE_CHECKING

from tfjob.engines.inherited import base_path
from tfjob.environments.lock import Lock
from tfjob.errors import TfjobError
from tfjob.foresight import cuda, pairings

if TYPE_CHECKING:
    from collections.abc import Mapping

    from tfjob.environments.resolved import ResolvedEnvironment
    from tfjob.foresight.pairings import Finding
    from tfjob.resolve import ResolvedJob

__all__ = ["foresee"]

_READ_FILES, _READ_BYTES = 200, 256 * 1024
_TENSORFLOW = re.compile(r"tensorflow(?:-cpu)?(?:\[[^]]*\])?\s*==\s*(\d+\.\d+)", re.IGNORECASE)


def foresee(job: ResolvedJob, *, store: Path, environ: Mapping[str, str]) -> tuple[Finding, ...]:
    """Return what is known to fail in a job as it was looked up, the certain first; nothing for a job without packages."""
    asked = job.environment
    if asked is None or asked.definition is None:
        return ()
    spec, packages = job.spec, _locked(job, asked, store)
    workers = spec.distribution.worker_count or spec.compute.node_count
    facts = pairings.Facts(
        packages=packages,
        requirements=(*asked.definition.requirements, *asked.definition.packages),
        python=asked.definition.python,
        distribution=spec.distribution.type,
        workers=workers + (spec.distribution.parameter_server_count > 0),
        parameter_servers=spec.distribution.parameter_server_count,
        variables={**dict(asked.variables), **dict(spec.environment_variables)},
        code=_code(job),
        has_mpi=_has_mpi(job, environ),
    )
    return (*pairings.check(facts), *_cuda(job, asked, packages), *_base(job))


def _locked(job: ResolvedJob, asked: ResolvedEnvironment, store: Path) -> Mapping[str, str] | None:
    """The versions the job will have, if that is known already: by its own lock, or by what was built here before."""
    if asked.lock is not None:
        return Lock.parse(asked.lock).packages
    if job.runtime != "process" or asked.definition is None or _is_elsewhere(job):
        return None
    from tfjob.environments.place import Machine  # noqa: PLC0415
    from tfjob.environments.store import Store  # noqa: PLC0415

    try:
        prefix = Store(store).find(asked.definition, Machine())
    except TfjobError:
        return None
    lock = Lock.read(prefix.lock) if prefix is not None else None
    return lock.packages if lock is not None else None


def _has_mpi(job: ResolvedJob, environ: Mapping[str, str]) -> bool | None:
    """Whether mpirun is there beside the environment; None where that can't be seen from here."""
    if job.runtime != "process" or _is_elsewhere(job):
        return None
    return shutil.which("mpirun", path=base_path(environ)) is not None


def _is_elsewhere(job: ResolvedJob) -> bool:
    """Whether the job runs on a cluster that this machine is no part of."""
    return job.target.slurm is not None and job.target.slurm.login is not None


def _code(job: ResolvedJob) -> dict[str, str]:
    """The Python files of the code directory, the first of them if there are very many."""
    if job.code is None:
        return {}
    names = [
        name for name, kind, size, _ in job.code.files if name.endswith(".py") and kind != "l" and size <= _READ_BYTES
    ]
    texts = {}
    for name in names[:_READ_FILES]:
        try:
            texts[name] = (Path(job.code.directory) / name).read_text(encoding="utf-8")
        except (OSError, UnicodeDecodeError):
            continue
    return texts


def _base(job: ResolvedJob) -> tuple[Finding, ...]:
    """A base image that somebody chose and that processes do not have."""
    base = job.spec.environment.base
    if job.runtime == "docker" or base == "cpu":
        return ()
    message = f"environment.base is {base}, and the job runs as processes, which have no base image."
    return (pairings.Finding("base", "warning", message, "Set compute.runtime: docker, or leave base out.", ""),)


def _cuda(job: ResolvedJob, asked: ResolvedEnvironment, packages: Mapping[str, str] | None) -> tuple[Finding, ...]:
    """What does not fit of TensorFlow, CUDA, cuDNN and driver, for a job that takes GPUs."""
    version = _tensorflow(asked, packages)
    if not job.spec.compute.gpus_per_node or version is None:
        return ()
    brought = cuda.libraries_of_packages(packages or {})
    asks_for_cuda = any("[and-cuda]" in one for one in (asked.definition.requirements if asked.definition else ()))
    where, libraries = "the environment", brought
    if brought.cuda is None and job.runtime == "docker" and not asks_for_cuda:
        where, libraries = f"the base image {asked.base}", cuda.libraries_of_image(asked.base or "")
    driver = next((node.driver for node in job.target.nodes if node.driver), None)
    found = cuda.check(version, libraries, driver=driver, where=where)
    return tuple(pairings.Finding("cuda", "warning", one, "", "") for one in found)


def _tensorflow(asked: ResolvedEnvironment, packages: Mapping[str, str] | None) -> str | None:
    if packages is not None:
        return packages.get("tensorflow")
    lines = asked.definition.requirements if asked.definition is not None else ()
    match = next((match for line in lines if (match := _TENSORFLOW.match(line))), None)
    return match[1] if match else None
