"""The events of a run: one JSON object a line, only ever appended to, read from any point on."""

from __future__ import annotations

import json
import time
from pathlib import Path
from typing import Any

from tfjob.durable import append_line
from tfjob.rundir import RunDirectory
from tfjob.runs.record import iso

__all__ = ["EventReader", "append_event"]


def append_event(run: RunDirectory, event: str, **facts: Any) -> None:
    """Append one event: its kind (phase, progress, task, note, failure, state), the time, and its facts."""
    append_line(run.events, json.dumps({"time": iso(time.time()), "event": event, **facts}, ensure_ascii=False))


class EventReader:
    """Reads the events that are new since the last call; never returns half a line."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._offset = 0

    def read(self) -> list[dict[str, Any]]:
        """The events appended since the last call."""
        try:
            with self._path.open("rb") as file:
                file.seek(self._offset)
                data = file.read()
        except FileNotFoundError:
            return []
        end = data.rfind(b"\n") + 1
        self._offset += end
        events = []
        for line in data[:end].splitlines():
            try:
                events.append(json.loads(line))
            except ValueError:
                continue  # a line cut by a full disk, followed by a whole one
        return events
