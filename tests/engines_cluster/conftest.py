"""tfjob with the test cluster as its target `docker-lab`, and an engine of its own where images come from."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from typing import TYPE_CHECKING

import pytest
from cluster_parts import TARGET, Cluster, docker_cluster, node_base, nodes
from docker_parts import Daemon, base_image, docker_daemon, docker_engine, needed, test_base

if TYPE_CHECKING:
    from cluster.node import Node
    from support import Tfjob

__all__ = ["docker_cluster", "docker_daemon", "docker_engine", "node_base", "nodes", "test_base"]


@pytest.fixture
def lab(tfjob: Tfjob, docker_cluster: Cluster, docker_daemon: Daemon, node_base: str) -> Iterator[Tfjob]:
    """The command in a workspace that knows `docker-lab`; `base: cpu` is the image that all engines have."""
    needed(lambda: base_image(docker_daemon))
    environ = {**tfjob.environ, **docker_cluster.ssh_environ, "DOCKER_HOST": docker_daemon.host}
    command = replace(tfjob, environ=environ)
    command("init")
    command.write(".tfjob/config.yml", f"images:\n  cpu: {node_base}\n")
    command.write("lab.yml", docker_cluster.target())
    command("compute", "create", TARGET, "-f", "lab.yml")
    yield command
    for node in docker_cluster.nodes:
        if node.runs:
            node.plug_cable()


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
