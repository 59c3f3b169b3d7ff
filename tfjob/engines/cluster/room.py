"""Room on several nodes: all of a run's nodes and GPUs or none, first come, first served, whoever submits from wherever."""

from __future__ import annotations

import os
import random
import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from typing import Final

from tfjob.dockerapi.api import RefusalError
from tfjob.engines.base import Allocation, Waiting
from tfjob.engines.claimed import Holder, claims, holder_of_claim, is_running, name_of_run
from tfjob.engines.cluster.at_once import at_once, try_at_once
from tfjob.engines.cluster.choice import Candidate, can_ever_fit, choose, shares
from tfjob.engines.cluster.clean import is_left, remove_left
from tfjob.engines.cluster.leases import Claims, RunKey, Sight
from tfjob.engines.cluster.nodes import Reached, Reaching
from tfjob.errors import TargetError
from tfjob.planning.plan import Plan
from tfjob.targets.leases import Lease, holder_of, try_lease
from tfjob.targets.local import LOCAL
from tfjob.targets.target import Node

__all__ = ["Found", "find_room"]


_LOOK_S: Final = 0.5
_BEAT_S: Final = 15.0
_TRY_AGAIN_S: Final = 60.0
"""So often who waits looks whether nodes that did not answer are back."""

_QUIET_S: Final = 0.5
"""So long nobody wants to be told that nodes are being asked."""

_GATHER_S: Final = 0.005
"""So long other nodes may answer too before all are looked at again."""

_STRAGGLERS_S: Final = (0.5, 5.0)
"""How long nodes that have not answered yet are waited for when those that have would do, for a fair choice: twice the
time which those took, but at least and at most so long. What is slow for one node is slow for others: a busy machine here,
a slow way there."""


@dataclass(frozen=True)
class Found:
    """The room that was found: the nodes, in the order of the plan's, and which GPUs and tasks are whose.

    `leases` are those on GPUs of this machine, if it is one of the nodes: runs of the target `local` heed them.
    """

    nodes: tuple[Reached, ...]
    gpus: tuple[tuple[int, ...], ...]
    leases: tuple[Lease, ...] = ()

    def allocation(self, plan: Plan) -> Allocation:
        """The room as an engine's callers know it. Ports are found later, on the nodes themselves."""
        return Allocation(tuple(node.node for node in self.nodes), gpus_of_tasks(plan, self.gpus), leases=self.leases)


def gpus_of_tasks(plan: Plan, gpus: tuple[tuple[int, ...], ...]) -> Mapping[str, tuple[int, ...]]:
    """Which GPUs each task sees, where `gpus` are those of the plan's nodes."""
    found: dict[str, tuple[int, ...]] = {}
    asked: list[list[tuple[str, int, bool]]] = [[] for _ in gpus]
    for task in plan.tasks:
        asked[task.node].append((task.name, task.gpus, task.launched))
    for tasks, indices in zip(asked, gpus, strict=True):
        found.update(shares(tasks, indices))
    return found


def find_room(plan: Plan, key: RunKey, reaching: Reaching, deadline_s: float, waiting: Waiting) -> Found:
    """Claim the plan's GPUs on as many nodes as it asks for. Raises TargetError for what can't be, or was not in time."""
    search = _Search(plan, key, reaching)
    begun = time.monotonic()
    deadline = begun + deadline_s
    try:
        while True:
            found = search.look()
            if found is not None:
                search.leave_line(found)
                return found
            if time.monotonic() >= deadline:
                raise search.in_vain(deadline_s)  # noqa: TRY301  # what was taken is let go of below
            patient = time.monotonic() - begun < _QUIET_S
            waiting("" if patient else f"waiting for {search.wanted} on {plan.target}: {search.why}")
            search.rest()
    except BaseException:
        search.give_up()
        raise


