"""Runs that are over and left something on a cluster elsewhere: its login node was away at their end. They are finished later.

The next run on that target does it beside its own work, and so does `tfjob compute clean`. A job that should have been ended is;
what it wrote is brought home, then its directory there is removed. Runs of other workspaces, machines and users are not touched.
"""

from __future__ import annotations

import json
import os
import threading
import time
from collections.abc import Iterator, Mapping
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import NamedTuple

from tfjob.durable import try_lock
from tfjob.engines.slurm.elsewhere import CLEANS, ElsewhereEngine
from tfjob.errors import TfjobError
from tfjob.planning.plan import Plan
from tfjob.rundir import RunDirectory
from tfjob.runs.attempts import left_by_attempts
from tfjob.runs.choice import engine_elsewhere
from tfjob.runs.events import append_event
from tfjob.runs.record import read_record, write_record
from tfjob.runs.working import clear_work, list_outputs
from tfjob.targets.definition import SlurmDefinition
from tfjob.values import decode
from tfjob.workspace import Workspace

__all__ = ["Cleaned", "clean_elsewhere", "finish_soon"]


class Cleaned(NamedTuple):
    """What was removed, a line each; `problem` says why not all could be."""

    removed: tuple[str, ...]
    problem: str = ""


def clean_elsewhere(
    target: SlurmDefinition, workspace: Workspace, environ: Mapping[str, str], *, kept: bool = False
) -> Cleaned:
    """Finish what runs of a workspace left on a cluster; with `kept`, remove what is kept there and no run uses."""
    engine = engine_elsewhere(target, workspace, environ)
    removed: list[str] = []
    problems: list[str] = []
    try:
        for run in _left(workspace.runs, engine):
            if why := _finish(run, engine, workspace.snapshots):
                problems.append(f"run {run.id} is not finished: {why}")
            else:
                removed.append(f"directory of run {run.id}")
        gone = engine.kept.free() if kept else ()
        removed.extend(f"kept {kept.kind}/{kept.key[:12]} of {size / 1e6:.1f} MB" for kept, size in gone)
    except (TfjobError, OSError) as error:
        problems.append(str(error))
    return Cleaned(tuple(removed), "; ".join(problems))


def finish_soon(run: RunDirectory, engine: ElsewhereEngine, snapshots: Path) -> None:
    """Finish, beside the work of a run, what others of its workspace left. What can't be done now is left to the next."""

    def finish() -> None:
        with suppress(TfjobError, OSError):
            for one in _left(run.path.parent, engine):
                if one.id != run.id:
                    _finish(one, engine, snapshots)

    threading.Thread(target=finish, daemon=True).start()


def _left(runs: Path, engine: ElsewhereEngine) -> Iterator[RunDirectory]:
    """The runs that are over, and whose directory on the engine's cluster was not removed."""
    for path in sorted(runs.glob("*/slurm/place")):
        run = RunDirectory(path.parent.parent)
        if not (path.parent / "removed").exists() and engine.is_of(run):
            with suppress(TfjobError):
                if read_record(run).is_over:
                    yield run


def _finish(run: RunDirectory, engine: ElsewhereEngine, snapshots: Path) -> str:
    """Finish one run, and say so in its record. Returns what keeps it from being done, nothing where it is."""
    lock = try_lock(run.supervisor_lock)  # as its supervisor would, which is gone
    if lock is None:
        return "another process of tfjob is at it"
    try:
        if (run.path / "slurm" / "removed").exists():
            return ""
        if why := engine.finish(run):
            return why
        _note(run, snapshots)
    finally:
        os.close(lock)
    return ""


def _note(run: RunDirectory, snapshots: Path) -> None:
    """Bring a run's record up to what has come home."""
    plan = decode(Plan, json.loads(run.plan.read_bytes()))
    left = (*left_by_attempts(run), *clear_work(plan, run, snapshots))
    outputs, count, size_bytes = list_outputs(run)
    record = read_record(run)
    place = (run.path / "slurm" / "place").read_text(encoding="utf-8")
    note = f"what it left on the cluster was brought home and removed at {time.strftime('%Y-%m-%d %H:%M')}"
    notes = tuple(one for one in record.notes if not any(word in one for word in (place, CLEANS, "scancel")))
    write_record(
        run,
        replace(
            record,
            outputs=outputs,
            output_count=count,
            output_bytes=size_bytes,
            left_in_work=left[:100],
            notes=(*notes, note),
        ),
    )
    append_event(run, "note", message=note)
