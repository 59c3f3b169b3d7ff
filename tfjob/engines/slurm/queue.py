"""What Slurm's queue says of tfjob's jobs: one question for all of a user's runs, however many look at once.

The answer lies in a file that all supervisors of this user share, with a lock beside it: who finds it too old asks anew, the
others wait for that answer, but not long. So slurmctld gets one question every few seconds, from a hundred runs as from one. That
it gave no answer is shared as well: while it hangs, one of them waits for it, and the others can do what else they have to.
"""

from __future__ import annotations

import fcntl
import json
import os
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from itertools import accumulate, pairwise
from pathlib import Path
from typing import Final, NamedTuple

from tfjob.durable import replace_json
from tfjob.engines.slurm.client import SlurmClient
from tfjob.errors import TargetError

__all__ = ["Job", "NodeLine", "Queue"]

_PATIENCE_S: Final = 3.0
"""How long an answer that another process asks for is waited for."""
_LOOK_S: Final = 0.05
_REST_S: Final = 1.0
"""How long a Slurm that could not be asked is not asked again: so long, or as long as it took to find that out."""
_FORMAT: Final = "%i|%T|%D|%P|%Q|%u|%S|%e|%N|%r"
_FIELDS: Final = ("id", "state", "nodes", "partition", "priority", "user", "start", "end", "node_list", "reason")


class Job(NamedTuple):
    """A job as squeue(1) tells of it: states and reasons are its words."""

    id: str
    state: str
    nodes: str
    partition: str
    priority: str
    user: str
    start: str
    end: str
    node_list: str
    reason: str


class NodeLine(NamedTuple):
    """A node in one of its partitions, as sinfo(1) tells of it; `gres` is what it has, `used` what of it is in use."""

    name: str
    partition: str
    state: str
    gres: str
    used: str


_NODE_WIDTHS: Final = (256, 128, 64, 512, 512)
_NODE_FORMAT: Final = ",".join(
    f"{name}:{width}"
    for name, width in zip(("NodeList", "PartitionName", "StateLong", "Gres", "GresUsed"), _NODE_WIDTHS, strict=True)
)


class Queue:
    """The queue, as of a few seconds ago. `directory` is where the answers are shared."""

    def __init__(self, client: SlurmClient, directory: Path) -> None:
        self._client = client
        self._directory = directory

    def job(self, number: str, age_s: float, since: float = 0.0) -> Job | None:
        """One of this user's jobs, as it was at most `age_s` ago and not before `since` (seconds since the epoch).

        None if Slurm no longer knows it. Raises TargetError when Slurm can't be asked.
        """
        age_s = max(min(age_s, time.time() - since), 0.0)
        found = self._ask("mine", age_s, lambda: self._jobs("--me", "--states=all"))
        return next((job for job in map(_job, found) if job.id == number), None)

    def pending(self, age_s: float) -> tuple[Job, ...]:
        """Everybody's jobs that wait, the first to be served first."""
        found = self._ask("pending", age_s, lambda: self._jobs("--states=PENDING", "--sort=-p,i"))
        return tuple(map(_job, found))

    def nodes(self, age_s: float) -> tuple[NodeLine, ...]:
        """Every node, once for each partition it is in."""
        found = self._ask("nodes", age_s, lambda: _lines(self._client.nodes("--Node", f"--Format={_NODE_FORMAT}")))
        return tuple(map(_node, found))

    def _jobs(self, *arguments: str) -> list[str]:
        return _lines(self._client.queue(*arguments, f"--format={_FORMAT}"))

    def _ask(self, what: str, age_s: float, ask: Callable[[], list[str]]) -> list[str]:
        file = self._directory / f"slurm-{what}.json"
        asked = time.time()
        if (kept := _read(file, age_s)) is not None:
            return kept
        with self._turn(what) as is_ours:
            if (kept := _read(file, max(age_s, time.time() - asked))) is not None:
                return kept  # who held the lock has just asked
            if not is_ours:
                raise TargetError("Slurm has been asked for another run, and did not answer yet")
            moment = time.time()
            try:
                lines = ask()
            except TargetError as error:
                now = time.time()
                rest_s = max(_REST_S, now - moment)
                _share(file, {"time": now, "failed": error.message, "hint": error.hint, "rest_s": rest_s})
                raise
            _share(file, {"time": moment, "lines": lines})
            return lines

    @contextmanager
    def _turn(self, what: str) -> Iterator[bool]:
        """Wait for the others who ask; whether it is this one's turn. Where nothing can be shared, it is everybody's."""
        deadline = time.monotonic() + _PATIENCE_S
        descriptor = None
        try:
            try:
                self._directory.mkdir(parents=True, exist_ok=True)
                descriptor = os.open(
                    self._directory / f"slurm-{what}.lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600
                )
                is_ours = _lock(descriptor, deadline)
            except OSError:
                is_ours = True
            yield is_ours
        finally:
            if descriptor is not None:
                os.close(descriptor)


def _lock(descriptor: int, deadline: float) -> bool:
    """Take a lock. Returns whether that could be done before the deadline. Raises OSError where there are none."""
    while True:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            if time.monotonic() > deadline:
                return False
            time.sleep(_LOOK_S)
        else:
            return True


def _share(file: Path, answer: dict[str, object]) -> None:
    with suppress(OSError):  # no room, or the file system is away: the others ask for themselves
        replace_json(file, answer, force=False)


def _read(file: Path, age_s: float) -> list[str] | None:
    """What Slurm said; None where that is too old. Raises TargetError where it could not be asked a moment ago."""
    try:
        kept = json.loads(file.read_bytes())
        past_s = time.time() - kept["time"]
        if "failed" not in kept:
            lines: list[str] = kept["lines"]
            return lines if 0 <= past_s <= age_s else None
        failed, hint, rest_s = str(kept["failed"]), str(kept["hint"]), float(kept["rest_s"])
    except (OSError, ValueError, KeyError, TypeError):
        return None
    if 0 <= past_s <= rest_s:
        raise TargetError(failed, hint)
    return None


def _lines(text: str) -> list[str]:
    return [line for line in text.splitlines() if line.strip()]


def _job(line: str) -> Job:
    fields = line.split("|", len(_FIELDS) - 1)
    if len(fields) != len(_FIELDS):
        raise TargetError(f"squeue said what can't be read: {line!r}")
    return Job(*fields)


def _node(line: str) -> NodeLine:
    ends = accumulate(_NODE_WIDTHS, initial=0)
    return NodeLine(*(line[begin:end].strip() for begin, end in pairwise(ends)))
