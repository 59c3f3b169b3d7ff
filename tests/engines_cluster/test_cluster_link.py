"""The connection to a node, with an engine and an agent that do as they are told."""

from __future__ import annotations

import errno
import json
import queue
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, cast

import pytest
from support import eventually

from tfjob.dockerapi.api import DockerApi
from tfjob.dockerapi.stream import STDOUT
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
