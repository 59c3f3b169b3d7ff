"""What an engine is: it finds room for a Plan, starts its tasks, says how they are, and ends them.

An engine sees Plans, never job files, and knows nothing of TensorFlow or MPI. All it must be able to say of a running
plan lies in the run directory or in the thing that runs the tasks, so that another process can go on with it (`adopt`).
One contract test (tests/engines/test_contract.py) runs over every engine.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, Literal, Protocol

from tfjob.planning.plan import Plan
from tfjob.rundir import RunDirectory
from tfjob.targets.leases import Lease
from tfjob.targets.target import Node

if TYPE_CHECKING:
    from tfjob.images.bake import Bake

__all__ = [
    "STOP_MARGIN_S",
    "Allocation",
    "Engine",
    "Handle",
    "Mount",
    "Prepared",
    "TaskStatus",
    "Waiting",
    "tell_nobody",
]

STOP_MARGIN_S: Final = 10.0
"""So long beyond the grace an engine waits for entrypoints before it kills them.

One takes a second to kill its command and up to 4 for what that has left, and says then how the task ended.
"""

Waiting = Callable[[str], None]
"""Called with what is waited for, now and then, or with an empty text; may raise to give up."""


def tell_nobody(_message: str) -> None:
    """Take the place of a `Waiting` that nobody listens to."""


@dataclass(frozen=True)
class Mount:
    """A directory or file of this machine that a container sees at `target`."""

    source: str
    target: str
    read_only: bool = True


@dataclass(frozen=True)
class Prepared:
    """An environment at hand, ready for tasks.

    `values` are bindings for the plan's expressions (``environment.path``, ``environment.prefix``, ``restart.count``); `key` names the
    prefix, None for the machine's or image's own packages. The rest is for containers: the `image` they are started
    from (an id the engine knows), what has to be mounted for the environment, and the `python` in them (a path there)
    that can run tfjob's entrypoint. `bake` says what an image that was baked here is made of, for engines that lack it; `prefix`
    is where this machine keeps packages that tasks use or mount, for engines that send them.
    """

    key: str | None
    values: Mapping[str, str]
    image: str | None = None
    python: str | None = None
    mounts: tuple[Mount, ...] = ()
    bake: Callable[[], Bake] | None = None
    prefix: Path | None = None


@dataclass(frozen=True)
class Allocation:
    """The room a run has: its nodes, and which GPUs and ports are whose. `gpus` and `ports` are by task name."""

    nodes: tuple[Node, ...]
    gpus: Mapping[str, tuple[int, ...]] = field(default_factory=dict)
    ports: Mapping[str, int] = field(default_factory=dict)
    leases: tuple[Lease, ...] = ()


@dataclass(frozen=True)
class TaskStatus:
    """How one task is. `time` is when it ended (seconds since the epoch); `listening` that it reached the rendezvous.

    `exit_code` and `signal` are both None while it runs, and also when it ended without a report (`note` says so).
    `stopped` means tfjob asked it to end. `node_lost`: it ended, as far as anybody can know, because its node can't be
    reached any more. `heard` is when the node last said how the task is, by this machine's clock; None where tasks are
    seen directly. `looked` is when it last looked, of all looks of which everything has come; None where that is not known.
    """

    task: str
    state: Literal["pending", "running", "ended"]
    exit_code: int | None = None
    signal: int | None = None
    time: float | None = None
    started: float | None = None
    listening: bool = False
    stopped: bool = False
    note: str = ""
    node_lost: bool = False
    heard: float | None = None
    looked: float | None = None

    @property
    def failed(self) -> bool:
        """Whether it ended by itself in any way but with exit code 0."""
        return self.state == "ended" and not self.stopped and self.exit_code != 0


Handle = Any
"""What `start` and `adopt` return and the other calls take: the engine's own business."""


class Engine(Protocol):
    """One way to run a Plan."""

    @property
    def shares_run_directory(self) -> bool:
        """Whether tasks see the run directory itself.

        Otherwise they run elsewhere, and outlive this machine's restart. The engine brings them code and datasets
        (`start`), and their logs, reports and outputs into the run directory: a task that has ended has its log whole,
        and when `stop` returns all is there.
        """
        ...

    def acquire(self, plan: Plan, run: RunDirectory, deadline_s: float, waiting: Waiting) -> Allocation:
        """Room for all of the plan or for none of it. Raises TargetError when there was none within `deadline_s`."""
        ...

    def start(
        self,
        plan: Plan,
        run: RunDirectory,
        allocation: Allocation,
        prepared: Prepared,
        told: Waiting = tell_nobody,
    ) -> Handle:
        """Start the plan's tasks in the prepared environment, all or none.

        `told` hears of what takes long on the way, and raises to give up.
        """
        ...

    def adopt(self, plan: Plan, run: RunDirectory) -> Handle:
        """Go on with tasks that another process started."""
        ...

    def poll(self, handle: Handle) -> tuple[TaskStatus, ...]:
        """How every task is, in plan order. Never blocks."""
        ...

    def stop(self, handle: Handle, grace_s: float) -> None:
        """End every task: ask, wait `grace_s`, kill. Returns when none is left. Can be called again."""
        ...

    def notes(self, handle: Handle) -> tuple[str, ...]:
        """What the run's record should say of how it was brought to its end, a sentence each."""
        ...
