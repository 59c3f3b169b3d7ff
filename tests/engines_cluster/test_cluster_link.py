"""The connection to a node, with an engine and an agent that do as they are told."""

from __future__ import annotations

import errno
import json
import queue
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any, cast

import pytest
from support import eventually

from tfjob.dockerapi.api import DockerApi
from tfjob.dockerapi.stream import STDOUT
from tfjob.engines.cluster import link as module
from tfjob.engines.cluster.ended import Ended
from tfjob.engines.cluster.home import Home
from tfjob.engines.cluster.link import NodeLink, NodeTasks
from tfjob.errors import TargetError
from tfjob.rundir import RunDirectory


class Connection:
    """A connection to an agent: what is `said` comes out of it, what it is told is `heard`."""

    def __init__(self) -> None:
        self.heard: list[dict[str, Any]] = []
        self._frames: queue.Queue[bytes | None] = queue.Queue()

    def say(self, kind: str, data: bytes = b"", **facts: Any) -> None:
        self._frames.put(json.dumps({"kind": kind, "length": len(data), **facts}).encode() + b"\n" + data)

    def write(self, data: bytes) -> None:
        self.heard += [json.loads(line) for line in data.splitlines()]

    def read_frame(self) -> tuple[int, bytes] | None:
        frame = self._frames.get()
        return None if frame is None else (STDOUT, frame)

    def settimeout(self, timeout_s: float) -> None:
        pass

    def close(self) -> None:
        self._frames.put(None)


@dataclass
class Engine:
    """An engine that connects to an agent, or, asked how a container is, raises `trouble`. `told`: its calls, and their limits."""

    trouble: Exception | None = None
    running: bool = True
    connections: list[Connection] = field(default_factory=list)
    told: list[tuple[str, float]] = field(default_factory=list)

    def has(self, number: int) -> bool:
        return len(self.connections) > number

    def execute(self, _container: str, _argv: list[str], *, timeout_s: float) -> Connection:
        self.told.append(("execute", timeout_s))
        if self.trouble is not None:
            raise TargetError("nobody answers")
        self.connections.append(Connection())
        return self.connections[-1]

    def state(self, _container: str, timeout_s: float) -> dict[str, Any]:
        self.told.append(("state", timeout_s))
        if self.trouble is not None:
            raise self.trouble
        return {"Running": self.running}


@pytest.fixture
def home(tmp_path: Path) -> Home:
    run = RunDirectory(tmp_path / "runs" / "a-run")
    for directory in (run.outputs, run.user_logs, run.tasks):
        directory.mkdir(parents=True)
    return Home.of(run, ("main-0", "main-1"))


@pytest.fixture
def engine() -> Engine:
    return Engine()


@pytest.fixture
def link(engine: Engine, home: Home) -> Iterator[NodeLink]:
    node = NodeTasks(0, "node1", "", "c", ("main-0",), (), "", "python3")
    found = NodeLink(cast("DockerApi", engine), node, home, 2.0, 30.0)
    yield found
    found.close()


def opened(link: NodeLink, engine: Engine) -> Connection:
    """The first connection that it makes."""
    link.open()
    eventually(lambda: engine.connections and engine.connections[0].heard, "it is connected")
    return engine.connections[0]


@pytest.mark.parametrize(
    "trouble",
    [
        OSError(errno.ENOSPC, "No space left on device", "/tmp/x"),
        TargetError("it did not answer"),
        ValueError("Expecting value: line 1 column 1 (char 0)"),
    ],
    ids=lambda trouble: type(trouble).__name__,
)
def test_a_node_that_nothing_can_be_asked_of_is_lost_in_time(
    link: NodeLink, engine: Engine, trouble: Exception
) -> None:
    connection = opened(link, engine)
    engine.trouble = trouble
    connection.close()
    eventually(lambda: link.ended is not None, "it is lost")
    assert link.ended is not None
    assert link.ended.lost


def test_what_fails_here_for_a_moment_ends_nothing(link: NodeLink, engine: Engine) -> None:
    link.lost_s = 3600
    connection = opened(link, engine)
    engine.trouble = OSError(errno.EMFILE, "Too many open files", "/tmp/x")
    connection.close()
    eventually(lambda: [what for what, _ in engine.told].count("state") > 1, "it is looked for")
    engine.trouble = None
    eventually(lambda: len(engine.connections) > 1, "it is connected again")
    assert link.ended is None


@pytest.mark.parametrize(
    ("kind", "facts"),
    [
        ("log", {"path": "logs/main-0.log", "offset": 0}),
        ("file", {"path": "outputs/x", "size": 9, "mode": 0o644, "mtime_ns": 0, "last": False, "whole": False}),
        ("link", {"path": "outputs/link", "target": "x"}),
        ("directory", {"path": "outputs/empty"}),
        ("gone", {"path": "outputs/x"}),
        ("walking", {}),
    ],
)
def test_whatever_comes_of_what_a_node_has_is_waited_on_for(
    link: NodeLink, engine: Engine, kind: str, facts: dict[str, Any]
) -> None:
    connection = opened(link, engine)
    connection.say("beat")
    eventually(lambda: link.said("beat"), "it is heard")
    assert link._sent_last == 0.0
    connection.say(kind, b"x" if kind in {"log", "file"} else b"", **facts)
    eventually(lambda: link.said(kind), "it is heard")
    assert link._sent_last > 0.0


PART = {"path": "outputs/x", "size": 2, "mode": 0o644, "mtime_ns": 0}


