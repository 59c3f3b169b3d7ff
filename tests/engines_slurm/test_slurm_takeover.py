"""Who may go on with a run that was watched over from another login node."""

from __future__ import annotations

import json
import os
import time
from dataclasses import replace
from pathlib import Path

import pytest
from engines_slurm.slurm_commands import commands

from tfjob.rundir import RunDirectory
from tfjob.runs.record import Record, Supervisor
from tfjob.runs.starting import _is_ours, nobody_follows

RECORD = Record("r", "r", "r", "Running", "2026-01-01T00:00:00.000Z", "/r", "site")
ELSEWHERE = replace(RECORD, supervisor=Supervisor(1, "another-login-node", "boot"))


@pytest.mark.parametrize(("is_slurm", "silent_s", "may"), [(True, 600, True), (True, 10, False), (False, 600, False)])
def test_only_a_job_of_slurm_whose_supervisor_is_silent(
    tmp_path: Path, is_slurm: bool, silent_s: float, may: bool
) -> None:
    run = RunDirectory(tmp_path)
    run.supervisor_lock.touch()
    os.utime(run.supervisor_lock, (0, time.time() - silent_s))
    if is_slurm:
        (tmp_path / "slurm").mkdir()
        (tmp_path / "slurm" / "job.json").write_text("{}")
    assert _is_ours(run, ELSEWHERE) == may


@pytest.mark.parametrize(
    ("scontrol", "where"),
    [
        ("echo 'ClusterName             = a'", ""),
        ("echo 'ClusterName             = b'", "its job 7 is of the cluster a, and Slurm here is b"),
        ("exit 1", "its job 7 is of the cluster a, and its Slurm can't be asked from here"),
    ],
)
def test_only_from_a_login_node_of_its_own_cluster(tmp_path: Path, scontrol: str, where: str) -> None:
    run = RunDirectory(tmp_path / "run")
    (run.path / "slurm").mkdir(parents=True)
    run.supervisor_lock.touch()
    os.utime(run.supervisor_lock, (0, time.time() - 600))
    commands(tmp_path / "bin", scontrol=scontrol)
    (run.path / "slurm" / "job.json").write_text(json.dumps({"job": "7", "cluster": "a"}))
    run.inherited.write_text(json.dumps({"PATH": f"{tmp_path}/bin:{os.environ['PATH']}"}))
    assert _is_ours(run, ELSEWHERE) == (not where)
    told = f"{where}: follow it from a login node of a, such as another-login-node" if where else ""
    assert nobody_follows(run, ELSEWHERE) == told
