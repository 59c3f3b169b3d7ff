"""How it ends when nodes fetch: on one node after a failure on another, and when nobody is there any more who began it."""

from __future__ import annotations

import hashlib
import json
import subprocess
import sys
import threading
from pathlib import Path
from types import SimpleNamespace
from typing import TYPE_CHECKING
from uuid import uuid4

import pytest
from support import eventually
from web_server import Cut, Fault, Hang, Redirect, Status, WebServer, web_server

from tfjob.datasets.wanted import Settings
from tfjob.dockerapi.api import DockerApi
from tfjob.dockerapi.stream import STDOUT
from tfjob.engines.cluster import fetching as module
from tfjob.engines.cluster import node_fetch, node_keep
from tfjob.engines.cluster.fetching import Fetching, Unreached, fetch_on_nodes
from tfjob.engines.cluster.leases import RunKey
from tfjob.engines.cluster.trees import Remote, Tree, on_node
from tfjob.errors import PreparationError

if TYPE_CHECKING:
    from collections.abc import Iterator

    from docker_parts import Daemon

CONTENT = b"content"
SUM = hashlib.sha256(CONTENT).hexdigest()


@pytest.fixture
def web() -> Iterator[WebServer]:
    with web_server() as server:
        yield server


def fetching(*addresses: str, image: str = "") -> Fetching:
    remote = tuple(Remote(one, f"{n}.bin", len(CONTENT), SUM) for n, one in enumerate(addresses))
    files = tuple(("", one.name) for one in remote)
    tree = Tree(uuid4().hex, "dataset d", files, len(CONTENT) * len(remote), remote)
    return Fetching(tree, image, "python3", RunKey(f"owl-{uuid4().hex[:8]}", "w", "ann@desk"), Settings(), print)


class TestAFailureOnOneNode:
    def test_it_ends_the_others(self, monkeypatch: pytest.MonkeyPatch) -> None:
        one = fetching("http://host/a")

        def fetch(fetching: Fetching, node: module.Node) -> str | Unreached:
            if node[0] == "node2":
                raise PreparationError("another content")
            assert fetching.given_up.wait(60), "node1 fetches on"
            raise PreparationError("because of the other")

        monkeypatch.setattr(module, "_fetch_on", fetch)
        api = DockerApi("unix:///nowhere")
        with pytest.raises(PreparationError, match="another content"):
            fetch_on_nodes(one, [("node1", api), ("node2", api)])


