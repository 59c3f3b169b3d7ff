"""What engines do when those whom they ask or tell take their time: the Docker Engine, the first process of a container."""

from __future__ import annotations

import signal
import subprocess
import time
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, Any, cast

import pytest
from engines.engine_bench import plan, task
from support import kill

from tfjob.engines import docker, docker_handle, process
from tfjob.engines.docker_handle import Container, DockerHandle
from tfjob.engines.namespaces import HostProcess, has_child
from tfjob.engines.reports import KILLED, End
from tfjob.errors import TargetError
from tfjob.rundir import RunDirectory

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

    from tfjob.dockerapi.api import DockerApi
    from tfjob.planning.plan import TaskPlan

RANKS = [task("true", name=f"rank-{number}", launched=True) for number in range(2)]


class SlowEngine:
    """A Docker Engine that takes 5 s for a word, and knows of a container that has ended."""

    def __init__(self) -> None:
        self.says_that_it_runs = False

    def wait(self, _container: str, timeout_s: float) -> None:
        if timeout_s < 5:
            raise TargetError("no Docker Engine answers")

    def state(self, container: str, timeout_s: float = 60.0) -> dict[str, Any]:
        self.wait(container, timeout_s)
        return {"Running": self.says_that_it_runs, "OOMKilled": False, "ExitCode": 137}


@pytest.fixture
def handle(tmp_path: Path) -> DockerHandle:
    launcher = task("true", name="launcher")
    api = cast("DockerApi", SlowEngine())
    return DockerHandle(plan(*RANKS, launcher=launcher), RunDirectory(tmp_path), api=api)


def test_a_slow_word_of_how_a_container_ended_is_waited_for(handle: DockerHandle) -> None:
    handle.containers["launcher"] = Container("c", None)
    assert handle.plan.launcher is not None
    found = docker_handle._explain(handle, handle.plan.launcher, End(KILLED))
    assert found == End(KILLED, signal=signal.SIGKILL)


def test_an_engine_that_says_nothing_of_one_is_not_waited_for_long_with_each(
    handle: DockerHandle, monkeypatch: pytest.MonkeyPatch
) -> None:
    waited_s: list[float] = []

    def wait(_engine: SlowEngine, _container: str, timeout_s: float) -> None:
        waited_s.append(timeout_s)
        raise TargetError("no Docker Engine answers")

    monkeypatch.setattr(SlowEngine, "wait", wait)
    handle.containers["launcher"] = Container("c", None)
    assert handle.plan.launcher is not None
    for _ in range(3):
        found = docker_handle._explain(handle, handle.plan.launcher, End(KILLED))
        assert found == End(f"{KILLED}; no Docker Engine answers")
    assert waited_s == [docker_handle._EXPLAIN_S, docker_handle._QUICK_S, docker_handle._QUICK_S]


@pytest.mark.parametrize("runs", [False, True])
def test_a_container_is_looked_at_once_more_when_the_time_for_it_is_over(
    runs: bool, handle: DockerHandle, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(docker, "_UNSEEN_S", 0.0)
    cast("SlowEngine", handle.api).says_that_it_runs = runs
    assert docker._goes_on_unseen(handle.api, "c") == runs


def test_who_has_started_another_is_told_from_who_has_not() -> None:
    waits = "read line; sleep 60 & echo begun; wait"
    with subprocess.Popen(["sh", "-c", waits], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as parent:
        assert not has_child(parent.pid)
        assert parent.stdin is not None
        assert parent.stdout is not None
        parent.stdin.write("go\n")
        parent.stdin.flush()
        assert parent.stdout.readline() == "begun\n"
        assert has_child(parent.pid)
        (child,) = Path(f"/proc/{parent.pid}/task/{parent.pid}/children").read_text().split()
        kill(parent.pid, int(child))


@pytest.mark.parametrize("engine", [process, docker], ids=["process", "docker"])
def test_a_task_that_starts_while_others_end_is_told_too_and_nobody_twice(
    engine: ModuleType, handle: DockerHandle, monkeypatch: pytest.MonkeyPatch
) -> None:
    signalled: list[int] = []
    looks = {"rank-0": [True, True, True, False], "rank-1": [False, True, True, False]}

    def living(_handle: object, tasks: Iterable[TaskPlan]) -> Iterator[HostProcess | int]:
        for one in tasks:
            if looks[one.name].pop(0):
                yield RANKS.index(one) if engine is process else HostProcess(RANKS.index(one), 0)

    monkeypatch.setattr(engine, "_living" if engine is process else "living", living)
    monkeypatch.setattr(engine, "signal_process", lambda pid, _: signalled.append(pid))
    engine._ask_to_end(handle, RANKS, time.monotonic() + 60)
    assert signalled == [0, 1]
    assert looks == {"rank-0": [], "rank-1": []}


def test_a_first_process_is_told_once_it_can_pass_it_on(handle: DockerHandle, monkeypatch: pytest.MonkeyPatch) -> None:
    happened: list[str] = []
    first, launcher = HostProcess(1, 0), handle.plan.launcher
    handle.containers["launcher"] = Container("c", first)

    def has_child(_pid: int) -> bool:
        happened.append("asked")
        return len(happened) == 3

    def living(*_: object) -> Iterator[HostProcess]:
        if "told" not in happened:
            yield first

    monkeypatch.setattr(docker, "living", living)
    monkeypatch.setattr(docker, "has_child", has_child)
    monkeypatch.setattr(docker, "signal_process", lambda *_: happened.append("told"))
    assert launcher is not None
    docker._ask_to_end(handle, [launcher], time.monotonic() + 60)
    assert happened == ["asked", "asked", "asked", "told"]
