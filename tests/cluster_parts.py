"""A test cluster of the checkout's own: three virtual nodes, each with an address, an SSH server and a Docker Engine.

As a program, ``python tests/cluster_parts.py up`` starts it and leaves it running, ``env`` prints what a shell needs to use
it (``eval "$(python tests/cluster_parts.py env)"``), ``down`` ends it. `make cluster-up` and `make cluster-down` do that too.

Everything is kept in ``.cache/cluster``: keys, the nodes' disks between sessions, and locks. Processes that use the cluster
hold ``users.lock``; whoever is the last to let go of it ends the cluster. What a killed session left running is used again.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import shutil
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
import yaml
from cluster import network
from cluster.credentials import make_credentials
from cluster.layout import GPUS, HEAD, LAYOUT, SLURM_LAYOUT, USER, Layout
from cluster.node import Node, remove_cgroups
from docker_parts import BASE, CannotRunError, find_dockerd, install, is_free, load_image, locked
from set_up import NotRunningError, set_up_program
from support import REPOSITORY

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping

NODES = 3
TARGET = "docker-lab"
PROGRAMS = {
    "ip": "iproute2",
    "nsenter": "util-linux",
    "sshd": "openssh-server",
    "ssh": "openssh-client",
    "openssl": "openssl",
}


@dataclass(frozen=True)
class Cluster:
    """The virtual nodes, and what it takes to reach them from this machine."""

    layout: Layout
    nodes: tuple[Node, ...]
    faults: list[str] = field(default_factory=list, compare=False)  # of this session: what can't be mended fails fast
    no_image: list[str] = field(default_factory=list, compare=False)  # why there is no base image, in this session

    @property
    def head(self) -> Node:
        """Slurm's controller and login node, which only runs when Slurm does."""
        return Node(self.layout, HEAD, self.layout.head_address, has_engine=False)

    @property
    def ssh_config(self) -> Path:
        """For ``ssh -F``, or TFJOB_SSH_CONFIG: the nodes by name, with their host keys and the key to use."""
        return self.layout.etc / "ssh_config"

    @property
    def known_hosts(self) -> Path:
        return self.layout.etc / "known_hosts"

    @property
    def identity(self) -> Path:
        """The private key that root and `user` accept on every node."""
        return self.layout.etc / "id"

    @property
    def user(self) -> str:
        """A user without privileges on every node, but those of the group docker."""
        return USER

    @property
    def shared(self) -> Path:
        """A directory that all nodes and this machine have at the same path."""
        return self.layout.shared

    @property
    def address(self) -> str:
        """Where the nodes reach this machine."""
        return self.layout.machine_address

    @property
    def ssh_environ(self) -> dict[str, str]:
        """What tfjob needs in its environment to reach the nodes by ssh."""
        return {"TFJOB_SSH_CONFIG": str(self.ssh_config)}

    def load_base_image(self, image: str = BASE) -> str:
        """Put a base image into every engine, under the same id; returns its name."""
        self._each(lambda node: load_image(node.docker_host, image))
        return image

    def reset(self) -> None:
        """Bring every node back to how a test wants to find it."""
        self._each(Node.reset)

    def target(self) -> str:
        """The file of the compute target `docker-lab`."""
        nodes = [
            {"name": node.name, "engine": node.ssh_url, "address": node.address, "gpus": GPUS} for node in self.nodes
        ]
        return yaml.safe_dump({"name": TARGET, "kind": "docker", "nodes": nodes}, sort_keys=False)

    def _each(self, do: Callable[[Node], object]) -> None:
        with ThreadPoolExecutor(len(self.nodes)) as pool:
            list(pool.map(do, self.nodes))


def described(layout: Layout = LAYOUT) -> Cluster:
    """The cluster of this checkout, whether it runs or not. The last node's engine is the one with TLS."""
    nodes = [Node(layout, f"node{n + 1}", layout.address(n), has_tls=n == NODES - 1) for n in range(NODES)]
    return Cluster(layout, tuple(nodes))


def need_root() -> None:
    """Raises CannotRunError where nodes can't be made."""
    if os.geteuid() != 0:
        raise CannotRunError("virtual nodes need root")


def find_programs() -> None:
    """Make sure that all is there that the nodes need. Raises CannotRunError with what is missing."""
    find_dockerd()
    path = f"{os.environ.get('PATH', os.defpath)}:/usr/sbin:/sbin"
    missing = [package for program, package in PROGRAMS.items() if shutil.which(program, path=path) is None]
    if missing:
        install(*missing)
    if not Path("/usr/bin/docker-init").exists():
        raise CannotRunError("/usr/bin/docker-init is not installed; Debian's docker.io brings it")


