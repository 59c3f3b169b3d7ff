from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Literal

import pytest

from tfjob.datasets.files import DatasetFiles
from tfjob.environments import Definition
from tfjob.environments.resolved import DockerfileSource, ResolvedEnvironment
from tfjob.errors import ExitCode, TargetError, UsageError
from tfjob.resolve import ResolvedJob, resolve
from tfjob.spec.job import ComputeSpec, DatasetSpec, JobSpec
from tfjob.targets.definition import ClusterDefinition, NodeDefinition, SlurmDefinition
from tfjob.targets.request import defined_target
from tfjob.targets.target import Gpu, Node, Target

GPUS = (Gpu(0, "GPU-a"), Gpu(1, "GPU-b"))
IMAGE = ResolvedEnvironment(image="a/b:1")
DOCKERFILE = ResolvedEnvironment(dockerfile=DockerfileSource(Path("/x/Dockerfile"), Path("/x"), (), "FROM scratch\n"))
PACKAGES = ResolvedEnvironment(definition=Definition(python="==3.11.*"), base="a/b:1")
ONE_NODE = Target("local", "local", (Node("here", "127.0.0.1", GPUS),))


def resolved(
    compute: ComputeSpec,
    target: Target = ONE_NODE,
    dataset: DatasetSpec | None = None,
    files: int = 0,
    environment: ResolvedEnvironment | None = None,
) -> ResolvedJob:
    spec = JobSpec("job", "experiment", script="train.py", compute=compute, dataset=(("x", dataset or DatasetSpec()),))
    found = DatasetFiles(tuple((f"/{number}", str(number), 1) for number in range(files)), "digest")
    return resolve(spec, code=None, datasets=(("x", found),), environment=environment, target=target)


@pytest.mark.parametrize("gpus", [0, 1, 2])
def test_what_the_target_has_is_given(gpus: int) -> None:
    found = resolved(ComputeSpec(gpus_per_node=gpus))
    assert found.target is ONE_NODE
    assert found.spec.compute.gpus_per_node == gpus


def test_more_gpus_than_there_are_are_refused_with_what_there_is() -> None:
    with pytest.raises(TargetError) as caught:
        resolved(ComputeSpec(gpus_per_node=3))
    assert caught.value.message == "the job asks for 3 GPUs per node; here has 2 GPUs"
    assert caught.value.hint == "Set `compute.gpus_per_node` to at most 2."
    assert caught.value.exit_code == ExitCode.TARGET_FAILED


def test_a_machine_without_a_gpu_says_why() -> None:
    target = Target("local", "local", (Node("here", "127.0.0.1", (), "There is no driver."),))
    with pytest.raises(TargetError) as caught:
        resolved(ComputeSpec(gpus_per_node=1), target)
    assert caught.value.message == "the job asks for 1 GPU per node; here has no GPU"
    assert caught.value.hint == "There is no driver."


def test_every_node_the_job_takes_must_have_the_gpus() -> None:
    target = Target("two", "local", (Node("a", "a", GPUS), Node("b", "b", GPUS[:1])))
    resolved(ComputeSpec(gpus_per_node=2), target)
    with pytest.raises(TargetError, match=r"b has 1 GPU$"):
        resolved(ComputeSpec(node_count=2, gpus_per_node=2), target)


def test_more_nodes_than_there_are_are_refused() -> None:
    with pytest.raises(TargetError, match="asks for 2 nodes; target local has 1"):
        resolved(ComputeSpec(node_count=2))


@pytest.mark.parametrize(
    ("runtime", "environment", "expected"),
    [
        ("auto", None, "process"),
        ("auto", PACKAGES, "process"),
        ("auto", IMAGE, "docker"),
        ("auto", DOCKERFILE, "docker"),
        ("process", None, "process"),
        ("process", PACKAGES, "process"),
        ("docker", None, "docker"),
        ("docker", PACKAGES, "docker"),
        ("docker", IMAGE, "docker"),
    ],
)
def test_the_runtime_is_decided(
    runtime: Literal["auto", "process", "docker"], environment: ResolvedEnvironment | None, expected: str
) -> None:
    assert resolved(ComputeSpec(runtime=runtime), environment=environment).runtime == expected


