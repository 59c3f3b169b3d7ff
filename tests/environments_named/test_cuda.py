from __future__ import annotations

import pytest

from tfjob.environments import curated, registered
from tfjob.foresight.cuda import Libraries, check, libraries_of_image, libraries_of_packages, row_of


def test_rows() -> None:
    row = row_of("2.15.1")
    assert row is not None
    assert (row.version, row.python, row.cuda, row.cudnn) == ("2.15", ("3.9", "3.11"), "12.2", "8.9")
    assert row_of("2.15.0.post1") == row
    assert row_of("1.15.0") is None
    assert row_of("2.99.0") is None


@pytest.mark.parametrize(
    ("image", "cuda", "cudnn"),
    [
        ("nvidia/cuda:12.2.2-cudnn8-runtime-ubuntu22.04", "12.2", "8"),
        ("registry.example/nvidia/cuda:12.5.1-cudnn-devel-ubuntu22.04@sha256:00", "12.5", None),
        ("nvidia/cuda:11.8.0-base-ubuntu22.04", "11.8", ""),
        ("registry:5000/nvidia/cuda:12.5.1", "12.5", ""),
        ("tensorflow/tensorflow:2.16.1-gpu", "12.3", "8.9"),
        ("tensorflow/tensorflow:2.16.1", None, None),
        ("debian:12", None, None),
        ("my/barracuda:12.5.1-base", None, None),
    ],
)
def test_what_an_image_says_of_itself(image: str, cuda: str | None, cudnn: str | None) -> None:
    assert libraries_of_image(image) == Libraries(cuda, cudnn)


def test_what_packages_bring() -> None:
    pip = {"nvidia-cuda-runtime-cu12": "12.5.82", "nvidia-cudnn-cu12": "9.3.0.75", "numpy": "1.26.4"}
    assert libraries_of_packages(pip) == Libraries("12.5", "9.3")
    assert libraries_of_packages({"cuda-cudart": "12.9.79", "cudnn": "9.10.1"}) == Libraries("12.9", "9.10")
    assert libraries_of_packages({"numpy": "1"}) == Libraries()


@pytest.mark.parametrize(
    ("version", "libraries", "driver"),
    [
        ("2.15.1", Libraries("12.2", "8.9"), "535.129.03"),
        ("2.15.1", Libraries("12.9", "8"), "525.60.13"),
        ("2.15.1", Libraries(), None),
        ("2.21.0", Libraries("12.5", None), "580.65.06"),
        ("2.14.1", Libraries("11.8", "8.7"), "450.80.02"),
        ("2.99.0", Libraries("10.0", "7"), "300"),
    ],
)
def test_what_fits_or_is_not_known(version: str, libraries: Libraries, driver: str | None) -> None:
    assert check(version, libraries, driver=driver) == ()


def test_another_cuda() -> None:
    (said,) = check("2.15.1", libraries_of_image("nvidia/cuda:11.8.0-cudnn8-runtime-ubuntu22.04"))
    assert said == (
        "TensorFlow 2.15 is built and tested with CUDA 12.2 and cuDNN 8.9, and the base image has CUDA 11.8: it would find "
        "no GPU. Take a base image with CUDA 12.2 and cuDNN 8.9, or let packages bring CUDA: tensorflow[and-cuda]. "
        "See https://www.tensorflow.org/install/source#gpu."
    )


def test_an_older_cuda_of_the_same_kind() -> None:
    (said,) = check("2.21.0", Libraries("12.2", "9.3"), where="this machine")
    assert "this machine has CUDA 12.2: it may find no GPU." in said


@pytest.mark.parametrize(
    ("cudnn", "found"), [("8.9", "cuDNN 8.9"), ("9.1", "cuDNN 9.1"), ("8", "cuDNN 8"), ("", "no cuDNN")]
)
def test_another_cudnn(cudnn: str, found: str) -> None:
    (said,) = check("2.18.1", Libraries("12.5", cudnn))
    assert said.startswith(f"TensorFlow 2.18 needs cuDNN 9.3, or a newer 9.x, and the base image has {found}: ")


def test_an_old_driver() -> None:
    (said,) = check("2.18.1", Libraries("12.5", "9.3"), driver="470.57.02")
    assert said == (
        "the node's NVIDIA driver is 470.57.02, and CUDA 12.5 needs 525.60.13 or newer. Update the driver, or take an older "
        "TensorFlow, 2.14 or before, which has CUDA 11.8. (On data-centre GPUs NVIDIA's cuda-compat package can stand in for it.)"
    )
    (said,) = check("2.18.1", driver="390.48")
    assert "take an older TensorFlow. (" in said
    (said,) = check("2.18.1", Libraries("13.0", None), driver="570.26")[-1:]
    assert "CUDA 13.0 needs 580 or newer" in said


def test_all_that_is_wrong_is_said() -> None:
    assert len(check("2.18.1", Libraries("", ""), driver="390.48")) == 3


def test_the_curated_ones_start_from_a_cuda_that_fits() -> None:
    for name in curated.names():
        spec = registered.find(name, None).spec
        if name.endswith("gpu"):
            version = name.split("-")[2]
            assert check(version, Libraries(libraries_of_image(spec.base).cuda)) == ()
            row = row_of(version)
            assert row is not None
            assert libraries_of_image(spec.base).cuda == row.cuda
