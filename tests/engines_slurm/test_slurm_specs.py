"""The jobs of specs/ train on Slurm: the same files, another target."""

from __future__ import annotations

import re
import shutil
from dataclasses import replace

import pytest
from specs.spec_parts import GOAL, served, shorter
from support import REPOSITORY, Tfjob
from web_server import web_server

pytestmark = [pytest.mark.real, pytest.mark.root, pytest.mark.xdist_group("cluster"), pytest.mark.timeout(1500)]

JOBS = {"digits": 1, "digits-web": 1, "digits-multiworker": 2, "digits-ps": 2, "digits-horovod": 2}  # and their nodes
WHOLE = "digits"  # trains for all its epochs; the others for as long as it takes to see that they train
RANKS = ("--set", "distribution.process_count_per_node=1")


@pytest.mark.usefixtures("compilers")  # Horovod comes as source
@pytest.mark.parametrize("spec", JOBS)
def test_a_spec_trains_on_slurm(lab: Tfjob, spec: str) -> None:
    shutil.copytree(REPOSITORY / "specs", lab.directory / "specs")
    specs = replace(lab, directory=lab.directory / "specs")
    nodes = JOBS[spec]
    asked = ("--set", "compute.target=lab", "--set", f"compute.node_count={nodes}")
    ranks = RANKS if spec == "digits-horovod" else ()
    epochs = () if spec == WHOLE else shorter(spec)
    with web_server() as web:
        done = specs("submit", f"{spec}.yml", *asked, *ranks, *epochs, *served(web, spec), timeout_s=800)
    accuracies = re.findall(r"test accuracy (0\.\d+)", done.stdout)
    assert accuracies
    assert min(map(float, accuracies)) >= (0.95 if spec == WHOLE else GOAL)
    record = specs.show()
    assert record["state"] == "Completed"
    assert len({task["node"] for task in record["tasks"]}) == nodes
    assert "model/saved_model.pb" in [one["path"] for one in record["outputs"]]
