"""The record of a run: what `tfjob show` prints, and the only place its state is kept."""

from __future__ import annotations

import json
import os
import time
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Literal

from tfjob.durable import replace_json
from tfjob.errors import NotFound
from tfjob.rundir import RunDirectory
from tfjob.values import Pairs, decode, encode

__all__ = [
    "TERMINAL",
    "Attempt",
    "DatasetRecord",
    "Failure",
    "Output",
    "Phase",
    "Record",
    "RunState",
    "Supervisor",
    "TaskRecord",
    "iso",
    "read_record",
    "seconds",
    "write_record",
]

RunState = Literal["Preparing", "Scaling", "Running", "Finalizing", "Completed", "Failed", "Canceled"]
TERMINAL: frozenset[str] = frozenset({"Completed", "Failed", "Canceled"})


@dataclass(frozen=True)
class Phase:
    """One phase of the run's life; times are ISO 8601 in UTC, `ended` None while it lasts."""

    name: str
    started: str
    ended: str | None = None


@dataclass(frozen=True)
class TaskRecord:
    """One task: where it ran and how it ended. `exit_code` and `signal` are None while it runs."""

    name: str
    type: str
    node: str
    state: str = "pending"
    exit_code: int | None = None
    signal: int | None = None
    started: str | None = None
    ended: str | None = None


@dataclass(frozen=True)
class Failure:
    """What failed first. `task` and `node` are None when no task was to blame; `log_tail` is that task's last lines.

    `kind` is the reason as `retries.on` names it, None for what is never tried again.
    """

    task: str | None
    node: str | None
    exit_code: int | None
    signal: int | None
    message: str
    log_tail: tuple[str, ...] = ()
    hint: str = ""
    kind: Literal["failure", "node_lost"] | None = None

    @property
    def told(self) -> str:
        """Who failed, where and how, in one line: ``worker-1 on gpu2 exited with code 3``."""
        who = f"{self.task} on {self.node} " if self.task else ""
        return f"{who}{self.message}".splitlines()[0]


@dataclass(frozen=True)
class Attempt:
    """One attempt that failed and was followed by another. `started` is when its tasks were, None if they never were."""

    number: int
    nodes: tuple[str, ...]
    started: str | None
    ended: str
    failure: Failure


@dataclass(frozen=True)
class Output:
    """One file the run kept: its path under the run's outputs directory, and its bytes."""

    path: str
    size_bytes: int


@dataclass(frozen=True)
class DatasetRecord:
    """One dataset of the run: its name in the job, the registered ``name@version`` it is, and what it held.

    `digest` is over the names, sizes and SHA-256 of files that were fetched, and over names, sizes and times of change of
    files of this machine. Until they are fetched, it is over what was asked for.
    """

    name: str
    registered: str | None
    digest: str
    file_count: int
    size_bytes: int


@dataclass(frozen=True)
class Supervisor:
    """The process that watches over the run, and the boot of the host it is on."""

    pid: int
    host: str
    boot_id: str


@dataclass(frozen=True)
class Record:
    """A run as it stands.

    `outcome` is the state it will end in, known from Finalizing on; `exit_code` what `tfjob submit` and `tfjob wait`
    then end with. `attempts` are those that failed and were followed by another; phases and tasks are those of the last.
    """

    id: str
    name: str
    experiment: str
    state: RunState
    created: str
    dir: str
    target: str
    description: str = ""
    tags: Pairs = ()
    properties: Pairs = ()
    phases: tuple[Phase, ...] = ()
    tasks: tuple[TaskRecord, ...] = ()
    failure: Failure | None = None
    attempts: tuple[Attempt, ...] = ()
    outcome: RunState | None = None
    exit_code: int | None = None
    ended: str | None = None
    outputs: tuple[Output, ...] = ()
    output_count: int = 0
    output_bytes: int = 0
    left_in_work: tuple[str, ...] = ()
    code_digest: str | None = None
    environment_key: str | None = None
    datasets: tuple[DatasetRecord, ...] = ()
    overrides: tuple[str, ...] = ()
    rerun_of: str | None = None
    notes: tuple[str, ...] = ()
    supervisor: Supervisor | None = None
    takeovers: int = 0
    tfjob_version: str = ""
    version: int = field(default=1)

    @property
    def is_over(self) -> bool:
        """Whether the run has reached a state it will not leave."""
        return self.state in TERMINAL

    @property
    def duration_s(self) -> float:
        """Seconds from its creation to its end, or to now."""
        return (seconds(self.ended) if self.ended else time.time()) - seconds(self.created)


def iso(moment: float) -> str:
    """Seconds since the epoch as ISO 8601 in UTC with milliseconds, such as 2026-01-31T12:00:00.000Z."""
    return datetime.fromtimestamp(moment, UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")


def seconds(text: str) -> float:
    """The inverse of `iso`."""
    return datetime.fromisoformat(text).timestamp()


def read_record(run: RunDirectory) -> Record:
    """The run's record. Raises NotFound if there is none, or it can't be read as one."""
    try:
        return decode(Record, json.loads(run.record.read_bytes()))
    except FileNotFoundError:
        raise NotFound(f"there is no run {run.id}", "List the runs of this workspace with `tfjob list`.") from None
    except (ValueError, KeyError, TypeError) as error:
        raise NotFound(
            f"the record of run {run.id} can't be read: {error}",
            f"Its files are in {run.path}; it may be from another version of tfjob.",
        ) from error


def write_record(run: RunDirectory, record: Record, *, force: bool = True) -> None:
    """Replace the run's record; `force` it to the disk. Raises OSError when the disk is full; the old record is then untouched."""
    replace_json(run.record, encode(record), force=force)


def boot_id() -> str:
    """What tells this boot of this host from any other (random(4), /proc/sys/kernel/random/boot_id)."""
    try:
        with open("/proc/sys/kernel/random/boot_id") as file:
            return file.read().strip()
    except OSError:
        return os.uname().nodename
