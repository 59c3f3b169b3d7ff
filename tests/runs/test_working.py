from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import pytest
from engines.engine_bench import plan, task

from tfjob.errors import PreparationError
from tfjob.planning.plan import CodePlan, Plan
from tfjob.rundir import RunDirectory
from tfjob.runs.working import clear_work, make_work
from tfjob.snapshot import scan, take

UNCHANGED = {"train.py": "train", "data/labels.txt": "labels", "checkpoints/start": "start"}


@pytest.fixture
def place() -> Iterator[Path]:
    """A directory that another user can come to."""
    directory = Path(tempfile.mkdtemp())
    directory.chmod(0o777)
    yield directory
    shutil.rmtree(directory)


@pytest.fixture
def planned(place: Path) -> Plan:
    """A plan of one task, its code kept in `snapshots`."""
    for name, text in UNCHANGED.items():
        (place / "code" / name).parent.mkdir(parents=True, exist_ok=True)
        (place / "code" / name).write_text(text)
    found = scan(place / "code")
    take(found, place / "snapshots")
    return replace(plan(task("true")), code=CodePlan(found.digest, str(place / "code"), 3, 0))


def made(planned: Plan, place: Path, *keep: str) -> RunDirectory:
    run = RunDirectory(place / "run")
    make_work(replace(planned, keep=keep), run, place / "snapshots")
    return run


@pytest.mark.parametrize("keep", [("a", "a/b"), ("a/b", "a"), ("a/b/c", "a", "a/b")])
def test_a_directory_to_keep_inside_of_another_is_kept_with_it(
    planned: Plan, place: Path, keep: tuple[str, ...]
) -> None:
    run = made(planned, place, *keep)
    (run.work("main") / "a/b").mkdir()
    (run.work("main") / "a/b/model").write_text("model")
    assert (run.outputs / "a/b/model").read_text() == "model"
    assert not (run.work("main") / "a/b").is_symlink()


def test_what_is_inside_outputs_is_in_outputs(planned: Plan, place: Path) -> None:
    run = made(planned, place, "outputs", "outputs/model", "outputs_2")
    assert os.listdir(run.outputs) == ["outputs_2"]
    assert (run.work("main") / "outputs").readlink() == run.outputs
    assert (run.work("main") / "outputs_2").readlink() == run.outputs / "outputs_2"


def test_a_named_output_that_is_a_file_is_the_jobs_to_write(planned: Plan, place: Path) -> None:
    planned = replace(planned, named_outputs=("model", "accuracy"), file_outputs=("accuracy",))
    run = made(planned, place)
    assert os.listdir(run.outputs) == ["model"]


def test_files_that_the_code_brings_into_a_kept_directory_are_kept(planned: Plan, place: Path) -> None:
    run = made(planned, place, "checkpoints")
    (run.work("main") / "checkpoints/start").write_text("can be written")
    assert (run.outputs / "checkpoints/start").read_text() == "can be written"
    assert made(planned, place, "checkpoints").work("main").is_dir()  # again, as after a kill


@pytest.mark.parametrize("keep", ["train.py", "train.py/sub", "link", "lost", "lost/sub"])
def test_a_file_of_the_code_can_not_be_a_directory_to_keep(planned: Plan, place: Path, keep: str) -> None:
    (place / "code/link").symlink_to("data")
    (place / "code/lost").symlink_to("nothing")
    found = scan(place / "code")
    take(found, place / "snapshots")
    planned = replace(planned, code=CodePlan(found.digest, "", 5, 0))
    name = keep.removesuffix("/sub")
    with pytest.raises(
        PreparationError, match=rf"outputs\.keep names {keep}, and the code has {name}, which is no directory"
    ):
        made(planned, place, "outputs", keep)
    made(planned, place, "link/sub", "lose")


@pytest.mark.parametrize("keep", ["logs", "logs/deep"])
def test_logs_are_no_directory_to_keep(planned: Plan, place: Path, keep: str) -> None:
    with pytest.raises(PreparationError, match=rf"outputs\.keep names {keep}, and \./logs is kept already") as caught:
        made(replace(planned, code=None), place, keep)
    assert "Remove it" in caught.value.hint


def test_a_run_without_code_keeps_too_and_can_be_made_again(planned: Plan, place: Path) -> None:
    for _ in range(2):
        run = made(replace(planned, code=None), place, "checkpoints")
        assert (run.work("main") / "checkpoints").readlink() == run.outputs / "checkpoints"


def as_somebody(place: Path, do: Callable[[], object]) -> None:
    """Do it as a user for whom modes count, if this one is root."""
    if os.getuid() != 0:
        do()
        return
    for path in (place, *place.rglob("*")):
        os.chown(path, 65534, 65534, follow_symlinks=False)
    pid = os.fork()
    if pid == 0:
        code = 1
        try:
            os.setgroups([])
            os.setgid(65534)
            os.setuid(65534)
            do()
            code = 0
        finally:
            os._exit(code)
    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0


def test_work_is_cleared_whatever_a_script_made_of_its_modes(planned: Plan, place: Path) -> None:
    run = made(planned, place, "outputs")
    work = run.work("main")
    (work / "closed/deep").mkdir(parents=True)
    (work / "closed/deep/empty.pyc").touch()
    (run.datasets / "main/d").mkdir(parents=True)
    (run.datasets / "main/d/file").touch()
    for path in (work / "data", work / "closed/deep", work / "closed", run.datasets / "main/d", work):
        path.chmod(0o555 if path.name != "closed" else 0o000)
    as_somebody(place, lambda: clear_work(planned, run, place / "snapshots"))
    assert not run.datasets.exists()
    assert not (run.path / "work").exists()


def test_what_the_script_wrote_is_left_and_told_of_though_it_closed_its_directory(planned: Plan, place: Path) -> None:
    run = made(planned, place, "outputs")
    (run.work("main") / "chekpoints").mkdir()
    (run.work("main") / "chekpoints/model").write_text("hours of training")
    (run.work("main") / "chekpoints").chmod(0o000)

    def clear() -> None:
        assert clear_work(planned, run, place / "snapshots") == ("work/main/chekpoints/model",)

    as_somebody(place, clear)
    assert (run.work("main") / "chekpoints/model").read_text() == "hours of training"
    assert os.listdir(run.work("main")) == ["chekpoints"]


def test_one_file_that_can_not_be_removed_does_not_keep_the_rest(
    planned: Plan, place: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = made(planned, place, "outputs")
    unlink = Path.unlink

    def refuse(path: Path, *, missing_ok: bool = False) -> None:
        if path.name == "labels.txt":
            raise PermissionError(1, "Operation not permitted", str(path))
        unlink(path, missing_ok=missing_ok)

    monkeypatch.setattr(Path, "unlink", refuse)
    assert clear_work(planned, run, place / "snapshots") == ("work/main/data/labels.txt",)
    assert sorted(path.name for path in run.work("main").rglob("*")) == ["data", "labels.txt"]
