"""Why a job waits, in words."""

from __future__ import annotations

import pytest
from engines.engine_bench import task
from engines_slurm.slurm_plans import slurm_plan, spread

from tfjob.engines.slurm.pending import count_gpus, waiting_for
from tfjob.engines.slurm.queue import Job, NodeLine

JOB = Job("7", "PENDING", "2", "gpu", "10", "ada", "N/A", "N/A", "", "Resources")
OTHERS = tuple(JOB._replace(id=number, partition=partition) for number, partition in (("3", "gpu"), ("4", "cpu")))
QUEUE = (*OTHERS, JOB._replace(id="5"), JOB)
NODES = (
    NodeLine("n1", "gpu*", "mixed", "gpu:a100:4(S:0-1)", "gpu:a100:2(IDX:0-1)"),
    NodeLine("n2", "gpu*", "idle", "gpu:a100:4(S:0-1)", "gpu:a100:0(IDX:N/A)"),
    NodeLine("n3", "gpu*", "draining", "gpu:a100:4(S:0-1)", "gpu:a100:0(IDX:N/A)"),
    NodeLine("n4", "gpu*", "idle*", "gpu:a100:4(S:0-1)", "gpu:a100:0(IDX:N/A)"),
    NodeLine("n5", "cpu", "idle", "(null)", "gpu:0"),
)


def words(*, gpus: int = 0, nodes: int = 2, **changes: str) -> str:
    plan = slurm_plan(*spread(*(task("true", name=f"t{number}") for number in range(nodes))), gpus=gpus)
    return waiting_for(plan, JOB._replace(**changes), QUEUE, NODES)


def test_who_stands_in_the_queue_is_told_where() -> None:
    assert words(gpus=4) == "waiting for 2 nodes with 4 GPUs; 1 free; position 3"
    assert words(gpus=2) == "waiting for 2 nodes with 2 GPUs; 2 free; position 3"
    assert words(gpus=1, nodes=1, reason="Priority") == "waiting for 1 node with 1 GPU; 2 free; position 3"
    assert words() == "waiting for 2 nodes; 1 free; position 3"


def test_a_job_may_wait_for_several_partitions() -> None:
    assert words(partition="gpu,cpu", gpus=2) == "waiting for 2 nodes with 2 GPUs; 2 free; position 4"
    assert words(partition="cpu,gpu") == "waiting for 2 nodes; 2 free; position 4"
    both = (*NODES, NodeLine("n2", "long", "idle", "gpu:a100:4(S:0-1)", "gpu:a100:0(IDX:N/A)"))
    job = JOB._replace(partition="gpu,long")
    other = JOB._replace(id="6", partition="long,cpu")
    assert waiting_for(slurm_plan(), job, (other, job), both) == "waiting for 1 node; 1 free; position 2"


def test_a_start_that_slurm_expects_is_told() -> None:
    start = "2026-11-28T12:00:00"
    assert words(start=start).endswith("position 3; Slurm expects it to start at 2026-11-28T12:00:00")


@pytest.mark.parametrize(
    ("reason", "said"),
    [
        ("PartitionTimeLimit", "it asks for more time than the partition gpu allows: lower limits.timeout_s"),
        ("JobHeldUser", "it is held; `scontrol release 7` lets it go"),
        ("(ReqNodeNotAvail, UnavailableNodes:n[1-3])", "nodes that it needs are not there, or reserved"),
        (
            "Nodes required for job are DOWN, DRAINED or reserved for jobs in higher priority partitions",
            "nodes that it needs are down, drained, or kept for jobs of higher priority",
        ),
        ("QOSMaxGRESPerUser", "a limit of the site is reached (Slurm: QOSMaxGRESPerUser)"),
        ("AssocGrpCPUMinutesLimit", "a limit of the site is reached (Slurm: AssocGrpCPUMinutesLimit)"),
        ("SomethingNew", "Slurm says: SomethingNew"),
    ],
)
def test_other_reasons_are_told_as_what_they_are(reason: str, said: str) -> None:
    assert words(reason=reason) == f"waiting for 2 nodes: {said}"


@pytest.mark.parametrize(
    ("gres", "count"),
    [
        ("gpu:4", 4),
        ("gpu:a100:4(S:0-1)", 4),
        ("gpu:a100:2,gpu:v100:1", 3),
        ("nvme:1,gpu:8", 8),
        ("gpu:a100:3(IDX:0-2),shard:7", 3),
        ("(null)", 0),
        ("", 0),
    ],
)
def test_gpus_are_counted_as_slurm_writes_them(gres: str, count: int) -> None:
    assert count_gpus(gres) == count
