"""Commands that look at runs: list, show, logs."""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path
from signal import Signals
from typing import TYPE_CHECKING, Annotated

import typer

from tfjob.cli.escaping import in_line, in_lines
from tfjob.cli.listing import print_runs
from tfjob.cli.options import RunName, TableFormat, TableOutput
from tfjob.cli.output import STATE_STYLES, colored, duration, plural, print_document, print_table, shown_path, size
from tfjob.cli.plans import reading_plan
from tfjob.errors import ExitCode, Interrupted, NotFound
from tfjob.rundir import RunDirectory
from tfjob.runs.find import find_run, try_recover
from tfjob.workspace import open_workspace

if TYPE_CHECKING:
    from tfjob.cli.task_output import TaskOutput
    from tfjob.runs.record import Attempt, Record

__all__ = ["list_runs", "logs", "show"]

_TAIL_BYTES = 1 << 16


def list_runs(
    experiment: Annotated[str | None, typer.Option(help="Only runs of this experiment.", show_default=False)] = None,
    state: Annotated[
        str | None, typer.Option(help="Only runs in this state, such as Running.", show_default=False)
    ] = None,
    limit: Annotated[
        int | None, typer.Option("--limit", "-n", min=1, metavar="N", help="At most so many.", show_default=False)
    ] = None,
    output: TableOutput = TableFormat.table,
) -> None:
    """List the runs of this workspace, the newest first."""
    print_runs(experiment, state, limit, output.value)


def show(run: RunName, output: TableOutput = TableFormat.table) -> None:
    """Show one run: its phases, tasks, first failure, outputs, and where everything is."""
    from tfjob.runs.record import read_record  # noqa: PLC0415  # not for list, which must be fast
    from tfjob.runs.starting import nobody_follows  # noqa: PLC0415  # the same
    from tfjob.values import encode  # noqa: PLC0415

    directory = find_run(open_workspace(), run)
    record = read_record(directory)
    if try_recover(directory, record):
        print(f"tfjob: the supervisor of {record.id} had died; another takes over", file=sys.stderr)
    elif words := nobody_follows(directory, record):
        print(f"tfjob: nobody follows {record.id} now; {words}", file=sys.stderr)
    if output is not TableFormat.table:
        print_document(encode(record), output)
    else:
        _print_record(record)


def logs(
    run: RunName,
    follow: Annotated[bool, typer.Option("--follow", "-f", help="Go on until the run is over.")] = False,
    task: Annotated[
        list[str] | None, typer.Option(help="Only this task's; can be repeated.", show_default=False)
    ] = None,
    tail: Annotated[
        int | None, typer.Option(min=1, help="Only the last lines of each task.", show_default=False)
    ] = None,
) -> None:
    """Print what the tasks of a run have printed; with -f, go on until the run is over."""
    from tfjob.cli.task_output import TaskOutput  # noqa: PLC0415  # only for this
    from tfjob.runs.follow import OutputReader, tail_offsets  # noqa: PLC0415
    from tfjob.runs.record import read_record  # noqa: PLC0415

    directory = find_run(open_workspace(), run)
    names = _task_names(directory, task)
    output = TaskOutput(names, sys.stdout.buffer, sys.stdout)
    last = directory.restart_count + 1
    first, offsets = (last, tail_offsets(directory, names, tail)) if tail else (1, {})
    if follow:
        _follow(directory, names, (first, offsets), output)
        return
    reader = OutputReader(directory, names, offsets, attempt=first)
    try:
        for attempt in range(first, last + 1):
            reader.last = attempt
            for chunk in reader.read():
                output.write(chunk)
            output.close()
    finally:
        output.close()
    record = read_record(directory)
    if not record.is_over:
        try_recover(directory, record)
        print(f"tfjob: {record.state}; `tfjob logs -f {record.id}` goes on", file=sys.stderr)
    else:
        _explain_silence(directory, record, names)


