"""A run whose tasks are on other machines: what its supervisor leaves to the engine, and what it does when it comes back."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import pytest
from engines.engine_bench import plan, task
from runs import elsewhere
from support import eventually, kill, processes_of

from tfjob.durable import replace_json, replace_text
from tfjob.engines.base import Allocation
from tfjob.planning.plan import Plan, RetriesPlan
from tfjob.rundir import RunDirectory
from tfjob.runs.allocated import described
from tfjob.runs.record import Record, iso, read_record, write_record
from tfjob.targets.target import Node
from tfjob.values import encode

Supervise = Callable[..., "subprocess.Popen[bytes]"]


@pytest.fixture
def run(tmp_path: Path) -> Iterator[RunDirectory]:
    run = RunDirectory(tmp_path / f"far-{os.getpid()}")
    for directory in (run.logs, run.tasks):
        directory.mkdir(parents=True)
    yield run
    kill(*processes_of(run.id))


@pytest.fixture
def supervise(run: RunDirectory) -> Iterator[Supervise]:
    """Start a supervisor of the run; with a plan, of a run that begins. `bring` says what happens on the way."""
    processes: list[subprocess.Popen[bytes]] = []

    def supervise(begun: Plan | None = None, bring: str = "") -> subprocess.Popen[bytes]:
        if begun:
            replace_json(run.plan, encode(begun))
            record = Record(run.id, "far", "far", "Preparing", iso(time.time()), str(run.path), "far")
            write_record(run, record)
        (run.path / "bring").write_text(bring)
        with run.supervisor_log.open("ab") as log:
            command = [sys.executable, elsewhere.__file__, str(run.path)]
            processes.append(subprocess.Popen(command, stdout=log, stderr=log))
        return processes[-1]

    yield supervise
    for process in processes:
        process.kill()
        process.wait()


def ended(run: RunDirectory, process: subprocess.Popen[bytes]) -> Record:
    assert process.wait(timeout=60) == 0
    return read_record(run)


def is_at(run: RunDirectory, message: str) -> None:
    eventually(lambda: run.events.exists() and message in run.events.read_text(), message)


def test_the_engine_brings_things_while_the_run_is_scaling(run: RunDirectory, supervise: Supervise) -> None:
    supervisor = supervise(plan(task("echo here; echo x > ../../outputs/x")), bring="wait")
    is_at(run, "bringing code to node far")
    record = read_record(run)
    assert (record.state, [one.node for one in record.tasks]) == ("Scaling", ["far"])
    assert not run.work("main").exists()
    (run.path / "bring").write_text("")
    record = ended(run, supervisor)
    assert (record.state, [phase.name for phase in record.phases]) == (
        "Completed",
        ["Preparing", "Scaling", "Running", "Finalizing"],
    )
    assert run.log("main").read_text() == "here\n"
    assert record.output_count == 1


def test_it_can_be_canceled_while_things_are_brought(run: RunDirectory, supervise: Supervise) -> None:
    supervisor = supervise(plan(task("true")), bring="wait")
    is_at(run, "bringing code")
    replace_text(run.cancel_request, "enough")  # it must not be seen before its content
    record = ended(run, supervisor)
    assert (record.state, record.failure and record.failure.message) == ("Canceled", "enough")


def test_a_supervisor_that_dies_while_things_are_brought_is_followed_by_another_attempt(
    run: RunDirectory, supervise: Supervise
) -> None:
    supervisor = supervise(
        plan(task("echo $TFJOB_RESTART_COUNT", env=(("TFJOB_RESTART_COUNT", "${{ restart.count }}"),))), "wait"
    )
    is_at(run, "bringing code")
    supervisor.kill()
    supervisor.wait()
    record = ended(run, supervise())
    assert record.state == "Completed"
    assert [attempt.failure.message for attempt in record.attempts] == [
        "its supervisor died while the tasks were being started"
    ]
    assert run.log("main").read_text() == "tfjob: this is attempt 2\n1\n"


@pytest.mark.parametrize("retries", [None, RetriesPlan(1, ("node_lost",)), RetriesPlan(1, ("failure",))])
def test_a_node_lost_while_things_are_brought_is_a_reason_to_try_again(
    run: RunDirectory, supervise: Supervise, retries: RetriesPlan | None
) -> None:
    record = ended(run, supervise(plan(task("echo well"), retries=retries), bring="lose"))
    if retries and "node_lost" in retries.on:
        assert (record.state, record.exit_code) == ("Completed", 0)
        (attempt,) = record.attempts
        assert (attempt.nodes, attempt.started, attempt.failure.kind) == (("far",), None, "node_lost")
    else:
        assert (record.state, record.exit_code, record.attempts) == ("Failed", 5, ())
        assert record.failure is not None
        assert record.failure.message == "node far can't be reached any more"


def test_no_attempt_begins_beside_one_that_could_not_be_ended(run: RunDirectory, supervise: Supervise) -> None:
    record = ended(run, supervise(plan(task("exit 3"), retries=RetriesPlan(2, ("failure",))), bring="fail"))
    assert (record.state, record.exit_code, len(record.attempts)) == ("Failed", 5, 1)
    assert record.failure is not None
    assert record.failure.message == "attempt 1 could not be ended, and another must not run beside it"
    assert "the node does not answer" in run.supervisor_log.read_text()
    assert run.restart_count == 0


def test_a_restart_of_the_supervisors_machine_does_not_end_what_runs_elsewhere(
    run: RunDirectory, supervise: Supervise
) -> None:
    supervisor = supervise(plan(task("echo begun; until [ -e go ]; do sleep 0.02; done; echo done")))
    eventually(lambda: run.log("main").exists() and run.log("main").read_text(), "it has begun")
    eventually(lambda: read_record(run).state == "Running", "it is running")
    supervisor.kill()
    supervisor.wait()
    found = json.loads(run.record.read_bytes())
    found["supervisor"]["boot_id"] = "another"
    replace_json(run.record, found)
    second = supervise()
    is_at(run, "found running and adopted")
    (run.work("main") / "go").touch()
    record = ended(run, second)
    assert (record.state, record.takeovers, record.attempts) == ("Completed", 1, ())
    assert run.log("main").read_text() == "begun\ndone\n"


@pytest.mark.parametrize(
    ("gpus", "said"),
    [
        ([(), (), ()], "6 tasks on n0, n1 and n2"),
        ([(0, 1, 2, 3)] * 3, "6 tasks on n0, n1 and n2, GPUs 0-3 each"),
        ([(3,)] * 2, "4 tasks on n0 and n1, GPU 3 each"),
        ([(0, 2)], "2 tasks on n0, GPUs 0, 2"),
        ([(0, 1), (5,), ()], "6 tasks on n0 (GPUs 0, 1), n1 (GPU 5) and n2 (no GPU)"),
    ],
)
def test_what_a_run_has_got_is_said_in_a_line(gpus: list[tuple[int, ...]], said: str) -> None:
    nodes = tuple(Node(f"n{number}", "") for number in range(len(gpus)))
    tasks = [replace(task("true", name=f"rank-{n}"), node=n // 2) for n in range(2 * len(nodes))]
    held = {one.name: gpus[one.node] for one in tasks}
    assert described(plan(*tasks), Allocation(nodes, held)) == said
