"""What a supervisor makes of what its engine tells it, poll by poll."""

from __future__ import annotations

import signal
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import cast

import pytest
from engines.engine_bench import plan, task

from tfjob.engines.base import Engine, Prepared, TaskStatus
from tfjob.planning.plan import LimitsPlan, Plan
from tfjob.rundir import RunDirectory
from tfjob.runs.record import Record, iso, write_record
from tfjob.runs.supervision import Supervision

GANG = plan(
    *(task("true", name=f"worker-{index}", port=f"worker-{index}") for index in (0, 1)),
    limits=LimitsPlan(None, 0.05, 60.0, 10.0),
)


@dataclass
class Polled:
    """An engine whose worker-0 waits for worker-1, of which nothing is heard for `silent` polls; then it `becomes` something."""

    silent: int
    becomes: TaskStatus
    begun: float = 0.0

    def poll(self, _handle: object) -> tuple[TaskStatus, ...]:
        self.begun = self.begun or time.time()
        self.silent -= 1
        waits = TaskStatus("worker-0", "running", listening=True, heard=time.time())
        return waits, TaskStatus("worker-1", "running", heard=self.begun) if self.silent >= 0 else self.becomes


@pytest.fixture
def run(tmp_path: Path) -> Iterator[RunDirectory]:
    run = RunDirectory(tmp_path / "gang")
    run.path.mkdir()
    write_record(run, Record(run.id, "gang", "gang", "Running", iso(time.time()), str(run.path), "far"))
    before = signal.pthread_sigmask(signal.SIG_BLOCK, ())
    yield run
    signal.pthread_sigmask(signal.SIG_SETMASK, before)


def supervision(run: RunDirectory, made: Plan, engine: Polled) -> Supervision:
    nothing = Prepared(None, {})
    return Supervision(run, made, engine=cast("Engine", engine), prepare=lambda _: nothing, snapshots=run.path)


@pytest.mark.parametrize(
    ("becomes", "message", "kind"),
    [
        (TaskStatus("worker-1", "ended", time=1.0, note="gone", node_lost=True), "failed: gone", "node_lost"),
        (
            TaskStatus("worker-1", "running", heard=float("inf")),
            "did not come to the rendezvous within 0.05 s",
            "failure",
        ),
    ],
)
def test_who_does_not_come_to_the_rendezvous_is_blamed_when_its_node_is_heard_or_lost(
    run: RunDirectory, becomes: TaskStatus, message: str, kind: str
) -> None:
    engine = Polled(30, becomes)  # long past the limit
    verdict = supervision(run, GANG, engine)._watch()
    assert engine.silent < 0
    assert verdict.status is not None
    assert (verdict.status.task, verdict.kind) == ("worker-1", kind)
    assert verdict.message.startswith(message)