def _follow(directory: RunDirectory, names: list[str], begin: tuple[int, dict[str, int]], output: TaskOutput) -> None:
    """Print output until the run is over; before there is any, what the run is at. `begin`: in which attempt, and where."""
    from tfjob.cli.live import print_stopped, watched  # noqa: PLC0415  # only for this
    from tfjob.runs.follow import Chunk, follow  # noqa: PLC0415
    from tfjob.runs.record import read_record  # noqa: PLC0415

    try:
        with watched(directory):
            is_quiet = not read_record(directory).is_over
            try:
                for item in follow(directory, names, attempt=begin[0], offsets=begin[1]):
                    if isinstance(item, Chunk):
                        is_quiet = False
                        output.write(item)
                    elif item is None:
                        output.refresh()
                    elif item["event"] == "retry":
                        output.close()
                        print(f"tfjob: attempt {item['attempt']} failed: {item['message']}", file=sys.stderr)
                    elif is_quiet and item["event"] == "progress":
                        print(f"tfjob: {item['phase']}: {item['message']}", file=sys.stderr)
            finally:
                output.close()
            record = read_record(directory)
    except Interrupted:
        print_stopped()
        raise typer.Exit(ExitCode.INTERRUPTED) from None
    print(f"tfjob: {record.state} in {duration(record.duration_s)}", file=sys.stderr)
    _explain_silence(directory, record, names)


def _explain_silence(directory: RunDirectory, record: Record, names: list[str]) -> None:
    """Say why a run that is over has no log of any of these tasks. Raises NotFound where its logs were removed."""
    if any(directory.log(name).exists() for name in names):
        return
    if record.attempts or any(task.started for task in record.tasks):
        if directory.logs.is_dir():
            return  # they have printed nothing
        raise NotFound(
            f"the logs of run {record.id} were removed: there is no {shown_path(directory.logs)}",
            f"What is left of the run: tfjob show {record.id}",
        )
    cause = record.failure.told if record.failure else f"the run was {record.state.lower()} before"
    print(in_lines(f"tfjob: no task started: {cause}"), file=sys.stderr)
    print(f"  {_more_of_it(directory, record)}", file=sys.stderr)


def _more_of_it(directory: RunDirectory, record: Record) -> str:
    from tfjob.runs.follow import BUILD  # noqa: PLC0415  # only for logs

    try:
        is_told = directory.environment_log.stat().st_size > 0
    except OSError:
        is_told = False
    if is_told:
        return f"How its environment was made: tfjob logs {record.id} --task {BUILD}"
    return f"All that is known of it: tfjob show {record.id}"


def _task_names(directory: RunDirectory, wanted: list[str] | None) -> list[str]:
    """The run's tasks, or those wanted. Raises NotFound naming the tasks there are."""
    from tfjob.runs.follow import BUILD, task_names  # noqa: PLC0415  # only for logs

    with reading_plan(directory):
        names = task_names(directory)
    known = [*names, *([BUILD] if directory.environment_log.exists() else [])]
    if BUILD in (wanted or ()) and BUILD not in known:
        raise NotFound(
            f"run {directory.id} built nothing: its environment was at hand", f"Its tasks: {', '.join(known)}."
        )
    unknown = [name for name in wanted or () if name not in known]
    if unknown:
        raise NotFound(f"run {directory.id} has no task {unknown[0]!r}", f"Its tasks: {', '.join(known)}.")
    return list(dict.fromkeys(wanted)) if wanted else names


def _print_record(record: Record) -> None:
    out = sys.stdout
    state = colored(record.state, STATE_STYLES.get(record.state, ""), out)
    print(f"{colored(record.id, 'bold', out)}  {state}  {duration(record.duration_s)}")
    facts = [
        ("experiment", record.experiment),
        ("description", record.description),
        ("tags", ", ".join(f"{key}={value}" for key, value in record.tags)),
        (
            "created",
            f"{record.created[:19].replace('T', ' ')} UTC"
            + (f", a rerun of {record.rerun_of}" if record.rerun_of else ""),
        ),
        ("target", record.target),
        ("now", _now(record)),
        *_where(record),
        *_data(record),
        ("overrides", " ".join(f"--set {one}" for one in record.overrides)),
        ("directory", shown_path(record.dir)),
    ]
    for name, text in facts:
        if text:
            print(f"  {name.ljust(11)} {in_lines(text)}")
    for note in record.notes:
        print(f"  {'note'.ljust(11)} {in_lines(note)}")
    _print_phases_and_tasks(record)
    if record.failure:
        failure = record.failure
        who = f"{failure.task} on {failure.node} " if failure.task else ""
        first, *more = in_lines(f"{who}{failure.message}").splitlines()
        print(f"\n{colored('Cause', 'red', out)}: {first}")
        for line in (*more, *in_lines(failure.hint).splitlines()):
            print(f"  {line}")
        for line in failure.log_tail:
            print(f"    {line}")
    if record.outputs:
        print()
        print_table(("OUTPUT", "SIZE"), [(one.path, size(one.size_bytes)) for one in record.outputs[:20]])
        if record.output_count > 20:
            print(f"... and {record.output_count - 20} more: tfjob show {record.id} -o json")
    for path in record.left_in_work:
        print(f"kept, though written outside of ./outputs: {in_line(path)}")