class TestWhatFoundNoRoomHere:
    @pytest.fixture
    def connection(self, link: NodeLink, engine: Engine, monkeypatch: pytest.MonkeyPatch) -> Connection:
        monkeypatch.setattr(module, "_BLOCKED_S", 0.0)
        monkeypatch.setattr(module, "_RETRY_S", 0.01)
        link.lost_s = 3600
        return opened(link, engine)

    def beat(self, link: NodeLink, connection: Connection) -> None:
        """Have everything heard and acted on that was said before."""
        count = link.said("beat")
        connection.say("beat")
        connection.say("beat")
        eventually(lambda: link.said("beat") == count + 2, "it is heard")

    def test_is_sent_again_but_not_in_the_middle_of_a_file(
        self, link: NodeLink, engine: Engine, home: Home, connection: Connection
    ) -> None:
        connection.say("file", b"a", last=False, whole=False, **PART)
        eventually(lambda: link.said("file"), "half of it is here")
        home.unkept[0, "outputs/y"] = 0
        self.beat(link, connection)
        assert len(engine.connections) == 1
        connection.say("file", b"b", last=True, whole=True, **PART)
        eventually(lambda: len(engine.connections) > 1, "it begins again")
        assert (home.run.outputs / "x").read_text() == "ab"

    def test_is_not_sent_again_while_the_last_is_sent(
        self, link: NodeLink, engine: Engine, home: Home, connection: Connection
    ) -> None:
        link.tell("sync")
        home.unkept[0, "outputs/y"] = 0
        self.beat(link, connection)
        assert len(engine.connections) == 1

    def test_is_not_waited_for_long(self, link: NodeLink, home: Home, connection: Connection) -> None:
        home.close()
        connection.say("log", b"x", path="logs/main-0.log", offset=0)
        connection.say("file", b"ab", last=True, whole=True, **PART)
        eventually(lambda: link.said("file"), "it is heard")
        assert link._sent_last == 0.0


def test_a_file_that_begins_again_and_again_is_not_waited_for_for_ever(
    link: NodeLink, engine: Engine, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "_RETRY_S", 0.01)
    link.lost_s = 3600
    opened(link, engine)
    with ThreadPoolExecutor() as pool:
        synced = pool.submit(link.wait_for, "synced", 1, 3600)
        for number in range(100):
            if synced.done():
                break
            eventually(partial(engine.has, number), "it is connected")
            engine.connections[number].say("file", b"a", last=False, whole=False, **PART)
            engine.connections[number].close()
        assert not synced.result(60)


def test_no_call_takes_longer_than_until_the_node_is_lost(link: NodeLink, engine: Engine) -> None:
    link.lost_s = 3600
    connection = opened(link, engine)
    engine.trouble = TargetError("it did not answer")
    link._heard = time.monotonic() - 3593
    connection.close()
    eventually(lambda: link.ended is not None, "it is lost")
    assert link.ended is not None
    assert link.ended.lost
    assert {what for what, _ in engine.told[1:]} == {"execute", "state"}
    assert max(limit_s for _, limit_s in engine.told[1:]) <= 7


def test_who_finds_its_connection_closed_after_standing_still_listens_once_more(link: NodeLink, engine: Engine) -> None:
    link.lost_s = 3600
    connection = opened(link, engine)
    link._heard = link._more = time.monotonic() - 3700
    connection.close()
    eventually(lambda: len(engine.connections) > 1, "it is connected again")
    engine.connections[1].say("beat")
    eventually(lambda: link.silent_s < 3600, "it is heard")
    assert link.ended is None


def test_a_node_of_which_only_the_engine_answers_is_lost_after_one_more_time(
    link: NodeLink, engine: Engine, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "_SILENT_S", 0.5)
    link.lost_s = 3600
    connection = opened(link, engine)
    link._heard = link._more = time.monotonic() - 3700
    connection.close()
    eventually(lambda: len(engine.connections) > 1, "it is connected again")
    time.sleep(0.6)
    engine.connections[1].close()
    eventually(lambda: link.ended is not None, "it is lost")
    assert link.ended == Ended("node1 did not answer for 3600 s", lost=True)


def test_beats_of_a_container_that_was_told_to_end_tell_nothing_of_its_tasks(link: NodeLink, engine: Engine) -> None:
    connection = opened(link, engine)
    connection.say("leaving")
    eventually(lambda: link.said("leaving"), "it is heard")
    left = time.monotonic()
    connection.say("leaving")  # by another agent, after a connection that broke
    connection.say("beat")
    eventually(lambda: link.said("beat"), "it is heard")
    assert link.silent_s <= time.monotonic() - left <= link.mute_s(grace_s=3600)
    link._leaving_since = time.monotonic() - module._LEAVES_S - 1
    assert link.mute_s(grace_s=2) > module._LEAVES_S
    assert link.mute_s(grace_s=0) < module._LEAVES_S


def test_a_container_leaves_from_when_it_was_told_to_and_not_from_when_that_is_heard(
    link: NodeLink, engine: Engine
) -> None:
    connection = opened(link, engine)
    connection.say("beat", time=time.time() - 3600)
    connection.say("leaving", since=time.time() - 3600 - 5)
    eventually(lambda: link.said("leaving"), "it is heard")
    assert 4.9 < link.mute_s(grace_s=3600) - link.silent_s < 3600


def test_when_an_agent_looked_is_told_by_our_clock(link: NodeLink, engine: Engine) -> None:
    connection = opened(link, engine)
    connection.say("beat", time=time.time() + 3600)
    eventually(lambda: link.said("beat"), "it is heard")
    assert link.looked is None
    before = time.time()
    connection.say("beat", time=time.time() + 3600, looked=before + 3600 - 5)
    eventually(lambda: link.said("beat") == 2, "it is heard")
    assert link.looked is not None
    assert before - 5 <= link.looked < time.time()
    connection.say("beat", time=time.time() + 3600, looked=0.0)  # of another agent, which has not looked yet
    eventually(lambda: link.said("beat") == 3, "it is heard")
    assert link.looked >= before - 5
