"""What fails on this machine, as a full disk does, while nodes are told or asked something."""

from __future__ import annotations

import errno
from typing import TYPE_CHECKING

from engines.engine_bench import plan, task

from tfjob.datasets.cache import Cache
from tfjob.engines.cluster import engine as module
from tfjob.engines.cluster.at_once import try_at_once
from tfjob.engines.cluster.engine import ClusterEngine
from tfjob.engines.cluster.handle import ClusterHandle
from tfjob.rundir import RunDirectory
from tfjob.targets.definition import ClusterDefinition, NodeDefinition

if TYPE_CHECKING:
    from pathlib import Path

    import pytest


def no_room(*_: object) -> None:
    raise OSError(errno.ENOSPC, "No space left on device", "/tmp/x")


def test_what_is_tried_on_many_nodes_is_tried_on_all() -> None:
    tried: list[int] = []

    def beat(node: int) -> None:
        tried.append(node)
        if node == 1:
            no_room()

    try_at_once(beat, [1, 2])
    try_at_once(beat, [1])
    assert sorted(tried) == [1, 1, 2]


def test_a_stop_goes_to_its_end_and_tells(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "remove_run", no_room)
    nodes = (NodeDefinition("a", "ssh://a", "127.0.0.1", 0), NodeDefinition("b", "ssh://b", "127.0.0.1", 0))
    target = ClusterDefinition("lab", nodes)
    engine = ClusterEngine(target, environ={}, snapshots=tmp_path, runs=tmp_path, cache=Cache(tmp_path))
    handle = ClusterHandle(plan(task("true")), RunDirectory(tmp_path / "run"))
    engine.stop(handle, 0)
    assert [note.partition(" could")[0] for note in engine.notes(handle)] == ["a", "b"]
    assert "No space left on device" in engine.notes(handle)[0]
