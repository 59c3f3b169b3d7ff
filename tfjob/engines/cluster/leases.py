"""GPUs of a node, leased in its own Docker Engine: no two runs have the same one, whoever submits from wherever.

A claim is a volume ``tfjob-gpu-INDEX-RUN``, which costs nothing and needs no image. It counts as long as its run lives on
that engine: a container of the run is running, or a sign of life (a claim, or a volume ``tfjob-alive-RUN-NUMBER``) is
younger than a minute by the engine's own clock. Whoever claims a GPU looks again afterwards: if another's claim is there
too, both let go and try again in turn. Turns are tickets, volumes too, in the order in which they were drawn.

A running container says in its labels which GPUs it has, so a `docker volume prune` frees none that is in use.
"""

from __future__ import annotations

import time
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any, Final

from tfjob.dockerapi.api import DockerApi, RefusalError
from tfjob.engines.claimed import Holder, claims, holder_of_claim, is_running, living_runs, name_of_run

__all__ = ["Claims", "RunKey", "Sight"]

_TIMEOUT_S: Final = 15.0


@dataclass(frozen=True)
class RunKey:
    """A run, told apart from the runs of all other workspaces and machines."""

    id: str
    workspace: str
    submitter: str = ""

    @property
    def name(self) -> str:
        """As it stands in the names of volumes."""
        return f"{self.id}.{self.workspace}"

    @property
    def labels(self) -> dict[str, str]:
        """What everything of the run bears in an engine."""
        return {"tfjob.run": self.id, "tfjob.workspace": self.workspace, "tfjob.by": self.submitter}


@dataclass(frozen=True)
class Sight:
    """What was seen on one engine: who has which GPU, whose turn comes before ours, how many containers run."""

    held: dict[int, Holder]
    own: frozenset[int]
    contested: frozenset[int]
    before: tuple[Holder, ...]
    load: int
    containers: tuple[dict[str, Any], ...] = ()
    volumes: tuple[dict[str, Any], ...] = ()
    has_own: bool = False
    """Whether there are volumes of our own run, maybe of an earlier process."""


class Claims:
    """The claims of one run on one engine."""

    def __init__(self, api: DockerApi, key: RunKey) -> None:
        self._api = api
        self._key = key
        self._beats: list[str] = []

    def look(self, ticket: float = float("inf")) -> Sight:
        """See who has what. `ticket` is our own turn, as a time of drawing. Claims of runs that are dead are removed."""
        containers = self._api.with_labels({"tfjob.run": ""}, _TIMEOUT_S)
        volumes = self._api.volumes({"tfjob.run": ""}, _TIMEOUT_S)
        running = [one for one in containers if is_running(one)]
        living = living_runs(containers, volumes, self._api.clock(_TIMEOUT_S) if volumes else 0.0)
        self._forget([one for one in volumes if name_of_run(one["Labels"]) not in living])
        held: dict[int, Holder] = {}
        own: set[int] = set()
        contested: set[int] = set()
        for labels, index in claims(running, [one for one in volumes if name_of_run(one["Labels"]) in living]):
            if name_of_run(labels) == self._key.name:
                own.add(index)
            else:
                held[index] = holder_of_claim(labels)
        contested = own & set(held)
        turns = [(one, float(one["Labels"]["tfjob.ticket"])) for one in volumes if "tfjob.ticket" in one["Labels"]]
        served = {name_of_run(one["Labels"]) for one in running}  # whose tickets could not be returned
        before = tuple(
            holder_of_claim(one["Labels"])
            for one, turn in turns
            if name_of_run(one["Labels"]) in living - served
            and name_of_run(one["Labels"]) != self._key.name
            and (turn, name_of_run(one["Labels"])) < (ticket, self._key.name)
        )
        return Sight(
            held,
            frozenset(own),
            frozenset(contested),
            before,
            len(running),
            tuple(containers),
            tuple(volumes),
            any(name_of_run(one["Labels"]) == self._key.name for one in volumes),
        )

    def claim(self, indices: Iterable[int]) -> bool:
        """Claim GPUs; returns whether all of them are ours alone now. If not, none is claimed any more."""
        wanted = set(indices)
        for index in wanted:
            labels = {**self._key.labels, "tfjob.gpu": str(index)}
            self._api.make_volume(f"tfjob-gpu-{index}-{self._key.name}", labels, _TIMEOUT_S)
        sight = self.look()
        if wanted <= sight.own and not sight.contested & wanted:
            return True
        self.release()
        return False

    def draw(self, ticket: float) -> None:
        """Take a turn, which stands until `release`, or until the run has given no sign of life for a minute."""
        labels = {**self._key.labels, "tfjob.ticket": repr(ticket)}
        self._api.make_volume(f"tfjob-ticket-{self._key.name}", labels, _TIMEOUT_S)
        self.beat()

    def return_ticket(self) -> None:
        """Leave the line: the run has what it waited for."""
        self._remove(f"tfjob-ticket-{self._key.name}")

    def beat(self) -> None:
        """Give a sign of life, younger than all before. The last one stays beside it: a list that is made now has one of the two."""
        name = f"tfjob-alive-{self._key.name}-{time.time_ns()}"  # new, whoever gave signs before: an old one proves nothing
        self._api.make_volume(name, self._key.labels, _TIMEOUT_S)
        *old, last = *self._beats, name
        for one in old[:-1]:
            self._remove(one)
        self._beats = [*old[-1:], last]

    def release(self) -> None:
        """Let go of everything of this run on the engine: GPUs, turn, signs of life."""
        for volume in self._api.volumes(
            {"tfjob.run": self._key.id, "tfjob.workspace": self._key.workspace}, _TIMEOUT_S
        ):
            self._remove(volume["Name"])

    def _forget(self, dead: Iterable[dict[str, Any]]) -> None:
        for volume in dead:
            self._remove(volume["Name"])

    def _remove(self, name: str) -> None:
        try:
            self._api.remove_volume(name, _TIMEOUT_S)
        except RefusalError:  # it is gone already
            return
