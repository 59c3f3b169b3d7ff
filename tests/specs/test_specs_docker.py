"""Every job in specs/ runs in containers too: packages mounted, and baked into an image."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
from typing import TYPE_CHECKING

import pytest
from docker_parts import docker_daemon, docker_engine, test_base  # noqa: F401  # fixtures
from specs.spec_parts import GOAL, served, shorter
from support import REPOSITORY, Tfjob
from web_server import web_server

if TYPE_CHECKING:
    from docker_parts import Daemon

pytestmark = [
    pytest.mark.real,
    pytest.mark.root,
    pytest.mark.xdist_group("tensorflow"),
    pytest.mark.timeout(1500),
]
SPECS = sorted(path.stem for path in (REPOSITORY / "specs").glob("digits*.yml"))
IN_CONTAINERS = ("--set", "compute.runtime=docker")


@pytest.fixture
def specs(tfjob: Tfjob, docker_engine: Daemon, test_base: str) -> Tfjob:  # noqa: F811  # the fixture
    shutil.copytree(REPOSITORY / "specs", tfjob.directory / "specs")
    made = Tfjob(tfjob.directory / "specs", {**tfjob.environ, "DOCKER_HOST": docker_engine.host})
    made("init")
    made.write(".tfjob/config.yml", f"images: {{cpu: '{test_base}'}}\n")
    return made


@pytest.mark.parametrize("spec", SPECS)
def test_a_spec_trains_in_containers(specs: Tfjob, spec: str) -> None:
    with web_server() as web:
        asked = (*IN_CONTAINERS, *served(web, spec), *shorter(spec))
        done = specs("submit", f"{spec}.yml", *asked, timeout_s=1400)
    assert min(map(float, re.findall(r"test accuracy (0\.\d+)", done.stdout))) >= GOAL
    record = specs.show()
    assert "model/saved_model.pb" in [one["path"] for one in record["outputs"]]
    assert {path.owner() for path in specs.run_directory(record["id"]).joinpath("outputs").rglob("*")} == {_me()}
    assert _containers(specs, record["id"]) == ""


def test_a_spec_trains_in_an_image_with_its_packages_baked_in(specs: Tfjob) -> None:
    baked = ("--set", "compute.container_packages=baked")
    done = specs("submit", "digits.yml", *IN_CONTAINERS, *baked, timeout_s=1400)
    assert float(re.findall(r"test accuracy (0\.\d+)", done.stdout)[-1]) >= 0.95
    built = json.loads(specs("env", "build", "digits.yml", "--image", "-o", "json", timeout_s=1400).stdout)
    assert built["bytes_sent"] == 0  # it is there


def _containers(specs: Tfjob, run: str) -> str:
    command = ["docker", "ps", "-aq", "--filter", f"label=tfjob.run={run}"]
    return subprocess.run(command, env=specs.environ, check=True, capture_output=True, text=True).stdout


def _me() -> str:
    import pwd  # noqa: PLC0415

    return pwd.getpwuid(os.geteuid()).pw_name
