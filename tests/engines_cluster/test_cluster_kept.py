"""What a node keeps for later runs, on a real Docker Engine: what no run has used for longest goes, never what a run uses."""

from __future__ import annotations

import time
from pathlib import Path
from typing import TYPE_CHECKING
from uuid import uuid4

import pytest
from engines.engine_bench import plan, task

from tfjob.datasets.cache import Cache
from tfjob.datasets.wanted import Settings
from tfjob.dockerapi.api import DockerApi
from tfjob.engines import claimed
from tfjob.engines.cluster import kept
from tfjob.engines.cluster.bringing import Bringing, Site
from tfjob.engines.cluster.clean import clean_kept
from tfjob.engines.cluster.engine import remove_run
from tfjob.engines.cluster.kept import kept_trees, make_room, note_use, remove_tree, use, used_images
from tfjob.engines.cluster.leases import Claims, RunKey
from tfjob.engines.cluster.nodes import Reached
from tfjob.engines.cluster.room import Found
from tfjob.engines.cluster.trees import Tree, on_node, send_trees, tree_of_directory
from tfjob.errors import NodeLost
from tfjob.targets.definition import ClusterDefinition, NodeDefinition
from tfjob.targets.target import Node

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from docker_parts import Daemon

pytestmark = [pytest.mark.root, pytest.mark.xdist_group("cluster")]  # what one removes another would miss
SIZE_BYTES = 1000


@pytest.fixture
def api(docker_engine: Daemon) -> Iterator[DockerApi]:
    found = DockerApi(docker_engine.host)
    _forget_all(found)
    yield found
    _forget_all(found)


def _forget_all(api: DockerApi) -> None:
    for volume in api.volumes({}):
        if volume["Name"].startswith(("tfjob-tree-", "tfjob-used-", "tfjob-uses-")):
            api.remove_volume(volume["Name"])


@pytest.fixture
def key() -> RunKey:
    return RunKey(f"run-{uuid4().hex[:8]}", "workspace")


@pytest.fixture
def send(api: DockerApi, test_base: str, tmp_path: Path) -> Callable[..., Tree]:
    """Send a tree of 1000 bytes for a run that is over then, under a limit."""

    def do(key: RunKey, limit_bytes: float = float("inf")) -> Tree:
        directory = tmp_path / uuid4().hex
        directory.mkdir()
        (directory / "file").write_bytes(bytes(SIZE_BYTES))
        tree = tree_of_directory(uuid4().hex * 2, "the code", str(directory))
        use(api, key, test_base, [tree.digest])
        send_trees([("a", api)], [tree], test_base, key, lambda _: None, limit_bytes=limit_bytes)
        end(api, key)
        return tree

    return do


def end(api: DockerApi, key: RunKey) -> None:
    """What the engine does at the end of a run."""
    note_use(api, key)
    Claims(api, key).release()


def there(api: DockerApi, *trees: Tree) -> list[bool]:
    found = on_node(api, trees)
    return [tree.digest in found for tree in trees]


def next_second() -> None:
    """Wait until the engine's volumes are younger by their times, which are in whole seconds."""
    time.sleep(1.01 - time.time() % 1)


def test_what_no_run_has_used_for_longest_goes(api: DockerApi, send: Callable[..., Tree], key: RunKey) -> None:
    first, second = send(key), send(key)
    next_second()
    use(api, key, "", [first.digest])
    end(api, key)  # so the second is now the one that was not used for longest
    assert [tree.size_bytes for tree in kept_trees(api)] == [SIZE_BYTES, SIZE_BYTES]
    third = send(key, 2.5 * SIZE_BYTES)
    assert there(api, first, second, third) == [True, False, True]
    marks = [one["Name"] for one in api.volumes({"tfjob.used": ""})]
    assert len(marks) == 2  # one for each that is there
    make_room(api, 0, 0)
    assert api.volumes({"tfjob.tree": ""}) == api.volumes({"tfjob.used": ""}) == []


