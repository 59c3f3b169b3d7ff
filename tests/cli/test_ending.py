from __future__ import annotations

import io
import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from tfjob.cli.ending import print_end
from tfjob.cli.output import shown_path
from tfjob.datasets.files import find_files
from tfjob.runs.record import Failure, Phase, Record

FAILED = Record(
    id="job-abc123",
    name="job",
    experiment="job",
    state="Failed",
    created="2026-01-31T12:00:00.000Z",
    ended="2026-01-31T12:00:11.400Z",
    dir="/nowhere/job-abc123",
    target="local",
    exit_code=1,
    failure=Failure("main", "laptop", 3, None, "exited with code 3"),
    phases=(
        Phase("Preparing", "2026-01-31T12:00:00.000Z", "2026-01-31T12:00:08.600Z"),
        Phase("Running", "2026-01-31T12:00:08.600Z", "2026-01-31T12:00:11.400Z"),
    ),
)


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def printed(record: Record, screen: io.StringIO | None = None) -> str:
    screen = screen or io.StringIO()
    print_end(record, screen)
    return screen.getvalue()


def test_plain_the_first_line_has_the_phases(monkeypatch: pytest.MonkeyPatch) -> None:
    words = "Failed in 11.4 s (Preparing 8.6 s, Running 2.8 s)"
    assert printed(FAILED).splitlines()[0] == words
    monkeypatch.setenv("NO_COLOR", "1")
    assert printed(FAILED, Terminal()).splitlines()[0] == words
    assert printed(replace(FAILED, phases=())).splitlines()[0] == "Failed in 11.4 s"


def test_on_a_terminal_the_first_line_is_short(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("NO_COLOR", raising=False)
    monkeypatch.setenv("TERM", "xterm")
    assert printed(FAILED, Terminal()).splitlines()[0].endswith("in 11.4 s")


def write_plan(folder: Path, *datasets: dict[str, Any]) -> Record:
    (folder / "plan.json").write_text(json.dumps({"datasets": datasets}))
    return replace(FAILED, dir=str(folder))


def test_a_failed_run_offers_to_run_it_again(tmp_path: Path) -> None:
    assert "tfjob rerun job-abc123" in printed(write_plan(tmp_path))


@pytest.mark.parametrize("change", ["prepared", "plan", "dataset"])
def test_it_does_not_where_that_can_not_help(tmp_path: Path, change: str) -> None:
    file = tmp_path / "data.csv"
    file.write_text("1")
    found = find_files([str(file)])
    record = write_plan(tmp_path, {"digest": found.digest, "files": found.files})
    assert "tfjob rerun" in printed(record)
    if change == "prepared":
        record = replace(record, exit_code=4)
    elif change == "plan":
        (tmp_path / "plan.json").write_text("{")
    else:
        file.write_text("another")
    words = printed(record)
    assert "tfjob rerun" not in words
    assert "next      tfjob show job-abc123" in words


def test_paths_are_short_for_people(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    home = tmp_path / "home"
    (home / "here").mkdir(parents=True)
    monkeypatch.setenv("HOME", str(home))
    monkeypatch.chdir(home / "here")
    assert shown_path(home / "here" / "a" / "b") == "a/b"
    assert shown_path(home / "here") == "."
    assert shown_path(home / "hereafter") == "~/hereafter"
    assert shown_path(home) == "~"
    assert shown_path(f"{home}less/x") == f"{home}less/x"
    assert shown_path("/etc/passwd") == "/etc/passwd"
    assert "  logs      ~/runs/job/logs\n" in printed(replace(FAILED, dir=str(home / "runs" / "job")))
    (home / "here").rmdir()
    assert shown_path(home / "x") == "~/x"
    monkeypatch.setenv("HOME", "/")
    assert shown_path("/etc/passwd") == "/etc/passwd"
