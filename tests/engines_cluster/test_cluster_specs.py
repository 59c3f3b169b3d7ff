"""The jobs of specs/ train across the nodes of the test cluster: the same files, another target."""

from __future__ import annotations

import re
import shutil
from dataclasses import replace
from typing import TYPE_CHECKING

import pytest
from engines_cluster.conftest import left
from specs.spec_parts import GOAL, shorter
from support import REPOSITORY, Tfjob

if TYPE_CHECKING:
    from cluster.node import Node

pytestmark = [pytest.mark.real, pytest.mark.root, pytest.mark.xdist_group("cluster"), pytest.mark.timeout(1500)]

WHOLE = "digits"  # trains for all its epochs; the others for as long as it takes to see that they train
JOBS = {
    "digits": ("--set", "compute.node_count=1"),
    "digits-multiworker": ("--set", "compute.node_count=3", "--set", "distribution.worker_count=3"),
    "digits-ps": ("--set", "compute.node_count=2"),
    "digits-horovod": ("--set", "compute.node_count=2", "--set", "distribution.process_count_per_node=1"),
}


@pytest.mark.parametrize("spec", JOBS)
def test_a_spec_trains_across_nodes(lab: Tfjob, nodes: tuple[Node, ...], spec: str) -> None:
    shutil.copytree(REPOSITORY / "specs", lab.directory / "specs")
    specs = replace(lab, directory=lab.directory / "specs")
    asked = ("--set", "compute.target=docker-lab", *JOBS[spec], *(() if spec == WHOLE else shorter(spec)))
    done = specs("submit", f"{spec}.yml", *asked, timeout_s=1400)
    accuracies = re.findall(r"test accuracy (0\.\d+)", done.stdout)
    assert accuracies
    assert min(map(float, accuracies)) >= (0.95 if spec == WHOLE else GOAL)
    record = specs.show()
    assert len({task["node"] for task in record["tasks"]}) == int(JOBS[spec][1].rpartition("=")[2])
    assert "model/saved_model.pb" in [one["path"] for one in record["outputs"]]
    assert left(nodes) == []
