"""The program of a job's first node before its tasks run, with a srun that is a script."""

from __future__ import annotations

import json
import os
import signal
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from engines_slurm.slurm_commands import commands
from engines_slurm.slurm_plans import slurm_plan, workers
from engines_slurm.test_slurm_runtimes import module, programs_on_the_path
from support import eventually

from tfjob.engines.base import Prepared
from tfjob.engines.slurm.gang import gang_of
from tfjob.rundir import RunDirectory

__all__ = ["programs_on_the_path"]

Attempts = Callable[[dict[str, Any]], Any]


@pytest.fixture
def attempt(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Attempts]:
    """Make an attempt at a run whose srun writes to `told` what its programs are told; its state file holds `state`."""
    commands(tmp_path / "bin", srun=f"exec cat >{tmp_path}/told", scontrol="true", squeue="true")
    monkeypatch.setenv("PATH", f"{tmp_path}/bin:{os.environ['PATH']}")
    monkeypatch.setattr(module("step"), "this_python", lambda: ["python3"])
    run = RunDirectory(tmp_path / "run")
    (run.path / "slurm").mkdir(parents=True)
    run.logs.mkdir()

    def make(state: dict[str, Any]) -> Any:
        if state:
            (run.path / "slurm" / "state.json").write_text(json.dumps(state))
        gang = json.loads(json.dumps(gang_of(slurm_plan(*workers("true")), run, Prepared(None, {}))))
        gang["work"]["code"] = str(tmp_path / "gone")
        return module("batch").Attempt(str(run.path), gang, module("state").State(str(run.path)), None)

    yield make
    signal.set_wakeup_fd(-1)


FAILED = {"phase": "failed", "attempts": [], "attempt": 0, "tasks": {}, "end": {"kind": "failure"}}


def test_nodes_hear_of_it_while_it_takes_over(
    attempt: Attempts, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    made = attempt({})

    def take_over() -> None:
        told = tmp_path / "told"
        eventually(lambda: told.exists() and '"beat"' in told.read_text(), "a beat")
        raise module("batch").Ended("canceled", "enough")

    monkeypatch.setattr(made, "take_over", take_over)
    assert made.go().outcome == "canceled"


def test_copies_of_the_code_that_can_not_be_made_end_the_run(attempt: Attempts) -> None:
    end = attempt(FAILED).go()
    assert (end.outcome, end.kind) == ("failed", None)
    assert "attempt 1 can't have its copies of the code" in end.message


def test_a_container_that_broke_as_the_step_ended_is_the_reason(
    attempt: Attempts, monkeypatch: pytest.MonkeyPatch
) -> None:
    made = attempt({})
    reading, writing = os.pipe()
    os.write(writing, b'{"broken": "node1: no room", "node": 0}\n')
    made.step.input.close()
    eventually(lambda: made.step.poll() is not None, "the end of srun")
    made.step.output = open(reading, "rb", buffering=0)  # noqa: SIM115  # the attempt's, as its own was
    monkeypatch.setattr(made, "take", lambda _wait_s: None)  # it came after that
    with pytest.raises(module("batch").Ended, match="node1: no room") as found:
        made.watch()
    assert found.value.kind == "preparation"
    os.close(writing)


def test_preparing_has_an_end(attempt: Attempts, monkeypatch: pytest.MonkeyPatch) -> None:
    batch = module("batch")
    monkeypatch.setattr(batch, "START_S", 0.0)
    monkeypatch.setattr(batch, "PREPARE_S", 0.0)
    made = attempt({})

    def take(_wait_s: float) -> None:
        made.prepared = batch.time.monotonic() + 60
        batch.time.sleep(0.01)

    monkeypatch.setattr(made, "take", take)
    with pytest.raises(batch.Ended, match="not every node's program started"):
        made.watch()
    made.close_step()
