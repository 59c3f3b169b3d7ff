"""A node that lends its Docker Engine to a machine that has none: images are read from it, whether or not the run is on it."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

from engines.engine_bench import plan, task
from support import eventually

from tfjob.datasets.cache import Cache
from tfjob.dockerapi.api import DockerApi
from tfjob.engines.base import Prepared
from tfjob.engines.cluster import engine
from tfjob.engines.cluster.engine import ClusterEngine
from tfjob.engines.cluster.nodes import Reached
from tfjob.engines.cluster.room import Found
from tfjob.rundir import RunDirectory
from tfjob.targets.definition import ClusterDefinition, NodeDefinition
from tfjob.targets.target import Node

if TYPE_CHECKING:
    import pytest


class Way:
    """A way to an engine that notes whether it was let go of."""

    address = "ssh://somewhere"

    def __init__(self) -> None:
        self.closed = False

    def variables(self) -> dict[str, str]:
        return {"DOCKER_HOST": "lent"}

    def close(self) -> None:
        self.closed = True


def test_the_lender_is_let_go_of_when_the_images_are_there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    ways = [Way() for _ in range(3)]
    definitions = tuple(NodeDefinition(name, f"ssh://{name}", "127.0.0.1", 0) for name in "abc")
    reached = [
        Reached(order, one, DockerApi(way), Node(one.name, "127.0.0.1"), frozenset())  # type: ignore[arg-type]  # as far as is asked
        for order, (one, way) in enumerate(zip(definitions, ways, strict=True))
    ]
    reaching = SimpleNamespace(reached=reached, open=0, stop=lambda: None)
    reaching.lately = lambda: reaching
    lender, _, unused = ways
    seen: list[bool] = []

    class Starting:
        def __init__(self, handle: Any, **_: Any) -> None:
            handle.links[0] = SimpleNamespace(api=reached[1].api)

        def go(self) -> None:
            seen.append(lender.closed)

    monkeypatch.setattr(engine, "_UNUSED_S", 0.0)
    monkeypatch.setattr(engine, "Starting", Starting)
    monkeypatch.setattr(engine, "find_room", lambda *_: Found((reached[1],), ((),)))
    target = ClusterDefinition("lab", definitions)
    none = {"DOCKER_HOST": f"unix://{tmp_path}/no.sock"}
    (tmp_path / "runs/fox").mkdir(parents=True)
    runs = tmp_path / "runs"
    own = ClusterEngine(
        target,
        environ=none,
        snapshots=tmp_path,
        runs=runs,
        cache=Cache(tmp_path),
        reaching=reaching,  # type: ignore[arg-type]  # all that is asked of one
    )
    assert own.lend(lambda _: None) == {"DOCKER_HOST": "lent"}
    asked, run = plan(task("true")), RunDirectory(runs / "fox")
    allocation = own.acquire(asked, run, 1.0, lambda _: None)
    eventually(lambda: unused.closed, "that the unused node is let go of")
    own.start(asked, run, allocation, Prepared(None, {}))
    assert seen == [False]
    assert [way.closed for way in ways] == [True, False, True]