class TestAddresses:
    def test_those_with_a_login_are_not_asked_for_by_nodes(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        known = tmp_path / "netrc"
        known.write_text("machine private.example login ann password secret\n")
        known.chmod(0o600)
        monkeypatch.setenv("NETRC", str(known))
        order = fetching("https://public.example/a", "https://private.example/b").order()
        assert isinstance(order, Unreached)
        assert str(order) == "only this machine has a name and a password for private.example"
        assert isinstance(fetching("https://public.example/a").order(), bytes)

    def test_while_they_are_signed_a_cancel_is_seen(self, monkeypatch: pytest.MonkeyPatch) -> None:
        signed: list[str] = []

        def sign(address: str, _life_s: int) -> str:
            signed.append(address)
            eventually(one.given_up.is_set, "it is canceled")
            return f"https://store/{len(signed)}"

        def told(_: str) -> None:
            if signed:
                raise KeyboardInterrupt

        monkeypatch.setattr("tfjob.datasets.stores.signed_address", sign)
        one = fetching("s3://bucket/a", "s3://bucket/b")
        one.told = told
        with pytest.raises(KeyboardInterrupt):
            fetch_on_nodes(one, [("node1", DockerApi("unix:///nowhere"))])
        assert signed == ["s3://bucket/a"]

    def test_while_they_are_signed_anew_nodes_hear_that_somebody_is_here(self, monkeypatch: pytest.MonkeyPatch) -> None:
        is_slow, go_on, signed = threading.Event(), threading.Event(), iter(range(100))

        def sign(_address: str, _life_s: int) -> str | None:
            number = next(signed)
            if number == 2:
                return None  # the store does not answer just now: they are signed again soon
            if number > 2:
                is_slow.set()
                go_on.wait(60)
            return f"https://store/{number}"

        monkeypatch.setattr("tfjob.datasets.stores.signed_address", sign)
        for name, value in {"_ANEW_S": 0.01, "_SOON_S": 0.01, "_TOLD_AT_ONCE": 1}.items():
            monkeypatch.setattr(module, name, value)
        one, over = fetching("s3://bucket/a", "s3://bucket/b"), threading.Event()
        order = one.order()
        assert isinstance(order, bytes)
        assert [row[0] for row in json.loads(order)["files"]] == ["https://store/0", "https://store/1"]
        thread = threading.Thread(target=one.sign_anew, args=(over,), daemon=True)
        thread.start()
        assert is_slow.wait(60)
        beats = module._beats(one, order)
        assert [next(beats), next(beats)] == [b"\n", b"\n"]
        monkeypatch.setattr(module, "_ANEW_S", 60.0)
        go_on.set()
        eventually(lambda: one.order() != order, "they are signed anew")
        lines = [next(beats) for _ in range(4)]
        over.set()
        thread.join(60)
        assert lines[2:] == [b"\n", b"\n"]
        assert [json.loads(line) for line in lines[:2]] == [
            {"first": 0, "addresses": ["https://store/3"]},
            {"first": 1, "addresses": ["https://store/4"]},
        ]


class TestAnAddressThatHasRunOut:
    """What stores answer to one is what they answer to who may not read the file."""

    def program(self, tmp_path: Path, order: bytes | Unreached, is_signed: bool) -> subprocess.Popen[bytes]:
        assert isinstance(order, bytes)
        facts = json.loads(order)
        files = [[*row[:4], is_signed] for row in facts["files"]]
        command = [sys.executable, "-I", str(node_fetch.__file__), str(tmp_path)]
        program = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE)
        assert program.stdin is not None
        program.stdin.write(json.dumps({**facts, "files": files, "pause_s": 0.01}).encode() + b"\n")
        program.stdin.flush()
        return program

    @pytest.mark.parametrize("status", [400, 403])
    def test_another_is_waited_for(self, tmp_path: Path, web: WebServer, status: int) -> None:
        old = web.put("old", CONTENT, Cut(3), Status(status))
        order = fetching(old, web.put("b", CONTENT)).order()
        with self.program(tmp_path, order, is_signed=True) as program:
            eventually(lambda: len(web.asked("old")) > 1, "it is refused")
            new = json.dumps({"first": 0, "addresses": [web.put("new", CONTENT)]}).encode() + b"\n"
            assert program.stdin is not None
            assert program.stdout is not None
            program.stdin.write(new)
            program.stdin.flush()  # and it is not closed: it would end
            said = program.stdout.read()
        assert json.loads(said.splitlines()[-1]) == {"end": "done"}
        assert [asked["Range"] for asked in web.asked("new")] == ["bytes=3-"]

    @pytest.mark.parametrize("is_signed", [True, False])
    def test_one_that_never_worked_or_is_not_signed_is_given_up(
        self, tmp_path: Path, web: WebServer, is_signed: bool
    ) -> None:
        faults = [Status(403)] if is_signed else [Cut(3), Status(403)]
        order = fetching(web.put("a", CONTENT, *faults)).order()
        with self.program(tmp_path, order, is_signed=is_signed) as program:
            assert program.stdout is not None
            said = json.loads(program.stdout.read().splitlines()[-1])
        assert said == {"end": "failed", "index": 0, "message": "the server answered 403 Forbidden"}


