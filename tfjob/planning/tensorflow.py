"""tf.distribute: a TF_CONFIG for each task.

The form is TensorFlow's ("Distributed training with TensorFlow", section "Setting up the TF_CONFIG environment
variable"), with `"environment": "cloud"` as Azure ML's service adds it. An empty `"ps"` list is never written:
TensorFlow 2.13 and later fail on it.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import TYPE_CHECKING

from tfjob.planning.plan import TaskPlan

if TYPE_CHECKING:
    from tfjob.spec.job import ComputeSpec, DistributionSpec

__all__ = ["tensorflow_tasks"]


def tensorflow_tasks(
    command: tuple[str, ...], compute: ComputeSpec, distribution: DistributionSpec
) -> tuple[TaskPlan, ...]:
    """Workers, spread evenly over the nodes; with parameter servers also a chief, which coordinates them.

    With parameter servers the chief's end is the end of the run (workers and parameter servers never return by
    themselves); without, the run ends when every worker has. An evaluator reads checkpoints, is no member of the
    cluster, and is ended with the others. Parameter servers take no GPU; GPUs of a node are shared out among the rest.
    """
    placed = tuple(_placed(compute, distribution))
    sharers = {node: sum(1 for kind, _, n in placed if n == node and kind != "ps") for node in range(compute.node_count)}
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
            env=(("TF_CONFIG", _tf_config(cluster, kind, index)),),
            gpus=0 if kind == "ps" else _share(compute.gpus_per_node, sharers[node], kind, index, node, placed),
            port=None if kind == "evaluator" else f"{kind}-{index}",
            ends_run=kind == "chief" if has_chief else kind == "worker",
        )
        for kind, index, node in placed
    )


def _placed(compute: ComputeSpec, distribution: DistributionSpec) -> Iterator[tuple[str, int, int]]:
    """(type, index, node) of every task: chief and evaluator on node 0, workers in blocks, parameter servers in turn."""
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


def _share(  # each argument is one fact of the placement
    gpus: int, sharers: int, kind: str, index: int, node: int, placed: tuple[tuple[str, int, int], ...]
) -> int:
    """This task's part of its node's GPUs: as even as can be, the first tasks of a node taking what is over."""
    order = [(k, i) for k, i, n in placed if n == node and k != "ps"].index((kind, index))
    return gpus // sharers + (1 if order < gpus % sharers else 0)
