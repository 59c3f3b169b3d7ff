"""The containers of a run on this machine: which they are, noted and found again, and how their tasks are.

Whether a container lives is asked of the kernel; the Docker Engine is asked only which containers there are, where that was
not noted, and why one ended that did not say so. It may hang or restart meanwhile.
"""

from __future__ import annotations

import subprocess
import time
from collections.abc import Iterable, Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from signal import SIGKILL
from typing import Any, Final

from tfjob.dockerapi.api import DockerApi, RefusalError
from tfjob.durable import replace_json
from tfjob.engines.base import TaskStatus
from tfjob.engines.container import labels
from tfjob.engines.namespaces import HostProcess, find_in_container
from tfjob.engines.reports import NOT_STARTED, OUT_OF_MEMORY, End, Watch, status
from tfjob.errors import TargetError
from tfjob.planning.plan import TaskPlan

__all__ = ["CONTAINER_REPORT", "Container", "DockerHandle", "find_missing", "living", "note_container", "status_of"]

CONTAINER_REPORT: Final = "container.json"
_START_S: Final = 5.0
"""A container that a dead supervisor asked for has come up by then, or never will."""

_SILENT_S: Final = 60.0
"""How long an engine that does not answer may keep us from knowing whether it started a container."""

_QUICK_S: Final = 2.0
"""How long a poll may wait for the engine's word of which containers there are. It is asked again."""

_EXPLAIN_S: Final = 10.0
"""How long a poll, once for each task, may wait for the engine's word of how a container ended. It is kept for good."""


@dataclass(frozen=True)
class Container:
    """A container that was started. `first` is its first process, None if that had ended before one could look."""

    id: str
    first: HostProcess | None

    @property
    def lives(self) -> bool:
        """Whether its first process runs."""
        return self.first is not None and self.first.lives


@dataclass
class DockerHandle(Watch):
    """A run in containers of this machine, as its supervisor knows it."""

    api: DockerApi = field(default_factory=lambda: DockerApi(""))
    containers: dict[str, Container] = field(default_factory=dict)
    entrypoints: dict[str, HostProcess] = field(default_factory=dict)
    """Of launched tasks: what their reports call by its pid in the container."""
    holder: subprocess.Popen[bytes] | None = None
    asked: float = 0.0
    silent: bool = False
    mute_until: float = 0.0
    """Until then an engine that has not explained an end is asked for others more quickly (monotonic)."""

    @property
    def patience_s(self) -> float:
        """How long after the adoption a container may still be found."""
        return _SILENT_S if self.silent else _START_S

    def container_of(self, task: TaskPlan) -> Container | None:
        """The container a task is in: its own, or that of the launcher which started it."""
        launcher = self.plan.launcher
        return self.containers.get(launcher.name if task.launched and launcher else task.name)


def note_container(handle: DockerHandle, task: str) -> None:
    """Write down for an adopter which container is the task's; on a full disk the labels must do."""
    container = handle.containers[task]
    note = {"id": container.id, "first": container.first, "engine": handle.api.address}
    with suppress(OSError):
        replace_json(handle.run.task(task) / CONTAINER_REPORT, note, force=False)


def find_missing(handle: DockerHandle) -> None:
    """Ask the engine, now and then, for containers that were started and not noted: the supervisor died in between."""
    missing = [task.name for task in handle.plan.started_tasks if task.name not in handle.containers]
    if not missing or time.monotonic() - handle.asked < _QUICK_S:
        return
    try:
        for found in handle.api.with_labels(labels(handle.run), timeout_s=_QUICK_S):
            task = found["Labels"].get("tfjob.task")
            if task in missing and found["State"] != "created":
                state = handle.api.state(found["Id"], timeout_s=_QUICK_S)
                handle.containers[task] = Container(found["Id"], HostProcess.of(state["Pid"]) if state["Pid"] else None)
                note_container(handle, task)
        handle.silent = False
    except (TargetError, RefusalError):
        handle.silent = True
    handle.asked = time.monotonic()


def status_of(handle: DockerHandle, task: TaskPlan) -> TaskStatus:
    """How a task is: by its reports, by whether its container lives, and, if it is lost, by what the engine knows of its end."""
    container = handle.container_of(task)
    return status(
        handle,
        task,
        gone=not task.launched and container is not None and not container.lives,
        lives=lambda report: _lives(handle, task, report),
        explain=lambda end: _explain(handle, task, end),
        patience_s=handle.patience_s,
    )


def _lives(handle: DockerHandle, task: TaskPlan, report: Mapping[str, Any]) -> bool:
    """Whether a task that has started still runs."""
    container = handle.container_of(task)
    if container is None:  # adopted, and not found yet
        return handle.adopted is not None and time.monotonic() - handle.adopted < handle.patience_s
    # The first process of a container ends with the entrypoint it started, and is the one whose end says how.
    return _entrypoint(handle, task, report) is not None if task.launched else container.lives


def _entrypoint(handle: DockerHandle, task: TaskPlan, report: Mapping[str, Any]) -> HostProcess | None:
    """The process of a task's entrypoint, or None if it has ended."""
    container = handle.container_of(task)
    if container is None or container.first is None or not container.first.lives:
        return None
    known = handle.entrypoints.get(task.name) or find_in_container(
        container.first, report["pid"], report["start_ticks"]
    )
    if known is None or not known.lives:
        return None
    handle.entrypoints[task.name] = known
    return known


def _explain(handle: DockerHandle, task: TaskPlan, end: End) -> End:
    """What the engine knows of a container that ended without a report of its task."""
    container = handle.container_of(task)
    if handle.stopping or container is None or container.lives:
        return end
    limit_s = _EXPLAIN_S if time.monotonic() > handle.mute_until else _QUICK_S
    try:
        handle.api.wait(container.id, limit_s)  # the kernel's word came before the engine's own
        state = handle.api.state(container.id, limit_s)
        code = int(state["ExitCode"])
        words = "" if end.note != NOT_STARTED else handle.api.last_words(container.id, 5, limit_s)
    except RefusalError:
        return End(f"{end.note}; its container is gone")
    except TargetError as error:
        handle.mute_until = time.monotonic() + _SILENT_S  # the tasks of a gang shall not wait one after the other
        return End(f"{end.note}; {error.message}")
    if state["OOMKilled"]:
        return End(OUT_OF_MEMORY, signal=SIGKILL)
    note = end.note
    if words.strip():
        note += f": {'; '.join(filter(None, map(str.strip, words.splitlines())))}"
    if task.launched:
        return End(note)
    return End(note, signal=code - 128) if code > 128 else End(note, code)


def living(handle: DockerHandle, tasks: Iterable[TaskPlan]) -> Iterator[HostProcess]:
    """Those tasks' entrypoints that still run; the container's first process passes signals on to one that has just started."""
    for task in tasks:
        report = handle.run.read_task_file(task.name, "started.json")
        if report is not None:
            process = _entrypoint(handle, task, report)
        else:
            container = None if task.launched else handle.container_of(task)
            process = container.first if container is not None and container.lives else None
        if process is not None:
            yield process
