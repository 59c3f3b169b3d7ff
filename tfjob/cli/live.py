"""A run on the screen while it happens: its phases with their times, its tasks' output, its end.

What tasks print goes to stdout as it is; what tfjob has to say goes to stderr. On a terminal the phase that lasts has a
spinner and its time; piped, every line is plain and stands by itself.
"""

from __future__ import annotations

import sys
from collections.abc import Iterable
from typing import TYPE_CHECKING, Any, BinaryIO, TextIO

from tfjob.cli.output import STATE_STYLES, colored, duration, plural, size, uses_color
from tfjob.runs.follow import Chunk
from tfjob.runs.record import Record, seconds

if TYPE_CHECKING:
    from rich.progress import Progress

__all__ = ["LiveRun", "TaskOutput", "print_end"]

_TASK_STYLES = ("cyan", "magenta", "green", "yellow", "blue")


class TaskOutput:
    """Writes what tasks print: one task's bytes as they are, several tasks' lines each marked by its task."""

    def __init__(self, names: Iterable[str], out: BinaryIO, screen: TextIO) -> None:
        names = list(names)
        self._out = out
        self._marks = self._make_marks(names, screen) if len(names) > 1 else {}
        self._pending: dict[str, bytes] = {}
        self._wrote_any = False
        self._ends_line = True

    def write(self, chunk: Chunk) -> None:
        """Write a piece of output. With several tasks a line is held until it is whole, so that lines never mix."""
        if not self._marks:
            self._put(chunk.data)
            return
        *lines, rest = (self._pending.get(chunk.task, b"") + chunk.data).split(b"\n")
        self._pending[chunk.task] = rest
        mark = self._marks.get(chunk.task) or f"{chunk.task} | ".encode()
        self._put(b"".join(mark + _as_line(line) + b"\n" for line in lines))

    def close(self) -> None:
        """Write what was held back, and end the last line."""
        for task, rest in self._pending.items():
            if rest:
                self._put(self._marks.get(task, b"") + _as_line(rest) + b"\n")
        self._pending.clear()
        if not self._ends_line:
            self._put(b"\n")

    def _put(self, data: bytes) -> None:
        if data:
            self._out.write(data)
            self._out.flush()
            self._ends_line = data.endswith(b"\n")

    @staticmethod
    def _make_marks(names: list[str], screen: TextIO) -> dict[str, bytes]:
        width = max(map(len, names))
        return {
            name: colored(f"{name.ljust(width)} | ", _TASK_STYLES[index % len(_TASK_STYLES)], screen).encode()
            for index, name in enumerate(names)
        }


class Spinner:
    """The phase that lasts, on the last line of the screen: what it does, and for how long."""

    def __init__(self, phase: str, screen: TextIO) -> None:
        from rich.console import Console  # noqa: PLC0415  # 40 ms that only a terminal should pay
        from rich.progress import Progress, SpinnerColumn, TextColumn, TimeElapsedColumn  # noqa: PLC0415

        self._phase = phase
        self._progress: Progress = Progress(
            SpinnerColumn(),
            TextColumn("{task.description}", markup=False),
            TimeElapsedColumn(),
            console=Console(file=screen, highlight=False),
            transient=True,
        )
        self._task = self._progress.add_task(phase)
        self._progress.start()

    def update(self, detail: str) -> None:
        """Say what the phase is at."""
        self._progress.update(self._task, description=f"{self._phase}  {detail}")

    def stop(self) -> None:
        """Take the line away."""
        self._progress.stop()


