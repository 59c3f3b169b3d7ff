"""What a supervisor knows of a run on several nodes, and what another one needs to go on with it."""

from __future__ import annotations

import json
import time
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass, field, replace
from typing import Any, Final

from tfjob.durable import replace_json
from tfjob.engines.base import TaskStatus
from tfjob.engines.cluster.leases import RunKey
from tfjob.engines.cluster.link import NodeLink
from tfjob.engines.reports import NEVER_STARTED, OUT_OF_MEMORY, End, Watch, status
from tfjob.planning.plan import TaskPlan
from tfjob.rundir import RunDirectory

__all__ = ["ClusterHandle", "NodeNote", "read_notes", "statuses_of", "write_notes"]

_FILE: Final = "nodes.json"


@dataclass(frozen=True)
class NodeNote:
    """A node of the run, as it is written down: its place in the plan, its name in the target, and its container."""

    index: int
    name: str
    address: str
    container: str
    gpus: tuple[int, ...]


@dataclass
class ClusterHandle(Watch):
    """A run's nodes: the links to them, by the plan's numbers."""

    key: RunKey = field(default_factory=lambda: RunKey("", ""))
    links: dict[int, NodeLink] = field(default_factory=dict)
    left: list[str] = field(default_factory=list)
    """Nodes that could not be cleaned up, in words."""

    empty: list[tuple[str, str]] = field(default_factory=list)
    """Volumes that are to go when the containers are gone: (node, volume)."""


def write_notes(run: RunDirectory, attempt: int, notes: Sequence[NodeNote], python: str) -> None:
    """Write down where the run is, for another supervisor."""
    nodes = [{**note.__dict__, "gpus": list(note.gpus)} for note in notes]
    replace_json(run.path / _FILE, {"attempt": attempt, "python": python, "nodes": nodes}, force=False)


def read_notes(run: RunDirectory) -> tuple[int, str, tuple[NodeNote, ...]]:
    """The attempt, the containers' Python, and the nodes; no nodes where nothing had been started."""
    with suppress(OSError, ValueError, KeyError, TypeError):
        found: dict[str, Any] = json.loads((run.path / _FILE).read_bytes())
        notes = tuple(NodeNote(**{**one, "gpus": tuple(one["gpus"])}) for one in found["nodes"])
        return int(found["attempt"]), str(found["python"]), notes
    return 0, "", ()


def statuses_of(handle: ClusterHandle) -> tuple[TaskStatus, ...]:
    """How every task is, in plan order. What ended with its node, or its container, ended when the node was heard last."""
    return tuple(_status(handle, task) for task in handle.plan.all_tasks)


def _status(handle: ClusterHandle, task: TaskPlan) -> TaskStatus:
    link = handle.links.get(task.node)
    ended = link.ended if link is not None else None
    is_silent = link is not None and task.name in link.silent
    looked = link.looked if link is not None else None  # before the reports are read: they may come just now
    heard = time.time() - (link.mute_s(handle.plan.limits.grace_period_s) if link is not None else 0.0)

    def explain(end: End) -> End:
        if link is None:
            return End(NEVER_STARTED)
        if ended is not None:
            note = OUT_OF_MEMORY if ended.out_of_memory else ended.message
            return End(note, node_lost=ended.lost)
        words = link.silent.get(task.name, "")
        return End(f"{end.note}: {words}" if words else end.note)

    never = link is None and handle.adopted is not None
    gone = ended is not None or never or (is_silent and handle.run.read_task_file(task.name, "started.json") is None)
    found = status(
        handle,
        task,
        gone=gone,
        lives=lambda _report: not is_silent,
        explain=explain,
        patience_s=float("inf"),  # the node itself says what was started
    )
    if link is None:
        return found
    is_unsaid = found.exit_code is None and found.signal is None and not found.stopped
    if ended is not None and is_unsaid and found.time is not None:
        found = replace(found, time=min(found.time, heard))  # peers fail of it long before it is known
    return replace(found, heard=heard, looked=looked)
