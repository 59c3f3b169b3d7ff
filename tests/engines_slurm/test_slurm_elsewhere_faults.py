"""What may be there still on a cluster elsewhere is not given up. The login node is this machine, and its Slurm says what a test wants."""

from __future__ import annotations

import os
import time
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from engines.engine_bench import task
from engines_slurm.slurm_commands import calls, commands
from engines_slurm.slurm_plans import slurm_plan
from support import eventually

from tfjob.datasets.cache import Cache
from tfjob.durable import replace_json
from tfjob.engines.base import Prepared
from tfjob.engines.slurm import elsewhere, submitting
from tfjob.engines.slurm.elsewhere import ElsewhereEngine
from tfjob.engines.slurm.engine import Handle
from tfjob.engines.slurm.login import Login, LoginLost
from tfjob.errors import PreparationError, TargetError
from tfjob.rundir import RunDirectory
from tfjob.runs.left import Cleaned, clean_elsewhere
from tfjob.runs.record import Record, iso, read_record, write_record
from tfjob.runs.slurm import SlurmSupervision
from tfjob.targets.definition import SlurmDefinition
from tfjob.values import encode
from tfjob.workspace import Workspace

if TYPE_CHECKING:
    from collections.abc import Sequence

TIMED_OUT = "echo 'error: Batch job submission failed: Socket timed out on send/recv operation' >&2; exit 1"
PREPARED = Prepared(None, {"environment.path": "/bin"})
LOST = "exit 255"  # as ssh ends where the connection breaks


class Here(Login):
    """A login whose host is this machine."""

    def _program(self, line: str) -> list[str]:
        return ["sh", "-c", line]


class Site:
    """A run that was sent to a cluster elsewhere, whose Slurm is scripts."""

    def __init__(self, directory: Path) -> None:
        self.bin = directory / "bin"
        self.shared = directory / "shared"
        self.run = RunDirectory(directory / "here" / "runs" / "run-1")
        for one in (self.run.outputs, self.run.user_logs, self.run.tasks):
            one.mkdir(parents=True)
        target = SlurmDefinition("far", login="ssh://me@here", directory=str(self.shared))
        self.plan = slurm_plan(task("true", name="main"), target=target)
        replace_json(self.run.plan, encode(self.plan))
        self.said: list[str] = []
        self.slurm(sbatch="echo 7", squeue="true", scancel="true", sacct="exit 1")
        environ = {**os.environ, "PATH": f"{self.bin}:{os.environ['PATH']}"}
        self.engine = ElsewhereEngine(
            target, environ=environ, cache=directory / "cache", datasets=Cache(directory / "datasets")
        )
        self.engine.tell = self.said.append
        self.workspace = Workspace(directory / "here")
        self.environ = environ

    def keep(self) -> None:
        """Send the run."""
        self.engine.keep(self.plan, self.run, PREPARED)

    def slurm(self, **texts: str) -> None:
        """Have commands that do as these lines of sh say."""
        commands(self.bin, **texts)

    @property
    def there(self) -> Path:
        return Path((self.run.path / "slurm" / "place").read_text())

    def job(self, state: str = "RUNNING", script: str = "") -> str:
        """What squeue says of a job of the run's name."""
        return f"echo '7|{state}|{script or self.there / 'slurm' / 'job.sh'}'"

    def called(self, name: str) -> Sequence[str]:
        return [call for call in calls(self.bin) if call.startswith(name)]

    def notes(self) -> str:
        handle = Handle(self.plan, self.run, "")
        self.engine.stop(handle, 0)
        return "; ".join(self.engine.notes(handle))


