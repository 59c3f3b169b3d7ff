"""A run on the screen while it happens: its phases with their times, its tasks' output.

What tasks print goes to stdout as it is; what tfjob has to say goes to stderr. On a terminal the phase that lasts has a
spinner and its time; piped, every line is plain and stands by itself.
"""

from __future__ import annotations

import re
import sys
import time
from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, TextIO

from tfjob.cli.escaping import in_lines
from tfjob.cli.output import colored, duration, step_of, uses_color
from tfjob.cli.task_output import TaskOutput
from tfjob.errors import NotFound
from tfjob.rundir import RunDirectory
from tfjob.runs.follow import BUILD, Chunk, Item
from tfjob.runs.record import Record, seconds

if TYPE_CHECKING:
    from rich.progress import Progress

_DONE = re.compile(r"(\d+) of (\d+) MB\b")
_BUILD_LINES = 5
_BUILD_COLUMNS = 300  # a compiler's command line may have thousands; all of it is in the run's logs

__all__ = ["LiveRun", "PhaseSpinner", "print_stopped", "watched"]


class Details:
    """What a phase is at: one thing, and beside it what goes on meanwhile, such as data that is fetched."""

    def __init__(self) -> None:
        """Nothing yet."""
        self._of: dict[str, str] = {}

    def take(self, event: dict[str, Any]) -> bool:
        """Take note of a progress event. Returns whether it tells of another step than the last one of its topic."""
        topic, message = event.get("topic", ""), event["message"]
        is_new = step_of(message) != step_of(self._of.get(topic, ""))
        self._of[topic] = message
        return is_new

    def clear(self) -> None:
        """Forget all: another phase begins."""
        self._of = {}

    def lines(self) -> list[str]:
        """A line for each topic: first the phase itself, then what goes on beside it."""
        return [self._of[topic] for topic in sorted(self._of)]


class Spinner:
    """The phase that lasts, on the last lines of the screen: what it does, for how long, and the end of its output."""

    def __init__(self, phase: str, screen: TextIO, began: float | None = None) -> None:
        from rich.console import Console  # noqa: PLC0415  # 40 ms that only a terminal should pay
        from rich.live import Live  # noqa: PLC0415
        from rich.progress import BarColumn, Progress, SpinnerColumn, Task, TextColumn, TimeElapsedColumn  # noqa: PLC0415
        from rich.table import Column  # noqa: PLC0415
        from rich.text import Text  # noqa: PLC0415

        class Bar(BarColumn):
            """How much is done, where that is known."""

            def render(self, task: Task) -> Any:
                return Text("") if task.total is None else super().render(task)

        class Elapsed(TimeElapsedColumn):
            """How long the phase has lasted, in its own line."""

            def render(self, task: Task) -> Text:
                return super().render(task) if task.id == 0 else Text("")

        self._phase = phase
        self._lines: deque[str] = deque(maxlen=_BUILD_LINES)
        console = Console(file=screen, highlight=False)
        self._progress: Progress = Progress(
            SpinnerColumn("dots" if "utf" in (screen.encoding or "").lower() else "line"),
            TextColumn("{task.description}", markup=False, table_column=Column(no_wrap=True, overflow="ellipsis")),
            Bar(bar_width=20),
            Elapsed(),
            console=console,
        )
        self._progress.add_task(phase, total=None)
        task = self._progress.tasks[0]
        if began is not None and task.start_time is not None:
            task.start_time -= max(time.time() - began, 0)
        self._live = Live(console=console, transient=True, get_renderable=self._shown, refresh_per_second=10)
        self._live.start()

    def update(self, details: Sequence[str]) -> None:
        """Say what the phase is at, a line each; what is done of it becomes a bar where the text says so: ``120 of 340 MB``."""
        for number, detail in enumerate(details):
            if number == len(self._progress.tasks):
                self._progress.add_task("", total=None)
            done = _DONE.search(detail)
            completed, total = (int(done[1]), int(done[2])) if done else (0, None)
            task = self._progress.tasks[number]
            task.total = total  # `update` takes None for no change
            phase = self._phase if number == 0 else " " * len(self._phase)
            self._progress.update(task.id, description=f"{phase}  {detail}", completed=completed)

    def print(self, line: str) -> None:
        """Show a line of output for a while: the last few stand below it."""
        self._lines.append(line)

    def stop(self) -> None:
        """Take the lines away."""
        self._live.stop()

    def _shown(self) -> Any:
        from rich.console import Group  # noqa: PLC0415
        from rich.text import Text  # noqa: PLC0415

        lines = [Text(line, style="dim", no_wrap=True, overflow="ellipsis") for line in self._lines]
        return Group(self._progress.get_renderable(), *lines)


