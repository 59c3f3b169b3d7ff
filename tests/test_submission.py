from __future__ import annotations

import inspect
import stat
from pathlib import Path
from typing import cast

import pytest

from tfjob import submission
from tfjob.errors import UsageError
from tfjob.rundir import RunDirectory
from tfjob.runs.starting import StartingSupervisor
from tfjob.workspace import make_workspace

JOB = """\
name: small
command: echo ${TOKEN}
secrets: [TOKEN]
"""


class NoSupervisor:
    """In the place of a supervisor's process."""

    def __init__(self) -> None:
        self.given: list[RunDirectory] = []

    def give(self, run: RunDirectory, lock: int) -> None:
        del lock
        self.given.append(run)

    def close(self) -> None:
        """There is none."""


@pytest.fixture
def job(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("TOKEN", "secret")
    monkeypatch.delenv("TFJOB_WORKSPACE", raising=False)
    file = tmp_path / "job.yml"
    file.write_text(JOB)
    return file


def test_a_run_is_its_owners_alone(job: Path) -> None:
    workspace, _ = make_workspace(job.parent)
    supervisor = NoSupervisor()
    submission.begin(submission.prepare(job, workspace=workspace), workspace, cast("StartingSupervisor", supervisor))
    (run,) = supervisor.given
    assert stat.S_IMODE(run.path.stat().st_mode) == 0o700
    assert (run.path.parent, run.plan.is_file()) == (workspace.runs, True)


def test_a_rerun_needs_its_secrets_in_the_shell_that_asks_for_it(job: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    workspace, _ = make_workspace(job.parent)
    supervisor = NoSupervisor()
    submission.begin(submission.prepare(job, workspace=workspace), workspace, cast("StartingSupervisor", supervisor))
    again = submission.prepare_rerun(workspace, supervisor.given[0])
    assert again.rerun_of == supervisor.given[0].id
    monkeypatch.delenv("TOKEN")
    with pytest.raises(UsageError, match="TOKEN"):
        submission.prepare_rerun(workspace, supervisor.given[0])


@pytest.mark.parametrize("name", ["plan", "prepare", "prepare_rerun", "submit"])
def test_no_environment_is_taken_that_the_supervisor_would_not_have(name: str) -> None:
    assert "environ" not in inspect.signature(getattr(submission, name)).parameters
