"""A node whose disk is full: while the image, the code or a claim is to be kept there, and while a task writes."""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import subprocess
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
import yaml
from docker_parts import CannotRunError, Daemon, base_image, own_engine
from engines_cluster.conftest import node_of
from support import eventually
from web_server import web_server

from tfjob.dockerapi.api import DockerApi

if TYPE_CHECKING:
    from collections.abc import Iterator

    from cluster.node import Node
    from cluster_parts import Cluster
    from support import Tfjob

pytestmark = [pytest.mark.root, pytest.mark.xdist_group("cluster"), pytest.mark.timeout(300)]
MB = 1_000_000


@dataclass(frozen=True)
class Small:
    """A node of its own whose disk is as large as one wants."""

    daemon: Daemon
    disk: Path

    def register(self, lab: Tfjob, cluster: Cluster, others: tuple[Node, ...]) -> None:
        """Make it, before others, what `docker-lab` is."""
        address = cluster.layout.machine_address
        found = [("small", self.daemon.host, address), *((one.name, one.docker_host, one.address) for one in others)]
        nodes = [{"name": name, "engine": engine, "address": address, "gpus": 2} for name, engine, address in found]
        lab.write("small.yml", yaml.safe_dump({"name": "docker-lab", "kind": "docker", "nodes": nodes}))
        lab("compute", "update", "docker-lab", "-f", "small.yml")

    def leave(self, free_bytes: int) -> None:
        """Leave so much room on its disk."""
        found = os.statvfs(self.disk)
        used = (found.f_blocks - found.f_bfree) * found.f_frsize
        self._remount(f"size={used + free_bytes}")

    def leave_no_file(self) -> None:
        """Let no further file be made on its disk."""
        found = os.statvfs(self.disk)
        self._remount(f"nr_inodes={found.f_files - found.f_ffree}")

    def empty(self) -> None:
        """Make its disk large again."""
        self._remount("size=2g,nr_inodes=1m")

    def left(self) -> list[str]:
        """What runs have left there."""
        api = DockerApi(self.daemon.host)
        named = {"tfjob.run": ""}
        return [one["Id"] for one in api.with_labels(named)] + [one["Name"] for one in api.volumes({})]

    def go(self) -> None:
        """Make the file `/go` in the container that runs there."""
        import docker  # noqa: PLC0415  # 100 ms that only the test that uses it should pay

        with contextlib.closing(docker.DockerClient(base_url=self.daemon.host)) as client:
            (container,) = client.containers.list(filters={"label": "tfjob.run"})
            assert container.exec_run(["touch", "/go"]).exit_code == 0

    def _remount(self, options: str) -> None:
        subprocess.run(["mount", "-o", f"remount,{options}", self.disk], check=True)


@pytest.fixture(scope="module")
def small_engine(tmp_path_factory: pytest.TempPathFactory, docker_cluster: Cluster) -> Iterator[Small]:
    assert docker_cluster
    disk = tmp_path_factory.mktemp("small")
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=2g,nr_inodes=1m", "tmpfs", disk], check=True)
    try:
        with own_engine(disk / "data") as daemon:
            base_image(daemon)
            yield Small(daemon, disk)
    except CannotRunError as reason:
        pytest.skip(str(reason))
    finally:
        subprocess.run(["umount", "--lazy", disk], check=False)


@pytest.fixture
def small(lab: Tfjob, nodes: tuple[Node, ...], docker_cluster: Cluster, small_engine: Small) -> Iterator[Small]:
    """A small node as the first one of `docker-lab`, before one other: a run on two nodes has both, whoever answers first."""
    small_engine.register(lab, docker_cluster, nodes[1:2])
    yield small_engine
    small_engine.empty()
    assert small_engine.left() == []


def job(lab: Tfjob, command: str, *, more: str = "", extra: str = "", nodes: int = 2) -> str:
    lines = "\n".join(f"  {line}" for line in command.strip().splitlines())
    text = f"name: job\ncompute: {{target: docker-lab, node_count: {nodes}{more}}}\ncommand: |\n{lines}\n{extra}"
    (lab.directory / "job.yml").write_text(text)
    return "job.yml"


def left(node: Node) -> list[str]:
    api = DockerApi(node.docker_host)
    return [one["Id"] for one in api.with_labels({"tfjob.run": ""})] + [
        one["Name"] for one in api.volumes({"tfjob.run": ""})
    ]


def test_no_room_for_the_image(lab: Tfjob, small: Small, nodes: tuple[Node, ...], node_base: str) -> None:
    lab.write("Dockerfile", f"FROM {node_base}\nRUN head -c 30000000 /dev/urandom >/large\n")
    small.leave(5 * MB)
    name = job(lab, "true", extra="environment: {dockerfile: Dockerfile}\n", more=", gpus_per_node: 1")
    done = lab("submit", name, exit_code=4)
    assert "small could not take the image" in done.stderr
    assert "tfjob compute clean" in done.stderr
    assert left(nodes[1]) == []


def test_no_room_for_the_code(lab: Tfjob, small: Small, nodes: tuple[Node, ...]) -> None:
    (lab.directory / "code").mkdir()
    (lab.directory / "code/large").write_bytes(os.urandom(10 * MB))
    small.leave(5 * MB)
    done = lab("submit", job(lab, "true", extra="code: code\n", more=", gpus_per_node: 1"), exit_code=4)
    assert "small could not take the code" in done.stderr
    assert "no space left on device" in done.stderr
    assert left(nodes[1]) == []


