"""The last word of a run, and what comes after it."""

from __future__ import annotations

import shutil
from dataclasses import replace
from typing import TYPE_CHECKING

from tfjob.rundir import RunDirectory
from tfjob.runs.chronicle import Chronicle
from tfjob.runs.record import Record, read_record, write_record

if TYPE_CHECKING:
    from pathlib import Path


def test_what_others_write_once_a_run_is_over_stays(tmp_path: Path) -> None:
    run = RunDirectory(tmp_path / "job-1")
    run.path.mkdir()
    write_record(run, Record("job-1", "job", "job", "Finalizing", "2026-01-31T12:00:00.000Z", str(run.path), "local"))
    chronicle = Chronicle(run)
    chronicle.change(state="Completed", ended="2026-01-31T12:00:01.000Z")
    chronicle.save_for_good()
    others = replace(read_record(run), notes=("brought home later",))
    write_record(run, others)
    chronicle.force()
    assert read_record(run) == others
    shutil.rmtree(run.path)
    chronicle.force()
    assert not run.path.exists()
