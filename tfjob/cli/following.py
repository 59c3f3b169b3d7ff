"""Starting a run and staying with it: what submit and rerun share, and what an interrupt means meanwhile.

Knows nothing of typer: a plain `tfjob submit FILE` is on its way before that could be loaded.
"""

from __future__ import annotations

import re
import signal
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from functools import partial
from pathlib import Path
from typing import Literal, NamedTuple

from tfjob.cli.ending import print_end
from tfjob.cli.live import LiveRun, watched
from tfjob.cli.output import print_document, print_findings
from tfjob.errors import ExitCode
from tfjob.rundir import RunDirectory
from tfjob.runs.follow import follow
from tfjob.runs.record import read_record
from tfjob.runs.run import request_cancel
from tfjob.runs.starting import StartingSupervisor
from tfjob.submission import Ready, begin, prepare
from tfjob.targets.registered import Targets
from tfjob.values import encode
from tfjob.workspace import Workspace, find_workspace, make_workspace

__all__ = ["begin_and_follow", "names_data", "submit_and_follow", "target_named"]

OnInterrupt = Literal["auto", "detach", "cancel"]

_TARGET = re.compile(r"""\btarget["']?\s*[:=]\s*["']?([A-Za-z0-9_.-]+)""")
_DATA = re.compile(r"""^\s*["']?dataset\b""", re.MULTILINE)
_ONE_SIGNAL_S = 0.2
"""Signals that come within so short a time were sent as one."""


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
        if names_data(file, overrides):
            supervisor.expect_data()
        if workspace is not None and (target := target_named(file, overrides, Targets(workspace.compute).names())):
            supervisor.expect_several_machines(workspace.compute, target)
        ready = prepare(file, overrides=overrides, workspace=workspace)
        print_findings(ready.findings)
        if workspace is None:
            workspace, _ = make_workspace(Path.cwd())
            with suppress(OSError):
                print(f"tfjob: made a workspace in {workspace.root}", file=sys.stderr)
    except BaseException:
        supervisor.close()
        raise
    return begin_and_follow(ready, workspace, supervisor, detach=detach, on_interrupt=on_interrupt, output=output)


def names_data(file: Path, overrides: Sequence[str]) -> bool:
    """Whether a job file or a ``--set`` names data that may have to be fetched, by a look that knows nothing of YAML. A guess."""
    return bool(_DATA.search(_looked_into(file, overrides)))


def target_named(file: Path, overrides: Sequence[str], targets: Sequence[str]) -> str | None:
    """The target of the workspace that a job file or a ``--set`` names, by a look that knows nothing of YAML. A guess."""
    text = _looked_into(file, overrides) if targets else ""
    return next((target for target in _TARGET.findall(text) if target in targets), None)


def _looked_into(file: Path, overrides: Sequence[str]) -> str:
    """The text of a job file and its overrides; nothing of what is no file: a pipe can be read only once."""
    try:
        return "\n".join([*overrides, file.read_text(encoding="utf-8")]) if file.is_file() else ""
    except (OSError, ValueError):
        return ""


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
        with watched(run):
            out = sys.stderr if output else sys.stdout
            live = LiveRun(read_record(run), [task.name for task in ready.plan.all_tasks], out, sys.stderr)
            stay = _stay(run, live, interrupts, cancels=_cancels(on_interrupt))
            record = read_record(run)
        if stay.has_left and not record.is_over:
            with suppress(OSError):
                _print_left(run, stay)
            return ExitCode.INTERRUPTED
        with suppress(OSError):  # the run is over, and how it ended counts more than who still reads it
            print_end(record, sys.stderr)
        if output:
            with suppress(BrokenPipeError):
                print_document(encode(record), output)
        interrupted = stay.has_asked and record.state == "Canceled"
        return ExitCode.INTERRUPTED if interrupted else record.exit_code or ExitCode.DONE


class _Stay(NamedTuple):
    """How following ended: whether the run was left before its end, canceled by us, and what kept us from showing it."""

    has_left: bool
    has_asked: bool = False
    error: OSError | None = None


def _stay(run: RunDirectory, live: LiveRun, interrupts: list[int], *, cancels: bool) -> _Stay:
    """Show the run until it is over, an interrupt says to leave it, or nobody can see it any more (`| head`)."""
    asked = False
    error = _try(live.open)
    try:
        for item in follow(run, build=True):
            error = error or _try(partial(live.show, item))
            if error:
                return _Stay(has_left=True, has_asked=asked, error=error)
            if len(interrupts) > asked:
                if asked or not cancels:
                    return _Stay(has_left=True, has_asked=asked)
                asked = True
                request_cancel(
                    run, f"canceled by {signal.Signals(interrupts[0]).name} to the command that submitted it"
                )
    finally:
        with suppress(OSError):
            live.close()
    return _Stay(has_left=False, has_asked=asked)


def _try(show: Callable[[], None]) -> OSError | None:
    """Show something; what went wrong if the screen, pipe or file it goes to does not take it."""
    try:
        show()
    except OSError as error:
        return error
    return None


def _cancels(on_interrupt: OnInterrupt) -> bool:
    """Whether an interrupt cancels: as asked, or by whether a person sits at a terminal."""
    if on_interrupt != "auto":
        return on_interrupt == "cancel"
    return not any(stream.isatty() for stream in (sys.stdin, sys.stdout, sys.stderr) if stream)


@contextmanager
def _noting_interrupts() -> Iterator[list[int]]:
    """Collect SIGINT and SIGTERM in a list for a while, unless they are ignored.

    Two at once are one: timeout(1) signals its command, and then the group that the command is in.
    """
    received: list[int] = []
    before = {}
    last = -_ONE_SIGNAL_S

    def note(number: int, _frame: object) -> None:
        nonlocal last
        now = time.monotonic()
        if now - last >= _ONE_SIGNAL_S:
            received.append(number)
        last = now

    for number in (signal.SIGINT, signal.SIGTERM):
        if signal.getsignal(number) is not signal.SIG_IGN:
            before[number] = signal.signal(number, note)
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


def _print_left(run: RunDirectory, stay: _Stay) -> None:
    if stay.error is None:
        print(file=sys.stderr)  # after the terminal's ^C
    elif not isinstance(stay.error, BrokenPipeError):
        print(f"tfjob: what the run prints can't be shown: {stay.error.strerror}", file=sys.stderr)
    if stay.has_asked:
        print(f"The run is being canceled: tfjob show {run.id}", file=sys.stderr)
        return
    print("Detached; the run goes on.", file=sys.stderr)
    print(f"  follow    tfjob logs -f {run.id}", file=sys.stderr)
    print(f"  cancel    tfjob cancel {run.id}", file=sys.stderr)
