"""Many files copied by several processes: what comes of it, and what becomes of it when something goes wrong."""

from __future__ import annotations

import json
import marshal
import os
import shutil
import struct
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from tfjob import submission
from tfjob.datasets import copying, placing
from tfjob.datasets.export import export
from tfjob.datasets.files import find_files, local_digest
from tfjob.datasets.placing import place
from tfjob.datasets.wanted import Settings
from tfjob.errors import PreparationError, UsageError
from tfjob.planning.plan import DatasetPlan, Plan
from tfjob.rundir import RunDirectory
from tfjob.runs.data import RunData
from tfjob.submission import plan
from tfjob.values import decode

if TYPE_CHECKING:
    from tfjob.datasets.cache import Cache
    from tfjob.datasets.files import DatasetFiles

DIES = "import os, sys; os.read(int(sys.argv[2]), 8); os.kill(os.getpid(), 9)"
"""A program that takes a turn and is killed."""


@pytest.fixture(autouse=True)
def several(monkeypatch: pytest.MonkeyPatch) -> None:
    """Few files are many, and three processes copy them."""
    monkeypatch.setattr(placing, "_MANY", 50)
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: {0, 1, 2})


@pytest.fixture
def data(tmp_path: Path) -> Path:
    """200 files in 11 directories, one of a name that is no UTF-8, one empty, one larger than all others together."""
    for number in range(200):
        path = tmp_path / "data" / str(number % 10) / f"{number}.bin"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(b"%d" % number * number)
    odd = tmp_path / "data" / "deep" / "er" / os.fsdecode(b"caf\xe9")
    odd.parent.mkdir(parents=True)
    odd.write_bytes(os.urandom(3 << 20))
    return tmp_path / "data"


def contents(tree: Path) -> dict[str, bytes]:
    return {str(path.relative_to(tree)): path.read_bytes() for path in tree.rglob("*") if path.is_file()}


def test_all_is_copied_and_told_from_when_it_is(data: Path, tmp_path: Path) -> None:
    found = find_files([str(data)])
    times = place(found.files, tmp_path / "copy", copy=True)
    assert contents(tmp_path / "copy") == contents(data)
    assert list(times) == [os.stat(source).st_mtime_ns for source, _, _ in found.files]
    assert local_digest(found.files, times) == found.digest


