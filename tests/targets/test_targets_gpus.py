from __future__ import annotations

import platform

import pytest

from tfjob.targets.gpus import probe_gpus, visible
from tfjob.targets.local import local_target
from tfjob.targets.target import Gpu

GPUS = tuple(
    Gpu(index, f"GPU-{uuid}")
    for index, uuid in enumerate(("1111-aa", "1111-bb", "2222-cc", "3333-dd", *("4444",) * 6, "5555-ee"))
)


@pytest.mark.parametrize(
    ("variable", "seen"),
    [
        (None, range(11)),
        ("", []),
        ("0", [0]),
        ("2,0", [2, 0]),
        (" 2 , 0 ", [2, 0]),
        ("10", [10]),
        ("-1", []),
        ("0,-1,1", [0]),
        ("0,99,1", [0]),
        ("0,,1", [0]),
        ("none", []),
        ("NoDevFiles", []),
        ("GPU-2222-cc", [2]),
        ("GPU-2", [2]),
        ("GPU-5,GPU-2,0", [10, 2, 0]),
        ("GPU-1111", []),
        ("0,GPU-1111,1", [0]),
        ("GPU-9999", []),
        ("MIG-2222-cc", []),
        ("1,1", []),
        ("0,GPU-1111-aa", []),
        ("0,99,0", [0]),
    ],
)
def test_the_shell_shows_what_cuda_would_show(variable: str | None, seen: list[int]) -> None:
    assert [gpu.index for gpu in visible(GPUS, variable)] == list(seen)


def test_declared_gpus_stand_in_for_the_probe() -> None:
    (node,) = local_target(declared_gpus=2).nodes
    assert node.name == platform.node()
    assert node.address == "127.0.0.1"
    assert [gpu.index for gpu in node.gpus] == [0, 1]
    assert len({gpu.uuid for gpu in node.gpus}) == 2
    assert "config.yml" in node.gpu_note
    assert local_target(declared_gpus=0).nodes[0].gpus == ()


def test_a_shell_that_shows_fewer_gpus_is_named_as_the_reason() -> None:
    (node,) = local_target(declared_gpus=3, cuda_visible_devices="2").nodes
    assert [gpu.index for gpu in node.gpus] == [2]
    assert node.gpu_note == "CUDA_VISIBLE_DEVICES=2 in this shell shows 1 of 3 GPUs."


def test_the_driver_answers_with_gpus_or_says_why_not() -> None:
    probe = probe_gpus()
    assert bool(probe.gpus) != bool(probe.note)
    assert [gpu.index for gpu in probe.gpus] == list(range(len(probe.gpus)))
    assert (local_target().nodes[0].gpus, local_target().nodes[0].gpu_note) == (probe.gpus, probe.note)
