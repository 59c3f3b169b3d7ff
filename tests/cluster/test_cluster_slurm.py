"""Slurm on the test cluster is what other tests take it for."""

from __future__ import annotations

import subprocess
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from support import eventually

if TYPE_CHECKING:
    from cluster.slurm import Slurm
    from cluster_parts import Cluster

pytestmark = [pytest.mark.root, pytest.mark.xdist_group("cluster")]


def job_state(slurm: Slurm, job: str) -> str:
    shown = slurm.run("squeue", "-h", "-t", "all", "-j", job, "-o", "%T", check=False)
    return shown.strip()


def test_a_job_gets_gpus_on_several_nodes_and_sees_this_machines_files(slurm: Slurm, tmp_path: Path) -> None:
    script = 'srun sh -c "echo \\$(hostname) \\$CUDA_VISIBLE_DEVICES \\$(cat marker) > \\$SLURM_PROCID.out"'
    (tmp_path / "marker").write_text("seen", encoding="utf-8")
    command = ["sbatch", "--wait", "--nodes=2", "--gpus-per-node=2", f"--wrap={script}"]
    done = subprocess.run(command, cwd=tmp_path, check=False, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    said = sorted((tmp_path / f"{rank}.out").read_text(encoding="utf-8") for rank in (0, 1))
    assert said == ["node1 0,1 seen\n", "node2 0,1 seen\n"]
    names = [node.name for node in slurm.nodes]
    eventually(lambda: [slurm.states()[name] for name in names] == ["idle"] * 3, "the job leaves its nodes")


def test_a_user_submits_on_the_login_node(slurm: Slurm, slurm_nodes: Cluster) -> None:
    out = slurm_nodes.shared / "job.out"
    command = ["ssh", "-F", str(slurm_nodes.ssh_config), f"{slurm_nodes.user}@head"]
    command += [
        f"cd {slurm_nodes.shared} && sbatch --parsable --wait --output=job.out --wrap='id -un; squeue -h -o %u'"
    ]
    done = subprocess.run(command, check=False, capture_output=True, text=True, timeout=120, stdin=subprocess.DEVNULL)
    assert done.returncode == 0, done.stderr
    assert eventually(lambda: out.read_text(encoding="utf-8"), "the output is there") == "tfjob-user\ntfjob-user\n"
    out.unlink()
    eventually(lambda: job_state(slurm, done.stdout.strip()) == "COMPLETED", "it is completed")


def test_an_urgent_job_preempts_another(slurm: Slurm, tmp_path: Path) -> None:
    trap = "trap 'echo told; exit 0' TERM; echo started; sleep 300 & wait"
    low = slurm.run("sbatch", "--parsable", "-N3", "--exclusive", f"-o{tmp_path}/low", f"--wrap={trap}").strip()
    eventually(lambda: job_state(slurm, low) == "RUNNING", "the first job runs")
    high = slurm.run("sbatch", "--parsable", "-N3", "--exclusive", "-purgent", "-o/dev/null", "--wrap=true").strip()
    eventually(lambda: job_state(slurm, high) in {"RUNNING", "COMPLETED"}, "the urgent job runs")
    assert job_state(slurm, low) in {"PENDING", "PREEMPTED", "COMPLETING"}


def test_a_cloud_node_is_wanted_and_comes_or_never_does(slurm: Slurm) -> None:
    comes = slurm.run("sbatch", "--parsable", "-pcloud", "-o/dev/null", "--wrap=true").strip()
    never = slurm.run("sbatch", "--parsable", "-pnever", "-o/dev/null", "--wrap=true").strip()
    eventually(lambda: slurm.states().get("cloud2", "").endswith("#"), "the node is waited for")
    assert job_state(slurm, never) == "CONFIGURING"
    eventually(lambda: str.isalpha(slurm.states().get("cloud1", "")), "the node is there")
    assert job_state(slurm, comes) in {"CONFIGURING", "RUNNING", "COMPLETED"}  # Slurm starts it within half a minute