def test_the_program_keeps_its_connections_where_servers_have_the_files(tmp_path: Path, web: WebServer) -> None:
    faults: dict[int, Fault] = {7: Cut(3), 20: Status(503), 30: Redirect("/elsewhere.bin")}
    web.put("elsewhere.bin", CONTENT)
    plain = [web.put(f"{number}.bin", CONTENT) for number in range(40)]
    order = fetching(*plain).order()
    assert isinstance(order, bytes)
    command = [sys.executable, "-I", str(node_fetch.__file__), str(tmp_path)]
    facts = json.dumps({**json.loads(order), "connections": 2, "pause_s": 0.01}).encode() + b"\n"
    for most, faulty in ((2, {}), (100, faults)):
        opened = web.opened
        for number, fault in faulty.items():
            web.faults[f"/{number}.bin"] = [fault, None]
        with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as program:
            assert program.stdin is not None
            assert program.stdout is not None
            program.stdin.write(facts)
            program.stdin.flush()
            assert json.loads(program.stdout.read().splitlines()[-1]) == {"end": "done"}
        assert {path.read_bytes() for path in tmp_path.iterdir()} == {CONTENT}
        assert web.opened - opened <= most


@pytest.mark.parametrize("name", ["../victim", "a/../../victim", "/victim"])
def test_a_node_writes_nothing_outside_of_the_tree(tmp_path: Path, web: WebServer, name: str) -> None:
    order = fetching(web.put("a.bin", CONTENT)).order()
    assert isinstance(order, bytes)
    facts = json.loads(order)
    facts["files"][0][1] = name
    (tree := tmp_path / "tree").mkdir()
    command = [sys.executable, "-I", str(node_fetch.__file__), str(tree)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as program:
        assert program.stdin is not None
        assert program.stdout is not None
        program.stdin.write(json.dumps(facts).encode() + b"\n")
        program.stdin.flush()
        said = json.loads(program.stdout.read().splitlines()[-1])
    assert said == {"end": "failed", "index": 0, "message": f"a file may not be named '{name}'"}
    assert not list(tmp_path.rglob("victim"))


@pytest.mark.parametrize("tells_whole", [True, False])
def test_the_program_puts_parts_shorter_than_asked_for_together(
    tmp_path: Path, web: WebServer, *, tells_whole: bool
) -> None:
    web.longest_range, web.tells_whole = 2, tells_whole
    order = fetching(web.put("a.bin", CONTENT, Cut(2), None)).order()
    assert isinstance(order, bytes)
    command = [sys.executable, "-I", str(node_fetch.__file__), str(tmp_path)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as program:
        assert program.stdin is not None
        assert program.stdout is not None
        program.stdin.write(json.dumps({**json.loads(order), "tries": 2, "pause_s": 0.01}).encode() + b"\n")
        program.stdin.flush()
        assert json.loads(program.stdout.read().splitlines()[-1]) == {"end": "done"}
    assert (tmp_path / "0.bin").read_bytes() == CONTENT
    assert [asked.get("Range") for asked in web.asked("a.bin")] == [None, "bytes=2-", "bytes=4-", "bytes=6-"]


def test_the_program_fetches_again_what_may_have_been_cut_where_no_length_is_told(
    tmp_path: Path, web: WebServer
) -> None:
    web.tells_size = False
    order = fetching(web.put("a.bin", CONTENT, Cut(3), None)).order()
    assert isinstance(order, bytes)
    facts = json.loads(order)
    facts["files"][0][2] = -1
    command = [sys.executable, "-I", str(node_fetch.__file__), str(tmp_path)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as program:
        assert program.stdin is not None
        assert program.stdout is not None
        program.stdin.write(json.dumps({**facts, "pause_s": 0.01}).encode() + b"\n")
        program.stdin.flush()
        assert json.loads(program.stdout.read().splitlines()[-1]) == {"end": "done"}
    assert (tmp_path / "0.bin").read_bytes() == CONTENT


def test_the_program_ends_when_it_hears_nothing(tmp_path: Path, web: WebServer) -> None:
    one = fetching(web.put("a.bin", CONTENT, Hang(1)))
    order = one.order()
    assert isinstance(order, bytes)
    facts = json.dumps({**json.loads(order), "beat_s": 1}).encode()
    command = [sys.executable, "-I", str(node_fetch.__file__), str(tmp_path)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as program:
        assert program.stdin is not None
        program.stdin.write(facts + b"\n")
        program.stdin.flush()  # and it is not closed: a machine that has lost its power says nothing
        try:
            assert program.wait(60) == 1
        finally:
            program.kill()


def test_who_keeps_the_container_looks_before_it_ends(monkeypatch: pytest.MonkeyPatch) -> None:
    now, others = [0.0], [True, True, True, False]

    def sleep(_: float) -> None:
        now[0] += 5.0  # it has not had the processor for longer than it would stay alone

    monkeypatch.setattr(node_keep, "time", SimpleNamespace(monotonic=lambda: now[0], sleep=sleep))
    monkeypatch.setattr(node_keep, "has_others", lambda: others.pop(0))
    node_keep.main(1.0, 1.0)
    assert others == []


@pytest.mark.root
@pytest.mark.xdist_group("cluster")
class TestOnAnEngine:
    @pytest.fixture
    def api(self, docker_engine: Daemon) -> DockerApi:
        return DockerApi(docker_engine.host)

    def containers(self, api: DockerApi, one: Fetching) -> list[str]:
        return [found["Id"] for found in api.with_labels({"tfjob.run": one.key.id})]

    @pytest.mark.parametrize("is_used", [False, True], ids=["before the program", "after it"])
    def test_a_container_that_was_left_alone_ends(
        self, api: DockerApi, test_base: str, monkeypatch: pytest.MonkeyPatch, is_used: bool
    ) -> None:
        monkeypatch.setattr(module, "_UNUSED_S", 600.0 if is_used else 1.0)
        monkeypatch.setattr(module, "_LEFT_S", 1.0)
        one = fetching("http://host/a", image=test_base)
        try:
            with module._container(one, api, one.tree.name) as container:
                if is_used:
                    works = "import time; time.sleep(2); print('lived')"
                    stream = api.execute(container, ["python3", "-c", works], timeout_s=30)
                    assert stream.read_frame() == (STDOUT, b"lived\n")
                    stream.close()
                eventually(lambda: not self.containers(api, one), "the container has ended")
        finally:
            api.remove_volume(one.tree.name)

    def test_a_cancel_just_as_it_begins_ends_it(
        self, api: DockerApi, test_base: str, web: WebServer, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        one = fetching(web.put("a.bin", CONTENT, Hang(1)), image=test_base)
        execute = DockerApi.execute

        def late(self: DockerApi, container: str, argv: list[str], *, timeout_s: float) -> object:
            one.give_up()  # sees no stream yet
            return execute(self, container, argv, timeout_s=timeout_s)

        monkeypatch.setattr(DockerApi, "execute", late)
        with pytest.raises(Exception, match="says nothing any more"):
            module._fetch_on(one, ("node1", api))
        assert self.containers(api, one) == []
        assert on_node(api, [one.tree]) == {}
        begun = len(web.requests)
        assert module._fetch_on(one, ("node1", api)).args == ("given up",)  # type: ignore[union-attr]
        assert len(web.requests) == begun

    def test_what_takes_long_goes_on_by_addresses_signed_anew(
        self, api: DockerApi, test_base: str, web: WebServer, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        old, new = web.put("old", CONTENT, Cut(3), Status(403)), web.put("new", CONTENT)
        monkeypatch.setattr("tfjob.datasets.stores.signed_address", lambda *_: new if web.asked("old") else old)
        for name, value in {"_SAY_S": 0.1, "_ANEW_S": 0.1}.items():
            monkeypatch.setattr(module, name, value)
        one = fetching("s3://bucket/a", image=test_base)
        (volume,) = fetch_on_nodes(one, [("node1", api)])
        assert on_node(api, [one.tree]) == {one.tree.digest: volume}
        assert [asked["Range"] for asked in web.asked("new")] == ["bytes=3-"]
        api.remove_volume(str(volume))

    def test_who_waits_for_another_run_says_so(self, api: DockerApi) -> None:
        other, one = fetching("http://host/a"), fetching("http://host/a")
        one.tree = other.tree
        assert module._whose_turn(other, api) == ""
        one.given_up.set()
        try:
            assert str(module._fetch_on(one, ("node1", api))) == "given up"
            assert f"node1 waits for run {other.key.id} of ann@desk, which fetches it" in one.progress
        finally:
            api.remove_volume(module._turn(other.tree))