class LiveRun:
    """Shows a run's events and output as `follow` yields them."""

    def __init__(self, record: Record, task_names: Iterable[str], out: TextIO, screen: TextIO) -> None:
        self._screen = screen
        self._output = TaskOutput(task_names, out.buffer, out)
        self._phase: tuple[str, float] | None = None
        self._detail = ""
        self._spinner: Spinner | None = None
        self._is_terminal = uses_color(screen)
        self._say(f"Run {record.id}  (experiment {record.experiment}, target {record.target})", "bold")

    def show(self, item: Chunk | dict[str, Any] | None) -> None:
        """Show one thing that happened."""
        if isinstance(item, Chunk):
            self._stop_spinner()
            self._output.write(item)
        elif item is not None:
            self._event(item)

    def close(self) -> None:
        """Leave the screen in order, whatever was being shown."""
        self._stop_spinner()
        self._output.close()

    def _event(self, event: dict[str, Any]) -> None:
        kind = event["event"]
        if kind == "phase":
            self._end_phase(seconds(event["time"]))
            self._begin_phase(event["phase"], seconds(event["time"]))
        elif kind == "progress":
            self._detail = event["message"]
            if self._spinner:
                self._spinner.update(self._detail)
            elif not self._is_terminal:
                self._say(f"{event['phase']}: {event['message']}")
        elif kind == "note":
            self._stop_spinner()
            self._say(f"Note: {event['message']}", "yellow")
        elif kind == "state":
            self._end_phase(seconds(event["time"]))

    def _begin_phase(self, phase: str, moment: float) -> None:
        self._phase, self._detail = (phase, moment), ""
        if not self._is_terminal:
            self._say(phase)
        else:
            self._spinner = Spinner(phase, self._screen)

    def _end_phase(self, moment: float) -> None:
        self._stop_spinner()
        if self._phase is None:
            return
        phase, began = self._phase
        self._phase = None
        if phase == "Running":
            self._output.close()
        if self._is_terminal:
            taken = duration(moment - began)
            self._say(f"  {phase.ljust(10)} {taken.rjust(9)}  {self._detail}".rstrip(), "dim")

    def _stop_spinner(self) -> None:
        if self._spinner:
            self._spinner.stop()
            self._spinner = None

    def _say(self, text: str, style: str = "") -> None:
        sys.stdout.flush()
        line = colored(text, style, self._screen) if self._is_terminal else f"tfjob: {text}"
        print(line, file=self._screen, flush=True)


def print_end(record: Record, screen: TextIO) -> None:
    """The run's last word: its state and time, what failed first, where everything is, what to try next."""
    taken = duration(record.duration_s)
    state = colored(record.state, STATE_STYLES.get(record.state, ""), screen)
    print(f"{state} in {taken}", file=screen)
    if record.failure:
        _print_failure(record, screen)
    for note in record.notes:
        print(f"  note      {note}", file=screen)
    lines = []
    if record.output_count:
        lines.append(
            ("outputs", f"{record.dir}/outputs  ({plural(record.output_count, 'file')}, {size(record.output_bytes)})")
        )
    if record.left_in_work:
        lines.append(
            (
                "also kept",
                f"{record.dir}/work  ({plural(len(record.left_in_work), 'file')} written outside of ./outputs)",
            )
        )
    lines.append(("logs", f"{record.dir}/logs"))
    if record.state == "Completed":
        lines.append(("next", f"tfjob show {record.id}"))
        if record.output_count:
            lines.append(("", f"tfjob download {record.id} --to DIRECTORY"))
    else:
        lines.append(("next", f"tfjob logs {record.id}" if record.tasks else f"tfjob show {record.id}"))
        lines.append(("", f"tfjob rerun {record.id}"))
    for name, text in lines:
        print(f"  {name.ljust(9)} {text}", file=screen)


def _print_failure(record: Record, screen: TextIO) -> None:
    failure = record.failure
    if failure is None:
        return
    who = f"{failure.task} on {failure.node} " if failure.task else ""
    first, *more = f"{who}{failure.message}".splitlines()
    print(f"  {colored('cause'.ljust(9), 'red', screen)} {first}", file=screen)
    for line in (*more, *failure.hint.splitlines()):
        print(f"            {line}", file=screen)
    if failure.log_tail:
        print(f"  last lines of {failure.task}:", file=screen)
        for line in failure.log_tail:
            print(f"    {line}", file=screen)


def _as_line(line: bytes) -> bytes:
    """A line as a terminal would leave it: after a carriage return it is written over."""
    return line.rstrip(b"\r").rpartition(b"\r")[2]
