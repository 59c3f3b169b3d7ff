"""tfjob with the test cluster as its target `docker-lab`, and an engine of its own where images come from."""

from __future__ import annotations

import shutil
from collections.abc import Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from cluster_parts import TARGET, Cluster, docker_cluster, node_base, nodes
from docker_parts import Daemon, base_image, docker_daemon, docker_engine, needed, test_base
from support import Tfjob, environ_of_users

if TYPE_CHECKING:
    from cluster.node import Node

__all__ = ["docker_cluster", "docker_daemon", "docker_engine", "node_base", "nodes", "test_base"]


@pytest.fixture(scope="session")
def lab_project(docker_cluster: Cluster, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a workspace that knows `docker-lab`, for copies of it: two commands less for each test."""
    command = Tfjob(tmp_path_factory.mktemp("lab"), environ_of_users())
    command("init")
    command.write("lab.yml", docker_cluster.target())
    command("compute", "create", TARGET, "-f", "lab.yml")
    return command.directory


@pytest.fixture
def lab(
    tfjob: Tfjob, lab_project: Path, docker_cluster: Cluster, docker_daemon: Daemon, node_base: str
) -> Iterator[Tfjob]:
    """The command in a workspace that knows `docker-lab`; `base: cpu` is the image that all engines have."""
    needed(lambda: base_image(docker_daemon))
    environ = {**tfjob.environ, **docker_cluster.ssh_environ, "DOCKER_HOST": docker_daemon.host}
    command = replace(tfjob, environ=environ)
    shutil.copytree(lab_project, command.directory, dirs_exist_ok=True)
    command.write(".tfjob/config.yml", f"images:\n  cpu: {node_base}\n")
    yield command
    for node in docker_cluster.nodes:
        if node.runs:
            node.plug_cable()


def nodes_of(record: Mapping[str, Any], nodes: tuple[Node, ...]) -> tuple[Node, ...]:
    """The nodes that a run has, in its order: which of all it gets depends on which answer soon enough."""
    names = dict.fromkeys(task["node"] for task in record["tasks"])
    return tuple(node for name in names for node in nodes if node.name == name)


def node_of(record: Mapping[str, Any], task: str, nodes: tuple[Node, ...]) -> Node:
    """The node that a run's task is on."""
    (name,) = [one["node"] for one in record["tasks"] if one["name"] == task]
    return next(node for node in nodes if node.name == name)


def others(nodes: tuple[Node, ...], *those: Node) -> tuple[Node, ...]:
    """All nodes but those."""
    return tuple(node for node in nodes if node not in those)


def names(nodes: tuple[Node, ...]) -> list[str]:
    """What they are called."""
    return [node.name for node in nodes]


def containers(node: Node) -> list[str]:
    """The names of the containers of tfjob's that a node has, ended ones too."""
    with node.client() as client:
        return [
            str(one.name)
            for one in client.containers.list(all=True, filters={"label": "tfjob.run"}, ignore_removed=True)
        ]


def volumes(node: Node) -> list[str]:
    """The names of the volumes that runs have on a node, but for the trees that are kept for others."""
    with node.client() as client:
        return [str(one.name) for one in client.volumes.list(filters={"label": "tfjob.run"})]


def left(nodes: tuple[Node, ...]) -> list[str]:
    """What of any run is left on nodes."""
    return [name for node in nodes for name in (*containers(node), *volumes(node))]


def go(*nodes: Node) -> None:
    """Make the file `/go` in the container that each of these nodes runs."""
    for node in nodes:
        with node.client() as client:
            (container,) = client.containers.list(filters={"label": "tfjob.run"})
            assert container.exec_run(["touch", "/go"]).exit_code == 0
