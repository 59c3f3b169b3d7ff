"""Starting a run and staying with it: what submit and rerun share, and what an interrupt means meanwhile.

Knows nothing of typer: a plain `tfjob submit FILE` is on its way before that could be loaded.
"""

from __future__ import annotations

import signal
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Literal

from tfjob.cli.live import LiveRun, print_end
from tfjob.cli.output import print_document
from tfjob.errors import ExitCode
from tfjob.rundir import RunDirectory
from tfjob.runs.follow import follow
from tfjob.runs.record import read_record
from tfjob.runs.run import request_cancel
from tfjob.runs.starting import StartingSupervisor
from tfjob.submission import Ready, begin, prepare
from tfjob.values import encode
from tfjob.workspace import Workspace, find_workspace, make_workspace

__all__ = ["begin_and_follow", "submit_and_follow"]

OnInterrupt = Literal["auto", "detach", "cancel"]


def submit_and_follow(
    file: Path,
    overrides: Sequence[str] = (),
    *,
    supervisor: StartingSupervisor,
    detach: bool = False,
    on_interrupt: OnInterrupt = "auto",
    output: str | None = None,
) -> int:
    """Submit a job and stay with it; returns the exit code to end with. `supervisor` loads while the job is read."""
    try:
        workspace = find_workspace()
        ready = prepare(file, overrides=overrides, workspace=workspace)
        if workspace is None:
            workspace, _ = make_workspace(Path.cwd())
            print(f"tfjob: made a workspace in {workspace.root}", file=sys.stderr)
    except BaseException:
        supervisor.close()
        raise
    return begin_and_follow(ready, workspace, supervisor, detach=detach, on_interrupt=on_interrupt, output=output)


def begin_and_follow(
    ready: Ready,
    workspace: Workspace,
    supervisor: StartingSupervisor | None = None,
    *,
    detach: bool,
    on_interrupt: OnInterrupt,
    output: str | None,
) -> int:
    """Start the run; return at once (detached), or follow it to its end. Returns the exit code to end with.

    From the moment the run exists an interrupt is noted, not raised, so that it is never left in between.
    """
    with _noting_interrupts() as interrupts:
        run = begin(ready, workspace, supervisor).directory
        if detach:
            _print_detached(run, output)
            return ExitCode.DONE
        out = sys.stderr if output else sys.stdout
        live = LiveRun(read_record(run), [task.name for task in ready.plan.all_tasks], out, sys.stderr)
        cancels = _cancels(on_interrupt)
        asked = False
        try:
            for item in follow(run):
                live.show(item)
                if len(interrupts) > asked:
                    if asked or not cancels:
                        live.close()
                        _print_left(run, asked)
                        return ExitCode.INTERRUPTED
                    asked = True
                    request_cancel(
                        run, f"canceled by {signal.Signals(interrupts[0]).name} to the command that submitted it"
                    )
        finally:
            live.close()
    record = read_record(run)
    print_end(record, sys.stderr)
    if output:
        print_document(encode(record), output)
    interrupted = asked and record.state == "Canceled"
    return ExitCode.INTERRUPTED if interrupted else record.exit_code or ExitCode.DONE


def _cancels(on_interrupt: OnInterrupt) -> bool:
    """Whether an interrupt cancels: as asked, or by whether a person sits at a terminal."""
    if on_interrupt != "auto":
        return on_interrupt == "cancel"
    return not any(stream.isatty() for stream in (sys.stdin, sys.stdout, sys.stderr) if stream)


@contextmanager
def _noting_interrupts() -> Iterator[list[int]]:
    """Collect SIGINT and SIGTERM in a list for a while, unless they are ignored."""
    received: list[int] = []
    before = {}
    for number in (signal.SIGINT, signal.SIGTERM):
        if signal.getsignal(number) is not signal.SIG_IGN:
            before[number] = signal.signal(number, lambda number, _frame: received.append(number))
    try:
        yield received
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _print_detached(run: RunDirectory, output: str | None) -> None:
    if output:
        print_document(encode(read_record(run)), output)
    else:
        print(run.id)
    print(f"tfjob: follow it with `tfjob logs -f {run.id}`, end it with `tfjob cancel {run.id}`", file=sys.stderr)


def _print_left(run: RunDirectory, asked: bool) -> None:
    print(file=sys.stderr)
    if asked:
        print(f"The run is being canceled: tfjob show {run.id}", file=sys.stderr)
        return
    print("Detached; the run goes on.", file=sys.stderr)
    print(f"  follow    tfjob logs -f {run.id}", file=sys.stderr)
    print(f"  cancel    tfjob cancel {run.id}", file=sys.stderr)
