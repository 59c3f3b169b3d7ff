"""What a Docker Engine knows of runs: which of them live, and which GPUs of its machine they have.

Runs of targets of several machines claim GPUs there, in volumes, before a container of theirs says which it has: see
`tfjob.engines.cluster.leases`.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass
from datetime import datetime
from typing import Any, Final

from tfjob.dockerapi.api import DockerApi, RefusalError, socket_of
from tfjob.errors import TargetError

__all__ = [
    "ALIVE_S",
    "Holder",
    "claimed_here",
    "claims",
    "created",
    "holder_of_claim",
    "is_running",
    "living_runs",
    "name_of_run",
]

ALIVE_S: Final = 60.0
_TIMEOUT_S: Final = 10.0
"""A busy machine's engine is late, and who takes its silence for a no takes GPUs that others have."""


@dataclass(frozen=True)
class Holder:
    """Who has a GPU: a run's id, and who submitted it."""

    run: str
    submitter: str

    def __str__(self) -> str:
        return f"run {self.run}" + (f" of {self.submitter}" if self.submitter else "")


def claimed_here(environ: Mapping[str, str]) -> dict[int, Holder] | None:
    """The GPUs of this machine, by number, that runs of several machines have; None where its Docker Engine does not say.

    A machine without an engine has no such runs. `environ` says where the engine's socket is.
    """
    with suppress(TargetError, RefusalError):
        address = socket_of(environ)
        if not os.path.exists(address.removeprefix("unix://")):
            return {}
        api = DockerApi(address)
        containers = api.with_labels({"tfjob.run": "", "tfjob.workspace": ""}, _TIMEOUT_S)
        volumes = api.volumes({"tfjob.run": "", "tfjob.workspace": ""}, _TIMEOUT_S)
        living = living_runs(containers, volumes, api.clock(_TIMEOUT_S)) if volumes else set()
        running = filter(is_running, containers)
        alive = [one for one in volumes if name_of_run(one["Labels"]) in living]
        return {index: holder_of_claim(labels) for labels, index in claims(running, alive)}
    return None


def claims(
    running: Iterable[dict[str, Any]], volumes: Iterable[dict[str, Any]]
) -> Iterator[tuple[dict[str, str], int]]:
    """The GPUs that containers which run and volumes of runs that live say they have, each with the labels that say so."""
    for container in running:
        for index in filter(None, container["Labels"].get("tfjob.gpus", "").split(",")):
            yield container["Labels"], int(index)
    for volume in volumes:
        if "tfjob.gpu" in volume["Labels"]:
            yield volume["Labels"], int(volume["Labels"]["tfjob.gpu"])


def holder_of_claim(labels: Mapping[str, str]) -> Holder:
    """Who has what bears these labels."""
    return Holder(labels["tfjob.run"], labels.get("tfjob.by", ""))


def living_runs(containers: Iterable[dict[str, Any]], volumes: Iterable[dict[str, Any]], now: float) -> set[str]:
    """The runs that live, by what an engine has of runs and its clock: a container runs, or a sign of life is young."""
    running = {name_of_run(one["Labels"]) for one in containers if is_running(one)}
    return running | {name_of_run(one["Labels"]) for one in volumes if now - created(one) < ALIVE_S}


def is_running(container: Mapping[str, Any]) -> bool:
    """Whether a container of an engine's list runs."""
    return container["State"] in {"running", "paused", "restarting"}


def name_of_run(labels: Mapping[str, str]) -> str:
    """A run's name among those of all workspaces, by the labels of what it has in an engine."""
    return f"{labels['tfjob.run']}.{labels.get('tfjob.workspace', '')}"


def created(volume: Mapping[str, Any]) -> float:
    """When a volume was made, in seconds since the epoch (RFC 3339, whole seconds)."""
    return datetime.fromisoformat(volume["CreatedAt"]).timestamp()
