"""What is the process engine's own."""

from __future__ import annotations

import json
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from engines.engine_bench import Bench, task
from support import eventually, free_ports, processes_of

from tfjob.datasets.files import find_files
from tfjob.datasets.placing import place
from tfjob.engines import process, room
from tfjob.engines.inherited import base_path, inherited_environment
from tfjob.errors import TargetError
from tfjob.planning.make import make_plan
from tfjob.planning.plan import DatasetPlan
from tfjob.resolve import ResolvedJob
from tfjob.spec.expressions import escape
from tfjob.spec.job import JobSpec
from tfjob.targets.target import Node, Target

MakeBench = Callable[..., Bench]
ODD = ["", " ", "a b", "quote\"'", "two\nlines\n", "\r", "\t", "$HOME `x` $(x)", "${{ run.id }}", "$${{", "$$", "}}"]
ODD += ["ä€🙂", "\\", "\\n", "*", "-n", "{}", "%s", "\x01\x7f"]


@pytest.fixture
def engine_name() -> str:
    return "process"


def exit_code(bench: Bench, name: str = "main") -> int | None:
    eventually(lambda: bench.poll()[name].state == "ended", "the end")
    code: int | None = bench.poll()[name].exit_code
    return code


def test_arguments_and_variables_of_a_job_arrive_byte_for_byte(bench: MakeBench) -> None:
    spec = JobSpec(
        name="odd",
        experiment="odd",
        script="show $${{ it.py",
        arguments=tuple(escape(text) for text in ODD),
        environment_variables=tuple((f"ODD_{number}", escape(text)) for number, text in enumerate(ODD)),
    )
    target = Target("local", "local", (Node("here", "127.0.0.1"),))
    made = make_plan(ResolvedJob(spec, code=None, datasets=(), environment=None, target=target))
    run = bench(*made.tasks)
    (run.run.work("main") / "show $${{ it.py").write_text(
        "import json, os, sys\n"
        "odd = [os.environ[f'ODD_{number}'] for number in range(len(sys.argv) - 1)]\n"
        "json.dump([sys.argv[1:], odd], open('seen.json', 'w'))\n"
    )
    run.start()
    assert exit_code(run) == 0
    assert json.loads((run.run.work("main") / "seen.json").read_text()) == [ODD, ODD]


@pytest.mark.parametrize(
    ("mode", "kind", "expected"),
    [
        ("mount", "directory", "datasets/digits"),
        ("mount", "file", "datasets/digits/a.gz"),
        ("download", "directory", "datasets/main/digits"),
        ("download", "file", "datasets/main/digits/a.gz"),
    ],
)
def test_a_dataset_is_where_its_expression_says(
    bench: MakeBench, tmp_path: Path, mode: str, kind: str, expected: str
) -> None:
    (tmp_path / "a.gz").write_text("digits")
    found = find_files([str(tmp_path / "a.gz")])
    dataset = DatasetPlan("digits", kind, mode, found.digest, 1, 6, found.files)
    run = bench(task("cat", "${{ dataset.digits }}" + ("" if kind == "file" else "/a.gz")), datasets=(dataset,))
    at = run.run.path / expected
    place(found.files, at.parent if kind == "file" else at, copy=mode == "download")
    run.start()
    assert exit_code(run) == 0
    assert run.log() == "digits"


