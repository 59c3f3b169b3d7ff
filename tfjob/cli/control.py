"""Commands that act on runs: wait, cancel, rerun."""

from __future__ import annotations

import json
import sys
from typing import Annotated

import typer

from tfjob.cli.options import Detach, DocumentOutput, Format, OnInterrupt, OnInterruptOption, RunName
from tfjob.cli.output import print_document
from tfjob.cli.plans import reading_plan
from tfjob.errors import ExitCode, Interrupted, TimedOut
from tfjob.rundir import RunDirectory
from tfjob.runs.find import find_run
from tfjob.runs.record import Record, read_record
from tfjob.values import decode, encode
from tfjob.workspace import open_workspace

__all__ = ["cancel", "rerun", "wait"]

_CANCEL_MARGIN_S = 30.0


def wait(
    run: RunName,
    timeout: Annotated[
        float | None,
        typer.Option(min=0, metavar="SECONDS", help="Give up after so long (exit code 124).", show_default=False),
    ] = None,
    output: DocumentOutput = None,
) -> None:
    """Wait for the end of a run, without its output, and end with its exit code."""
    from tfjob.cli.live import PhaseSpinner, print_stopped, watched  # noqa: PLC0415  # only for this
    from tfjob.runs.follow import follow  # noqa: PLC0415

    directory = find_run(open_workspace(), run)
    spinner = PhaseSpinner(sys.stderr)
    try:
        with watched(directory):
            for item in follow(directory, tasks=(), timeout_s=timeout):
                spinner.show(item)
            record = read_record(directory)
    except TimeoutError:
        state = read_record(directory).state
        raise TimedOut(f"run {directory.id} is still {state} after {timeout:g} s", "It goes on.") from None
    except Interrupted:
        spinner.close()
        print_stopped()
        raise typer.Exit(ExitCode.INTERRUPTED) from None
    finally:
        spinner.close()
    _print_outcome(record, output)
    raise typer.Exit(record.exit_code or ExitCode.DONE)


def cancel(run: RunName, output: DocumentOutput = None) -> None:
    """End a run in whatever phase it is, and wait until nothing of it is left."""
    from tfjob.cli.live import watched  # noqa: PLC0415  # only for this
    from tfjob.runs.follow import wait_for_end  # noqa: PLC0415
    from tfjob.runs.run import request_cancel  # noqa: PLC0415

    directory = find_run(open_workspace(), run)
    record = read_record(directory)
    if record.is_over:
        print(f"tfjob: run {record.id} is over already", file=sys.stderr)
    else:
        request_cancel(directory, "canceled by `tfjob cancel`")
        patience_s = _grace_period_s(directory) + _CANCEL_MARGIN_S
        try:
            with watched(directory):
                record = wait_for_end(directory, patience_s)
        except TimeoutError:
            raise TimedOut(
                f"run {directory.id} has not ended {patience_s:g} s after it was asked to",
                f"See what it is at: tfjob show {directory.id}",
            ) from None
    _print_outcome(record, output)


def rerun(
    run: RunName,
    detach: Detach = False,
    on_interrupt: OnInterruptOption = OnInterrupt.auto,
    output: DocumentOutput = None,
) -> None:
    """Run an earlier run's plan once more: the same code, environment, datasets and arguments."""
    from tfjob.cli.following import begin_and_follow  # noqa: PLC0415  # the whole house is for commands that need it
    from tfjob.planning.plan import Plan  # noqa: PLC0415
    from tfjob.submission import prepare_rerun  # noqa: PLC0415

    workspace = open_workspace()
    directory = find_run(workspace, run)
    with reading_plan(directory):
        decode(Plan, json.loads(directory.plan.read_bytes()))
    ready = prepare_rerun(workspace, directory)
    kind = output.value if output else None
    raise typer.Exit(begin_and_follow(ready, workspace, detach=detach, on_interrupt=on_interrupt.value, output=kind))


def _print_outcome(record: Record, output: Format | None) -> None:
    if output:
        print_document(encode(record), output)
        return
    from tfjob.cli.ending import print_end  # noqa: PLC0415  # only for this

    print_end(record, sys.stdout)


def _grace_period_s(directory: RunDirectory) -> float:
    """What the plan grants tasks to end by themselves. A run can be canceled though its plan is damaged."""
    try:
        return float(json.loads(directory.plan.read_bytes())["limits"]["grace_period_s"])
    except (OSError, ValueError, KeyError, TypeError):
        return 0.0
