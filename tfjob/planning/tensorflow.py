"""tf.distribute: a TF_CONFIG for each task.

The form is TensorFlow's ("Distributed training with TensorFlow", section "Setting up the TF_CONFIG environment
variable"), with `"environment": "cloud"` as Azure ML's service adds it. An empty `"ps"` list is never written:
TensorFlow 2.13 and later fail on it.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import TYPE_CHECKING

from tfjob.planning.nccl import nccl_interface
from tfjob.planning.plan import TaskPlan

if TYPE_CHECKING:
    from tfjob.spec.job import ComputeSpec, DistributionSpec

__all__ = ["tensorflow_tasks"]


def tensorflow_tasks(
    command: tuple[str, ...],
    compute: ComputeSpec,
    distribution: DistributionSpec,
    *,
    names_interface: bool = False,
) -> tuple[TaskPlan, ...]:
    """Workers, spread evenly over the nodes; with parameter servers also a chief, which coordinates them.

    With parameter servers the chief's end is the end of the run (workers and parameter servers never return by
    themselves); without, the run ends when every worker has. An evaluator reads checkpoints, is no member of the
    cluster, and is ended with the others. Parameter servers take no GPU; GPUs of a node are shared out among the rest.
    `names_interface`: tasks are told by which network interface their peers are reached.
    """
    placed = tuple(_placed(compute, distribution))
    shares = _shares(compute.gpus_per_node, placed)
    cluster: dict[str, list[str]] = {}
    for kind, index, node in placed:
        if kind != "evaluator":
            address = f"${{{{ node.{node}.address }}}}:${{{{ port.{kind}-{index} }}}}"
            cluster.setdefault(kind, []).append(address)
    has_chief = distribution.parameter_server_count > 0
    return tuple(
        TaskPlan(
            name=f"{kind}-{index}",
            type=kind,
            index=index,
            node=node,
            argv=command,
            env=(
                ("TF_CONFIG", _tf_config(cluster, kind, index)),
                *((nccl_interface(node),) if names_interface else ()),
            ),
            gpus=shares.get((kind, index), 0),
            port=None if kind == "evaluator" else f"{kind}-{index}",
            ends_run=kind == "chief" if has_chief else kind == "worker",
        )
        for kind, index, node in placed
    )


def _placed(compute: ComputeSpec, distribution: DistributionSpec) -> Iterator[tuple[str, int, int]]:
    """(type, index, node) of every task: the chief on node 0, workers in blocks, parameter servers in turn, the evaluator last."""
    nodes = compute.node_count
    workers = distribution.worker_count or nodes
    if distribution.parameter_server_count:
        yield "chief", 0, 0
    for index in range(workers):
        yield "worker", index, index * nodes // workers if workers >= nodes else index
    for index in range(distribution.parameter_server_count):
        yield "ps", index, index % nodes
    if distribution.evaluator:
        yield "evaluator", 0, nodes - 1


def _tf_config(cluster: dict[str, list[str]], kind: str, index: int) -> str:
    return json.dumps({"cluster": cluster, "task": {"type": kind, "index": index}, "environment": "cloud"})


def _shares(gpus: int, placed: tuple[tuple[str, int, int], ...]) -> dict[tuple[str, int], int]:
    """Each task's part of its node's GPUs: as even as can be, the first tasks of a node taking what is over."""
    shares: dict[tuple[str, int], int] = {}
    for node in {node for _, _, node in placed}:
        sharers = [(kind, index) for kind, index, on in placed if on == node and kind != "ps"]
        for order, task in enumerate(sharers):
            shares[task] = gpus // len(sharers) + (order < gpus % len(sharers))
    return shares
