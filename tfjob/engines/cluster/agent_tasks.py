"""The tasks of a run in this container: started, signalled, watched. As plain as the agent."""

from __future__ import annotations

import json
import os
import time
from functools import partial

TYPE_CHECKING = False  # typing.TYPE_CHECKING, without importing typing
if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import Any

if TYPE_CHECKING or __package__:
    from tfjob.engines.cluster.agent_system import spawn, start_ticks
else:  # in a container: it lies beside this file
    from agent_system import spawn, start_ticks


def load() -> Callable[[str, str], int]:
    """What a task's entrypoint does: loaded while nothing else is to be done, it need not be when a task starts."""
    if TYPE_CHECKING or __package__:
        from tfjob.entrypoint import main
    else:
        from entrypoint import main
    try:
        import ctypes  # noqa: F401  # which it would load
    except ImportError:
        pass
    return main


SILENT_S = 1.0
BEGUN_S = 30.0
REPORTS = ("started.json", "listening", "exit.json")


class Tasks:
    """The tasks of one run, `names`, in this container. `say` tells of them."""

    def __init__(self, run: str, say: Callable[..., None]) -> None:
        self.run = run
        self.say = say
        self.names: list[str] = []
        self.sent_reports: set[tuple[str, str]] = set()
        self.children: dict[int, str] = {}
        self.silent: dict[str, float] = {}

    def start(self, tasks: list[str]) -> None:
        """Start the entrypoints of tasks. They are in sessions of their own and stay when this program ends."""
        run_task, directory = load(), os.path.join(self.run, "tasks")
        for task in tasks:
            try:  # told twice, because the answer was lost with its connection: once is enough
                os.close(os.open(self.file(task, ".begun"), os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o644))
            except FileExistsError:
                continue
            except OSError as error:  # a full disk
                self.say("silent", task=task, started=False, words=str(error))
                self.silent[task] = -1.0
                continue
            self.children[spawn(partial(run_task, directory, task), os.path.join(self.run, "agent.log"))] = task

    def signal(self, task: str, number: int) -> None:
        """Signal the entrypoint of a task, if it still runs."""
        report = self.report(task, "started.json")
        pid = report["pid"] if report else next((pid for pid, name in self.children.items() if name == task), 0)
        if pid and (report is None or start_ticks(pid) == report["start_ticks"]):
            try:
                os.kill(pid, number)
            except OSError:
                pass

    def lives(self, task: str) -> bool:
        """Whether a task's entrypoint runs."""
        report = self.report(task, "started.json")
        return report is not None and start_ticks(report["pid"]) == report["start_ticks"]

    def new_reports(self) -> list[tuple[str, str]]:
        """The reports that are there and have not been sent."""
        found = [(task, name) for task in self.names for name in REPORTS if (task, name) not in self.sent_reports]
        return [(task, name) for task, name in found if os.path.exists(self.file(task, name))]

    def send_reports(self, reports: list[tuple[str, str]]) -> None:
        """Send reports of tasks."""
        for task, name in reports:
            content = "" if name == "listening" else read_text(self.file(task, name))
            self.say("report", task=task, name=name, content=content)
            self.sent_reports.add((task, name))

    def reap(self) -> None:
        """Wait for entrypoints that have ended, so that none stays as a zombie; note those that said nothing."""
        while True:
            try:
                pid, _ = os.waitpid(-1, os.WNOHANG)
            except ChildProcessError:
                return
            if pid == 0:
                return
            task = self.children.pop(pid, None)
            if task is not None and (task, "started.json") not in self.sent_reports:
                self.silent.setdefault(task, time.monotonic())

    @property
    def are_silent(self) -> bool:
        """Whether it is soon to be told of a task that it ended without saying how."""
        return any(since > 0 and (task, "exit.json") not in self.sent_reports for task, since in self.silent.items())

    def look_for_silence(self, task: str) -> None:
        """Tell of a task whose entrypoint is gone and has not said how it ended."""
        if (task, "exit.json") in self.sent_reports:
            return
        report = self.report(task, "started.json")
        if report is not None and start_ticks(report["pid"]) != report["start_ticks"]:
            self.silent.setdefault(task, time.monotonic())
        if report is None and task not in self.children.values() and self.begun_s(task) > BEGUN_S:
            self.silent.setdefault(task, time.monotonic())  # another one's child, which is gone
        since = self.silent.get(task)
        if since is not None and since > 0 and time.monotonic() - since > SILENT_S:
            if not os.path.exists(self.file(task, "exit.json")):
                self.say(
                    "silent",
                    task=task,
                    started=report is not None,
                    words=read_text(os.path.join(self.run, "agent.log"))[-500:],
                )
            self.silent[task] = -1.0  # told

    def begun_s(self, task: str) -> float:
        """How long ago a task was started, whether or not it has said so."""
        try:
            return time.time() - os.stat(self.file(task, ".begun")).st_mtime
        except OSError:
            return 0.0

    def file(self, task: str, name: str) -> str:
        """The path of a task's report."""
        return os.path.join(self.run, "tasks", task, name)

    def report(self, task: str, name: str) -> dict[str, Any] | None:
        """A task's report, or None if it is not there."""
        try:
            with open(self.file(task, name), encoding="utf-8") as file:
                found: dict[str, Any] = json.load(file)
                return found
        except (OSError, ValueError):
            return None


def note_end(path: str) -> None:
    """Note that tasks are told to end from now on: nobody shall take what comes of it for their own end."""
    try:
        with open(path + ".new", "w", encoding="utf-8") as file:
            file.write(repr(time.time()))
        os.replace(path + ".new", path)
    except OSError:
        try:
            open(path, "w").close()  # on a full disk: when it was can't be said
        except OSError:
            pass


def told_at(path: str) -> float | None:
    """When tasks were told to end, as `note_end` wrote it; None when they were not."""
    return told_time(read_text(path)) if os.path.exists(path) else None


def told_time(note: str) -> float:
    """The time in a note of `note_end`'s; 0 when it has none: then no end is taken for a task's own."""
    try:
        return float(note)
    except ValueError:
        return 0.0


def is_own_end(report: str, told: float) -> bool:
    """Whether a report tells of an end that came before the task was told to end, by the same clock."""
    try:
        found = json.loads(report)
        return bool(found["time"] < told and not found["stopped"])
    except (ValueError, KeyError, TypeError):
        return False


def read_text(path: str) -> str:
    """A file's text; nothing where there is none."""
    try:
        with open(path, encoding="utf-8", errors="replace") as file:
            return file.read()
    except OSError:
        return ""
