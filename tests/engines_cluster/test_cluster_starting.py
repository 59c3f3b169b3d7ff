"""The start of a run on its nodes, where something of it is late: a container of a supervisor that died, a sign of life."""

from __future__ import annotations

import threading
import time
from typing import TYPE_CHECKING, Any, cast
from uuid import uuid4

import pytest
from engines.engine_bench import plan, task

from tfjob.dockerapi.api import DockerApi, RefusalError
from tfjob.engines.base import Allocation, Prepared
from tfjob.engines.cluster import starting as module
from tfjob.engines.cluster.handle import ClusterHandle
from tfjob.engines.cluster.leases import RunKey
from tfjob.engines.cluster.room import Found
from tfjob.engines.cluster.starting import Starting
from tfjob.errors import TargetError
from tfjob.rundir import RunDirectory

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

    from docker_parts import Daemon

NAME = "tfjob-owl-1-0"


@pytest.fixture
def starting(tmp_path: Path) -> Starting:
    handle = ClusterHandle(plan(task("true")), RunDirectory(tmp_path / "owl"), key=RunKey("owl", "w"))
    site = cast("Any", None)  # nothing is asked of it here
    return Starting(
        handle, found=Found((), ()), allocation=Allocation(()), prepared=Prepared(None, {}), site=site, told=print
    )


class Engine(DockerApi):
    """An engine with at most one container of the name, which it is still making for the first `hidden` looks."""

    def __init__(self, labels: Mapping[str, str], hidden: int = 0) -> None:
        super().__init__("unix:///nowhere.sock")
        self.there: list[dict[str, Any]] = [{"Id": "late", "Names": [f"/{NAME}"], "Labels": dict(labels)}]
        self.hidden = hidden

    def create(self, name: str, body: Mapping[str, Any], timeout_s: float = 0.0) -> str:
        del body, timeout_s
        if self.there:
            raise RefusalError(409, f'Conflict. The container name "/{name}" is already in use')
        return "own"

    def with_labels(self, labels: Mapping[str, str], timeout_s: float = 0.0) -> list[dict[str, Any]]:
        del timeout_s
        self.hidden -= 1
        return [one for one in self.there if self.hidden < 0 and labels.items() <= one["Labels"].items()]

    def remove(self, container: str, timeout_s: float = 0.0) -> None:
        del timeout_s
        self.there = [one for one in self.there if one["Id"] != container]


@pytest.mark.parametrize("hidden", [0, 3])
def test_a_container_that_was_made_late_for_another_supervisor_gives_way(starting: Starting, hidden: int) -> None:
    engine = Engine(RunKey("owl", "w", "ann@desk").labels, hidden)
    assert starting._create(engine, NAME, {}) == "own"


def test_a_container_of_somebody_else_stays(starting: Starting, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "_TAKEN_S", 0.2)
    engine = Engine(RunKey("owl", "other").labels)
    with pytest.raises(RefusalError, match="already in use"):
        starting._create(engine, NAME, {})
    assert engine.there


def test_a_sign_of_life_that_is_on_its_way_is_waited_for(starting: Starting, monkeypatch: pytest.MonkeyPatch) -> None:
    """What comes after the run's end stays on the node."""
    over = threading.Event()

    class Bringing:
        def __init__(self, *_: Any) -> None:
            pass

        def keep_claims(self, done: threading.Event) -> None:
            done.wait()
            time.sleep(1.5)
            over.set()

        def trees(self) -> None:
            raise TargetError("it can't be brought")

    monkeypatch.setattr(module, "Bringing", Bringing)
    with pytest.raises(TargetError, match="can't be brought"):
        starting.go()
    assert over.is_set()


@pytest.mark.root
@pytest.mark.xdist_group("cluster")
def test_an_engine_makes_the_container_in_the_place_of_the_late_one(
    starting: Starting, docker_engine: Daemon, test_base: str
) -> None:
    api, name = DockerApi(docker_engine.host), f"tfjob-{uuid4().hex}"
    body = {"Image": test_base, "Cmd": ["sleep", "600"], "Labels": starting._handle.key.labels}
    try:
        late = api.create(name, body)
        api.start(late)
        own = starting._create(api, name, body)
        assert own != late
        named = [one["Id"] for one in api.with_labels({"tfjob.run": "owl"}) if f"/{name}" in one["Names"]]
        assert named == [own]
    finally:
        api.remove(name)
