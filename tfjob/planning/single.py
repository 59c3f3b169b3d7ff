"""No distribution: one task per node, each running the user's command by itself."""

from __future__ import annotations

from typing import TYPE_CHECKING

from tfjob.planning.plan import TaskPlan

if TYPE_CHECKING:
    from tfjob.spec.job import ComputeSpec

__all__ = ["single_tasks"]


def single_tasks(command: tuple[str, ...], compute: ComputeSpec) -> tuple[TaskPlan, ...]:
    """One task named `main`; on several nodes `main-0`, `main-1`, ... one on each."""
    return tuple(
        TaskPlan(
            name="main" if compute.node_count == 1 else f"main-{node}",
            type="main",
            index=node,
            node=node,
            argv=command,
            gpus=compute.gpus_per_node,
        )
        for node in range(compute.node_count)
    )
