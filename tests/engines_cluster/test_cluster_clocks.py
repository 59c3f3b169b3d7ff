"""Nodes whose clocks go wrong: what they write is put right when it comes in."""

from __future__ import annotations

import json
import time
from pathlib import Path

import pytest

from tfjob.dockerapi.api import DockerApi
from tfjob.engines.cluster import clocks
from tfjob.engines.cluster.clocks import NodeClock
from tfjob.engines.cluster.home import Home
from tfjob.engines.cluster.link import NodeLink, NodeTasks
from tfjob.rundir import RunDirectory


class Wall:
    """This machine's clock, which a test sets."""

    def __init__(self) -> None:
        self.now = 1000.0

    def time(self) -> float:
        return self.now


@pytest.fixture
def wall(monkeypatch: pytest.MonkeyPatch) -> Wall:
    found = Wall()
    monkeypatch.setattr(clocks, "time", found)
    return found


def hear(clock: NodeClock, wall: Wall, ahead_s: float, delays_s: tuple[float, float], *, answers: bool = True) -> None:
    """Ask for the time, and hear it: so long it takes there, and back."""
    asked = wall.now
    wall.now += delays_s[0]
    theirs = wall.now + ahead_s
    wall.now += delays_s[1]
    clock.hear(theirs, asked if answers else None)


@pytest.mark.parametrize("ahead_s", [0.9, -0.9, 3600.0, -3600.0])
def test_the_quickest_words_say_how_wrong_it_is(wall: Wall, ahead_s: float) -> None:
    clock = NodeClock()
    for delays_s in ((0.4, 0.2), (0.002, 0.3), (0.5, 0.001), (0.3, 0.3)):
        hear(clock, wall, ahead_s, delays_s)
    assert clock.ahead_s == pytest.approx(ahead_s, abs=0.003)


def test_a_clock_that_may_be_right_is_left_alone(wall: Wall) -> None:
    clock = NodeClock()
    assert clock.ahead_s == 0
    for _ in range(5):
        hear(clock, wall, 0.01, (0.5, 0.5))
    assert clock.ahead_s == 0
    assert clock.by_ours('{"time": 5.0}') == '{"time": 5.0}'


def test_signs_of_life_alone_are_enough(wall: Wall) -> None:
    clock = NodeClock()
    for _ in range(100):  # answers are long ago by then
        hear(clock, wall, -120.0, (0.0, 0.01), answers=False)
    assert clock.ahead_s == pytest.approx(-120.0, abs=0.02)
    for _ in range(100):
        hear(clock, wall, 0.0, (0.0, 0.01), answers=False)
    assert clock.ahead_s == 0  # it may be right


def test_words_that_are_late_for_minutes_are_no_clock_that_is_wrong(wall: Wall) -> None:
    """As while outputs are sent: what is said unasked waits until there is room for it."""
    clock = NodeClock()
    hear(clock, wall, 0.0, (0.01, 0.01))
    for _ in range(100):
        hear(clock, wall, 0.0, (0.0, 4.0), answers=False)
    assert clock.ahead_s == 0
    never_asked = NodeClock()
    hear(never_asked, wall, 0.0, (0.0, 4.0), answers=False)
    assert never_asked.ahead_s == 0


def test_a_clock_that_is_set_meanwhile_is_believed_anew(wall: Wall) -> None:
    clock = NodeClock()
    hear(clock, wall, 100.0, (0.01, 0.01))
    hear(clock, wall, 0.0, (0.01, 0.01))
    assert clock.ahead_s == pytest.approx(0.0, abs=0.02)


def test_only_reports_have_their_time_put_right(wall: Wall) -> None:
    clock = NodeClock()
    hear(clock, wall, 100.0, (0.0, 0.0))
    report = json.dumps({"exit_code": 3, "time": 1100.5})
    assert json.loads(clock.by_ours(report)) == {"exit_code": 3, "time": 1000.5}
    for other in ("", "no JSON", "[1]", "{}", '{"time": "late"}'):
        assert clock.by_ours(other) == other


@pytest.mark.parametrize("ahead_s", [3600.0, -3600.0, 0.0])
def test_reports_come_home_with_times_by_our_clock(tmp_path: Path, ahead_s: float) -> None:
    run = RunDirectory(tmp_path)
    node = NodeTasks(0, "a", "127.0.0.1", "c", ("main",), (), "", "python3")
    link = NodeLink(DockerApi(f"unix://{tmp_path}/no.sock"), node, Home.of(run, ["main"]), 60.0, 30.0)
    hello = {"kind": "hello", "interface": "eth0", "subnet": "", "ports": []}
    link._take({**hello, "time": time.time() + ahead_s}, b"")  # as the link's thread does it
    begun = time.time()
    told = json.dumps({"pid": 1, "start_ticks": 2, "time": begun + ahead_s})
    link._take({"kind": "report", "task": "main", "name": "started.json", "content": told}, b"")  # the same
    found = run.read_task_file("main", "started.json")
    assert found is not None
    assert found == {"pid": 1, "start_ticks": 2, "time": pytest.approx(begun, abs=60)}
