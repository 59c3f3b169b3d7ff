"""Room on one machine: the GPUs and ports a run has for itself. Engines of the same machine share them by the same leases.

GPUs that runs of several machines have claimed in this machine's Docker Engine are left to them, as far as it says so.
"""

from __future__ import annotations

import random
import socket
import time
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Final

from tfjob.engines.base import Allocation, Waiting
from tfjob.errors import TargetError
from tfjob.planning.plan import Plan
from tfjob.rundir import RunDirectory
from tfjob.targets.leases import Lease, holder_of, try_lease
from tfjob.targets.target import Gpu, Node

if TYPE_CHECKING:
    from tfjob.engines.claimed import Holder

__all__ = ["Room"]

PORTS: Final = range(20000, 32000)
"""Ports for tasks: unprivileged, and below the range the kernel takes for outgoing connections (ip(7))."""

QUEUE: Final = "gpu-queue"


_ASK_AGAIN_S: Final = 10.0
"""So long an engine that does not answer is not asked again."""


class Room:
    """What runs lease on `node`. `environ` says where its Docker Engine is; `lease_directory` is the machine's own unless given."""

    def __init__(self, node: Node, environ: Mapping[str, str], lease_directory: Path | None = None) -> None:
        self._node = node
        self._environ = environ
        self._lease_directory = lease_directory
        self._claimed: Mapping[int, Holder] = {}
        self._ask_from = 0.0

    def acquire(self, plan: Plan, run: RunDirectory, deadline_s: float, waiting: Waiting) -> Allocation:
        """Lease the plan's GPUs and ports. Raises TargetError when the GPUs were not free within `deadline_s`."""
        holder = {"run": run.id, "directory": str(run.path)}
        leases: list[Lease] = []
        try:
            gpus = self._lease_gpus(plan.gpus_per_node, holder, deadline_s, waiting, leases)
            ports = {task.port: self._lease_port(holder, leases) for task in plan.tasks if task.port}
        except BaseException as error:
            for lease in leases:
                lease.release()
            if isinstance(error, OSError):
                raise TargetError(
                    f"leases can't be taken on {self._node.name}: {error.filename or ''} {error.strerror}",
                    "Run `tfjob doctor`.",
                ) from error
            raise
        return Allocation((self._node,), _share_out(plan, [gpu.index for gpu in gpus]), ports, tuple(leases))

    def _lease_gpus(
        self, count: int, holder: dict[str, str], deadline_s: float, waiting: Waiting, leases: list[Lease]
    ) -> list[Gpu]:
        """`count` GPUs, first come, first served: only the head of the queue gathers them as they become free."""
        taken: list[Gpu] = []
        queue: Lease | None = None
        deadline = time.monotonic() + deadline_s
        try:
            while len(taken) < count:
                queue = queue or try_lease(QUEUE, holder, self._lease_directory)
                if queue:
                    self._gather(count, holder, taken, leases)
                if len(taken) == count:
                    break
                held = self._held_by(taken)
                if time.monotonic() >= deadline:
                    raise TargetError(
                        f"no room on {self._node.name} within {deadline_s:g} s: {count} GPUs asked for; {held}",
                        "Wait for that run (`tfjob wait`), or raise `limits.allocation_timeout_s`.",
                    )
                waiting(f"waiting for {count} of {len(self._node.gpus)} GPUs on {self._node.name}: {held}")
                time.sleep(0.2)
        finally:
            if queue:
                queue.release()
        return sorted(taken, key=self._node.gpus.index)

    def _gather(self, count: int, holder: dict[str, str], taken: list[Gpu], leases: list[Lease]) -> None:
        self._look()
        new: list[tuple[Gpu, Lease]] = []
        for gpu in self._node.gpus:
            if len(taken) + len(new) == count:
                break
            is_free = gpu not in taken and gpu.index not in self._claimed
            lease = try_lease(f"gpu-{gpu.uuid}", holder, self._lease_directory) if is_free else None
            if lease:
                new.append((gpu, lease))
        if new:
            self._look()  # again: of a lease and a claim that are taken at the same moment, one sees the other
        for gpu, lease in new:
            if gpu.index in self._claimed:
                lease.release()
            else:
                taken.append(gpu)
                leases.append(lease)

    def _look(self) -> None:
        """See which GPUs runs of several machines have. An engine that does not answer has said it before, or never."""
        from tfjob.engines.claimed import claimed_here  # noqa: PLC0415  # 20 ms that only who wants GPUs should pay

        if time.monotonic() < self._ask_from:
            return
        claimed = claimed_here(self._environ)
        if claimed is None:
            self._ask_from = time.monotonic() + _ASK_AGAIN_S
        else:
            self._claimed = claimed

    def _held_by(self, taken: list[Gpu]) -> str:
        holders: dict[str, int] = {}
        for gpu in self._node.gpus:
            holder = holder_of(f"gpu-{gpu.uuid}", self._lease_directory) if gpu not in taken else None
            if holder:
                run = holder.get("run", "another run")
                holders[f"run {run}"] = holders.get(f"run {run}", 0) + 1
            elif gpu.index in self._claimed:
                of_several = str(self._claimed[gpu.index])
                holders[of_several] = holders.get(of_several, 0) + 1
        return ", ".join(f"{who} holds {number}" for who, number in holders.items()) or "others are before this run"

    def _lease_port(self, holder: dict[str, str], leases: list[Lease]) -> int:
        for _ in range(1000):
            port = random.choice(PORTS)  # noqa: S311  # no secret: two runs shall seldom try the same one first
            lease = try_lease(f"port-{port}", holder, self._lease_directory)
            if lease is None:
                continue
            if _is_free(port):
                leases.append(lease)
                return port
            lease.release()
        raise TargetError(f"no free port between {PORTS.start} and {PORTS.stop - 1} on {self._node.name}")


def _share_out(plan: Plan, gpus: list[int]) -> dict[str, tuple[int, ...]]:
    """Which GPUs each task sees: launched tasks (ranks) all of their node's, the others each its own part."""
    shares: dict[str, tuple[int, ...]] = {}
    given = 0
    for task in plan.tasks:
        if task.launched:
            shares[task.name] = tuple(gpus)
        else:
            shares[task.name] = tuple(gpus[given : given + task.gpus])
            given += task.gpus
    return shares


def _is_free(port: int) -> bool:
    for family, address in ((socket.AF_INET, "127.0.0.1"), (socket.AF_INET, "0.0.0.0")):  # noqa: S104  # only bound, never listened on
        with socket.socket(family, socket.SOCK_STREAM) as probe:
            try:
                probe.bind((address, port))
            except OSError:
                return False
    return True
