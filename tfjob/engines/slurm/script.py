"""The job script of a run: one sbatch script that a person can read, and submit by hand. Pure; `tfjob plan` prints it.

What each option means is in sbatch(1). The script asks for room and starts `program/batch.py`, by way of `start.py`;
which tasks run where stands in `slurm/gang.json` beside it.
"""

from __future__ import annotations

import math
import shlex
from collections import Counter
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Final

from tfjob.engines.slurm.gang import FLAGS
from tfjob.planning.plan import Plan
from tfjob.rundir import RunDirectory

__all__ = ["preview_script", "render_script", "script_options"]

_WARNING_S: Final = 60
"""How long before a time limit Slurm warns, beside the grace period: it may do so up to a minute earlier."""

_CPU_OPTIONS: Final = ("--cpus-per-task", "-c", "--cpus-per-gpu", "--exclusive")


def render_script(plan: Plan, run: RunDirectory, python: str) -> str:
    """The script of a run in the directory `run`, whose programs are run by `python` on the nodes."""
    setup = plan.slurm.setup if plan.slurm else ()
    program = run.path / "slurm" / "program" / "start.py"
    what = ("container",) if plan.runtime == "docker" else ()
    command = shlex.join((python, *FLAGS, str(program), "batch", str(run.path), *what))
    lines = (
        "#!/bin/bash -l" if setup else "#!/bin/bash",
        f"# Run {run.id} of tfjob. Its tasks are in slurm/gang.json; slurm/state.json tells how they are.",
        *_of_container(plan),
        *(f"#SBATCH {_quoted(option)}" for option in script_options(plan, run)),
        *([""] if setup else []),
        *setup,
        "",
        *_of_python(python),
        f"exec {command}",
    )
    return "".join(f"{line}\n" for line in lines)


def _of_python(python: str) -> Iterator[str]:
    """Words for a node that lacks an environment's Python: bash would only say that it can't be executed."""
    if "/" in python:
        quoted = shlex.quote(python)
        yield f'[ -x {quoted} ] || {{ echo "$(hostname) lacks" {quoted} "or the Python that it is a link to" >&2; exit 127; }}'


def _of_container(plan: Plan) -> Iterator[str]:
    if plan.runtime == "docker":
        runtime = plan.slurm.runtime if plan.slurm else "auto"
        by = "the first of enroot, Apptainer, Podman and Docker that it has" if runtime == "auto" else runtime
        yield f"# On each node they are in one container, run by {by}."


def preview_script(plan: Plan, runs: Path) -> str:
    """The script as a run of the plan among `runs` will have it; RUN and PREFIX stand for what is not known before."""
    has_prefix = plan.environment is not None and plan.environment.definition is not None and plan.runtime != "docker"
    return render_script(plan, RunDirectory(runs / "RUN"), "PREFIX/bin/python3" if has_prefix else "python3")


def script_options(plan: Plan, run: RunDirectory) -> tuple[str, ...]:
    """The options of sbatch for a run, the target's own last."""
    return tuple(_options(plan, run))


def _options(plan: Plan, run: RunDirectory) -> Iterator[str]:
    target, limits = plan.slurm, plan.limits
    own = target.sbatch_options if target else ()
    yield f"--job-name={run.id}"
    yield f"--chdir={run.path}"
    yield f"--output={_pattern(str(run.path / 'slurm' / 'job.log'))}"
    yield "--open-mode=append"
    yield f"--nodes={plan.node_count}"
    yield "--ntasks-per-node=1"
    most = max(Counter(task.node for task in plan.tasks).values())
    if most > 1 and not _has(own, _CPU_OPTIONS):
        yield f"--cpus-per-task={most}"
    if plan.gpus_per_node:
        yield f"--gres=gpu:{plan.gpus_per_node}"
    if target:
        named = {
            "partition": target.partition,
            "account": target.account,
            "qos": target.qos,
            "constraint": target.constraint,
        }
        yield from (f"--{name}={value}" for name, value in named.items() if value)
    if limits.timeout_s is not None and not _has(own, ("--time", "-t")):
        # tfjob's own limit ends the run to the second; Slurm's, in minutes, is behind it.
        yield f"--time={math.ceil((limits.timeout_s + limits.grace_period_s + 2 * _WARNING_S) / 60)}"
    yield f"--signal=B:USR1@{math.ceil(limits.grace_period_s) + _WARNING_S}"
    yield "--requeue" if plan.retries and "node_lost" in plan.retries.on else "--no-requeue"
    yield from own


def _has(options: Iterable[str], names: tuple[str, ...]) -> bool:
    return any(option.split("=")[0].split(" ")[0] in names or option[:2] in names for option in options)


def _pattern(path: str) -> str:
    """A path as sbatch's output options want it: % begins a pattern there (sbatch(1), "filename pattern")."""
    return path.replace("%", "%%")


def _quoted(option: str) -> str:
    """An option as an #SBATCH line holds it: sbatch reads quotes and backslashes there much as a shell does."""
    if all(character.isalnum() or character in "-_=./:,@%+[]&|*" for character in option):
        return option
    escaped = option.replace("\\", "\\\\").replace('"', '\\"')
    return f'"{escaped}"'
