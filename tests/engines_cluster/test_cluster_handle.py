"""How tasks are said to be whose nodes, or containers, are not there any more, or will not be for long."""

from __future__ import annotations

import json
import time
from dataclasses import replace
from typing import TYPE_CHECKING, cast

import pytest
from engines.engine_bench import plan, task

from tfjob.dockerapi.api import DockerApi
from tfjob.engines.cluster.ended import Ended
from tfjob.engines.cluster.handle import ClusterHandle, statuses_of
from tfjob.engines.cluster.home import Home
from tfjob.engines.cluster.link import NodeLink, NodeTasks
from tfjob.rundir import RunDirectory
from tfjob.runs.verdict import Verdict, judge

if TYPE_CHECKING:
    from pathlib import Path


class Gang:
    """Two tasks on two nodes. Nothing connects to them: what is heard of them is written into their links."""

    def __init__(self, run: RunDirectory) -> None:
        self.run = run
        tasks = [replace(task("true", name=f"worker-{index}"), node=index) for index in (0, 1)]
        self.handle = ClusterHandle(plan(*tasks), run)
        home = Home.of(run, ("worker-0", "worker-1"))
        for index in (0, 1):
            node = NodeTasks(index, f"node{index}", "", "c", (f"worker-{index}",), (), "", "python3")
            self.handle.links[index] = NodeLink(cast("DockerApi", None), node, home, 30.0, 30.0)
            self.report(f"worker-{index}", "started.json", pid=1, start_ticks=1, time=time.time())
        statuses_of(self.handle)
        self.seen: float | None = None

    def link(self, index: int) -> NodeLink:
        return self.handle.links[index]

    def report(self, name: str, kind: str, **facts: float | None) -> None:
        self.run.task(name).mkdir(parents=True, exist_ok=True)
        (self.run.task(name) / kind).write_text(json.dumps(facts))

    def fail(self, name: str, at: float) -> None:
        self.report(name, "exit.json", exit_code=1, signal=None, stopped=False, time=at)
        self.seen = at

    def heard(self, index: int, ago_s: float = 0.0) -> None:
        self.link(index)._heard = time.monotonic() - ago_s

    def verdict(self) -> Verdict | None:
        return judge(self.handle.plan, statuses_of(self.handle), None, 1.0, self.seen)


@pytest.fixture
def gang(tmp_path: Path) -> Gang:
    run = RunDirectory(tmp_path / "runs" / "a-run")
    run.tasks.mkdir(parents=True)
    return Gang(run)


def test_a_node_that_is_shut_down_is_to_blame_though_it_still_speaks_when_its_peer_fails(gang: Gang) -> None:
    gang.link(1)._leaving_since = time.monotonic() - 2
    gang.fail("worker-0", time.time() - 1)
    gang.heard(1)
    assert gang.verdict() is None
    gang.link(1).ended = Ended("node1 was shut down", lost=True)
    verdict = gang.verdict()
    assert verdict is not None
    assert verdict.status is not None
    assert (verdict.status.task, verdict.kind, verdict.message) == (
        "worker-1",
        "node_lost",
        "failed: node1 was shut down",
    )


def test_a_container_that_never_ends_is_not_waited_for_for_ever(gang: Gang) -> None:
    gang.link(1)._leaving_since = time.monotonic() - gang.handle.plan.limits.grace_period_s - 31
    gang.fail("worker-0", time.time() - 1)
    gang.heard(1)
    verdict = gang.verdict()
    assert verdict is not None
    assert verdict.status is not None
    assert verdict.status.task == "worker-0"


@pytest.mark.parametrize(
    ("ended", "message"),
    [
        (Ended("memory", out_of_memory=True), "failed: the kernel killed it: out of memory"),
        (Ended("its container was removed"), "failed: its container was removed"),
    ],
)
def test_a_container_that_dies_ended_when_its_agent_was_last_heard(gang: Gang, ended: Ended, message: str) -> None:
    gang.heard(1, ago_s=6.0)
    gang.fail("worker-0", time.time() - 5.0)
    gang.link(1).ended = ended
    verdict = gang.verdict()
    assert verdict is not None
    assert verdict.status is not None
    assert (verdict.status.task, verdict.kind, verdict.message) == ("worker-1", "failure", message)


def test_an_end_that_its_node_has_seen_and_not_told_yet_is_waited_for(gang: Gang) -> None:
    gang.link(1).looked = time.time() - 2
    gang.fail("worker-0", time.time() - 1)
    gang.heard(1)
    assert gang.verdict() is None
    gang.link(1).looked = time.time()
    assert gang.verdict() is not None