@pytest.mark.parametrize(
    ("environment", "what"),
    [
        (IMAGE, "environment is an image"),
        (DOCKERFILE, "environment is a Dockerfile"),
        (replace(IMAGE, name="tf@3"), "environment tf@3 is an image"),
    ],
)
def test_a_process_cannot_have_what_only_a_container_has(environment: ResolvedEnvironment, what: str) -> None:
    with pytest.raises(UsageError) as caught:
        resolved(ComputeSpec(runtime="process"), environment=environment)
    assert caught.value.message == f"compute.runtime is process, and the {what}"
    assert caught.value.hint == "Set `compute.runtime: docker`, or leave it out."


@pytest.mark.parametrize("files", [0, 2])
def test_a_dataset_of_one_file_has_one(files: int) -> None:
    resolved(ComputeSpec(), dataset=DatasetSpec(type="file"), files=1)
    resolved(ComputeSpec(), dataset=DatasetSpec(type="directory"), files=files)
    with pytest.raises(UsageError, match=f"dataset x is of the type file, and its paths name {files} files"):
        resolved(ComputeSpec(), dataset=DatasetSpec(type="file"), files=files)


LAB = ClusterDefinition(
    "lab", (NodeDefinition("a", "ssh://a", gpus=2), NodeDefinition("b", "ssh://b")), shared=("/data",)
)


def test_a_cluster_always_runs_containers() -> None:
    target = defined_target(LAB)
    assert resolved(ComputeSpec(), target).runtime == "docker"
    assert resolved(ComputeSpec(node_count=2, gpus_per_node=2), target, environment=PACKAGES).runtime == "docker"
    with pytest.raises(UsageError, match="the nodes of target lab run containers") as caught:
        resolved(ComputeSpec(runtime="process"), target)
    assert "compute.target: local" in caught.value.hint
    with pytest.raises(TargetError, match="asks for 3 nodes; target lab has 2"):
        resolved(ComputeSpec(node_count=3), target)


@pytest.mark.parametrize(
    ("store", "packages"), [(None, "baked"), (Path("/home/me/store"), "baked"), (Path("/data/store"), "mounted")]
)
def test_packages_are_baked_unless_all_nodes_have_the_store(store: Path | None, packages: str) -> None:
    spec = JobSpec("job", "experiment", script="train.py")
    found = resolve(spec, code=None, datasets=(), environment=PACKAGES, target=defined_target(LAB), store=store)
    assert found.spec.compute.container.packages == packages


def test_slurm_runs_what_the_job_asks_for_and_is_asked_about_room_later() -> None:
    target = defined_target(SlurmDefinition("site"))
    assert resolved(ComputeSpec(node_count=99, gpus_per_node=8), target).runtime == "process"
    assert resolved(ComputeSpec(), target, environment=PACKAGES).runtime == "process"


def test_what_slurm_lacks_is_refused() -> None:
    site = defined_target(SlurmDefinition("site", runtime="none"))
    for environment in (IMAGE, DOCKERFILE):
        assert (
            resolved(ComputeSpec(), defined_target(SlurmDefinition("site")), environment=environment).runtime
            == "docker"
        )
        with pytest.raises(UsageError, match=r"target site says that its nodes run none \(runtime: none\)"):
            resolved(ComputeSpec(), site, environment=environment)
    with pytest.raises(UsageError, match="it has no directory"):
        resolved(ComputeSpec(), defined_target(SlurmDefinition("site", login="ssh://me@login")))
    elsewhere = defined_target(SlurmDefinition("site", login="ssh://me@login", directory="/shared"))
    for environment, runtime in ((IMAGE, "docker"), (DOCKERFILE, "docker"), (PACKAGES, "process")):
        assert resolved(ComputeSpec(), elsewhere, environment=environment).runtime == runtime
