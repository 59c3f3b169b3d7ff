from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from tfjob.planning.make import make_plan
from tfjob.planning.plan import Plan
from tfjob.resolve import ResolvedJob
from tfjob.spec.job import ComputeSpec, ContainerSpec, DistributionSpec, JobSpec
from tfjob.targets.target import Node, Target

Planned = Callable[..., Plan]


@pytest.fixture
def planned() -> Planned:
    """The plan of a job: `planned(nodes=2, gpus=1, type="mpi", script=...)`; what it looked up may be given."""

    def planned(  # each argument is a key of a job file
        *,
        nodes: int = 1,
        gpus: int = 0,
        container: ContainerSpec | None = None,
        found: dict[str, Any] | None = None,
        **keys: Any,
    ) -> Plan:
        of_distribution = ("type", "process_count_per_node", "worker_count", "parameter_server_count", "evaluator")
        distribution = DistributionSpec(**{key: keys.pop(key) for key in of_distribution if key in keys})
        work = {} if "command" in keys or "script" in keys else {"script": "train.py"}
        spec = JobSpec(
            **{"name": "digits", "experiment": "tf", **work, **keys},
            compute=ComputeSpec(node_count=nodes, gpus_per_node=gpus, container=container or ContainerSpec()),
            distribution=distribution,
        )
        target = Target("local", "local", tuple(Node(f"n{number}", f"host{number}") for number in range(nodes)))
        looked_up: dict[str, Any] = {
            "code": None,
            "datasets": (),
            "environment": None,
            "target": target,
            **(found or {}),
        }
        return make_plan(ResolvedJob(spec, **looked_up))

    return planned
