"""What is left on nodes: of which runs and attempts it is, and that it is removed."""

from __future__ import annotations

import json
import threading
from pathlib import Path
from typing import Any

import pytest
from support import eventually

from tfjob.dockerapi.api import DockerApi
from tfjob.engines.cluster import room
from tfjob.engines.cluster.clean import is_left, know_runs, remove_left
from tfjob.engines.cluster.leases import RunKey, Sight


@pytest.fixture
def runs(tmp_path: Path) -> Path:
    (tmp_path / "runs").mkdir()
    return tmp_path / "runs"


def labels(runs: Path, run: str, attempt: int | None = None) -> dict[str, str]:
    own = {"tfjob.run": run, "tfjob.workspace": know_runs(runs)}
    return own if attempt is None else {**own, "tfjob.attempt": str(attempt)}


def record(runs: Path, run: str, **facts: Any) -> None:
    (runs / run).mkdir(exist_ok=True)
    (runs / run / "record.json").write_text(json.dumps(facts))


def test_an_attempt_that_is_over_is_left_while_its_run_goes_on(runs: Path) -> None:
    record(runs, "fox", state="Running", attempts=[])
    assert not is_left(labels(runs, "fox", 1))
    record(runs, "fox", state="Scaling", attempts=[{"number": 1}])
    assert not is_left(labels(runs, "fox", 1))  # it failed, and ends in its order
    (runs / "fox" / "attempts" / "1").mkdir(parents=True)
    assert is_left(labels(runs, "fox", 1))
    assert not is_left(labels(runs, "fox", 2))
    assert not is_left(labels(runs, "fox"))  # its claims are the next attempt's, too


def test_of_a_run_that_is_over_everything_is_left(runs: Path) -> None:
    record(runs, "fox", state="Failed", attempts=[])
    assert is_left(labels(runs, "fox", 1))
    assert is_left(labels(runs, "fox"))
    assert is_left(labels(runs, "gone"))
    assert not is_left({"tfjob.run": "fox", "tfjob.workspace": "another's"})


def test_the_gpus_of_an_attempt_that_still_runs_are_not_the_next_ones(runs: Path) -> None:
    record(runs, "fox", state="Scaling", attempts=[{"number": 1}])
    (runs / "fox" / "attempts" / "1").mkdir(parents=True)
    key = RunKey("fox", know_runs(runs))

    def sight(attempt: int, state: str) -> Sight:
        found = {"Id": "c1", "State": state, "Labels": {**labels(runs, "fox", attempt), "tfjob.gpus": "0,2"}}
        return Sight({}, frozenset(), frozenset(), (), 1, (found,))

    assert set(room._left_of(key, sight(1, "running"))) == {0, 2}
    assert room._left_of(key, sight(1, "exited")) == room._left_of(key, sight(2, "running")) == {}


class Broken(DockerApi):
    """An engine whose connections can't be opened here."""

    def __init__(self) -> None:
        super().__init__("unix:///broken.sock")
        self.asked: list[str] = []

    def remove(self, container: str, timeout_s: float = 0.0) -> None:
        del timeout_s
        self.asked.append(container)
        raise OSError(24, "Too many open files", "cert.pem")


def test_what_can_not_be_removed_now_is_tried_again(runs: Path) -> None:
    record(runs, "fox", state="Failed", attempts=[])
    found = tuple({"Id": name, "State": "running", "Labels": labels(runs, "fox", 1)} for name in ("c1", "c2"))
    api, key = Broken(), RunKey("other", know_runs(runs))

    def both_were_tried_twice() -> bool:
        remove_left(key, [(api, Sight({}, frozenset(), frozenset(), (), 1, found))])
        return all(list(api.asked).count(name) >= 2 for name in ("c1", "c2"))

    eventually(both_were_tried_twice, "that they are tried again at a later look")


class Stuck(DockerApi):
    """An engine that can't remove a container until it is told to."""

    def __init__(self) -> None:
        super().__init__("unix:///stuck.sock")
        self.may_end = threading.Event()
        self.asked: list[str] = []

    def remove(self, container: str, timeout_s: float = 0.0) -> None:
        self.asked.append(container)
        self.may_end.wait(timeout_s)

    def remove_volume(self, name: str, timeout_s: float = 0.0) -> None:
        del timeout_s
        self.asked.append(name)


def test_what_can_not_be_removed_is_asked_for_once_at_a_time(runs: Path) -> None:
    api, key = Stuck(), RunKey("owl", know_runs(runs))
    seen = [{"Id": "c1", "State": "running", "Labels": labels(runs, "gone", 1)}]
    kept = [{"Name": "v1", "Labels": labels(runs, "gone")}]
    for _ in range(3):
        remove_left(key, [(api, Sight({}, frozenset(), frozenset(), (), 0, tuple(seen), tuple(kept)))])
    eventually(lambda: api.asked, "that it is asked for")
    assert api.asked == ["c1"]
    api.may_end.set()
    eventually(lambda: len(api.asked) == 2, "the rest")

    def asked_again() -> bool:
        remove_left(key, [(api, Sight({}, frozenset(), frozenset(), (), 0, tuple(seen)))])
        return api.asked[:3] == ["c1", "v1", "c1"]

    eventually(asked_again, "that it is tried again at the next look")
