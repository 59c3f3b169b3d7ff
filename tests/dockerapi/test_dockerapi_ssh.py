"""Logins to engines behind ssh: none outlives who made it, and nothing of one stays."""

# ruff: noqa: F811  # the arguments of tests are the fixtures imported here

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from cluster_parts import docker_cluster, nodes  # noqa: F401  # fixtures
from support import eventually

from tfjob.dockerapi import ssh
from tfjob.dockerapi.reach import engine_at
from tfjob.errors import TargetError, TargetRefused

if TYPE_CHECKING:
    from collections.abc import Iterator

    from cluster.node import Node
    from cluster_parts import Cluster

pytestmark = [pytest.mark.root, pytest.mark.xdist_group("cluster")]

_HOLDER = """
import sys, time
from tfjob.dockerapi.reach import engine_at
engine_at(sys.argv[1]).info()
print("in", flush=True)
time.sleep(600)
"""


@pytest.fixture
def logins(docker_cluster: Cluster, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A directory of the test's own for what logins keep. Paths of sockets must be short."""
    for name, value in docker_cluster.ssh_environ.items():
        monkeypatch.setenv(name, value)
    short = Path(tempfile.mkdtemp(prefix="t", dir="/tmp"))
    monkeypatch.setenv("TMPDIR", str(short))
    monkeypatch.setattr(tempfile, "tempdir", str(short))
    ssh._remove_abandoned.cache_clear()
    yield short
    shutil.rmtree(short)


def age(directory: Path) -> None:
    os.utime(directory, (time.time() - 3600,) * 2)


def test_closed_it_is_gone(logins: Path, nodes: tuple[Node, ...]) -> None:
    with engine_at(nodes[0].ssh_url) as api:
        assert api.info()["Name"] == "node1"
        (directory,) = logins.iterdir()
        assert oct(directory.stat().st_mode)[-3:] == "700"
    assert list(logins.iterdir()) == []


def test_what_a_killed_process_left_is_removed_and_what_is_in_use_is_not(logins: Path, nodes: tuple[Node, ...]) -> None:
    with engine_at(nodes[0].ssh_url) as used:
        used.info()
        (in_use,) = logins.iterdir()
        holder = subprocess.Popen([sys.executable, "-c", _HOLDER, nodes[1].ssh_url], stdout=subprocess.PIPE, text=True)
        assert holder.stdout is not None
        assert holder.stdout.readline() == "in\n"
        (left,) = set(logins.iterdir()) - {in_use}
        holder.send_signal(signal.SIGKILL)
        holder.wait()
        holder.stdout.close()
        eventually(lambda: not ssh._is_answered(left / "c"), "its ssh ends with it")
        age(left)
        age(in_use)
        ssh._remove_abandoned.cache_clear()
        with engine_at(nodes[2].ssh_url) as other:
            other.info()
            assert not left.exists()
            assert in_use.exists()
        assert used.info()["Name"] == "node1"


def test_a_refusal_is_told_from_a_machine_that_is_away(logins: Path, nodes: tuple[Node, ...]) -> None:
    with pytest.raises(TargetRefused, match="node1 refuses the login"):
        engine_at("ssh://nobody-there@node1").info()
    nodes[0].cut_cable()
    with pytest.raises(TargetError, match="node1 can't be reached") as caught:
        engine_at(nodes[0].ssh_url).info(1.0)
    assert not isinstance(caught.value, TargetRefused)
    assert list(logins.iterdir()) == []
    nodes[0].plug_cable()
