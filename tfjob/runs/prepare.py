"""Preparing: the environment of a run is found or built, and turned into the values its tasks are bound with."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Mapping
from pathlib import Path

from tfjob.engines.base import Prepared
from tfjob.engines.inherited import base_path
from tfjob.planning.plan import Plan
from tfjob.rundir import RunDirectory

__all__ = ["prepare_environment"]


def prepare_environment(
    plan: Plan, run: RunDirectory, store: Path, environ: Mapping[str, str], progress: Callable[[str], None]
) -> Prepared:
    """Find or build the plan's environment. The build's log and the lock go to the run directory.

    Raises PreparationError when it can't be made.
    """
    path = base_path(environ)
    if plan.environment is None:
        python = shutil.which("python3", path=path)
        progress(f"this machine's own Python, {python}" if python else "no environment, and no python3 on PATH")
        return Prepared(None, {"environment.path": path})
    from tfjob.environments.definition import Definition  # noqa: PLC0415  # only jobs with an environment pay for it
    from tfjob.environments.store import Store  # noqa: PLC0415

    asked = plan.environment
    definition = Definition(asked.python, asked.requirements, asked.has_pip)
    keeper = Store(store)
    prefix = keeper.find(definition)
    if prefix is None:
        with run.environment_log.open("a", encoding="utf-8", buffering=1) as log:
            prefix = keeper.prepare(definition, log=lambda line: print(line, file=log), progress=progress)
    shutil.copyfile(prefix.lock, run.lock_file)
    progress(
        f"environment {prefix.key[:12]}: Python {prefix.python_version}, {prefix.packages} package{'s' if prefix.packages != 1 else ''}"
    )
    values = {"environment.path": f"{prefix.path}/bin:{path}", "environment.prefix": str(prefix.path)}
    return Prepared(prefix.key, values)
