"""Finding runs: by id, by the start of an id, the latest, all of them.

Listing works on the records' JSON as it is: it must be fast, and needs few of its keys.
"""

from __future__ import annotations

import json
import time
from datetime import datetime
from typing import TYPE_CHECKING, Any, NamedTuple

from tfjob.errors import NotFound, TfjobError, UsageError
from tfjob.rundir import RunDirectory
from tfjob.workspace import Workspace

if TYPE_CHECKING:
    from tfjob.runs.record import Record

__all__ = ["LATEST", "OVER", "STATES", "Summary", "find_run", "list_summaries", "recover_dead", "try_recover"]

LATEST = "latest"
OVER = ("Completed", "Failed", "Canceled")
STATES = ("Preparing", "Scaling", "Running", "Finalizing", *OVER)


class Summary(NamedTuple):
    """What a list shows of a run; `document` is the whole record as JSON."""

    id: str
    experiment: str
    state: str
    created: str
    duration_s: float
    document: dict[str, Any]


def find_run(workspace: Workspace, name: str) -> RunDirectory:
    """The run that `name` means: an id, a start of just one id, or `latest`.

    Raises NotFound (with the nearest ids) when there is none, UsageError when several ids start so.
    """
    if name == LATEST:
        summaries = list_summaries(workspace)
        if not summaries:
            raise NotFound("there is no run in this workspace yet", "Submit one: tfjob submit JOB.yml")
        return RunDirectory(workspace.runs / summaries[0].id)
    ids = _ids(workspace)
    if name in ids:
        return RunDirectory(workspace.runs / name)
    matches = [one for one in ids if name and one.startswith(name)]
    if len(matches) == 1:
        return RunDirectory(workspace.runs / matches[0])
    if matches:
        shown = ", ".join(matches[:8]) + (", ..." if len(matches) > 8 else "")
        raise UsageError(f"{len(matches)} runs start with {name!r}: {shown}", "Give more of the id.")
    import difflib  # noqa: PLC0415  # only for the hint

    names = {label: one for one in ids for label in (one, one.rpartition("-")[0])}  # the random end is no help
    near = dict.fromkeys(names[label] for label in difflib.get_close_matches(name, names, n=3))
    hint = f"Did you mean {' or '.join(near)}?" if near else "List the runs of this workspace with `tfjob list`."
    raise NotFound(f"there is no run {name!r}", hint)


def list_summaries(workspace: Workspace, unread: list[str] | None = None) -> list[Summary]:
    """All runs, the newest first. One whose record can't be read is passed over; its id is added to `unread`."""
    summaries = []
    for name in _ids(workspace):
        try:
            document = json.loads(RunDirectory(workspace.runs / name).record.read_bytes())
            summaries.append(_summary(document))
        except (OSError, ValueError, KeyError, TypeError):
            # A new run gets its name when it has its record, so this one is damaged; a file is no run.
            if unread is not None and (workspace.runs / name).is_dir():
                unread.append(name)
    return sorted(summaries, key=lambda summary: summary.created, reverse=True)


def recover_dead(workspace: Workspace, summaries: list[Summary]) -> None:
    """Give those of the runs whose supervisor has died another one. A run that this user may only look at is passed over."""
    going_on = [summary for summary in summaries if summary.state not in OVER]
    if not going_on:
        return
    from tfjob.runs.record import read_record  # noqa: PLC0415  # a list of finished runs need not pay for it

    for summary in going_on:
        directory = RunDirectory(workspace.runs / summary.id)
        try:
            record = read_record(directory)
        except (TfjobError, OSError):
            continue
        try_recover(directory, record)


def try_recover(run: RunDirectory, record: Record) -> bool:
    """Give the run another supervisor if its own has died and that can be done. Returns whether it was done."""
    from tfjob.runs.starting import recover  # noqa: PLC0415  # a list of finished runs need not pay for it

    try:
        return recover(run, record)
    except (TfjobError, OSError):  # the lock is another user's, or on a disk that can't be written
        return False


def _summary(document: dict[str, Any]) -> Summary:
    created = datetime.fromisoformat(document["created"]).timestamp()
    ended = datetime.fromisoformat(document["ended"]).timestamp() if document["ended"] else time.time()
    names = (document["id"], document["experiment"], document["state"])
    if not all(isinstance(name, str) for name in names):
        raise TypeError("the id, experiment and state of a run are texts")
    return Summary(*names, document["created"], ended - created, document)


def _ids(workspace: Workspace) -> list[str]:
    return sorted(path.name for path in workspace.runs.iterdir() if not path.name.startswith("."))