def test_what_a_run_uses_stays(
    api: DockerApi, send: Callable[..., Tree], key: RunKey, monkeypatch: pytest.MonkeyPatch
) -> None:
    tree = send(key)
    other = RunKey("other", "workspace")
    use(api, other, "sha256:image", [tree.digest])
    make_room(api, 0, 0)
    assert there(api, tree) == [True]
    assert used_images(api) == {"sha256:image"}
    monkeypatch.setattr(claimed, "ALIVE_S", -5.0)  # as if its supervisor had died a minute ago
    make_room(api, 0, 0)
    assert there(api, tree) == [False]
    Claims(api, other).release()


def test_what_a_container_has_stays(api: DockerApi, send: Callable[..., Tree], key: RunKey, test_base: str) -> None:
    tree = send(key)
    mount = {"Type": "volume", "Source": on_node(api, [tree])[tree.digest], "Target": "/tree"}
    container = api.create(
        "", {"Image": test_base, "Cmd": ["true"], "HostConfig": {"NetworkMode": "host", "Mounts": [mount]}}
    )
    try:
        make_room(api, 0, 0)
        assert there(api, tree) == [True]
        assert clean_kept(api, with_images=False) == []
    finally:
        api.remove(container)
    assert clean_kept(api, with_images=False) == ["code or data of 0.0 MB that was kept"]
    assert there(api, tree) == [False]


def test_a_run_that_begins_to_use_a_tree_while_it_is_removed(
    api: DockerApi, send: Callable[..., Tree], key: RunKey, monkeypatch: pytest.MonkeyPatch
) -> None:
    tree = send(key)
    (found,) = kept_trees(api)
    usual = kept._remove

    def remove(api: DockerApi, name: str) -> bool:
        if name == tree.name:  # at the last moment
            use(api, key, "", [tree.digest])
            assert there(api, tree) == [True]
        return usual(api, name)

    with monkeypatch.context() as patch:
        patch.setattr(kept, "_remove", remove)
        assert not remove_tree(api, found)
    assert there(api, tree) == [True]
    end(api, key)


def test_what_was_sent_in_part_by_a_run_that_is_dead_goes_first(
    api: DockerApi, send: Callable[..., Tree], key: RunKey
) -> None:
    tree = send(key)
    part = f"tfjob-tree-{uuid4().hex * 2}"[:51] + "-dead.workspace"
    api.make_volume(part, kept.tree_labels(part, SIZE_BYTES))
    make_room(api, 0, float("inf"))
    assert there(api, tree) == [True]
    assert part not in {one["Name"] for one in api.volumes({})}


def test_a_run_whose_tree_was_removed_while_its_machine_slept_does_not_start_and_leaves_nothing(
    api: DockerApi, send: Callable[..., Tree], key: RunKey, tmp_path: Path
) -> None:
    tree = send(key)
    volumes = [on_node(api, [tree])]
    node = Reached(0, NodeDefinition("a", api.address, "127.0.0.1", 0), api, Node("a", "127.0.0.1", ()), frozenset())
    site = Site(ClusterDefinition("lab", (node.definition,)), {}, tmp_path, Cache(tmp_path), api, Settings())
    bringing = Bringing(plan(task("true")), key, Found((node,), ((),)), site, lambda _: None)
    bringing.require_trees({"code": tree}, volumes)
    (found,) = kept_trees(api)
    assert remove_tree(api, found)  # by another run, which took this one for dead
    volume = volumes[0][tree.digest]
    api.make_volume(volume, {})  # as the engine does for a container that shall have it
    with pytest.raises(NodeLost, match="the code on a was removed"):
        bringing.require_trees({"code": tree}, volumes)
    assert bringing.empty == [("a", volume)]
    remove_run(api, key, 10.0, [volume])
    assert volume not in {one["Name"] for one in api.volumes({})}