@pytest.fixture
def empty(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Site:
    monkeypatch.setattr(elsewhere, "Login", Here)
    monkeypatch.setattr(elsewhere, "_AGAIN_S", 0.01)
    monkeypatch.setattr(submitting, "_AGAIN_S", 0.01)
    return Site(tmp_path)


@pytest.fixture
def site(empty: Site) -> Site:
    empty.keep()
    return empty


def test_a_job_that_slurm_refuses_leaves_nothing(site: Site) -> None:
    site.slurm(sbatch="echo 'error: invalid partition specified: gqu' >&2; exit 1")
    with pytest.raises(TargetError, match="invalid partition"):
        site.engine.submit(site.plan, site.run)
    assert (site.there.exists(), site.notes()) == (False, "")


def test_a_job_that_slurm_took_without_an_answer_is_followed(site: Site) -> None:
    site.slurm(sbatch=TIMED_OUT, squeue=site.job())
    assert site.engine.submit(site.plan, site.run).job == "7"
    assert len(site.called("sbatch")) == 1


@pytest.mark.parametrize("squeue", ["true", TIMED_OUT], ids=["no job", "no answer"])
def test_what_a_job_needs_stays_where_slurm_may_have_it(
    site: Site, squeue: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(submitting, "_ASK_S", 0.05)
    site.slurm(sbatch=TIMED_OUT, squeue=squeue)
    with pytest.raises(TargetError, match="timed out"):
        site.engine.submit(site.plan, site.run)
    assert (site.there / "slurm" / "job.sh").exists()
    assert f"whether Slurm has its job is not known; what it has is in {site.there}" in site.notes()
    site.slurm(squeue="true")
    (site.there / "outputs" / "late").write_text("x")
    assert site.engine.finish(site.run) == ""
    assert ((site.run.outputs / "late").read_text(), site.there.exists()) == ("x", False)


def test_a_supervisor_that_took_over_leaves_a_job_that_slurm_can_not_be_asked_about(
    site: Site, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(submitting, "_ASK_S", 0.05)
    (site.run.path / "slurm" / "submitting").touch()
    site.slurm(squeue=TIMED_OUT)
    with pytest.raises(TargetError, match="timed out"):
        site.engine.submit(site.plan, site.run)
    assert (site.there.exists(), site.called("sbatch")) == (True, [])
    assert "Slurm can't be asked whether it has the job" in site.said[0]


def test_a_job_whose_submission_was_canceled_while_the_login_node_was_away_is_ended_later(site: Site) -> None:
    site.slurm(sbatch=LOST, squeue=LOST)

    def cancel(said: str) -> None:
        site.said.append(said)
        site.run.cancel_request.touch()

    site.engine.tell = cancel
    with pytest.raises(LoginLost):
        site.engine.submit(site.plan, site.run)
    assert site.said[0].startswith("the login node can't be reached since ")
    assert "whether Slurm has its job is not known" in site.notes()
    site.slurm(squeue=f"[ -e {site.bin}/ended ] || {site.job()}", scancel=f"touch {site.bin}/ended")
    assert site.engine.finish(site.run) == ""
    assert (site.called("scancel"), site.there.exists()) == (["scancel --batch --signal=USR2 7"], False)


def test_a_run_that_is_canceled_meanwhile_is_canceled_and_says_what_is_left(empty: Site) -> None:
    run = empty.run
    empty.slurm(sbatch=f"touch {run.cancel_request}; {LOST}", squeue=LOST)
    write_record(run, Record(run.id, "far", "far", "Preparing", iso(time.time()), str(run.path), "far"))
    snapshots = empty.workspace.snapshots
    SlurmSupervision(run, empty.plan, engine=empty.engine, prepare=lambda _: PREPARED, snapshots=snapshots).go()
    record = read_record(run)
    assert record.state == "Canceled"
    assert [note.split(";")[0] for note in record.notes] == [
        "whether Slurm has its job is not known",
        "what could not be done is done later: by the next run on far, or by tfjob compute clean far",
    ]
    empty.slurm(squeue=f"[ -e {empty.bin}/ended ] || {empty.job()}", scancel=f"touch {empty.bin}/ended")
    assert clean(empty) == Cleaned((f"directory of run {run.id}",))
    assert empty.called("scancel") == ["scancel --batch --signal=USR2 7"]
    assert read_record(run).notes[0].startswith("what it left on the cluster was brought home and removed at ")


def test_what_can_not_be_finished_is_told(site: Site) -> None:
    write_record(site.run, Record("run-1", "far", "far", "Failed", iso(time.time()), str(site.run.path), "far"))
    (site.run.path / "slurm" / "submitting").touch()
    site.slurm(squeue=site.job(script="(null)"))
    done = clean(site)
    assert done.removed == ()
    assert done.problem.startswith("run run-1 is not finished: a job bears its name, and may be another's: 7")


def test_a_run_that_could_not_be_sent_leaves_nothing_to_finish(empty: Site) -> None:
    empty.shared.write_text("no directory")
    with pytest.raises(PreparationError, match="can't keep"):
        empty.keep()
    write_record(empty.run, Record("run-1", "far", "far", "Failed", iso(time.time()), str(empty.run.path), "far"))
    assert clean(empty) == Cleaned(())


def test_jobs_of_other_runs_that_have_the_same_id_are_left_alone(site: Site) -> None:
    (site.run.path / "slurm" / "submitting").touch()
    site.slurm(squeue=site.job(script="(null)"))
    assert site.engine.finish(site.run).startswith("a job bears its name, and may be another's: 7")
    site.slurm(squeue=site.job(script=f"{site.shared}/runs/another/run-1/slurm/job.sh"))
    assert site.engine.finish(site.run) == ""
    assert site.called("scancel") == []


def test_a_file_system_that_is_not_there_now_is_waited_for(site: Site) -> None:
    runs = site.shared / "runs"
    handle = site.engine.submit(site.plan, site.run)
    runs.rename(site.shared / "unmounted")
    site.slurm(squeue="echo '7|RUNNING|1|gpu|10|me|N/A|N/A|n1|None'")
    words = f"the login node does not see {runs} since "
    eventually(lambda: site.engine.look(handle).away.startswith(words), "words for it")
    site.slurm(squeue="true")
    assert f"does not see {runs}; if it is gone for good, make it anew" in site.engine.finish(site.run)
    (site.shared / "unmounted" / site.there.relative_to(runs) / "outputs" / "late").write_text("x")
    (site.shared / "unmounted").rename(runs)
    assert site.engine.finish(site.run) == ""
    assert ((site.run.outputs / "late").read_text(), site.there.exists()) == ("x", False)


def test_nothing_is_called_removed_where_the_store_is_not_there(site: Site) -> None:
    (site.run.path / "slurm" / "brought").touch()
    site.shared.rename(site.shared.with_name("unmounted"))
    assert site.engine.finish(site.run).startswith("the run's directory could not be removed: ")
    assert not (site.run.path / "slurm" / "removed").exists()
    site.shared.with_name("unmounted").rename(site.shared)
    assert site.engine.finish(site.run) == ""
    assert not site.there.exists()


def clean(site: Site) -> Cleaned:
    """What `tfjob compute clean far` does."""
    assert site.plan.slurm is not None
    return clean_elsewhere(site.plan.slurm, site.workspace, site.environ)
