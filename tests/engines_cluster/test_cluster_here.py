"""This machine as a node of a target, and as the target `local`: GPUs that one of them has the other leaves alone."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any
from uuid import uuid4

import pytest
from engines.engine_bench import plan, task
from support import eventually

from tfjob.dockerapi.api import DockerApi
from tfjob.engines.claimed import claimed_here
from tfjob.engines.cluster.leases import Claims, RunKey
from tfjob.engines.cluster.nodes import Reaching
from tfjob.engines.cluster.room import find_room
from tfjob.engines.room import Room
from tfjob.errors import TargetError
from tfjob.rundir import RunDirectory
from tfjob.targets import leases
from tfjob.targets.definition import ClusterDefinition, NodeDefinition
from tfjob.targets.leases import holder_of
from tfjob.targets.node_gpus import declared_gpus
from tfjob.targets.target import Node

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from docker_parts import Daemon

    from tfjob.engines.base import Allocation
    from tfjob.engines.cluster.room import Found

pytestmark = [pytest.mark.root, pytest.mark.xdist_group("cluster")]


class Here:
    """This machine with two GPUs, under both names."""

    def __init__(self, daemon: Daemon, directory: Path) -> None:
        self.environ = {"DOCKER_HOST": daemon.host}
        self.directory = directory
        self.api = DockerApi(daemon.host)
        self.key = RunKey(f"elk-{uuid4().hex[:8]}", "workspace", "ann@desk")

    def local(self, gpus: int) -> Allocation:
        """Room for a run of the target `local`."""
        run = RunDirectory(self.directory / "owl")
        room = Room(Node("here", "127.0.0.1", declared_gpus(2)), self.environ)
        return room.acquire(plan(task("true", gpus=gpus), gpus=gpus), run, 0.5, lambda _: None)

    def cluster(self, gpus: int) -> Found:
        """Room for a run of a target that has this machine as its node."""
        target = ClusterDefinition("lab", (NodeDefinition("here", "local", "127.0.0.1", 2),))
        reaching = Reaching(target, self.environ, with_gpus=True)
        eventually(lambda: reaching.reached, "the engine answers")
        return find_room(plan(task("true", gpus=gpus), gpus=gpus), self.key, reaching, 0.5, lambda _: None)


@pytest.fixture
def here(docker_engine: Daemon, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Here]:
    monkeypatch.setattr(leases, "lease_directory", lambda: tmp_path)
    found = Here(docker_engine, tmp_path)
    yield found
    Claims(found.api, found.key).release()


def test_what_runs_of_the_target_have_the_local_ones_leave_alone(here: Here) -> None:
    found = here.cluster(1)
    assert found.gpus == ((0,),)
    for lease in found.leases:
        lease.release()  # as if it had been submitted from another machine
    assert claimed_here(here.environ) is not None
    assert here.local(1).gpus == {"main": (1,)}
    with pytest.raises(TargetError, match=f"run {here.key.id} of ann@desk holds 1, run owl holds 1"):
        here.local(1)


def test_what_local_runs_have_those_of_the_target_leave_alone(here: Here) -> None:
    local = here.local(1)
    assert local.gpus == {"main": (0,)}
    with pytest.raises(TargetError, match="1 GPU free; run owl has 1"):
        here.cluster(2)
    found = here.cluster(1)
    assert found.gpus == ((1,),)
    assert holder_of("gpu-declared-1") == {"run": here.key.id}
    for lease in (*local.leases, *found.leases):
        lease.release()


def test_a_lease_that_is_taken_at_the_last_moment(here: Here, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tfjob.engines.cluster.room._leased_here", lambda _node: {})  # it was not there yet
    local = here.local(2)
    with pytest.raises(TargetError, match="no room on"):
        here.cluster(1)
    assert here.api.volumes({"tfjob.run": here.key.id}) == []
    for lease in local.leases:
        lease.release()


def test_the_ticket_of_a_supervisor_that_died_is_returned(here: Here) -> None:
    Claims(here.api, here.key).draw(1.0)
    here.cluster(1)
    left = [str(one["Name"]) for one in here.api.volumes({"tfjob.run": here.key.id})]
    assert [name for name in left if "-ticket-" in name] == []
    assert [name for name in left if "-gpu-" in name] != []


def test_a_node_that_was_given_up_is_tried_again(here: Here, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    check = DockerApi.check
    monkeypatch.setattr(DockerApi, "check", lambda api, _timeout_s: check(api, 60))  # the one that is well has its time
    late = tmp_path / "late.sock"
    nodes = (NodeDefinition("here", "local", "127.0.0.1", 0), NodeDefinition("late", f"unix://{late}", "127.0.0.1", 0))
    reaching = Reaching(ClusterDefinition("lab", nodes, wait_s=0.1), here.environ, with_gpus=False)
    eventually(lambda: not reaching.open, "that one is given up")
    assert [node.definition.name for node in reaching.reached] == ["here"]
    assert "late does not answer: no Docker Engine answers" in reaching.silent
    late.symlink_to(here.api.address.removeprefix("unix://"))
    reaching.try_again()
    eventually(lambda: len(reaching.reached) == 2, "that it is back")
    assert reaching.silent == ""
    reaching.stop()


def test_a_node_that_says_what_nobody_understands_is_given_up_with_the_reason(monkeypatch: pytest.MonkeyPatch) -> None:
    def odd(_api: DockerApi, _timeout_s: float) -> frozenset[str]:
        raise KeyError("Name")

    monkeypatch.setattr(DockerApi, "check", odd)
    nodes = (NodeDefinition("odd", "unix:///odd.sock", "127.0.0.1", 0),)
    reaching = Reaching(ClusterDefinition("lab", nodes), {}, with_gpus=False)
    eventually(lambda: not reaching.open, "that it is given up")
    assert reaching.silent == "odd does not answer: odd said what can't be read: KeyError('Name')"
    reaching.stop()


def test_an_engine_that_is_not_there_claims_nothing(tmp_path: Path) -> None:
    assert claimed_here({"DOCKER_HOST": f"unix://{tmp_path}/no.sock"}) == {}
    assert claimed_here({"DOCKER_HOST": "tcp://10.0.0.1:2375"}) is None


def test_an_engine_that_is_late_is_waited_for(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its silence would be taken for a word that nobody has a GPU."""

    def late(_api: DockerApi, _labels: dict[str, str], timeout_s: float) -> list[dict[str, Any]]:
        if timeout_s < 5:
            raise TargetError("it did not answer in time")
        return []

    monkeypatch.setattr(DockerApi, "with_labels", late)
    monkeypatch.setattr(DockerApi, "volumes", late)
    (tmp_path / "late.sock").touch()
    assert claimed_here({"DOCKER_HOST": f"unix://{tmp_path}/late.sock"}) == {}
