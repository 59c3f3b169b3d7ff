"""Finding runs: by id, by the start of an id, the latest, all of them."""

from __future__ import annotations

import difflib

from tfjob.errors import NotFound, UsageError
from tfjob.rundir import RunDirectory
from tfjob.runs.record import Record, read_record
from tfjob.workspace import Workspace

__all__ = ["LATEST", "find_run", "list_records"]

LATEST = "latest"


def find_run(workspace: Workspace, name: str) -> RunDirectory:
    """The run that `name` means: an id, a start of just one id, or `latest`.

    Raises NotFound (with the nearest ids) when there is none, UsageError when several ids start so.
    """
    if name == LATEST:
        records = list_records(workspace)
        if not records:
            raise NotFound("there is no run in this workspace yet", "Submit one: tfjob submit JOB.yml")
        return RunDirectory(workspace.runs / records[0].id)
    ids = _ids(workspace)
    if name in ids:
        return RunDirectory(workspace.runs / name)
    matches = [one for one in ids if name and one.startswith(name)]
    if len(matches) == 1:
        return RunDirectory(workspace.runs / matches[0])
    if matches:
        shown = ", ".join(matches[:8]) + (", ..." if len(matches) > 8 else "")
        raise UsageError(f"{len(matches)} runs start with {name!r}: {shown}", "Give more of the id.")
    near = difflib.get_close_matches(name, ids, n=3, cutoff=0.5)
    hint = f"Did you mean {' or '.join(near)}?" if near else "List the runs of this workspace with `tfjob list`."
    raise NotFound(f"there is no run {name!r}", hint)


def list_records(workspace: Workspace) -> list[Record]:
    """The records of all runs, the newest first. A directory whose record can't be read is passed over."""
    records = []
    for name in _ids(workspace):
        try:
            records.append(read_record(RunDirectory(workspace.runs / name)))
        except NotFound:
            continue
    return sorted(records, key=lambda record: record.created, reverse=True)


def _ids(workspace: Workspace) -> list[str]:
    return sorted(path.name for path in workspace.runs.iterdir() if not path.name.startswith("."))
