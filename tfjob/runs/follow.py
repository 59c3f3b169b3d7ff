"""Following a run from its directory: its events, and the output of its tasks, from the start, nothing lost, nothing twice.

Anyone can follow at any time, from any process; the supervisor knows nothing of it.
"""

from __future__ import annotations

import json
import os
import time
from collections.abc import Collection, Iterator
from itertools import chain
from pathlib import Path
from typing import Any, NamedTuple

from tfjob.rundir import RunDirectory
from tfjob.runs.events import EventReader
from tfjob.runs.find import try_recover
from tfjob.runs.record import TERMINAL, Record, read_record

__all__ = ["BUILD", "Chunk", "Item", "follow", "read_output", "tail_offsets", "task_names", "wait_for_end"]

BUILD = "environment"
"""Stands for a task where the output is that of the environment's build."""

_CHUNK_BYTES = 1 << 20
_QUICK_S, _SLOW_S, _QUIET_S = 0.01, 0.1, 1.0
_CHECK_S = 1.0


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
    timeout_s: float | None = None,
    build: bool = False,
) -> Iterator[Item | None]:
    """Yield the run's events and its tasks' output until it is over; None now and then, when there is nothing.

    The last item is the `state` event. `tasks` limits the output; `offsets` says where to begin in a task's. `build`:
    with the output of the environment's build, line by line, as that of the task `BUILD`.
    A run whose supervisor has died is given another. Raises TimeoutError after `timeout_s`.
    """
    events, offsets = EventReader(run.events), {} if offsets is None else offsets
    deadline = None if timeout_s is None else time.monotonic() + timeout_s
    last_news, next_check = time.monotonic(), 0.0
    while True:
        new = events.read()
        over = any(event["event"] == "state" and event["state"] in TERMINAL for event in new)
        end = next((number for number, event in enumerate(new) if _ends_output(event)), len(new))
        yield from new[:end]
        grew = False
        for chunk in chain(_read_build(run, offsets) if build else (), read_output(run, offsets, tasks)):
            grew = True
            yield chunk
        yield from new[end:]
        if over:
            return
        now = time.monotonic()
        if new or grew:
            last_news = now
        elif now >= next_check:
            next_check = now + _CHECK_S
            record = read_record(run)
            if record.is_over:  # its last event was lost, to a full disk say
                yield from read_output(run, offsets, tasks)
                yield {"event": "state", "state": record.state, "time": record.ended}
                return
            try_recover(run, record)
        if deadline is not None and now >= deadline:
            raise TimeoutError
        yield None
        time.sleep(_QUICK_S if now - last_news < _QUIET_S else _SLOW_S)


def wait_for_end(run: RunDirectory, timeout_s: float | None = None) -> Record:
    """Wait until the run is over and return its record. Raises TimeoutError after `timeout_s`."""
    for _ in follow(run, tasks=(), timeout_s=timeout_s):
        pass
    return read_record(run)


def read_output(run: RunDirectory, offsets: dict[str, int], tasks: Collection[str] | None) -> Iterator[Chunk]:
    """What the tasks' logs have grown by since `offsets`, which is brought up to date. `tasks` None means all."""
    try:
        logs = sorted(run.logs.glob("*.log"), key=lambda path: _order(path.stem))
    except OSError:
        return
    for log in logs:
        task = log.stem
        if task not in tasks if tasks is not None else task == BUILD:
            continue
        with log.open("rb") as file:
            file.seek(offsets.get(task, 0))
            while data := file.read(_CHUNK_BYTES):
                offsets[task] = offsets.get(task, 0) + len(data)
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


def _ends_output(event: dict[str, Any]) -> bool:
    """Whether all that tasks print has been printed when this event is written: it is shown after their output."""
    kind, phase = event["event"], event.get("phase")
    return bool(kind == "state" or (kind == "phase" and phase == "Finalizing"))


def _order(task: str) -> tuple[str, int]:
    kind, _, index = task.rpartition("-")
    return (kind, int(index)) if index.isdigit() else (task, 0)
