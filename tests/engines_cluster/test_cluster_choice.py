"""Which nodes a run gets: values in, values out."""

from __future__ import annotations

import pytest

from tfjob.engines.cluster.choice import Candidate, can_ever_fit, choose, shares
from tfjob.targets.target import Gpu, Node


def node(order: int, free: int, *, gpus: int = 8, load: int = 0) -> Candidate:
    has = tuple(Gpu(index, f"uuid-{order}-{index}") for index in range(gpus))
    return Candidate(order, Node(f"node{order}", f"10.0.0.{order}", has), tuple(range(free)), load)


@pytest.mark.parametrize(
    ("free", "nodes", "gpus", "chosen"),
    [
        ([8, 8, 8], 2, 8, (0, 1)),
        ([8, 3, 8], 2, 8, (0, 2)),
        ([8, 3, 4], 1, 2, (1,)),  # whole nodes stay free
        ([8, 4, 2], 2, 2, (1, 2)),
        ([8, 4, 2], 3, 2, (0, 1, 2)),
        ([8, 4, 2], 3, 3, None),  # all or none
        ([], 1, 0, None),
    ],
)
def test_the_fullest_that_have_room(free: list[int], nodes: int, gpus: int, chosen: tuple[int, ...] | None) -> None:
    found = choose([node(order, count) for order, count in enumerate(free)], nodes, gpus)
    assert (tuple(one.order for one in found) if found is not None else None) == chosen


def test_without_gpus_those_with_the_fewest_runs() -> None:
    found = choose([node(0, 0, load=2), node(1, 8, load=0), node(2, 0, load=1)], 2, 0)
    assert found is not None
    assert [one.order for one in found] == [1, 2]


@pytest.mark.parametrize(
    ("gpus", "silent", "nodes", "per_node", "fits"),
    [
        ([4, 4], 0, 2, 4, True),
        ([4, 4], 0, 3, 4, False),
        ([4, 4], 1, 3, 4, True),
        ([4, 2], 0, 2, 4, False),
        ([], 2, 2, 9, True),
    ],
)
def test_what_can_never_fit(gpus: list[int], silent: int, nodes: int, per_node: int, *, fits: bool) -> None:
    there = [node(order, 0, gpus=count).node for order, count in enumerate(gpus)]
    assert can_ever_fit(there, silent, nodes, per_node) is fits


def test_tasks_of_a_node_share_its_gpus() -> None:
    assert shares([("a", 2, False), ("ps", 0, False), ("b", 1, False)], (1, 3, 5)) == {"a": (1, 3), "ps": (), "b": (5,)}
    assert shares([("rank-0", 0, True), ("rank-1", 0, True)], (4, 6)) == {"rank-0": (4, 6), "rank-1": (4, 6)}
