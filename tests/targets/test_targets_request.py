"""What a job may use of a target, and what is refused before it is submitted."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from tfjob.errors import ExitCode, TargetError, UsageError
from tfjob.targets.definition import ClusterDefinition, NodeDefinition, SlurmDefinition
from tfjob.targets.request import defined_target, narrowed, refuse_what_never_fits, shares
from tfjob.values import Pairs


def node(name: str, gpus: int | None = None, **labels: str) -> NodeDefinition:
    return NodeDefinition(name, f"ssh://{name}", gpus=gpus, labels=tuple(labels.items()))


LAB = ClusterDefinition(
    "lab", (node("a", 4, type="a100"), node("b", 2, type="v100"), node("c", type="a100")), least_nodes=3
)
SITE = SlurmDefinition("site", partition="gpu", constraint="a|b")


def cluster(node_type: str | None, properties: Pairs = ()) -> ClusterDefinition:
    found = narrowed(LAB, node_type=node_type, priority="normal", properties=properties)
    assert isinstance(found, ClusterDefinition)
    return found


def slurm(node_type: str | None = None, priority: str = "normal", properties: Pairs = ()) -> SlurmDefinition:
    found = narrowed(SITE, node_type=node_type, priority=priority, properties=properties)
    assert isinstance(found, SlurmDefinition)
    return found


def test_a_node_type_takes_the_nodes_with_that_label() -> None:
    assert cluster(None) is LAB
    found = cluster("a100")
    assert [one.name for one in found.nodes] == ["a", "c"]
    assert found.least_nodes == 2


def test_a_type_that_no_node_has() -> None:
    with pytest.raises(TargetError, match="target lab has no node of the type a10") as caught:
        cluster("a10")
    assert caught.value.hint == "Did you mean a100?"
    with pytest.raises(TargetError) as caught:
        cluster("tpu")
    assert caught.value.hint == "Its nodes are of the types a100, v100."
    bare = replace(LAB, nodes=(node("a"),))
    with pytest.raises(TargetError) as caught:
        narrowed(bare, node_type="a100", priority="normal", properties=())
    assert "add labels: {type: a100}" in caught.value.hint


def test_a_job_has_its_own_settings_in_slurm() -> None:
    assert slurm() == SITE
    assert slurm(properties=(("partition", "long"), ("qos", "high"))) == replace(SITE, partition="long", qos="high")
    assert slurm(node_type="a100").constraint == "(a|b)&a100"
    assert slurm(node_type="a100", properties=(("constraint", ""),)).constraint == "a100"
    assert slurm(priority="low").sbatch_options == ("--nice",)


def test_settings_that_a_target_does_not_have_are_refused() -> None:
    with pytest.raises(UsageError, match="partition, account, qos and constraint are allowed") as caught:
        slurm(properties=(("partion", "x"),))
    assert caught.value.hint == "Did you mean partition?"
    with pytest.raises(UsageError, match=r"compute\.properties has partition, and target lab is of kind docker"):
        cluster(None, (("partition", "x"),))


def test_what_fits_is_accepted() -> None:
    refuse_what_never_fits(LAB, 3, 2)
    refuse_what_never_fits(LAB, 2, 4)  # c has not said how many it has
    refuse_what_never_fits(LAB, 1, 8)


def test_more_nodes_than_there_are_or_than_a_job_gets() -> None:
    with pytest.raises(TargetError, match="the job asks for 4 nodes; target lab has 3") as caught:
        refuse_what_never_fits(LAB, 4, 0)
    assert caught.value.exit_code == ExitCode.TARGET_FAILED
    with pytest.raises(TargetError, match="target lab gives a job at most 2"):
        refuse_what_never_fits(replace(LAB, most_nodes=2), 3, 0)


def test_more_gpus_than_are_declared() -> None:
    declared = replace(LAB, nodes=LAB.nodes[:2])
    with pytest.raises(TargetError) as caught:
        refuse_what_never_fits(declared, 2, 4)
    assert caught.value.message == (
        "the job asks for 4 GPUs per node on 2 nodes; target lab declares fewer: a has 4, b has 2; 1 of its nodes has so many"
    )
    assert caught.value.hint == "Set `compute.gpus_per_node` to at most 2."
    with pytest.raises(TargetError) as caught:
        refuse_what_never_fits(declared, 1, 5)
    assert caught.value.message == "the job asks for 5 GPUs per node; target lab declares fewer: a has 4, b has 2"
    assert caught.value.hint == "Set `compute.gpus_per_node` to at most 4."


def test_the_target_of_a_plan_knows_what_is_defined_and_asks_nobody() -> None:
    found = defined_target(replace(LAB, nodes=(*LAB.nodes, NodeDefinition("d", "local", address="10.0.0.4"))))
    assert [(one.name, one.address, len(one.gpus)) for one in found.nodes] == [
        ("a", "a", 4),
        ("b", "b", 2),
        ("c", "c", 0),
        ("d", "10.0.0.4", 0),
    ]
    assert (found.kind, found.slurm) == ("docker", None)
    there = defined_target(SITE)
    assert (there.kind, there.nodes, there.slurm, there.cluster) == ("slurm", (), SITE, None)


def test_what_is_shared() -> None:
    shared = replace(LAB, shared=("/data",))
    assert shares(shared, Path("/data/a"))
    assert shares(shared, Path("/data"))
    assert not shares(shared, Path("/database"))
