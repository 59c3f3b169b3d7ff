"""Which nodes a run gets, of those that have room. Pure: what was seen of every node comes in as a value."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from tfjob.targets.target import Node

__all__ = ["Candidate", "can_ever_fit", "choose", "shares"]


@dataclass(frozen=True)
class Candidate:
    """A node that answers: its place in the target's list, what it has, which of its GPUs are free, and how many runs it has."""

    order: int
    node: Node
    free: tuple[int, ...]
    load: int = 0


def choose(candidates: Sequence[Candidate], node_count: int, gpus_per_node: int) -> tuple[Candidate, ...] | None:
    """The nodes for a gang, in the target's order, or None while there are not enough with room.

    Of nodes with room, those with the fewest free GPUs are taken, so that whole nodes stay free for those who need them;
    without GPUs, those with the fewest runs.
    """
    fitting = [one for one in candidates if len(one.free) >= gpus_per_node]
    if len(fitting) < node_count:
        return None
    best = sorted(fitting, key=lambda one: (len(one.free) if gpus_per_node else 0, one.load, one.order))
    return tuple(sorted(best[:node_count], key=lambda one: one.order))


def can_ever_fit(nodes: Sequence[Node], silent: int, node_count: int, gpus_per_node: int) -> bool:
    """Whether the nodes could do with all their GPUs free, and if those that are silent had all that is asked for."""
    return sum(len(node.gpus) >= gpus_per_node for node in nodes) + silent >= node_count


def shares(tasks: Sequence[tuple[str, int, bool]], gpus: Sequence[int]) -> Mapping[str, tuple[int, ...]]:
    """Which GPUs of its node each task sees: (name, how many, launched). Launched tasks (ranks) see all, the others their own."""
    found: dict[str, tuple[int, ...]] = {}
    given = 0
    for name, count, launched in tasks:
        if launched:
            found[name] = tuple(gpus)
        else:
            found[name] = tuple(gpus[given : given + count])
            given += count
    return found
