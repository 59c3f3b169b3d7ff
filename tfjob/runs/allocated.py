"""What a run has got of its target, in words."""

from __future__ import annotations

from tfjob.engines.base import Allocation
from tfjob.planning.plan import Plan

__all__ = ["described"]


def described(plan: Plan, allocation: Allocation) -> str:
    """What the run has got: ``6 tasks on node1, node2 and node3, GPUs 0-3 each``."""
    gpus: list[set[int]] = [set() for _ in allocation.nodes]
    for task in plan.tasks:
        gpus[task.node].update(allocation.gpus.get(task.name, ()))
    names, held = [node.name for node in allocation.nodes], [_gpus(indices) for indices in gpus]
    same, each = len(set(held)) == 1, " each" if len(held) > 1 else ""
    if not same:
        names = [f"{name} ({some or 'no GPU'})" for name, some in zip(names, held, strict=True)]
    *most, last = names
    where = f"{', '.join(most)} and {last}" if most else last
    tasks = f"{len(plan.tasks)} task" + ("s" if len(plan.tasks) > 1 else "")
    return f"{tasks} on {where}" + (f", {held[0]}{each}" if same and held[0] else "")


def _gpus(indices: set[int]) -> str:
    """GPUs by number: ``GPU 3``, ``GPUs 0-3``, ``GPUs 0, 1, 3``."""
    numbers = sorted(indices)
    if len(numbers) > 2 and numbers[-1] - numbers[0] == len(numbers) - 1:
        return f"GPUs {numbers[0]}-{numbers[-1]}"
    return ("GPUs " if len(numbers) > 1 else "GPU ") + ", ".join(map(str, numbers)) if numbers else ""
