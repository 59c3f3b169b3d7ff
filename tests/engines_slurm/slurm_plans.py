"""Plans for Slurm, made by hand."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from engines.engine_bench import plan, task

from tfjob.planning.plan import Plan, TaskPlan
from tfjob.planning.tensorflow import tensorflow_tasks
from tfjob.spec.job import ComputeSpec, DistributionSpec
from tfjob.targets.definition import SlurmDefinition

TARGET = SlurmDefinition("lab", partition="gpu")


def slurm_plan(*tasks: TaskPlan, target: SlurmDefinition = TARGET, **keys: Any) -> Plan:
    """A plan of tasks for Slurm, each on a node of its own unless they say otherwise."""
    tasks = tasks or (task("true"),)
    nodes = 1 + max(one.node for one in tasks)
    return replace(plan(*tasks, **keys), node_count=nodes, slurm=target, target=target.name)


def spread(*tasks: TaskPlan) -> tuple[TaskPlan, ...]:
    """The tasks, one on each node."""
    return tuple(replace(one, node=node) for node, one in enumerate(tasks))


def workers(*argv: str, nodes: int = 2, count: int | None = None, **keys: Any) -> tuple[TaskPlan, ...]:
    """Workers with TF_CONFIG, as the job file's distribution makes them."""
    distribution = DistributionSpec(type="tensorflow", worker_count=count or nodes, **keys)
    made = tensorflow_tasks(argv, ComputeSpec(node_count=nodes), distribution)
    return tuple(replace(one, env=(("PATH", "${{ environment.path }}"), *one.env)) for one in made)
