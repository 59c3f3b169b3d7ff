from __future__ import annotations

import shutil
import textwrap
from collections.abc import Callable, Generator, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
import yaml
from slurm_parts import slurm_cluster
from support import Tfjob, environ_of_users

if TYPE_CHECKING:
    from cluster.slurm import Slurm

__all__ = ["slurm_cluster"]

Submit = Callable[..., str]
_WELL = ("idle", "mixed", "allocated", "completing")


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item: pytest.Item) -> Generator[None, pytest.TestReport, pytest.TestReport]:
    """Say with a failure how Slurm was just then: what a job waited for is not to be found out later."""
    report = yield
    cluster: Slurm | None = getattr(item, "funcargs", {}).get("slurm_cluster")
    if report.when == "call" and report.failed and cluster is not None:
        asked = (["sinfo", "-N", "-l"], ["squeue", "-l"], ["scontrol", "show", "job"])
        told = [cluster.run(*command, check=False) for command in asked]
        logs = [cluster.directory / "log" / name for name in ("slurmctld.log", "power.log")]
        told += ["\n".join([log.name, *log.read_text().splitlines()[-60:]]) for log in logs if log.exists()]
        report.sections.append(("how Slurm was", "\n".join(told)))
    return report


@pytest.fixture
def slurm(slurm_cluster: Slurm) -> Iterator[Slurm]:
    """Slurm with every node well. Jobs of the test before may be completing: a test starts all the sooner."""
    if not all(state in _WELL for state in slurm_cluster.states().values()):
        for node in slurm_cluster.nodes:
            node.reset()
        slurm_cluster.reset()
    yield slurm_cluster
    if slurm_cluster.run("squeue", "-h", "--states=PENDING,RUNNING,SUSPENDED"):
        slurm_cluster.run("scancel", "--signal=KILL", "--user=root", check=False)
        slurm_cluster.run("scancel", "--user=root", check=False)


@pytest.fixture(scope="session")
def lab_project(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a workspace that knows the target `lab`, for copies of it."""
    command = Tfjob(tmp_path_factory.mktemp("lab"), environ_of_users())
    command.write("lab.yml", "kind: slurm\nname: lab\npartition: gpu\n")
    command("compute", "create", "lab", "-f", "lab.yml")
    return command.directory


@pytest.fixture
def lab(tfjob: Tfjob, lab_project: Path, slurm: Slurm) -> Tfjob:
    """The tfjob command on a login node of a Slurm cluster that is the target `lab`."""
    tfjob.environ["PATH"] = slurm.environ["PATH"]
    shutil.copytree(lab_project, tfjob.directory, dirs_exist_ok=True)
    return tfjob


@pytest.fixture
def submit(lab: Tfjob) -> Submit:
    """Submit a job, detached: `submit("echo hello", nodes=2, gpus=1)`; returns the run's id. Other keys are the job file's."""

    def submit(command: str, *, nodes: int = 1, gpus: int = 0, target: str = "lab", **keys: Any) -> str:
        compute = {"target": target, "node_count": nodes, "gpus_per_node": gpus, **keys.pop("compute", {})}
        job = {"name": "job", "command": textwrap.dedent(command), "compute": compute, **keys}
        lab.write("job.yml", yaml.safe_dump(job))
        return lab.submit("job.yml")

    return submit
