"""What the tests of the Docker engine share."""

from __future__ import annotations

from typing import TYPE_CHECKING

from support import eventually

from tfjob.engines.base import TaskStatus
from tfjob.planning.plan import ContainerPlan

if TYPE_CHECKING:
    from engines.engine_bench import Bench

FOREVER = "while :; do sleep 0.05; done"
PYTHON = "/usr/bin/python3"


def end(bench: Bench, name: str = "main") -> TaskStatus:
    """How a task ended, which is waited for."""

    def poll() -> TaskStatus | None:
        status = bench.poll()[name]
        return status if status.state == "ended" else None

    found: TaskStatus = eventually(poll, "the end")
    return found


def says(bench: Bench, name: str = "main") -> list[str]:
    """Run it, and give the lines it wrote."""
    bench.start()
    assert end(bench, name).exit_code == 0, bench.log(name)
    return bench.log(name).splitlines()


def given(*arguments: str, shm_size: str = "2g") -> ContainerPlan:
    """Containers with these arguments of `docker run`."""
    return ContainerPlan(shm_size, arguments)
