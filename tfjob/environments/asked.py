"""The environment somebody names at the command line: a registered name, or a file that holds or names one."""

from __future__ import annotations

import os
import re
from pathlib import Path
from typing import TYPE_CHECKING

from tfjob.environments.resolved import ResolvedEnvironment, resolve_environment
from tfjob.errors import NotFound, UsageError
from tfjob.spec.files import holds_line
from tfjob.spec.job import EnvironmentSpec

if TYPE_CHECKING:
    from collections.abc import Callable

__all__ = ["ask"]

_JOB = re.compile(rb"(?m)^(?:script|command)[ \t]*:|\A\s*\{(?s:.*)\"(?:script|command)\"\s*:")
_FILE_ENDINGS = (".yml", ".yaml")


def ask(what: str, *, registry: Path | None, image_of: Callable[[str], str]) -> ResolvedEnvironment:
    """Return the environment that `what` names: ``name``, ``name@version``, a conda or environment file, or a job file.

    `registry` is where the workspace keeps registered environments. Raises InvalidFile with every problem of a file,
    NotFound for a name nobody registered, and UsageError for a job without an environment.
    """
    path = Path(what)
    if not (path.is_file() or what.endswith(_FILE_ENDINGS) or os.sep in what):
        from tfjob.environments.registered import find  # noqa: PLC0415  # only for names

        named = find(what, registry)
        return _required(
            resolve_environment(
                named.spec,
                base_dir=Path.cwd(),
                image_of=image_of,
                name=named.full_name,
                variables=named.variables,
                lock=named.lock,
            )
        )
    if not path.is_file():
        raise NotFound(
            f"there is no file {what}", "Name a conda file, an environment file, a job file, or an environment."
        )
    if not holds_line(path, _JOB):
        from tfjob.spec.environment_file import load  # noqa: PLC0415  # only for files

        file = load(path)
        return _required(
            resolve_environment(file.spec, base_dir=path.absolute().parent, image_of=image_of, variables=file.variables)
        )
    from tfjob.spec.load import load as load_job  # noqa: PLC0415  # only for job files

    job = load_job(path)
    if job.environment.name is not None:
        return ask(job.environment.name, registry=registry, image_of=image_of)
    if job.environment == EnvironmentSpec():
        raise UsageError(
            f"the job {what} has no `environment`", "It runs with this machine's own Python: there is nothing to build."
        )
    return _required(resolve_environment(job.environment, base_dir=job.base_dir, image_of=image_of))


def _required(found: ResolvedEnvironment | None) -> ResolvedEnvironment:
    if found is None:
        raise UsageError("the environment is empty", "Give it packages, an image or a Dockerfile.")
    return found