def test_the_others_copy_too(data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(copying.Copier, "take_turns", lambda *_: None)
    found = find_files([str(data)])
    times = place(found.files, tmp_path / "copy", copy=True)
    assert contents(tmp_path / "copy") == contents(data)
    assert local_digest(found.files, times) == found.digest


def test_what_the_others_read_is_read_by_each_for_itself(
    data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: {0, 1, 2, 3})
    files, times_bytes = find_files([str(data)]).files, 8 * 201
    for number in range(10):
        into = tmp_path / str(number)
        into.mkdir()
        with (
            placing._shared(times_bytes, marshal.dumps((str(into), files))) as shared,
            placing._turns(files) as turns,
            placing._others(3, turns, shared, len(files)) as others,
        ):
            while any(other.poll() is None for other in others):
                os.lseek(shared, 0, os.SEEK_END)  # where one of them is that has read all
            assert [other.returncode for other in others] == [0, 0, 0]
        assert contents(into) == contents(data)


def test_four_copy_and_nobody_dies(data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: {0, 1, 2, 3})
    files = find_files([str(data)]).files
    for number in range(20):
        into = tmp_path / str(number)
        into.mkdir()
        assert len(placing._copy_together(files, str(into), 3)) == 201
        assert contents(into) == contents(data)


def test_every_file_is_in_one_turn(data: Path) -> None:
    files = find_files([str(data)]).files
    with placing._turns(files) as turns:
        taken = [struct.unpack(copying.TURN, turn) for turn in iter(lambda: os.read(turns, 8), b"")]
    assert [number for start, end in taken for number in range(start, end)] == list(range(201))
    assert 1 < len(taken) <= placing._MOST_TURNS + 1


def test_a_copy_has_the_rights_that_new_files_have(data: Path, tmp_path: Path) -> None:
    for path in data.rglob("*.bin"):
        path.chmod(0o400)
    before = os.umask(0o027)
    try:
        place(find_files([str(data)]).files, tmp_path / "copy", copy=True)
    finally:
        os.umask(before)
    assert {path.stat().st_mode & 0o777 for path in (tmp_path / "copy").rglob("*.bin")} == {0o640}


def test_copies_lie_apart_on_a_disk_of_ext4(data: Path, tmp_path: Path) -> None:
    into = tmp_path / "run" / "main" / "d"
    place(find_files([str(data)]).files, into, copy=True)
    assert list(into.parent.iterdir()) == [into]
    if shutil.which("lsattr") is None:
        pytest.skip("lsattr is missing (apt install e2fsprogs)")
    shown = subprocess.run(["lsattr", "-d", into.parent], capture_output=True, text=True, check=False).stdout
    kind = subprocess.run(["stat", "-f", "-c", "%T", tmp_path], capture_output=True, text=True, check=True).stdout
    if not kind.startswith("ext"):
        pytest.skip(f"{tmp_path} is not on ext4")
    assert "T" in shown.split()[0]


def test_the_directory_above_copies_keeps_the_attributes_it_has(tmp_path: Path) -> None:
    above = tmp_path / "main"
    above.mkdir()
    if shutil.which("chattr") is None:
        pytest.skip("chattr is missing (apt install e2fsprogs)")
    if subprocess.run(["chattr", "+dA", above], capture_output=True, check=False).returncode:
        pytest.skip(f"directories have no attributes in {tmp_path}")

    def attributes() -> set[str]:
        shown = subprocess.run(["lsattr", "-d", above], capture_output=True, text=True, check=True).stdout
        return set(shown.split()[0])

    before = attributes()
    placing._make_apart(above / "d")
    assert {"d", "A"} <= before
    assert attributes() - {"T"} == before


@pytest.mark.root
@pytest.mark.parametrize("kind", ["tmpfs", "overlay"])
def test_copies_lie_well_where_directories_have_no_such_attribute(
    data: Path, small: Path, tmp_path: Path, kind: str
) -> None:
    (data / "deep" / "er" / os.fsdecode(b"caf\xe9")).write_bytes(b"small")
    place_ = small
    if kind == "overlay":
        place_ = tmp_path / "over"
        for directory in (place_, tmp_path / "lower" / "run", small / "upper", small / "work"):
            directory.mkdir(parents=True)
        parts = f"lowerdir={tmp_path}/lower,upperdir={small}/upper,workdir={small}/work"
        done = subprocess.run(
            ["mount", "-t", "overlay", "-o", parts, "overlay", place_], capture_output=True, text=True, check=False
        )
        if done.returncode:
            pytest.skip(f"no overlay can be mounted here: {done.stderr.strip()}")
    try:
        into = place_ / "run" / "d"
        for _ in range(2):
            place(find_files([str(data)]).files, into, copy=True)
            assert contents(into) == contents(data)
            assert list(into.parent.iterdir()) == [into]
    finally:
        if kind == "overlay":
            subprocess.run(["umount", "-l", place_], check=True)


@pytest.mark.parametrize("number", [0, 100, 200])
@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda path: path.unlink(), "can't be used: No such file or directory"),
        (lambda path: path.write_bytes(path.read_bytes() + b"more"), "has changed since the job was submitted"),
        (lambda path: path.write_bytes(path.read_bytes()[:-1] or b"more"), "has changed since the job was submitted"),
    ],
    ids=["gone", "longer", "shorter"],
)
def test_whoever_meets_a_file_that_is_another_tells_of_it(
    data: Path, tmp_path: Path, number: int, change: object, message: str
) -> None:
    found = find_files([str(data)])
    assert callable(change)
    change(Path(found.files[number][0]))
    with pytest.raises(PreparationError) as caught:
        place(found.files, tmp_path / "copy", copy=True)
    assert caught.value.message == f"dataset file {found.files[number][0]} {message}"


@pytest.mark.parametrize("program", [DIES, "import nothing_of_this_name"])
def test_what_a_killed_process_leaves_is_done_anew(
    data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, program: str
) -> None:
    monkeypatch.setattr(placing, "_PROGRAM", program)
    times = place(find_files([str(data)]).files, tmp_path / "copy", copy=True)
    assert contents(tmp_path / "copy") == contents(data)
    assert len(times) == 201


def test_where_no_process_can_be_started_one_copies_all(
    data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys, "executable", "/nothing/here")
    place(find_files([str(data)]).files, tmp_path / "copy", copy=True)
    assert contents(tmp_path / "copy") == contents(data)


def test_the_others_end_with_who_started_them(tmp_path: Path) -> None:
    turns, never = os.pipe()
    job = marshal.dumps((str(tmp_path), ()))
    with placing._shared(8, job) as shared, placing._others(2, turns, shared, 1) as (first, second):
        assert first.stdin is not None
        first.stdin.close()
        assert first.wait(30) == 1
        assert second.poll() is None
    os.close(turns)
    os.close(never)