def _now(record: Record) -> str:
    """What the phase that lasts is at, by the run's last events."""
    if record.is_over:
        return ""
    try:
        with RunDirectory(Path(record.dir)).events.open("rb") as file:
            file.seek(max(file.seek(0, os.SEEK_END) - _TAIL_BYTES, 0))
            lines = file.read().splitlines()
    except OSError:
        return ""
    said: dict[str, str] = {}
    for line in reversed(lines):
        try:
            event = json.loads(line)
        except ValueError:  # half a line
            continue
        if event["event"] == "phase":
            break
        if event["event"] == "progress":
            said.setdefault(event.get("topic", ""), str(event["message"]))
    return "; ".join(said[topic] for topic in sorted(said))


def _where(record: Record) -> list[tuple[str, str]]:
    """What the run ran in: its runtime and its environment, as planned; nothing where the plan can't be read."""
    try:
        plan = json.loads(RunDirectory(Path(record.dir)).plan.read_bytes())
        asked = plan["environment"] or {}
        runtime = plan["runtime"]
    except (OSError, ValueError, KeyError, TypeError):
        return []
    dockerfile = (asked.get("dockerfile") or {}).get("path")
    made = asked.get("image") or dockerfile or ("conda and pip packages" if asked.get("definition") else "")
    key = f" ({record.environment_key[:12]})" if record.environment_key else ""
    on = f" on {asked['base']}" if asked.get("base") else ""
    named = asked.get("name")
    environment = f"{named}{key}{on}" if named else f"{made}{key}{on}"
    return [("runtime", runtime), ("environment", environment or "this machine's own Python")]


def _data(record: Record) -> list[tuple[str, str]]:
    """What each dataset of the run was."""
    rows = []
    for number, one in enumerate(record.datasets):
        held = f"{plural(one.file_count, 'file')}, {size(one.size_bytes)} ({one.digest[:12]})"
        rows.append(("" if number else "data", f"{one.name}: {one.registered or 'paths of the job'}, {held}"))
    return rows


def _print_phases_and_tasks(record: Record) -> None:
    from tfjob.runs.record import seconds  # noqa: PLC0415  # not for list, which must be fast

    if record.phases:
        print()
        rows = []
        for phase in record.phases:
            end = seconds(phase.ended) if phase.ended else None
            rows.append((phase.name, duration(end - seconds(phase.started)) if end else "now"))
        print_table(("PHASE", "TIME"), rows)
    if record.attempts:
        print()
        print_table(("ATTEMPT", "NODES", "TIME", "END"), [_attempt(attempt) for attempt in record.attempts])
    if record.tasks:
        print()
        ends = [(task.name, task.node, task.state, _end(task.exit_code, task.signal)) for task in record.tasks]
        print_table(("TASK", "NODE", "STATE", "EXIT"), ends)


def _attempt(attempt: Attempt) -> tuple[str, str, str, str]:
    from tfjob.runs.record import seconds  # noqa: PLC0415  # not for list, which must be fast

    taken = duration(seconds(attempt.ended) - seconds(attempt.started)) if attempt.started else ""
    return (str(attempt.number), ", ".join(attempt.nodes), taken, attempt.failure.told)


def _end(exit_code: int | None, number: int | None) -> str:
    if number is not None:
        try:
            return f"signal {number} ({Signals(number).name})"
        except ValueError:  # a real-time signal has no name
            return f"signal {number}"
    return "" if exit_code is None else str(exit_code)
