from __future__ import annotations

import inspect
import stat
from dataclasses import replace
from pathlib import Path
from typing import cast

import pytest

from tfjob import submission
from tfjob.environments.definition import definition_of
from tfjob.environments.lock import Lock
from tfjob.errors import NotFound, TargetError, UsageError
from tfjob.rundir import RunDirectory
from tfjob.runs.starting import StartingSupervisor
from tfjob.spec.job import EnvironmentSpec
from tfjob.targets.definition import ClusterDefinition, NodeDefinition, SlurmDefinition
from tfjob.targets.registered import Targets
from tfjob.workspace import GPU_IMAGE, make_workspace

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


def test_a_lock_beside_the_conda_file_goes_with_the_run_and_with_its_reruns(job: Path) -> None:
    workspace, _ = make_workspace(job.parent)
    supervisor = NoSupervisor()
    job.write_text(JOB + "environment: {conda_file: packages.yml}\n")
    (job.parent / "packages.yml").write_text("dependencies: [python]\nvariables: {A: 0.10}\n")
    definition = definition_of(EnvironmentSpec(conda={"dependencies": ["python"]}))
    assert definition is not None
    lock = Lock.make(
        definition=definition.digest(),
        asked=[],
        python_version="3.11.7",
        platform="linux-x86_64-glibc2.36",
        base=None,
        pip_text="",
        conda=None,
    ).text
    (job.parent / "packages.lock").write_text(lock)
    ready = submission.prepare(job, workspace=workspace)
    assert ready.plan.environment is not None
    assert ready.plan.environment.has_lock
    assert dict(ready.plan.tasks[0].env)["A"] == "0.10"
    submission.begin(ready, workspace, cast("StartingSupervisor", supervisor))
    (run,) = supervisor.given
    assert run.lock_file.read_text() == lock
    (job.parent / "packages.lock").unlink()
    assert submission.prepare_rerun(workspace, run).lock == lock
    assert submission.prepare(job, workspace=workspace).lock is None
    (job.parent / "packages.lock").write_text(lock)
    (job.parent / "packages.yml").write_text("dependencies: [python=3.11]\n")
    with pytest.raises(UsageError, match="changed since"):
        submission.prepare(job, workspace=workspace)


@pytest.mark.parametrize(
    ("lines", "base", "image"),
    [
        ("", None, "mine/cpu:1"),
        ("environment: {conda: {dependencies: [python]}}", "mine/cpu:1", None),
        ("environment: {conda: {dependencies: [python]}, base: gpu}", GPU_IMAGE, None),
        ("environment: {conda: {dependencies: [python]}, base: 'a/b:1'}", "a/b:1", None),
        ("environment: {conda: {dependencies: [python]}, image: 'a/b:1'}", "a/b:1", None),
        ("environment: {image: 'a/b:1'}", None, "a/b:1"),
    ],
)
def test_the_workspace_says_which_images_are_meant(job: Path, lines: str, base: str | None, image: str | None) -> None:
    workspace, _ = make_workspace(job.parent)
    (workspace.root / "config.yml").write_text("images: {cpu: 'mine/cpu:1'}\n")
    job.write_text(f"{JOB}compute: {{runtime: docker}}\n{lines}\n")
    plan = submission.prepare(job, workspace=workspace).plan
    assert plan.runtime == "docker"
    assert plan.environment is not None
    assert (plan.environment.base, plan.environment.image) == (base, image)


def test_a_dockerfile_copies_from_its_own_directory_unless_another_is_named(job: Path) -> None:
    workspace, _ = make_workspace(job.parent)
    (job.parent / "docker").mkdir()
    (job.parent / "docker" / "Dockerfile").write_text("FROM scratch\n")
    found = []
    for more in ("", ", build_context: .", ", build_arguments: {A: 0.10}"):
        job.write_text(f"{JOB}environment: {{dockerfile: docker/Dockerfile{more}}}\n")
        plan = submission.prepare(job, workspace=workspace).plan
        assert plan.runtime == "docker"
        assert plan.environment is not None
        assert plan.environment.dockerfile is not None
        found.append(plan.environment.dockerfile)
    folder = str(job.parent / "docker")
    assert [one.context for one in found] == [folder, str(job.parent), folder]
    assert [one.arguments for one in found] == [(), (), (("A", "0.10"),)]
    assert len({one.digest for one in found}) == 3


def test_an_environment_of_no_such_name_is_told(job: Path) -> None:
    workspace, _ = make_workspace(job.parent)
    job.write_text(f"{JOB}environment: nobody-has-this@3\n")
    with pytest.raises(NotFound, match="nobody-has-this"):
        submission.prepare(job, workspace=workspace)


@pytest.mark.parametrize("has_workspace", [False, True])
def test_a_dataset_of_no_such_name_may_be_a_path(job: Path, has_workspace: bool) -> None:
    workspace = make_workspace(job.parent)[0] if has_workspace else None
    (job.parent / "data").mkdir()
    job.write_text("command: x\ndataset: {d: data}\n")
    with pytest.raises(NotFound, match="there is no dataset 'data'") as caught:
        submission.prepare(job, workspace=workspace)
    assert caught.value.hint == ("There is a data beside the job file: did you mean dataset: {d: {paths: [data]}}?")


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


def test_a_rerun_uses_the_target_as_it_is_now(job: Path) -> None:
    workspace, _ = make_workspace(job.parent)
    targets = Targets(workspace.compute)
    a, b = (NodeDefinition(name, f"ssh://{name}", labels=(("type", "x"),)) for name in "ab")
    targets.create(ClusterDefinition("lab", (a, b, NodeDefinition("c", "ssh://c"))))
    job.write_text(f"{JOB}compute: {{target: lab, node_count: 2, node_type: x}}\n")
    supervisor = NoSupervisor()
    submission.begin(submission.prepare(job, workspace=workspace), workspace, cast("StartingSupervisor", supervisor))
    (run,) = supervisor.given
    d = replace(a, name="d", engine="ssh://d")
    targets.update(ClusterDefinition("lab", (a, d, NodeDefinition("c", "ssh://c")), wait_s=5.0))
    again = submission.prepare_rerun(workspace, run).plan
    assert again.cluster == ClusterDefinition("lab", (a, d), wait_s=5.0)
    targets.update(ClusterDefinition("lab", (a,)))
    with pytest.raises(TargetError, match="asks for 2 nodes; target lab has 1"):
        submission.prepare_rerun(workspace, run)
    targets.update(SlurmDefinition("lab"))
    with pytest.raises(UsageError, match="lab is of kind slurm now"):
        submission.prepare_rerun(workspace, run)
    targets.delete("lab")
    planned = submission.prepare_rerun(workspace, run).plan.cluster
    assert planned is not None
    assert planned.nodes == (a, b)
