"""GPUs leased in a real Docker Engine, by several who want them; trees of files kept in it."""

from __future__ import annotations

import io
import tarfile
import threading
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING
from uuid import uuid4

import pytest
from engines.engine_bench import GPUS

from tfjob.dockerapi.api import DockerApi, RefusalError
from tfjob.engines import claimed
from tfjob.engines.cluster.leases import Claims, RunKey
from tfjob.engines.cluster.trees import (
    Tree,
    archive,
    forget_unfinished,
    on_node,
    send_trees,
    tree_of_directory,
    tree_of_outputs,
)
from tfjob.errors import PreparationError

if TYPE_CHECKING:
    from docker_parts import Daemon

pytestmark = [pytest.mark.root, pytest.mark.xdist_group("cluster")]  # what one removes another would miss


@pytest.fixture
def api(docker_engine: Daemon) -> DockerApi:
    return DockerApi(docker_engine.host)


def held(claims: Claims) -> dict[int, str]:
    """Who has which GPUs, but for those that tests of single machines have meanwhile in the same engine."""
    others = {gpu.index for gpu in GPUS}
    return {index: str(holder) for index, holder in claims.look().held.items() if index not in others}


@pytest.fixture
def keys(api: DockerApi) -> Iterator[list[RunKey]]:
    workspace = uuid4().hex[:10]
    found = [RunKey(name, workspace, f"{name}@desk") for name in ("fox", "owl", "elk")]
    yield found
    for key in found:
        Claims(api, key).release()


def test_a_gpu_has_one_holder(api: DockerApi, keys: list[RunKey]) -> None:
    fox, owl = Claims(api, keys[0]), Claims(api, keys[1])
    assert fox.claim([0, 2])
    assert not owl.claim([1, 2])
    assert held(owl) == dict.fromkeys((0, 2), "run fox of fox@desk")
    assert owl.look().own == frozenset()  # what was free is not kept, either
    assert owl.claim([1, 4])
    fox.release()
    assert owl.claim([0])
    assert owl.look().own == {0, 1, 4}


def test_of_many_who_claim_at_once_none_shares(api: DockerApi, keys: list[RunKey]) -> None:
    for _ in range(5):
        barrier = threading.Barrier(len(keys))
        got: list[RunKey] = []

        def claim(key: RunKey, barrier: threading.Barrier = barrier, got: list[RunKey] = got) -> None:
            barrier.wait()
            if Claims(api, key).claim([0, 1]):
                got.append(key)

        threads = [threading.Thread(target=claim, args=(key,)) for key in keys]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert len(got) <= 1
        for key in keys:
            Claims(api, key).release()


def test_turns_are_in_the_order_of_the_tickets(api: DockerApi, keys: list[RunKey]) -> None:
    now = time.time()
    line = [Claims(api, key) for key in keys]
    for claims, ticket in zip(line, (now + 2, now, now + 1), strict=True):
        claims.draw(ticket)
        claims.draw(ticket)  # again, it is the same
    assert [holder.run for holder in line[1].look(now).before] == []
    assert [holder.run for holder in line[2].look(now + 1).before] == ["owl"]
    assert {holder.run for holder in line[0].look(now + 2).before} == {"owl", "elk"}
    line[1].return_ticket()
    assert [holder.run for holder in line[0].look(now + 2).before] == ["elk"]


def test_who_gives_no_sign_of_life_is_forgotten(
    api: DockerApi, keys: list[RunKey], monkeypatch: pytest.MonkeyPatch
) -> None:
    fox, owl = Claims(api, keys[0]), Claims(api, keys[1])
    fox.draw(1.0)
    assert fox.claim([0])
    monkeypatch.setattr(claimed, "ALIVE_S", -5.0)  # as if a minute had gone by, by the engine's clock
    assert held(owl) == {}
    assert api.volumes({"tfjob.run": "fox", "tfjob.workspace": keys[0].workspace}) == []


def test_signs_of_life_are_new_whoever_gives_them(api: DockerApi, keys: list[RunKey]) -> None:
    first, second = Claims(api, keys[0]), Claims(api, keys[0])

    def signs() -> set[str]:
        there = api.volumes({"tfjob.run": "fox", "tfjob.workspace": keys[0].workspace})
        return {str(one["Name"]) for one in there if "-alive-" in one["Name"]}

    seen: set[str] = set()
    for claims in (first, first, first, second, second, second):
        claims.beat()
        new = signs() - seen
        assert len(new) == 1
        seen |= new
    assert len(signs()) == 4  # the last two of each: a list that is made meanwhile has one of them
    first.release()
    assert signs() == set()