class _Search:
    """One run's search for room."""

    def __init__(self, plan: Plan, key: RunKey, reaching: Reaching) -> None:
        self._plan = plan
        self._key = key
        self._reaching = reaching
        self._claims: dict[str, Claims] = {}
        self._ticket: float | None = None
        self._in_line: set[str] = set()
        self._has_own: set[str] = set()
        self._last_beat = time.monotonic()
        self._last_try = time.monotonic()
        self._enough_since: float | None = None
        self.why = "no node has answered yet"

    @property
    def wanted(self) -> str:
        """What is asked for, in words."""
        nodes = f"{self._plan.node_count} node{'s' if self._plan.node_count != 1 else ''}"
        gpus = self._plan.gpus_per_node
        return nodes + (f" with {gpus} GPU{'s' if gpus != 1 else ''}" if gpus else "")

    def in_vain(self, deadline_s: float) -> TargetError:
        """The error for a search that took too long."""
        return TargetError(
            f"no room on {self._plan.target} within {deadline_s:g} s: {self.wanted} asked for; {self.why}",
            "Wait for those runs, or raise `limits.allocation_timeout_s`.",
        )

    def look(self) -> Found | None:
        """One look at all nodes that answer; the room, if there is enough and it is our turn."""
        reached = self._reaching.reached
        self._refuse_the_impossible(reached)
        if len(reached) < self._plan.node_count or self._waits_for_others(reached):
            self.why = self._reaching.silent or f"{len(reached)} of {len(self._reaching.target.nodes)} nodes answer"
            return None
        sights = self._see(reached)
        reached = tuple(node for node in reached if node.definition.name in sights)
        if len(reached) < self._plan.node_count:
            self.why = self._reaching.silent
            return None
        remove_left(self._key, [(node.api, sights[node.definition.name]) for node in reached])
        if not self._plan.gpus_per_node:
            return self._without_gpus(reached, sights)
        before = tuple(dict.fromkeys(one for sight in sights.values() for one in sight.before))
        if before and self._ticket is not None:
            self.why = f"{', '.join(map(str, before[:3]))} came first"
            return None
        found = choose(
            [
                Candidate(
                    node.order,
                    node.node,
                    _free(node.node, sights[node.definition.name]),
                    sights[node.definition.name].load,
                )
                for node in reached
            ],
            self._plan.node_count,
            self._plan.gpus_per_node,
        )
        if found is None or before:
            self.why = _who_has_it(reached, sights)
            self._get_in_line(reached)
            return None
        by_order = {node.order: node for node in reached}
        return self._claim([by_order[one.order] for one in found], found)

    def rest(self) -> None:
        """Wait until something may have changed; say meanwhile that we are still here."""
        self._reaching.wait(_LOOK_S if self._ticket is not None else 0.05)
        if self._reaching.open:
            time.sleep(_GATHER_S)
        if self._ticket is not None and time.monotonic() - self._last_beat > _BEAT_S:
            self._last_beat = time.monotonic()
            ticket = self._ticket
            # Drawn again, it is the same: somebody may have taken it for a dead one's while this machine slept.
            try_at_once(lambda claims: claims.draw(ticket), [self._claims[name] for name in self._in_line])
        if time.monotonic() - self._last_try > _TRY_AGAIN_S:
            self._last_try = time.monotonic()
            self._reaching.try_again()

    def leave_line(self, found: Found) -> None:
        """Have room: let go of what is not needed any more, also of what a supervisor drew that has died since."""
        mine = {node.definition.name for node in found.nodes}
        own = (self._in_line | self._has_own) & self._claims.keys()
        try_at_once(Claims.return_ticket, [self._claims[name] for name in own & mine])
        try_at_once(Claims.release, [self._claims[name] for name in own - mine])

    def give_up(self) -> None:
        """Let go of everything."""
        try_at_once(Claims.release, list(self._claims.values()))

    def _see(self, reached: tuple[Reached, ...]) -> dict[str, Sight]:
        for node in reached:
            self._claims.setdefault(node.definition.name, Claims(node.api, self._key))
        ticket = self._ticket if self._ticket is not None else float("inf")

        def look(node: Reached) -> Sight | None:
            try:
                sight = self._claims[node.definition.name].look(ticket)
                return replace(sight, held={**_leased_here(node), **_left_of(self._key, sight), **sight.held})
            except (TargetError, RefusalError, OSError) as error:
                self._lose(node, error)
                return None

        sights = at_once(look, reached)
        seen = {node.definition.name: sight for node, sight in zip(reached, sights, strict=True) if sight is not None}
        self._has_own |= {name for name, sight in seen.items() if sight.has_own}
        return seen

    def _lose(self, node: Reached, error: TargetError | RefusalError | OSError) -> None:
        """A node has gone away since it was reached: it may come back, as another one of its name."""
        self._claims.pop(node.definition.name, None)
        self._in_line.discard(node.definition.name)
        self._reaching.lost(node, error)

    def _without_gpus(self, reached: tuple[Reached, ...], sights: Mapping[str, Sight]) -> Found | None:
        candidates = [Candidate(node.order, node.node, (), sights[node.definition.name].load) for node in reached]
        chosen = choose(candidates, self._plan.node_count, 0)
        if chosen is None:
            return None
        by_order = {node.order: node for node in reached}
        return Found(tuple(by_order[one.order] for one in chosen), tuple(() for _ in chosen))

    def _claim(self, nodes: list[Reached], chosen: tuple[Candidate, ...]) -> Found | None:
        count = self._plan.gpus_per_node
        gpus = tuple(one.free[:count] for one in chosen)
        own = [self._claims[node.definition.name] for node in nodes]

        def claim(index: int) -> bool:
            try:
                return own[index].claim(gpus[index])
            except TargetError:
                return False  # the next look finds out what is the matter with it
            except RefusalError as error:  # a full disk, mostly
                self._reaching.refuse(nodes[index], error)
                return False

        if all(at_once(claim, range(len(nodes)))):
            leases = _lease_here(self._key, nodes, gpus)
            if leases is not None:
                return Found(tuple(nodes), gpus, leases)
        try_at_once(Claims.release, own)  # all or none
        self._in_line.clear()
        self.why = self._reaching.silent or "another run wants the same GPUs"
        self._get_in_line(self._reaching.reached)
        time.sleep(random.uniform(0.0, 0.2))  # noqa: S311  # no secret: two who want the same shall not meet again
        return None

    def _get_in_line(self, reached: tuple[Reached, ...]) -> None:
        """Draw a ticket on every node: its time is the first node's, so that all who wait agree on the order."""
        if not reached:  # every node has refused the claim
            return
        with suppress(
            TargetError, RefusalError, OSError
        ):  # the next look finds out what is the matter, and comes here again
            if self._ticket is None:
                self._ticket = reached[0].api.clock() + time.time() % 1
            ticket = self._ticket
            names = [node.definition.name for node in reached if node.definition.name not in self._in_line]
            names = [name for name in names if name in self._claims]
            at_once(lambda name: self._claims[name].draw(ticket), names)
            self._in_line.update(names)

    def _waits_for_others(self, reached: tuple[Reached, ...]) -> bool:
        """Whether nodes that have not answered yet are waited for a moment longer."""
        if self._reaching.open == 0 or len(reached) == len(self._reaching.target.nodes):
            return False
        self._enough_since = self._enough_since or time.monotonic()
        took_s = sorted(node.took_s for node in reached)[self._plan.node_count - 1]
        least, most = _STRAGGLERS_S
        return time.monotonic() - self._enough_since < min(max(least, 2 * took_s), most)

    def _refuse_the_impossible(self, reached: tuple[Reached, ...]) -> None:
        plan, target = self._plan, self._reaching.target
        silent = self._reaching.silent
        if target.least_nodes and len(reached) + self._reaching.open < target.least_nodes:
            raise TargetError(
                f"{target.name} needs {target.least_nodes} nodes that answer, and {len(reached)} do; {silent}",
                f"Look at them: tfjob compute test {target.name}.",
            )
        nodes = [node.node for node in reached]
        if can_ever_fit(nodes, self._reaching.open, plan.node_count, plan.gpus_per_node):
            return
        has = (
            ", ".join(f"{node.name} has {len(node.gpus)}" for node in nodes)
            if plan.gpus_per_node
            else f"{len(nodes)} answer"
        )
        raise TargetError(
            f"the job asks for {self.wanted}; {has}" + (f"; {silent}" if silent else ""),
            f"Look at the nodes: tfjob compute test {target.name}.",
        )


