"""What a login node sends is put into the run directory, and nowhere else."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from tfjob.engines.slurm.home import Home
from tfjob.rundir import RunDirectory


@pytest.fixture
def run(tmp_path: Path) -> RunDirectory:
    made = RunDirectory(tmp_path / "runs" / "r1")
    for directory in (made.outputs, made.user_logs, made.path / "slurm"):
        directory.mkdir(parents=True)
    return made


def file(path: str, data: bytes, *, size: int | None = None, last: bool = True) -> tuple[dict[str, Any], bytes]:
    facts = {"mode": 0o644, "mtime_ns": 1_000_000_007, "last": last, "whole": True}
    return {"kind": "file", "path": path, "size": len(data) if size is None else size, **facts}, data


@pytest.mark.parametrize("path", ["outputs/../record.json", "record.json", "/etc/passwd", "slurm/place", "outputs//x"])
def test_no_path_leads_out_of_what_is_the_jobs(run: RunDirectory, path: str) -> None:
    for word in ({"kind": "log", "path": path, "offset": 0}, {"kind": "gone", "path": path}):
        with pytest.raises(ValueError, match="the login node sent a file named"):
            Home(run).take(word, b"x")


def test_no_link_is_followed(run: RunDirectory, tmp_path: Path) -> None:
    home = Home(run)
    home.take({"kind": "link", "path": "outputs/to", "target": str(tmp_path)}, b"")
    home.take(*file("outputs/to/file", b"x"))
    assert not (tmp_path / "file").exists()
    assert (run.outputs / "to" / "file").read_bytes() == b"x"
    home.take({"kind": "link", "path": "logs/user/own.log", "target": str(tmp_path / "log")}, b"")
    with pytest.raises(OSError, match="symbolic links"):
        home.take({"kind": "log", "path": "logs/user/own.log", "offset": 0}, b"x")


def test_a_file_is_there_whole_or_not_at_all_and_is_known_by_size_and_time(run: RunDirectory) -> None:
    home = Home(run)
    home.take(*file("outputs/deep/model", b"ab", size=4, last=False))
    assert not (run.outputs / "deep").exists()
    again = Home(run)  # another connection: it comes from its start
    assert again.have()["files"] == {}
    again.take(*file("outputs/deep/model", b"abcd"))
    assert again.have()["files"] == {"outputs/deep/model": (4, 1_000_000_007)}
    again.take({"kind": "gone", "path": "outputs/deep/model"}, b"")
    assert again.have()["files"] == {}


def test_logs_go_on_where_they_ended_and_those_of_an_attempt_come_whole(run: RunDirectory) -> None:
    home = Home(run)
    home.take({"kind": "log", "path": "logs/main.log", "offset": 0}, b"ab")
    home.take({"kind": "log", "path": "logs/main.log", "offset": 1}, b"bc")
    assert home.have()["logs"] == {"logs/main.log": 3}
    home.take({"kind": "attempt", "number": 1, "is_whole": False}, b"")
    home.take({"kind": "log", "path": "logs/.attempt-1/main.log", "offset": 0}, b"old")
    assert not run.attempt_logs(1).exists()
    home.take({"kind": "attempt", "number": 1, "is_whole": True}, b"")
    assert (run.attempt_logs(1) / "main.log").read_bytes() == b"old"
    assert home.have()["attempts"] == ["attempt-1"]