def test_a_running_container_has_its_gpus_whatever_happens_to_volumes(
    api: DockerApi, keys: list[RunKey], test_base: str
) -> None:
    body = {
        "Image": test_base,
        "Entrypoint": ["sleep", "600"],
        "Labels": {**keys[0].labels, "tfjob.gpus": "1,4"},
        "HostConfig": {"NetworkMode": "host"},
    }
    container = api.create("", body)
    try:
        assert not held(Claims(api, keys[1]))  # it does not run yet
        api.start(container)
        assert set(held(Claims(api, keys[1]))) == {1, 4}
        assert not Claims(api, keys[1]).claim([4])
    finally:
        api.remove(container)


def test_a_ticket_that_could_not_be_returned_keeps_nobody_waiting(
    api: DockerApi, keys: list[RunKey], test_base: str
) -> None:
    fox, owl = Claims(api, keys[0]), Claims(api, keys[1])
    fox.draw(1.0)
    assert [holder.run for holder in owl.look(2.0).before] == ["fox"]
    assert (fox.look().has_own, owl.look().has_own) == (True, False)
    body = {"Image": test_base, "Entrypoint": ["sleep", "600"], "Labels": keys[0].labels}
    container = api.create("", body)
    try:
        api.start(container)
        assert owl.look(2.0).before == ()
    finally:
        api.remove(container)


def trees_there(api: DockerApi, tree: Tree) -> list[str]:
    return sorted(one["Name"] for one in api.volumes({"tfjob.tree": ""}) if one["Name"].startswith(tree.name))


@pytest.fixture
def tree(tmp_path: Path, api: DockerApi) -> Iterator[Tree]:
    (tmp_path / "tree/sub").mkdir(parents=True)
    (tmp_path / "tree/empty").mkdir()
    (tmp_path / "tree/sub/file").write_text("content")
    (tmp_path / "tree/link").symlink_to("sub/file")
    found = tree_of_directory(uuid4().hex * 2, "the code", str(tmp_path / "tree"))
    yield found
    for name in trees_there(api, found):
        api.remove_volume(name)


def test_trees_are_sent_once(api: DockerApi, keys: list[RunKey], tree: Tree, test_base: str) -> None:
    told: list[str] = []
    first = send_trees([("a", api)], [tree], test_base, keys[0], told.append)
    again = send_trees([("a", api)], [tree], test_base, keys[1], told.append)
    assert first == again
    assert [line for line in told if line] == [f"sending the code to a: 3 files, {tree.size_bytes / 1e6:.1f} MB"]
    forget_unfinished(api, keys[0])
    assert len(trees_there(api, tree)) == 2
    api.remove_volume(first[0][tree.digest])  # somebody tidies up
    assert on_node(api, [tree]) == {}
    assert send_trees([("a", api)], [tree], test_base, keys[1], told.append) != first


def test_what_was_sent_in_part_is_removed(api: DockerApi, keys: list[RunKey], tree: Tree, test_base: str) -> None:
    missing = replace(tree, files=(*tree.files, ("/nowhere/at/all", "x")))
    with pytest.raises(PreparationError, match="/nowhere/at/all can't be read"):
        send_trees([("a", api)], [missing], test_base, keys[0], lambda _: None)
    forget_unfinished(api, keys[1])
    assert len(trees_there(api, tree)) == 1
    forget_unfinished(api, keys[0])
    assert trees_there(api, tree) == []


def test_outputs_are_sent_with_their_directories_owner(tmp_path: Path) -> None:
    (tmp_path / "model/assets").mkdir(parents=True)
    (tmp_path / "model/file").write_text("x" * 3_000_000)
    (tmp_path / "latest").symlink_to("model")
    data = b"".join(archive(tree_of_outputs(str(tmp_path)), (10, 20)))
    with tarfile.open(fileobj=io.BytesIO(data)) as tar:
        members = tar.getmembers()
    assert [one.name for one in members] == ["model", "model/assets", "latest", "model/file"]
    assert {(one.uid, one.gid) for one in members} == {(10, 20)}
    assert members[3].size == 3_000_000
    assert members[2].issym()


def test_a_refusal_keeps_the_engines_words(api: DockerApi) -> None:
    with pytest.raises(RefusalError, match="no such volume") as raised:
        api.remove_volume(f"tfjob-{uuid4().hex}")
    assert raised.value.status == 404
