"""Which image a run in containers uses: the one that was planned, and for a rerun the very same."""

from __future__ import annotations

import json
import subprocess
from typing import TYPE_CHECKING

import pytest
from docker_parts import docker_daemon, docker_engine, test_base  # noqa: F401  # fixtures
from support import Tfjob

if TYPE_CHECKING:
    from docker_parts import Daemon

pytestmark = [pytest.mark.real, pytest.mark.root]


@pytest.fixture
def job(tfjob: Tfjob, docker_engine: Daemon, test_base: str) -> Tfjob:  # noqa: F811  # the fixture
    made = Tfjob(tfjob.directory, {**tfjob.environ, "DOCKER_HOST": docker_engine.host})
    own = f"LABEL test={tfjob.directory.parent.name}"  # one that removes its image must not remove another's
    made.write("Dockerfile", f"FROM {test_base}\n{own}\nRUN echo one > /says\n")
    made.write(
        "job.yml", "name: says\ncommand: cat /says\nenvironment: {dockerfile: Dockerfile, build_context: context}\n"
    )
    made.write("context/file", "x")
    return made


def test_a_rerun_uses_the_image_of_its_run(job: Tfjob) -> None:
    assert job("submit", "job.yml").stdout == "one\n"
    first = job.show()["id"]
    job.write("Dockerfile", job.directory.joinpath("Dockerfile").read_text().replace("one", "two"))
    assert job("rerun", first).stdout == "one\n"
    assert job("submit", "job.yml").stdout == "two\n"


def test_an_image_that_is_gone_is_not_replaced_by_another(job: Tfjob) -> None:
    job("submit", "job.yml")
    run = job.show()["id"]
    image = job.run_directory(run).joinpath("environment.image").read_text().strip()
    tags = json.loads(_docker(job, "image", "inspect", "-f", "{{json .RepoTags}}", image))
    _docker(job, "image", "rm", *tags)
    refused = job("rerun", run, exit_code=4).stderr
    assert "no longer has the image" in refused


def _docker(job: Tfjob, *arguments: str) -> str:
    return subprocess.run(["docker", *arguments], env=job.environ, check=True, capture_output=True, text=True).stdout
