"""MPI (Horovod): ranks across the nodes, started by one mpirun.

mpirun starts tfjob's entrypoint once per rank; the entrypoint learns its rank from the MPI library and becomes that
task, with a log and an end of its own. Every rank of a node sees all GPUs of that node and takes the one of its local
rank, as Horovod's documentation asks ("Horovod with TensorFlow", step 2).
"""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

from tfjob.planning.plan import TaskPlan

if TYPE_CHECKING:
    from tfjob.spec.job import ComputeSpec, DistributionSpec

__all__ = ["MPI_LAUNCHER_ENV", "mpi_tasks"]

MPI_LAUNCHER_ENV = (
    # Open MPI refuses root without both (mpirun(1), "Running as root").
    ("OMPI_ALLOW_RUN_AS_ROOT", "1"),
    ("OMPI_ALLOW_RUN_AS_ROOT_CONFIRM", "1"),
)


def mpi_tasks(
    command: tuple[str, ...], compute: ComputeSpec, distribution: DistributionSpec
) -> tuple[tuple[TaskPlan, ...], TaskPlan]:
    """The ranks, in rank order (all of node 0 first), and the launcher that starts them on node 0.

    Slots are what the job says, however few cores mpirun can see (mpirun(1), "slot:OVERSUBSCRIBE").

    Processes per node default to the GPUs per node, or 1 without GPUs.
    """
    per_node = distribution.process_count_per_node or max(compute.gpus_per_node, 1)
    ranks = tuple(
        TaskPlan(
            name=f"rank-{rank}",
            type="rank",
            index=rank,
            node=rank // per_node,
            argv=command,
            gpus=compute.gpus_per_node,
            launched=True,
        )
        for rank in range(per_node * compute.node_count)
    )
    hosts = ",".join(f"${{{{ node.{node}.address }}}}:{per_node}" for node in range(compute.node_count))
    launcher = TaskPlan(
        name="launcher",
        type="launcher",
        index=0,
        node=0,
        argv=(
            *("mpirun", "-np", str(len(ranks)), "-H", hosts, "--map-by", "slot:OVERSUBSCRIBE", "--bind-to", "none"),
            *(
                "${{ entrypoint.python }}",
                "-I",
                "-S",
                "-X",
                "utf8",
                "${{ entrypoint.file }}",
                "${{ run.dir }}/tasks",
                "rank",
            ),
        ),
    )
    return ranks, replace(launcher, env=MPI_LAUNCHER_ENV)
