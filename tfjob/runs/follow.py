"""Following a run from its directory: its events, and the output of its tasks, from the start, nothing lost, nothing twice.

Anyone can follow at any time, from any process; the supervisor knows nothing of it.
"""

from __future__ import annotations

import json
import os
import time
from collections.abc import Collection, Iterable, Iterator
from itertools import takewhile
from pathlib import Path
from typing import Any, NamedTuple

from tfjob.rundir import RunDirectory
from tfjob.runs.events import EventReader
from tfjob.runs.find import try_recover
from tfjob.runs.record import TERMINAL, Record, read_record

__all__ = ["BUILD", "Chunk", "Item", "OutputReader", "follow", "tail_offsets", "task_names", "wait_for_end"]

BUILD = "environment"
"""Stands for a task where the output is that of the environment's build."""

_CHUNK_BYTES = 1 << 20
_QUICK_S, _LATER_S, _SLOW_S, _QUIET_S = 0.01, 0.1, 0.2, 1.0
_CHECK_S = 1.0
_FIRST_S = 10.0
"""So long one looks most often: short runs are over then, and in long ones to look costs what training could have."""


class Chunk(NamedTuple):
    """Some bytes of one task's output, as they were written: lines may be cut."""

    task: str
    data: bytes


Item = Chunk | dict[str, Any]
"""What following yields: output of a task, or an event."""


def follow(
    run: RunDirectory,
    tasks: Collection[str] | None = None,
    *,
    offsets: dict[str, int] | None = None,
    attempt: int = 1,
    timeout_s: float | None = None,
    build: bool = False,
) -> Iterator[Item | None]:
    """Yield the run's events and its tasks' output until it is over; None now and then, when there is nothing.

    The last item is the `state` event. `tasks` limits the output; it begins with that of `attempt`, at `offsets` where they
    say so. Between the output of two attempts is a `retry` event. `build`: with the output of the environment's build,
    line by line, as that of the task `BUILD`.
    A run whose supervisor has died is given another. Raises TimeoutError after `timeout_s`.
    """
    events = EventReader(run.events)
    output = OutputReader(run, tasks, offsets, attempt=attempt, last=attempt, build=build)
    deadline = None if timeout_s is None else time.monotonic() + timeout_s
    begun = last_news = time.monotonic()
    next_check, quiet_s = 0.0, _FIRST_S
    while True:
        is_news = False
        for item in _news(events, output):
            is_news = True
            quiet_s = _QUIET_S if isinstance(item, Chunk) else quiet_s
            yield item
            if _is_last(item):
                return
        now = time.monotonic()
        if is_news:
            last_news = now
        elif now >= next_check:
            next_check = now + _CHECK_S
            record = read_record(run)
            output.last = max(output.last or 1, run.restart_count + 1)  # should events be lost, to a full disk say
            if record.is_over:
                yield from output.read()
                yield {"event": "state", "state": record.state, "time": record.ended}
                return
            try_recover(run, record)
        if deadline is not None and now >= deadline:
            raise TimeoutError
        yield None
        often_s, seldom_s = (_QUICK_S, _LATER_S) if now - begun < _FIRST_S else (_LATER_S, _SLOW_S)
        time.sleep(often_s if now - last_news < quiet_s else seldom_s)


def wait_for_end(run: RunDirectory, timeout_s: float | None = None) -> Record:
    """Wait until the run is over and return its record. Raises TimeoutError after `timeout_s`."""
    for _ in follow(run, tasks=(), timeout_s=timeout_s):
        pass
    return read_record(run)