def test_a_task_that_was_never_started_does_not_keep_its_run_waiting(
    bench: MakeBench, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(process, "_START_S", 3600.0)
    run = bench(task("true"))
    run.handle = run.engine.adopt(run.plan, run.run)
    assert run.poll()["main"].state == "pending"
    monkeypatch.setattr(process, "_START_S", 0.0)
    eventually(lambda: run.poll()["main"].state == "ended", "its end")
    status = run.poll()["main"]
    assert status.failed
    assert status.note == "it was never started: the supervisor died before"


def test_tasks_are_started_all_or_none(bench: MakeBench, monkeypatch: pytest.MonkeyPatch) -> None:
    run = bench(*(task("sleep 60", name=name) for name in "abc"))
    popen, calls = subprocess.Popen, []

    def fail_at_the_third(*arguments: Any, **keys: Any) -> Any:
        calls.append(arguments)
        if len(calls) == 3:
            raise BlockingIOError(
                11, "Resource temporarily unavailable"
            )  # as fork(2) when there are too many processes
        return popen(*arguments, **keys)

    monkeypatch.setattr(subprocess, "Popen", fail_at_the_third)
    with pytest.raises(BlockingIOError):
        run.start()
    assert processes_of(run.run.id) == []


def test_a_task_whose_watcher_is_killed_ends_with_it(bench: MakeBench) -> None:
    run = bench(task("exec sleep 60"))
    run.start()
    eventually(lambda: run.poll()["main"].state == "running", "the start")
    run.handle.children["main"].send_signal(signal.SIGKILL)
    eventually(lambda: run.poll()["main"].state == "ended", "its end")
    status = run.poll()["main"]
    assert (status.signal, status.failed) == (signal.SIGKILL, True)
    assert "killed together with the process that watched it" in status.note
    assert run.poll()["main"] == status
    run.stop()
    assert run.poll()["main"] == status
    eventually(lambda: processes_of(run.run.id) == [], "the end of the command")


def test_a_stop_that_is_in_a_hurry_does_not_wait_for_the_plans_grace(bench: MakeBench) -> None:
    run = bench(task("trap '' TERM; echo >ready; while :; do sleep 0.05; done"), grace_s=300)
    run.start()
    eventually((run.run.work("main") / "ready").exists, "the start")
    begun = time.monotonic()
    run.stop(0.1)
    assert time.monotonic() - begun < 60
    assert run.poll()["main"].state == "ended"
    assert processes_of(run.run.id) == []


def test_a_watcher_that_is_slow_to_end_its_task_still_says_how_it_ended(bench: MakeBench) -> None:
    run = bench(task("trap 'exit 9' TERM; echo >ready; while :; do sleep 0.05; done"), grace_s=0.5)
    run.start()
    eventually((run.run.work("main") / "ready").exists, "that it can be told to end")
    watcher = run.handle.children["main"]
    watcher.send_signal(signal.SIGSTOP)
    goes_on = threading.Timer(4.0, watcher.send_signal, [signal.SIGCONT])
    goes_on.start()
    run.stop()
    goes_on.join()
    status = run.poll()["main"]
    assert (status.exit_code, status.stopped) == (9, True)


def test_a_port_that_somebody_listens_on_is_not_taken(bench: MakeBench, monkeypatch: pytest.MonkeyPatch) -> None:
    (port,) = free_ports(1)  # that nobody is given between the two
    with socket.create_server(("127.0.0.1", port)):
        monkeypatch.setattr(room, "PORTS", range(port, port + 1))
        run = bench(task("true", port="main"))
        with pytest.raises(TargetError, match=f"no free port between {port} and {port} on here"):
            run.acquire()
    assert run.acquire().ports == {"main": port}


def test_a_port_that_was_leased_but_not_used_is_not_taken(bench: MakeBench, monkeypatch: pytest.MonkeyPatch) -> None:
    free = set(free_ports(1000))  # none of those that runs of other tests are given
    first = next(port for port in free if port + 1 in free)
    monkeypatch.setattr(room, "PORTS", range(first, first + 2))
    taken = [bench(task("true", port="main")).acquire().ports["main"] for _ in range(2)]
    assert sorted(taken) == [first, first + 1]
    with pytest.raises(TargetError, match="no free port"):
        bench(task("true", port="main")).acquire()


@pytest.mark.parametrize(
    ("environ", "path"),
    [
        ({"PATH": "/venv/bin:/usr/bin", "VIRTUAL_ENV": "/venv"}, "/usr/bin"),
        ({"PATH": "/venv-2/bin:/usr/bin", "VIRTUAL_ENV": "/venv"}, "/venv-2/bin:/usr/bin"),
        ({"PATH": "/venv/bin:/usr/bin"}, "/venv/bin:/usr/bin"),
        ({"PATH": "/usr/bin::/bin:"}, "/usr/bin:/bin"),
    ],
)
def test_the_active_virtual_environment_is_not_on_the_path(environ: dict[str, str], path: str) -> None:
    assert base_path(environ) == path


def test_a_task_inherits_the_machine_and_its_secrets_only() -> None:
    environ = {"HOME": "/home/me", "LC_ALL": "C", "https_proxy": "p", "TOKEN": "t", "PS1": "$", "PATH": "/bin"}
    assert inherited_environment(environ, ("TOKEN", "NOT_SET")) == {
        name: value for name, value in environ.items() if name != "PS1"
    }


def test_the_entrypoint_runs_by_the_python_of_tfjob(bench: MakeBench) -> None:
    run = bench(task("true"))
    run.start()
    assert run.handle.children["main"].args[0] == sys.executable
    assert exit_code(run) == 0
