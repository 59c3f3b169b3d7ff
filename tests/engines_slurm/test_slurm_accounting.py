"""What Slurm's accounting knows of jobs that its controller has forgotten: a real slurmdbd with a real database."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING
from uuid import uuid4

import pytest
from cluster.accounting import accounting, find_accounting
from docker_parts import CannotRunError
from engines_slurm.slurm_plans import slurm_plan
from support import eventually

from tfjob.engines.slurm.engine import SlurmEngine
from tfjob.engines.slurm.report import End
from tfjob.rundir import RunDirectory

if TYPE_CHECKING:
    from cluster.slurm import Slurm

pytestmark = [pytest.mark.root, pytest.mark.xdist_group("cluster")]


@pytest.fixture
def accounted(slurm: Slurm) -> Iterator[Slurm]:
    try:
        find_accounting()
    except CannotRunError as reason:
        pytest.skip(str(reason))
    slurm.reset()
    with accounting(slurm) as with_it:
        yield with_it


def forget_jobs(slurm: Slurm) -> None:
    """Let the controller lose what it knows of jobs."""
    slurm.stop_daemon(slurm.head, "slurmctld")
    for file in (slurm.directory / "state").glob("job_state*"):
        file.unlink()
    slurm.start()


def end_of(slurm: Slurm, job: str, directory: Path) -> End:
    """How a run is said to have ended whose job that was, and which left no word."""
    run = RunDirectory(directory / f"run-{uuid4().hex[:6]}")
    (run.path / "slurm").mkdir(parents=True)
    (run.path / "slurm" / "job.json").write_text(json.dumps({"job": job}))
    (run.path / "slurm" / "submitting").touch()
    engine = SlurmEngine(environ=slurm.environ, cache=directory / "cache")
    handle = engine.adopt(slurm_plan(), run)

    def end() -> End | None:
        view = engine.look(handle)
        return view.end if view.stage == "over" else None

    found: End = eventually(end, f"the end of job {job}")
    return found


def test_jobs_that_the_controller_forgot_are_known_to_accounting(accounted: Slurm, tmp_path: Path) -> None:
    held = accounted.run("sbatch", "--parsable", "--hold", "-o/dev/null", "--wrap=true").strip()
    accounted.run("scancel", held)
    failed = accounted.run("sbatch", "--parsable", "-o/dev/null", "--wrap=exit 3").strip()
    said = ("--noheader", "--parsable2", "--allocations", "--format=State", "--jobs")
    eventually(lambda: "FAILED" in accounted.run("sacct", *said, failed), "the end of a job in the accounts")
    forget_jobs(accounted)
    assert not accounted.run("squeue", "-h", "--states=all", f"--jobs={failed}", check=False)
    never_began = end_of(accounted, held, tmp_path)
    assert (never_began.outcome, never_began.kind) == ("canceled", "canceled")
    end = end_of(accounted, failed, tmp_path)
    assert (end.outcome, end.kind) == ("failed", "failure")
    assert "Slurm no longer knows its job 999999" in end_of(accounted, "999999", tmp_path).message