class PhaseSpinner:
    """The phase a run is in and nothing else, for whoever waits for its end at a terminal; elsewhere nothing at all."""

    def __init__(self, screen: TextIO) -> None:
        self._screen = screen
        self._is_terminal = uses_color(screen)
        self._phase: tuple[str, float] | None = None
        self._details = Details()
        self._spinner: Spinner | None = None

    def show(self, item: Item | None) -> None:
        """Take note of what happened. A phase is shown once it is clear that it is not over already."""
        if not self._is_terminal or isinstance(item, Chunk):
            return
        if item is None:
            if self._spinner is None and self._phase:
                self._spinner = Spinner(self._phase[0], self._screen, self._phase[1])
                self._spinner.update(self._details.lines())
        elif item["event"] == "phase":
            self.close()
            self._phase = (item["phase"], seconds(item["time"]))
            self._details.clear()
        elif item["event"] == "progress":
            self._details.take(item)
            if self._spinner:
                self._spinner.update(self._details.lines())

    def close(self) -> None:
        """Take the line away."""
        if self._spinner:
            self._spinner.stop()
            self._spinner = None


class LiveRun:
    """Shows a run's events and output as `follow` yields them."""

    def __init__(self, record: Record, task_names: Iterable[str], out: TextIO, screen: TextIO) -> None:
        self._screen = screen
        self._output = TaskOutput(task_names, out.buffer, out)
        self._phase: tuple[str, float] | None = None
        self._details = Details()
        self._spinner: Spinner | None = None
        self._is_terminal = uses_color(screen)
        self._opening = f"Run {record.id}  (experiment {record.experiment}, target {record.target})"

    def open(self) -> None:
        """Say which run it is."""
        self._say(self._opening, "bold")

    def show(self, item: Item | None) -> None:
        """Show one thing that happened; None when nothing did."""
        if isinstance(item, Chunk) and item.task == BUILD:
            self._build(item.data)
        elif isinstance(item, Chunk):
            self._stop_spinner()
            self._output.write(item)
        elif item is None:
            self._output.refresh()
        else:
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
            is_new = self._details.take(event)
            if self._spinner:
                self._spinner.update(self._details.lines())
            elif not self._is_terminal and is_new:
                self._say(f"{event['phase']}: {event['message']}")
        elif kind == "note":
            self._stop_spinner()
            self._say(f"Note: {event['message']}", "yellow")
        elif kind == "retry":
            self._stop_spinner()
            self._output.close()
            self._say(f"Attempt {event['attempt']} failed: {event['message']}; trying again", "yellow")
        elif kind == "state":
            self._end_phase(seconds(event["time"]))

    def _begin_phase(self, phase: str, moment: float) -> None:
        self._phase = (phase, moment)
        self._details.clear()
        if self._is_terminal:
            self._spinner = Spinner(phase, self._screen)
        elif phase == "Running":  # the others are told by what they do, and by the times at the end
            self._say(phase)

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
            first, *beside = self._details.lines() or [""]
            self._say(f"  {phase.ljust(10)} {taken.rjust(9)}  {first}".rstrip(), "dim")
            for line in beside:
                self._say(f"{' ' * 24}{line}", "dim")

    def _build(self, data: bytes) -> None:
        """What the environment's build says, as a gloss: it is kept in the run's logs."""
        for whole in data.decode("utf-8", "replace").splitlines():
            line = whole if len(whole) <= _BUILD_COLUMNS else f"{whole[: _BUILD_COLUMNS - 1]}…"
            if self._spinner:
                self._spinner.print(f"  {line}")
            else:
                self._put(f"  {line}", "dim")

    def _stop_spinner(self) -> None:
        if self._spinner:
            self._spinner.stop()
            self._spinner = None

    def _say(self, text: str, style: str = "") -> None:
        self._put(in_lines(text), style)

    def _put(self, text: str, style: str) -> None:
        sys.stdout.flush()
        line = colored(text, style, self._screen) if self._is_terminal else f"tfjob: {text}"
        print(line, file=self._screen, flush=True)


@contextmanager
def watched(run: RunDirectory) -> Iterator[None]:
    """Whatever is missed in a run's directory once somebody has removed it, is told as that."""
    try:
        yield
    except (OSError, NotFound):
        if run.record.exists():
            raise
        raise NotFound(
            f"the directory of run {run.id} was removed while the run was followed",
            "What it kept is gone, and so is all word of it; processes it had started may still be there.",
        ) from None


def print_stopped() -> None:
    """Say that only the looking has ended."""
    if sys.stderr.isatty():
        print(file=sys.stderr)  # after the terminal's ^C
    print("Stopped following; the run goes on.", file=sys.stderr)
