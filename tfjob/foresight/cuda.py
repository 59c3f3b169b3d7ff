"""Which TensorFlow, CUDA, cuDNN and driver fit each other: the published tables in `cuda.yml`, and what they say. Pure.

TensorFlow looks for its CUDA libraries by their major version, and takes a newer minor version, not an older one; of
cuDNN it says so itself when it loads it. A driver runs every CUDA of its major version and before, from a minimum on.
Where they do not fit, TensorFlow trains on the CPU and says so in one line of its log, which is why it is asked before.
"""

from __future__ import annotations

import functools
import re
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Mapping

__all__ = ["Libraries", "Tested", "check", "libraries_of_image", "libraries_of_packages", "row_of"]

_IMAGE = re.compile(r"(?:^|/)cuda:(?P<cuda>\d+\.\d+)(?:\.\d+)?(?P<cudnn>-cudnn(?P<major>\d*))?(?:-|$)")
_TENSORFLOW_IMAGE = re.compile(r"(?:^|/)tensorflow/tensorflow:(?P<version>\d+\.\d+)\.\d+-gpu")
_SOURCE = "https://www.tensorflow.org/install/source#gpu"


@dataclass(frozen=True)
class Tested:
    """A row of TensorFlow's table: versions as ``major.minor``; `python` is the first and the last there are wheels for."""

    version: str
    python: tuple[str, str]
    cuda: str
    cudnn: str


@dataclass(frozen=True)
class Libraries:
    """The CUDA and cuDNN that are there. None: not known; an empty text: there is none. A version may be a major one only."""

    cuda: str | None = None
    cudnn: str | None = None


def row_of(tensorflow: str) -> Tested | None:
    """Return the row of a TensorFlow version (``2.15.1``), or None where the table has none."""
    return _rows().get(".".join(tensorflow.split(".")[:2]))


def libraries_of_image(reference: str) -> Libraries:
    """Return what a base image has, as far as its name tells: those of NVIDIA and of TensorFlow say it in their tags.

    >>> libraries_of_image("nvidia/cuda:12.2.2-cudnn8-runtime-ubuntu22.04")
    Libraries(cuda='12.2', cudnn='8')
    >>> libraries_of_image("nvidia/cuda:12.5.1-base-ubuntu22.04")
    Libraries(cuda='12.5', cudnn='')
    """
    if found := _IMAGE.search(reference):
        return Libraries(found["cuda"], found["major"] or None if found["cudnn"] else "")
    if (found := _TENSORFLOW_IMAGE.search(reference)) and (row := row_of(found["version"])):
        return Libraries(row.cuda, row.cudnn)
    return Libraries()


def libraries_of_packages(packages: Mapping[str, str]) -> Libraries:
    """Return the CUDA and cuDNN among packages (name → version), as ``tensorflow[and-cuda]`` or conda bring them."""
    cuda = next((packages[name] for name in ("cuda-cudart", "cuda-version", "cudatoolkit") if name in packages), None)
    cudnn = packages.get("cudnn")
    for name, version in packages.items():
        cuda = version if re.fullmatch(r"nvidia-cuda-runtime(-cu\d+)?", name) else cuda
        cudnn = version if re.fullmatch(r"nvidia-cudnn-cu\d+", name) else cudnn
    return Libraries(_minor(cuda), _minor(cudnn))


def check(
    tensorflow: str, libraries: Libraries = Libraries(), *, driver: str | None = None, where: str = "the base image"
) -> tuple[str, ...]:
    """Return what does not fit, a sentence or two each with what to do; nothing where all fits or is not known.

    `tensorflow` is its version, `libraries` what is at `where` (in words), `driver` the node's driver version, such as
    ``535.129.03``.
    """
    row = row_of(tensorflow)
    if row is None:
        return ()
    said = (_cuda(row, libraries, where), _cudnn(row, libraries, where), _driver(row, libraries, driver))
    return tuple(one for one in said if one)


def _cuda(row: Tested, libraries: Libraries, where: str) -> str:
    has, needs = libraries.cuda, row.cuda
    if has is None or (has and _major(has) == _major(needs) and _numbers(has) >= _numbers(needs)):
        return ""
    found = f"{where} has {f'CUDA {has}' if has else 'no CUDA'}"
    would = "may" if has and _major(has) == _major(needs) else "would"
    return (
        f"TensorFlow {row.version} is built and tested with CUDA {needs} and cuDNN {row.cudnn}, and {found}: it {would} find "
        f"no GPU. Take {_base(row)}, or let packages bring CUDA: tensorflow[and-cuda]. See {_SOURCE}."
    )


def _cudnn(row: Tested, libraries: Libraries, where: str) -> str:
    has, needs = libraries.cudnn, row.cudnn
    is_known_only_roughly = has is not None and "." not in has
    if has is None or (
        has and _major(has) == _major(needs) and (is_known_only_roughly or _numbers(has) >= _numbers(needs))
    ):
        return ""
    found = f"{where} has {f'cuDNN {has}' if has else 'no cuDNN'}"
    return (
        f"TensorFlow {row.version} needs cuDNN {needs}, or a newer {_major(needs)}.x, and {found}: it would find no GPU, or "
        f"stop at the first layer. Take {_base(row)}, or let packages bring it: tensorflow[and-cuda]. See {_SOURCE}."
    )


def _driver(row: Tested, libraries: Libraries, driver: str | None) -> str:
    cuda = libraries.cuda or row.cuda
    minimum = _drivers().get(_major(cuda))
    if not driver or minimum is None or _numbers(driver) >= _numbers(minimum):
        return ""
    return (
        f"the node's NVIDIA driver is {driver}, and CUDA {cuda} needs {minimum} or newer. Update the driver, or take an "
        f"older TensorFlow{_older(driver)}. (On data-centre GPUs NVIDIA's cuda-compat package can stand in for it.)"
    )


def _older(driver: str) -> str:
    """Name the newest TensorFlow whose CUDA the driver runs."""
    fits = [
        row for row in _rows().values() if _numbers(driver) >= _numbers(_drivers().get(_major(row.cuda), "1000000"))
    ]
    newest = max(fits, key=lambda row: _numbers(row.version), default=None)
    return f", {newest.version} or before, which has CUDA {newest.cuda}" if newest else ""


def _base(row: Tested) -> str:
    return f"a base image with CUDA {row.cuda} and cuDNN {row.cudnn}"


def _numbers(version: str) -> tuple[int, ...]:
    return tuple(int(number) for number in re.findall(r"\d+", version))


def _major(version: str) -> str:
    return version.partition(".")[0]


def _minor(version: str | None) -> str | None:
    return None if version is None else ".".join(version.split(".")[:2])


@functools.cache
def _rows() -> dict[str, Tested]:
    rows = (
        Tested(row["version"], (row["python"][0], row["python"][1]), row["cuda"], row["cudnn"])
        for row in _table()["tensorflow"]
    )
    return {row.version: row for row in rows}


@functools.cache
def _drivers() -> dict[str, str]:
    return {row["cuda"]: row["minimum"] for row in _table()["driver"]}


@functools.cache
def _table() -> Any:
    import yaml  # noqa: PLC0415  # 20 ms that jobs without a GPU do not pay

    return yaml.safe_load(Path(__file__).with_suffix(".yml").read_text(encoding="utf-8"))
