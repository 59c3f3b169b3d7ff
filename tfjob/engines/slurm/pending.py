"""Why a job waits, in words. Pure: of what Slurm's queue and its list of nodes say."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from typing import Final

from tfjob.engines.slurm.queue import Job, NodeLine
from tfjob.planning.plan import Plan

__all__ = ["count_gpus", "waiting_for"]

_QUEUEING: Final = frozenset({"Resources", "Priority", "None", "Prolog", ""})
_WORDS: Final = {
    # squeue(1), "JOB REASON CODES": what a person can do about it, where there is something.
    "BeginTime": "Slurm starts it again at {start}",
    "Dependency": "another job has to end first",
    "DependencyNeverSatisfied": "it depends on a job that failed, and will never start: tfjob cancel",
    "JobHeldUser": "it is held; `scontrol release {id}` lets it go",
    "JobHeldAdmin": "an administrator holds it",
    "JobHoldMaxRequeue": "Slurm has started it too often, and holds it; `scontrol release {id}` lets it go",
    "Licenses": "a license is not free",
    "PartitionDown": "the partition {partition} is down",
    "PartitionInactive": "the partition {partition} takes no jobs now",
    "PartitionNodeLimit": "it asks for more nodes than the partition {partition} allows",
    "PartitionTimeLimit": "it asks for more time than the partition {partition} allows: lower limits.timeout_s",
    "PartitionConfig": "it asks for more than the partition {partition} allows",
    "NodeDown": "a node that it needs is down",
    "BadConstraints": "no node has what the target's constraint asks for",
    "InvalidAccount": "Slurm does not know the target's account",
    "InvalidQOS": "Slurm does not know the target's qos",
    "AccountNotAllowed": "the partition {partition} is not for the target's account",
    "QOSNotAllowed": "the partition {partition} is not for the target's qos",
    "Nodes required for job are DOWN": "nodes that it needs are down, drained, or kept for jobs of higher priority",
    "ReqNodeNotAvail": "nodes that it needs are not there, or reserved",
    "Reservation": "its reservation has not begun",
    "MaxMemPerLimit": "it asks for more memory than the site allows",
    "launch failed requeued held": "its nodes could not start it, and Slurm holds it; `scontrol release {id}` lets it go",
}
_GPUS: Final = re.compile(r"(?:^|,)gpu(?::[^:,(]*)??:(\d+)")
_USABLE: Final = ("idle", "mixed")


def waiting_for(plan: Plan, job: Job, pending: Sequence[Job], nodes: Iterable[NodeLine]) -> str:
    """What the job waits for: "waiting for 2 nodes with 4 GPUs; 1 free; position 3"."""
    count, gpus = plan.node_count, plan.gpus_per_node
    wanted = f"waiting for {count} node{'s' if count != 1 else ''}"
    if gpus:
        wanted += f" with {gpus} GPU{'s' if gpus != 1 else ''}"
    reason = job.reason.strip("()")
    if reason not in _QUEUEING:
        return f"{wanted}: {_reason(job, reason)}"
    partitions = set(job.partition.split(","))  # of a job that may run in several (sbatch(1), --partition)
    free = len({node.name for node in nodes if _is_free(node, partitions, gpus)})
    queue = [one.id for one in pending if partitions & set(one.partition.split(","))]
    place = f"; position {queue.index(job.id) + 1}" if job.id in queue else ""
    start = f"; Slurm expects it to start at {job.start}" if re.match(r"\d{4}-", job.start) else ""
    return f"{wanted}; {free} free{place}{start}"


def count_gpus(gres: str) -> int:
    """How many GPUs a node's GRES names, such as ``gpu:a100:4(S:0-1),nvme:1``."""
    return sum(int(number) for number in _GPUS.findall(re.sub(r"\([^)]*\)", "", gres)))


def _is_free(node: NodeLine, partitions: set[str], gpus: int) -> bool:
    if node.partition.rstrip("*") not in partitions:
        return False
    if not node.state.startswith(_USABLE) or "drain" in node.state or node.state.endswith("*"):
        return False
    if not gpus:
        return node.state.startswith("idle")
    return count_gpus(node.gres) - count_gpus(node.used) >= gpus


def _reason(job: Job, reason: str) -> str:
    known = _WORDS.get(reason.partition(",")[0])
    if known:
        return known.format(id=job.id, partition=job.partition, start=job.start)
    if reason.startswith(("QOS", "Assoc", "Max")):
        return f"a limit of the site is reached (Slurm: {reason})"
    return f"Slurm says: {reason}"