def _leased_here(node: Reached) -> dict[int, Holder]:
    """The GPUs that runs of the target `local` have, where the node is this machine."""
    found: dict[int, Holder] = {}
    if node.definition.engine != LOCAL:
        return found
    with suppress(OSError):  # leases can't be taken here, so nobody has any
        for gpu in node.node.gpus:
            holder = holder_of(f"gpu-{gpu.uuid}")
            if holder is not None:
                found[gpu.index] = Holder(holder.get("run", "another run"), "")
    return found


def _left_of(key: RunKey, sight: Sight) -> dict[int, Holder]:
    """The GPUs of containers of the run's attempts that are over and still run: not the next attempt's until they are gone."""
    own = [one for one in sight.containers if is_running(one) and name_of_run(one["Labels"]) == key.name]
    return {index: holder_of_claim(labels) for labels, index in claims(own, ()) if is_left(labels)}


def _lease_here(key: RunKey, nodes: Sequence[Reached], gpus: Sequence[Sequence[int]]) -> tuple[Lease, ...] | None:
    """Lease the GPUs of this machine, if it is among the nodes. None if a run of the target `local` has one of them."""
    leases: list[Lease] = []
    for node, indices in zip(nodes, gpus, strict=True):
        if node.definition.engine != LOCAL:
            continue
        with suppress(OSError):
            for gpu in node.node.gpus:
                lease = try_lease(f"gpu-{gpu.uuid}", {"run": key.id}) if gpu.index in indices else None
                if lease is not None:
                    leases.append(lease)
                elif gpu.index in indices:
                    for one in leases:
                        one.release()
                    return None
    return tuple(leases)


def _free(node: Node, sight: Sight) -> tuple[int, ...]:
    return tuple(gpu.index for gpu in node.gpus if gpu.index not in sight.held)


def _who_has_it(reached: tuple[Reached, ...], sights: Mapping[str, Sight]) -> str:
    holders: dict[Holder, int] = {}
    free = 0
    for node in reached:
        sight = sights[node.definition.name]
        free += len(_free(node.node, sight))
        for holder in sight.held.values():
            holders[holder] = holders.get(holder, 0) + 1
    has = ", ".join(f"{holder} has {count}" for holder, count in holders.items()) or "others are before this run"
    return f"{free} GPU{'s' if free != 1 else ''} free; {has}"


def submitted_by() -> str:
    """Who submits, for messages: the user and this machine."""
    import pwd  # noqa: PLC0415  # only where something is claimed

    try:
        user = pwd.getpwuid(os.geteuid()).pw_name
    except KeyError:
        user = str(os.geteuid())
    return f"{user}@{os.uname().nodename}"