def test_no_room_for_what_a_node_fetches(
    lab: Tfjob, small: Small, nodes: tuple[Node, ...], docker_cluster: Cluster
) -> None:
    content = os.urandom(10 * MB)
    small.leave(5 * MB)
    with web_server(host=docker_cluster.address) as web:
        url = web.put("large.bin", content)
        data = f"dataset: {{d: {{paths: [{{path: {url}, sha256: {hashlib.sha256(content).hexdigest()}}}]}}}}\n"
        done = lab("submit", job(lab, "true", extra=data, more=", gpus_per_node: 1"), exit_code=4)
    assert f"the disk of small is full: {url} could not be fetched there" in done.stderr
    assert "tfjob compute clean" in done.stderr
    assert [name for name in small.left() if "tree" in name] == []
    assert left(nodes[1]) == []


def test_a_task_that_fills_the_disk(lab: Tfjob, small: Small, nodes: tuple[Node, ...]) -> None:
    small.leave(20 * MB)
    command = """
echo early >outputs/early-$TFJOB_TASK_NAME
echo begun
[ $TFJOB_TASK_NAME = main-1 ] && sleep 600
until [ -e /go ]; do sleep 0.1; done
head -c 100000000 /dev/zero >outputs/large
"""
    run = lab.submit(job(lab, command))
    log = lab.run_directory(run) / "logs/main-1.log"
    eventually(lambda: log.exists() and log.read_text(), "the other has begun")
    small.go()
    done = lab("wait", run, exit_code=1)
    assert "main-0 on small exited with code 1" in done.stdout  # why it did found no room in its log
    record = lab.show()
    assert "the disk of small is full" in " ".join(record["notes"])
    outputs = lab.run_directory(record["id"]) / "outputs"
    assert {path.name for path in outputs.glob("early-*")} == {"early-main-0", "early-main-1"}
    assert left(nodes[1]) == []


def test_no_room_for_a_claim(lab: Tfjob, small: Small, nodes: tuple[Node, ...], docker_cluster: Cluster) -> None:
    small.register(lab, docker_cluster, nodes[1:])
    small.leave_no_file()
    lab("submit", job(lab, "true", more=", gpus_per_node: 1"))
    assert [task["node"] for task in lab.show()["tasks"]] == [node.name for node in nodes[1:]]
    done = lab("submit", job(lab, "true", more=", gpus_per_node: 1", nodes=3), exit_code=5)
    assert "small can not be used" in done.stderr
    assert "no space left on device" in done.stderr
    assert left(nodes[1]) == left(nodes[2]) == []


def test_no_room_for_a_claim_on_the_only_node(lab: Tfjob, small: Small, docker_cluster: Cluster) -> None:
    small.register(lab, docker_cluster, ())
    small.leave_no_file()
    done = lab("submit", job(lab, "true", more=", gpus_per_node: 1", nodes=1), exit_code=5)
    assert "small can not be used" in done.stderr
    assert "no space left on device" in done.stderr


@pytest.fixture
def small_here(lab: Tfjob, tmp_path: Path) -> Iterator[Tfjob]:
    """The command in a workspace that has a small disk here."""
    disk = tmp_path / "disk"
    disk.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=3m", "tmpfs", disk], check=True)
    try:
        found = replace(lab, environ={**lab.environ, "TFJOB_WORKSPACE": str(disk)})
        found("init", str(disk))
        (disk / ".tfjob/config.yml").write_text((lab.directory / ".tfjob/config.yml").read_text())
        lab.write("lab.yml", (lab.directory / "lab.yml").read_text() + "merge_interval_s: 1\n")
        found("compute", "create", "docker-lab", "-f", "lab.yml")
        yield found
    finally:
        subprocess.run(["umount", "--lazy", disk], check=False)


def run_of(small_here: Tfjob) -> Path:
    """The directory of the one run of the workspace."""
    return next(Path(small_here.environ["TFJOB_WORKSPACE"], ".tfjob/runs").glob("job-*"))


def test_no_room_here_for_what_comes_home(small_here: Tfjob, nodes: tuple[Node, ...]) -> None:
    small_here("submit", job(small_here, "yes | head -c 5000000; echo small >outputs/$TFJOB_TASK_NAME"))
    record = json.loads((run_of(small_here) / "record.json").read_text())
    assert record["state"] == "Completed"
    assert "logs/main-0.log of main-0 (No space left on device)" in " ".join(record["notes"])
    assert [left(node) for node in nodes] == [[], [], []]


def test_outputs_that_found_no_room_here_come_home_when_there_is_some(
    small_here: Tfjob, nodes: tuple[Node, ...]
) -> None:
    command = """
head -c 5000000 /dev/zero >outputs/large; echo >outputs/first
until [ -e /second ]; do sleep 0.1; done; echo >outputs/second
until [ -e /go ]; do sleep 0.1; done
"""
    run = small_here("submit", "--detach", job(small_here, command, nodes=1)).stdout.strip()
    outputs = run_of(small_here) / "outputs"
    eventually((outputs / "first").exists, "the first merge")  # with the large one, be it before or after this
    with node_of(json.loads((run_of(small_here) / "record.json").read_text()), "main", nodes).client() as client:
        (container,) = client.containers.list(filters={"label": "tfjob.run"})
        container.exec_run(["touch", "/second"])
        eventually((outputs / "second").exists, "another merge, after all of the first")
        assert not (outputs / "large").exists()
        subprocess.run(["mount", "-o", "remount,size=20m", small_here.environ["TFJOB_WORKSPACE"]], check=True)
        container.exec_run(["touch", "/go"])
    small_here("wait", run)
    assert (run_of(small_here) / "outputs/large").stat().st_size == 5_000_000
    assert not json.loads((run_of(small_here) / "record.json").read_text())["notes"]
