"""The last word on a run: its state and time, what failed first, where everything is, what to try next."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TextIO

from tfjob.cli.escaping import in_lines
from tfjob.cli.output import STATE_STYLES, colored, duration, plural, shown_path, size, uses_color
from tfjob.errors import ExitCode
from tfjob.runs.record import Record, seconds

__all__ = ["print_end"]


def print_end(record: Record, screen: TextIO) -> None:
    """Print how a run ended. Where no phase had a line of its own, the first line has their times."""
    state = colored(record.state, STATE_STYLES.get(record.state, ""), screen)
    phases = "" if uses_color(screen) else _phases(record)
    print(f"{state} in {duration(record.duration_s)}{phases}", file=screen)
    for attempt in record.attempts:
        print(f"  {f'attempt {attempt.number}'.ljust(9)} {in_lines(attempt.failure.told)}", file=screen)
    if record.failure:
        _print_failure(record, screen)
    for note in record.notes:
        print(f"  note      {in_lines(note)}", file=screen)
    for name, text in (*_places(record), *_next(record)):
        print(f"  {name.ljust(9)} {text}", file=screen)


def _phases(record: Record) -> str:
    times = [(phase.name, seconds(phase.ended) - seconds(phase.started)) for phase in record.phases if phase.ended]
    return f" ({', '.join(f'{name} {duration(taken)}' for name, taken in times)})" if times else ""


def _places(record: Record) -> list[tuple[str, str]]:
    lines = []
    if record.output_count:
        held = f"{plural(record.output_count, 'file')}, {size(record.output_bytes)}"
        lines.append(("outputs", f"{shown_path(f'{record.dir}/outputs')}  ({held})"))
    if record.left_in_work:
        kept = f"{plural(len(record.left_in_work), 'file')} written outside of ./outputs"
        place = record.dir if record.left_in_work[0].startswith("attempts/") else f"{record.dir}/work"
        lines.append(("also kept", f"{shown_path(place)}  ({kept})"))
    return [*lines, ("logs", shown_path(f"{record.dir}/logs"))]


def _next(record: Record) -> list[tuple[str, str]]:
    if record.state == "Completed":
        commands = [f"tfjob show {record.id}"]
        if record.output_count:
            commands.append(f"tfjob download {record.id} --to DIRECTORY")
    else:
        commands = [f"tfjob logs {record.id}" if record.tasks else f"tfjob show {record.id}"]
        if _may_rerun(record):
            commands.append(f"tfjob rerun {record.id}")
    return [("" if number else "next", command) for number, command in enumerate(commands)]


def _may_rerun(record: Record) -> bool:
    """Whether the same plan could go better another time: not if it can't be prepared, or its files have changed."""
    if record.exit_code == ExitCode.PREPARATION_FAILED:
        return False
    from tfjob.datasets.files import change_since  # noqa: PLC0415  # only for a run that failed

    try:
        datasets = json.loads(Path(record.dir, "plan.json").read_bytes())["datasets"]
        return not any(
            change_since(dataset["digest"], dataset["files"], dataset.get("marks", ())) for dataset in datasets
        )
    except (OSError, ValueError, KeyError, TypeError):  # there is no plan to run again
        return False


def _print_failure(record: Record, screen: TextIO) -> None:
    failure = record.failure
    if failure is None:
        return
    who = f"{failure.task} on {failure.node} " if failure.task else ""
    first, *more = in_lines(f"{who}{failure.message}").splitlines()
    print(f"  {colored('cause'.ljust(9), 'red', screen)} {first}", file=screen)
    for line in (*more, *in_lines(failure.hint).splitlines()):
        print(f"            {line}", file=screen)
    if failure.log_tail:
        print(f"  last lines of {failure.task}:", file=screen)
        for line in failure.log_tail:
            print(f"    {line}", file=screen)
