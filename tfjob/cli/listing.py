"""What `tfjob list` prints. Knows nothing of typer: a plain `tfjob list` is answered before that could be loaded."""

from __future__ import annotations

import sys

from tfjob.cli.escaping import in_line
from tfjob.cli.output import STATE_STYLES, duration, plural, print_document, print_table, shown_path
from tfjob.errors import UsageError
from tfjob.runs.find import STATES, list_summaries, recover_dead
from tfjob.workspace import open_workspace

__all__ = ["print_runs"]

_SHOWN = 8


def print_runs(
    experiment: str | None = None, state: str | None = None, limit: int | None = None, output: str = "table"
) -> None:
    """Print the workspace's runs, the newest first, as a table or a document."""
    if state is not None and state.lower() not in map(str.lower, STATES):
        raise UsageError(f"there is no state {state!r}", f"The states are {', '.join(STATES)}.")
    workspace = open_workspace()
    unread: list[str] = []
    summaries = [
        summary
        for summary in list_summaries(workspace, unread)
        if experiment in (None, summary.experiment) and (state is None or summary.state.lower() == state.lower())
    ][:limit]
    recover_dead(workspace, summaries)
    if unread:
        ids = ", ".join(map(in_line, unread[:_SHOWN])) + (", ..." if len(unread) > _SHOWN else "")
        which = f"{plural(len(unread), 'run')} can't be read: {ids}"
        print(f"tfjob: {which}; each lacks a whole record.json in {shown_path(workspace.runs)}/RUN", file=sys.stderr)
    if output != "table":
        print_document([summary.document for summary in summaries], output)
        return
    if not summaries:
        is_filtered = experiment is not None or state is not None
        print("No such run." if is_filtered else "No runs yet. Submit one: tfjob submit JOB.yml", file=sys.stderr)
        return
    rows = [
        (one.id, one.experiment, one.state, one.created[:19].replace("T", " "), duration(one.duration_s))
        for one in summaries
    ]
    print_table(("RUN", "EXPERIMENT", "STATE", "CREATED (UTC)", "DURATION"), rows, styles=STATE_STYLES)
