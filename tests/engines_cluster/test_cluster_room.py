"""How long a search for room waits for nodes that have not answered yet."""

from __future__ import annotations

import time
from types import SimpleNamespace
from typing import Any, cast

import pytest
from engines.engine_bench import plan, task
from support import eventually

from tfjob.dockerapi.api import DockerApi
from tfjob.engines.cluster import room
from tfjob.engines.cluster.leases import RunKey
from tfjob.engines.cluster.nodes import Reached, Reaching
from tfjob.targets.definition import ClusterDefinition, NodeDefinition
from tfjob.targets.target import Node


def reached(order: int, took_s: float) -> Reached:
    name = f"node{order + 1}"
    definition = NodeDefinition(name, f"unix:///{name}.sock", "127.0.0.1", 0)
    return Reached(order, definition, DockerApi(definition.engine), Node(name, "127.0.0.1"), frozenset(), took_s)


@pytest.mark.parametrize(("took_s", "waits_s"), [(0.01, 0.5), (1.5, 3.0), (60.0, 5.0)])
def test_nodes_that_are_late_are_waited_for_as_long_as_the_others_took(
    monkeypatch: pytest.MonkeyPatch, took_s: float, waits_s: float
) -> None:
    """However much of that time was over when room was first looked for: nodes are called long before."""
    now = 100.0
    monkeypatch.setattr(room, "time", SimpleNamespace(monotonic=lambda: now))
    there = (reached(0, 0.01), reached(1, took_s))
    nodes = tuple(NodeDefinition(f"node{n}", "", "127.0.0.1", 0) for n in (1, 2, 3))
    reaching = cast("Reaching", SimpleNamespace(target=ClusterDefinition("lab", nodes), open=1))
    search = room._Search(plan(task("true"), node_count=2), RunKey("owl", "w"), reaching)
    assert search._waits_for_others(there)
    now += waits_s - 0.01
    assert search._waits_for_others(there)
    now += 0.02
    assert not search._waits_for_others(there)


def test_a_node_says_how_long_it_took_since_its_login_was_begun(monkeypatch: pytest.MonkeyPatch) -> None:
    def check(*_: Any) -> frozenset[str]:
        return frozenset()

    monkeypatch.setattr(DockerApi, "check", check)
    target = ClusterDefinition("lab", (NodeDefinition("node1", "unix:///1.sock", "127.0.0.1", 0),))
    reaching = Reaching(target, {}, with_gpus=False, begun=time.monotonic() - 1000)
    (node,) = eventually(lambda: reaching.reached, "it answers")
    assert node.took_s >= 1000
    reaching.lost(node, OSError("gone"))
    (again,) = eventually(lambda: reaching.reached, "it answers again")
    assert again.took_s < 1000