class OutputReader:
    """Reads what a run's tasks have printed, attempt after attempt, from wherever it was left: nothing lost, nothing twice.

    `tasks` None means all. `offsets` says where to begin in the logs of `attempt`, and is brought up to date. `last` is the
    last attempt to be read, None for however many there are. `build`: with the output of the environment's build, in whole lines.
    """

    def __init__(
        self,
        run: RunDirectory,
        tasks: Collection[str] | None = None,
        offsets: dict[str, int] | None = None,
        *,
        attempt: int = 1,
        last: int | None = None,
        build: bool = False,
    ) -> None:
        self._run = run
        self._tasks = tasks
        self._offsets = {} if offsets is None else offsets
        self._attempt = attempt
        self._builds = build
        self.last = last

    def read(self) -> Iterator[Chunk]:
        """What the logs have grown by since the last call."""
        if self._builds:
            yield from _read_build(self._run, self._offsets)
        while True:
            kept = self._run.attempt_logs(self._attempt)
            is_kept = kept.is_dir()
            yield from self._grown(kept if is_kept else self._run.logs, None if is_kept else kept)
            if not is_kept:
                if kept.is_dir():  # just now: it is read from there
                    continue
                return
            if self._attempt == self.last:
                return
            self._attempt += 1
            for task in [task for task in self._offsets if task != BUILD]:
                del self._offsets[task]

    def _grown(self, directory: Path, unless: Path | None) -> Iterator[Chunk]:
        """What the logs in a directory have grown by; `unless` has come, and with it another attempt's logs."""
        try:
            logs = sorted(directory.glob("*.log"), key=lambda path: _order(path.stem))
        except OSError:
            return
        for log in logs:
            task = log.stem
            if task not in self._tasks if self._tasks is not None else task == BUILD:
                continue
            try:
                file = log.open("rb")
            except FileNotFoundError:  # just put away
                return
            with file:
                if unless is not None and unless.is_dir():  # only then can a file of this name be the next attempt's
                    return
                file.seek(self._offsets.get(task, 0))
                while data := file.read(_CHUNK_BYTES):
                    self._offsets[task] = self._offsets.get(task, 0) + len(data)
                    yield Chunk(task, data)


def _read_build(run: RunDirectory, offsets: dict[str, int]) -> Iterator[Chunk]:
    """The whole lines that the build's log has grown by."""
    try:
        with run.environment_log.open("rb") as file:
            file.seek(offsets.get(BUILD, 0))
            data = file.read(_CHUNK_BYTES)
    except OSError:
        return
    end = data.rfind(b"\n") + 1
    if end:
        offsets[BUILD] = offsets.get(BUILD, 0) + end
        yield Chunk(BUILD, data[:end])


def task_names(run: RunDirectory) -> list[str]:
    """The names of the run's tasks, in plan order, the launcher last."""
    found = json.loads(run.plan.read_bytes())
    launcher = [found["launcher"]["name"]] if found.get("launcher") else []
    return [task["name"] for task in found["tasks"]] + launcher


def tail_offsets(run: RunDirectory, tasks: Collection[str], lines: int) -> dict[str, int]:
    """Where the last `lines` lines of each task's log begin."""
    return {task: _tail_offset(run.log(task), lines) for task in tasks if run.log(task).exists()}


def _tail_offset(log: Path, lines: int) -> int:
    with log.open("rb") as file:
        end = file.seek(0, os.SEEK_END)
        position, found = end, 0
        while position > 0:
            length = min(_CHUNK_BYTES, position)
            position -= length
            file.seek(position)
            data = file.read(length)
            for index in range(len(data) - 1, -1, -1):
                if data[index] == 10 and position + index != end - 1:  # the newline that ends the file starts no line
                    found += 1
                    if found == lines:
                        return position + index + 1
    return 0


def _news(events: EventReader, output: OutputReader) -> Iterator[Item]:
    """What has happened since the last call: before every piece of output, the events that came before it."""
    yield from _in_order(events.read(), output)
    for chunk in output.read():
        meanwhile = events.read()
        before = list(takewhile(lambda event: not _follows_output(event), meanwhile))
        yield from before
        yield chunk
        if len(before) < len(meanwhile):
            yield from _in_order(meanwhile[len(before) :], output)
            return  # these have read on: what the loop was at is older


def _in_order(events: Iterable[dict[str, Any]], output: OutputReader) -> Iterator[Item]:
    """The events; before those that end a part of the output, that part."""
    for event in events:
        kind = event["event"]
        if kind == "retry":
            if event["attempt"] < (output.last or 1):
                continue  # told again by a supervisor that took over
            output.last = event["attempt"]
        if _follows_output(event):
            if _is_last(event):
                output.last = None
            yield from output.read()
        if kind == "retry":
            output.last = event["attempt"] + 1
        yield event


def _follows_output(event: dict[str, Any]) -> bool:
    """Whether all that was printed before an event is shown before it."""
    return event["event"] in {"state", "retry"} or event.get("phase") == "Finalizing"


def _is_last(item: Item) -> bool:
    return not isinstance(item, Chunk) and item["event"] == "state" and item["state"] in TERMINAL


def _order(task: str) -> tuple[str, int]:
    kind, _, index = task.rpartition("-")
    return (kind, int(index)) if index.isdigit() else (task, 0)