def test_the_others_are_ended_when_the_run_is_canceled_meanwhile(
    data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    started: list[subprocess.Popen[bytes]] = []

    class Noted(subprocess.Popen):  # type: ignore[type-arg]  # of bytes
        def __init__(self, *args: object, **more: object) -> None:
            super().__init__(*args, **more)  # type: ignore[call-overload]  # as it was called
            started.append(self)

    def cancel(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(subprocess, "Popen", Noted)
    monkeypatch.setattr(copying.Copier, "take_turns", cancel)
    with pytest.raises(KeyboardInterrupt):
        place(find_files([str(data)]).files, tmp_path / "copy", copy=True)
    assert [one.returncode is not None for one in started] == [True, True]


def prepared(found: DatasetFiles, tmp_path: Path, cache: Cache, monkeypatch: pytest.MonkeyPatch) -> RunData:
    """A run's data, right after the job was planned."""
    job = tmp_path / "job.yml"
    job.write_text("name: copies\ncommand: 'true'\n")
    dataset = DatasetPlan("d", "directory", "download", found.digest, len(found.files), 1, found.files)
    run = RunDirectory(tmp_path / "run")
    run.path.mkdir()
    monkeypatch.setattr(RunData, "_is_just_planned", lambda _: True)
    return RunData(replace(plan(job), datasets=(dataset,)), run, cache, 1, tmp_path, Settings())


@pytest.mark.parametrize("many", [True, False])
def test_a_file_that_was_written_to_and_is_as_long_as_before_is_refused(
    data: Path, tmp_path: Path, cache: Cache, monkeypatch: pytest.MonkeyPatch, many: bool
) -> None:
    found = find_files([str(data if many else data / "1")])
    prepared(found, tmp_path, cache, monkeypatch).prepare(print)
    copied = tmp_path / "run" / "datasets" / "main" / "d"
    assert len(contents(copied)) == len(found.files)
    os.utime(found.files[-1][0], ns=(1, 1))
    (tmp_path / "run").rename(tmp_path / "other")
    with pytest.raises(
        PreparationError, match="dataset d has changed since the job was planned: one of its files was written to"
    ):
        prepared(found, tmp_path, cache, monkeypatch).prepare(print)


def test_what_is_gone_is_told_as_it_is_of_a_mount(
    data: Path, tmp_path: Path, cache: Cache, monkeypatch: pytest.MonkeyPatch
) -> None:
    found = find_files([str(data)])
    Path(found.files[7][0]).unlink()
    with pytest.raises(PreparationError, match=r"dataset d has changed since the job was planned: \S+ is gone"):
        prepared(found, tmp_path, cache, monkeypatch).prepare(print)


def test_a_plan_of_very_many_files_says_what_that_of_few_does(
    data: Path, tmp_path: Path, cache: Cache, monkeypatch: pytest.MonkeyPatch
) -> None:
    made = prepared(find_files([str(data)]), tmp_path, cache, monkeypatch).plan
    for many in (1, 1000):
        monkeypatch.setattr(submission, "_MANY_FILES", many)
        submission._keep_plan(made, tmp_path / f"{many}.json")
    few, many_rows = (json.loads((tmp_path / f"{many}.json").read_bytes()) for many in (1000, 1))
    assert list(few.items()) == list(many_rows.items())
    assert decode(Plan, many_rows) == made


def exported(found: DatasetFiles, target: Path, cache: Cache) -> int:
    return export(found, target, cache, Settings(), registry=target, progress=print)


def test_an_export_adds_to_what_is_there_and_replaces_files(
    data: Path, tmp_path: Path, cache: Cache, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys.modules[export.__module__], "_AT_ONCE_BYTES", 10_000)
    there = tmp_path / "to" / "here"
    (there / "3").mkdir(parents=True)
    (there / "3" / "own.txt").write_text("own")
    (there / "3" / "13.bin").write_text("old")
    (there / "4").symlink_to(there / "3")
    assert exported(find_files([str(data)]), there, cache) == sum(map(len, contents(data).values()))
    assert (there / "4").is_symlink()
    wanted = {**contents(data), "3/own.txt": b"own"}
    wanted.update({name.replace("4/", "3/", 1): content for name, content in wanted.items() if name.startswith("4/")})
    wanted = {name: content for name, content in wanted.items() if not name.startswith("4/")}
    assert {name: content for name, content in contents(there).items() if not name.startswith("4/")} == wanted


def test_an_export_that_fails_leaves_nothing_beside_what_was_there(data: Path, tmp_path: Path, cache: Cache) -> None:
    found = find_files([str(data)])
    Path(found.files[3][0]).unlink()
    with pytest.raises(PreparationError, match="can't be read: No such file or directory"):
        exported(found, tmp_path / "to", cache)
    assert list((tmp_path / "to").iterdir()) == []
    (tmp_path / "to").rmdir()
    (tmp_path / "to").write_text("a file")
    with pytest.raises(UsageError, match="to can't be written: File exists"):
        exported(found, tmp_path / "to", cache)
