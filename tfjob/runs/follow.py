"""Following a run from its directory: its events, and the output of its tasks, from the start, nothing lost, nothing twice.

Anyone can follow at any time, from any process; the supervisor knows nothing of it.
"""

from __future__ import annotations

import time
from collections.abc import Collection, Iterator
from typing import Any, NamedTuple

from tfjob.rundir import RunDirectory
from tfjob.runs.events import EventReader
from tfjob.runs.record import TERMINAL, Record, read_record
from tfjob.runs.supervisor import recover

__all__ = ["Chunk", "Item", "follow"]

_CHUNK_BYTES = 1 << 20
_QUICK_S, _SLOW_S, _QUIET_S = 0.01, 0.1, 1.0
_CHECK_S = 1.0


class Chunk(NamedTuple):
    """Some bytes of one task's output, as they were written: lines may be cut."""

    task: str
    data: bytes


Item = Chunk | dict[str, Any]
"""What following yields: output of a task, or an event."""


def follow(run: RunDirectory, tasks: Collection[str] | None = None, *, timeout_s: float | None = None) -> Iterator[Item | None]:
    """Yield the run's events and its tasks' output until it is over; None now and then, when there is nothing.

    The last item is the `state` event. `tasks` limits the output. Gives the run a new supervisor if its own has died.
    Raises TimeoutError after `timeout_s`.
    """
    events, offsets = EventReader(run.events), dict[str, int]()
    deadline = None if timeout_s is None else time.monotonic() + timeout_s
    last_news, next_check = time.monotonic(), 0.0
    while True:
        new = events.read()
        over = any(event["event"] == "state" and event["state"] in TERMINAL for event in new)
        before = [event for event in new if event["event"] != "state"]
        yield from (event for event in before if event.get("phase") != "Finalizing" or event["event"] != "phase")
        grew = False
        for chunk in _new_output(run, offsets, tasks):
            grew = True
            yield chunk
        yield from (event for event in before if event.get("phase") == "Finalizing" and event["event"] == "phase")
        if over:
            yield from (event for event in new if event["event"] == "state")
            return
        now = time.monotonic()
        if new or grew:
            last_news = now
        elif now >= next_check:
            next_check = now + _CHECK_S
            record = read_record(run)
            if record.is_over:  # its last event was lost, to a full disk say
                yield from _new_output(run, offsets, tasks)
                yield {"event": "state", "state": record.state, "time": record.ended}
                return
            recover(run, record)
        if deadline is not None and now >= deadline:
            raise TimeoutError
        yield None
        time.sleep(_QUICK_S if now - last_news < _QUIET_S else _SLOW_S)


def wait_for_end(run: RunDirectory, timeout_s: float | None = None) -> Record:
    """Wait until the run is over and return its record. Raises TimeoutError after `timeout_s`."""
    for _ in follow(run, tasks=(), timeout_s=timeout_s):
        pass
    return read_record(run)


def _new_output(run: RunDirectory, offsets: dict[str, int], tasks: Collection[str] | None) -> Iterator[Chunk]:
    """What the logs have grown by since `offsets`, which is brought up to date."""
    try:
        logs = sorted(run.logs.glob("*.log"), key=lambda path: _order(path.stem))
    except OSError:
        return
    for log in logs:
        task = log.stem
        if log == run.environment_log or (tasks is not None and task not in tasks):
            continue
        with log.open("rb") as file:
            file.seek(offsets.get(task, 0))
            while data := file.read(_CHUNK_BYTES):
                offsets[task] = offsets.get(task, 0) + len(data)
                yield Chunk(task, data)


def _order(task: str) -> tuple[str, int]:
    kind, _, index = task.rpartition("-")
    return (kind, int(index)) if index.isdigit() else (task, 0)
