"""What the record says of a run whose supervisor could not take it to its end."""

from __future__ import annotations

import errno
from pathlib import Path

import pytest

from tfjob.rundir import RunDirectory
from tfjob.runs.record import Record, RunState, read_record, write_record
from tfjob.runs.supervisor import _give_up


@pytest.mark.parametrize(("outcome", "state"), [("Completed", "Completed"), ("Canceled", "Canceled"), (None, "Failed")])
def test_what_was_decided_stands(tmp_path: Path, outcome: RunState | None, state: RunState) -> None:
    run = RunDirectory(tmp_path / "job-1")
    run.path.mkdir()
    created = "2026-01-31T12:00:00.000Z"
    code = 0 if outcome == "Completed" else None
    write_record(
        run, Record(run.id, "j", "j", "Finalizing", created, str(run.path), "lab", outcome=outcome, exit_code=code)
    )
    _give_up(run, OSError(errno.EIO, "Input/output error"))
    record = read_record(run)
    assert (record.state, record.exit_code) == (state, code if outcome else 1)
    said = record.failure.message if record.failure else record.notes[-1]
    assert "Input/output error" in said