def up(layout: Layout = LAYOUT, *, stays: str | None = None) -> Cluster:
    """Return the cluster, with what is off of it started. With `stays`, somebody's name, it runs until `down`."""
    cluster = described(layout)
    with locked(layout.directory / "cluster.lock", fcntl.LOCK_EX):
        find_programs()
        if not all(node.runs for node in cluster.nodes):
            addresses = {HEAD: layout.head_address, **{node.name: node.address for node in cluster.nodes}}
            make_credentials(layout, addresses, tls=cluster.nodes[-1].name)
            shutil.copytree(REPOSITORY / "tests" / "cluster" / "bin", layout.programs, dirs_exist_ok=True)
            layout.shared.mkdir(parents=True, exist_ok=True)
            layout.shared.chmod(0o1777)
            network.make_switch(layout)
            for node in cluster.nodes:
                node.boot(wait=False)
        for node in cluster.nodes:
            if not node.is_plugged:
                node.plug_cable()
            node.wait_ready()
        if stays:
            (layout.directory / f"stays.{stays}").touch()
    return cluster


def down(layout: Layout = LAYOUT, *, if_unused: bool = False) -> None:
    """End the cluster; with `if_unused`, only where nobody holds it and nobody asked for it to stay."""
    cluster = described(layout)
    directory = layout.directory
    with locked(directory / "cluster.lock", fcntl.LOCK_EX):
        if if_unused and (any(directory.glob("stays.*")) or not is_free(directory / "users.lock")):
            return
        for stays in directory.glob("stays.*"):
            stays.unlink(missing_ok=True)
        for node in (*cluster.nodes, cluster.head):
            node.remove()
        network.remove_switch(layout)
        remove_cgroups(layout.cgroup)
        shutil.rmtree(layout.sockets, ignore_errors=True)


@contextlib.contextmanager
def cluster_in_use(layout: Layout = LAYOUT) -> Iterator[Cluster]:
    """Use the cluster; the last user ends it. Raises CannotRunError when there can be none."""
    need_root()
    try:
        with locked(layout.directory / "users.lock", fcntl.LOCK_SH):
            yield up(layout)
    finally:
        down(layout, if_unused=True)


@pytest.fixture(scope="session")
def docker_cluster() -> Iterator[Cluster]:
    """The cluster; skips, with the reason, where there can be none. Its tests are in the xdist group ``cluster``."""
    try:
        with cluster_in_use() as cluster:
            yield cluster
    except CannotRunError as reason:
        pytest.skip(str(reason))


@contextlib.contextmanager
def mended(faults: list[str], what: str) -> Iterator[None]:
    """Fail at once, not after another wait, when `what` could not be brought back for an earlier test."""
    if what in faults:
        pytest.fail(f"{what} could not be brought back for an earlier test; see the first that failed")
    faults.append(what)
    yield
    faults.remove(what)


@pytest.fixture
def nodes(docker_cluster: Cluster) -> tuple[Node, ...]:
    """The nodes: all on, plugged, and without what earlier tests left."""
    with mended(docker_cluster.faults, "the test cluster"):
        docker_cluster.reset()
    return docker_cluster.nodes


@pytest.fixture
def node_base(docker_cluster: Cluster, nodes: tuple[Node, ...]) -> str:
    """A base image with Python and SSH in every node's engine, under one id; skips where there can be none."""
    assert nodes
    if not docker_cluster.no_image:
        try:
            return docker_cluster.load_base_image()
        except CannotRunError as reason:
            docker_cluster.no_image.append(str(reason))
    pytest.skip(docker_cluster.no_image[0])


def register(name: str, target: str, environ: Mapping[str, str]) -> None:
    """Register a compute target in the repository's own workspace; its file is kept beside the cluster."""
    file = LAYOUT.directory / f"{name}.yml"
    file.write_text(target, encoding="utf-8")
    tfjob = Path(sys.executable).with_name("tfjob")
    if subprocess.run([tfjob, "compute", "--help"], check=False, capture_output=True).returncode == 0:
        for verb in ("create", "update"):  # the second where it is there with other content
            command = [str(tfjob), "compute", verb, "-f", str(file)]
            done = subprocess.run(
                command, cwd=REPOSITORY, env={**os.environ, **environ}, check=False, capture_output=True, text=True
            )
            if done.returncode == 0:
                return
        raise CannotRunError(done.stderr.strip())


def forget(name: str) -> None:
    """Remove a compute target from the repository's own workspace, if it is there and no run uses it."""
    tfjob = Path(sys.executable).with_name("tfjob")
    subprocess.run([tfjob, "compute", "delete", name], cwd=REPOSITORY, check=False, capture_output=True)


def _up() -> None:
    need_root()
    cluster = up(stays=TARGET)
    cluster.load_base_image()
    register(TARGET, cluster.target(), cluster.ssh_environ)


def _env() -> dict[str, str]:
    need_root()
    cluster = described()
    if not all(node.runs for node in cluster.nodes):
        raise NotRunningError("the cluster")
    return cluster.ssh_environ


def _down() -> None:
    need_root()
    forget(TARGET)
    for layout in (LAYOUT, SLURM_LAYOUT):
        down(layout)


if __name__ == "__main__":
    sys.exit(set_up_program(_up, _env, _down))
