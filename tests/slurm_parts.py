"""Slurm of the checkout's own, on the nodes of its test cluster: a controller, three nodes, stand-in GPUs.

As a program, ``python tests/slurm_parts.py up`` starts it and leaves it running, ``env`` prints what makes a shell one on a
login node (``eval "$(python tests/slurm_parts.py env)"``), ``down`` ends it. `make slurm-up` and `make slurm-down` do too.
"""

from __future__ import annotations

import contextlib
import sys
from typing import TYPE_CHECKING

import pytest
import yaml
from cluster.layout import LAYOUT, SLURM_LAYOUT
from cluster.slurm import Slurm, find_slurm
from cluster_parts import Cluster, cluster_in_use, described, down, forget, mended, need_root, register, up
from docker_parts import CannotRunError
from set_up import NotRunningError, set_up_program

if TYPE_CHECKING:
    from collections.abc import Iterator

TARGET = "slurm-lab"


def slurm_of(cluster: Cluster) -> Slurm:
    """Slurm on a cluster's nodes, whether it runs or not."""
    return Slurm(cluster.layout, cluster.head, cluster.nodes)


@contextlib.contextmanager
def slurm_in_use() -> Iterator[Slurm]:
    """Use Slurm on nodes of its own; it ends with them.

    Raises CannotRunError when there can be none, RuntimeError when it does not start.
    """
    need_root()
    find_slurm()
    with cluster_in_use(SLURM_LAYOUT) as cluster:
        slurm = slurm_of(cluster)
        try:
            slurm.start()
        except CannotRunError as reason:  # all it needs is there: this is a fault, no reason to skip
            raise RuntimeError(f"Slurm does not start: {reason}") from reason
        yield slurm


@pytest.fixture(scope="session")
def slurm_cluster() -> Iterator[Slurm]:
    """Slurm; skips, with the reason, where there can be none. Its tests share a worker: see ``conftest.py``."""
    try:
        with slurm_in_use() as slurm:
            yield slurm
    except CannotRunError as reason:
        pytest.skip(str(reason))


@pytest.fixture
def slurm_nodes(slurm_cluster: Slurm) -> Cluster:
    """Slurm's nodes as machines: how to reach them, and the directory that they share."""
    return described(slurm_cluster.layout)


@pytest.fixture
def slurm(slurm_cluster: Slurm, monkeypatch: pytest.MonkeyPatch) -> Slurm:
    """Slurm with no job and all nodes idle; this machine is a login node of it: sbatch and its like are on the PATH."""
    with mended(slurm_cluster.faults, "Slurm"):
        for node in slurm_cluster.nodes:
            node.reset()
        slurm_cluster.reset()
    monkeypatch.setenv("PATH", slurm_cluster.environ["PATH"])
    return slurm_cluster


def _up() -> None:
    need_root()
    find_slurm()
    slurm = slurm_of(up(stays=TARGET))
    slurm.start()
    register(
        TARGET, yaml.safe_dump({"name": TARGET, "kind": "slurm", "partition": "gpu"}, sort_keys=False), slurm.environ
    )


def _env() -> dict[str, str]:
    need_root()
    slurm = slurm_of(described())
    if not slurm.head.runs:
        raise NotRunningError("Slurm")
    return {"PATH": f"{slurm.programs}:$PATH"}


def _down() -> None:
    need_root()
    forget(TARGET)
    slurm_of(described()).stop()
    (LAYOUT.directory / f"stays.{TARGET}").unlink(missing_ok=True)
    down(if_unused=True)


if __name__ == "__main__":
    sys.exit(set_up_program(_up, _env, _down))
