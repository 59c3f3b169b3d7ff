"""What is noted of a run's job, in `slurm/job.json`: its number, and which cluster has it.

One home directory may be that of several clusters' login nodes, and so may one workspace: numbers of jobs are of one of them.
"""

from __future__ import annotations

import json
import time
from pathlib import Path
from typing import Final

from tfjob.durable import replace_json
from tfjob.engines.slurm.client import SlurmClient
from tfjob.errors import TargetError
from tfjob.rundir import RunDirectory

__all__ = ["ClusterName", "elsewhere_words", "is_another", "kept_cluster", "kept_job", "note_job"]

_REST_S: Final = 1.0
"""How long a controller that could not be asked is not asked again: so long, or as long as it took to find that out."""


class ClusterName:
    """The name of the cluster that this machine's Slurm is."""

    def __init__(self, client: SlurmClient) -> None:
        self._client = client
        self._name: str | None = None
        self._rests_until = 0.0
        self._failed: TargetError | None = None

    def get(self) -> str:
        """It, as the controller says when it is first asked; nothing where it does not say. Raises TargetError."""
        if self._name is None:
            began = time.monotonic()
            if self._failed is not None and began < self._rests_until:
                raise self._failed
            try:
                said = self._client.show("config")
            except TargetError as error:
                self._failed, now = error, time.monotonic()
                self._rests_until = now + max(_REST_S, now - began)
                raise
            pairs = (line.partition("=") for line in said.splitlines())
            self._name = next((value.strip() for key, _, value in pairs if key.strip() == "ClusterName"), "")
        return self._name


def is_another(one: str, other: str) -> bool:
    """Whether two names of clusters are known, and are not one's."""
    return bool(one and other and one != other)


def elsewhere_words(job: str, cluster: str, own: str) -> str:
    """That a job is another cluster's, and where it can be followed."""
    here = f"Slurm here is {own}" if own else "its Slurm can't be asked from here"
    return f"its job {job} is of the cluster {cluster}, and {here}: follow it from a login node of {cluster}"


def note_job(run: RunDirectory, job: str, cluster: str) -> None:
    """Note the job of a run, and the name of its cluster where that is known."""
    replace_json(_file(run), {"job": job, **({"cluster": cluster} if cluster else {})})


def kept_job(run: RunDirectory) -> str | None:
    """The number of a run's job; None where none was submitted, or nobody had time to note it."""
    job: str | None = _kept(run).get("job")
    return job


def kept_cluster(run: RunDirectory) -> str:
    """The name of the cluster that has a run's job; nothing where that is not known, or the run's target says how it is reached."""
    name: str = _kept(run).get("cluster", "")
    return name


def _file(run: RunDirectory) -> Path:
    return run.path / "slurm" / "job.json"


def _kept(run: RunDirectory) -> dict[str, str]:
    try:
        kept: dict[str, str] = json.loads(_file(run).read_bytes())
    except FileNotFoundError:
        return {}
    return kept
