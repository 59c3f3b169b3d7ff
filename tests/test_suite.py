"""How `make test` runs all tests: what fails among the others is run once more, alone."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
import suite
from support import REPOSITORY

TESTS = """
import os, pathlib, pytest

# What fails is in a group, as the tests of a cluster are; and its parameter is like the name of one.
@pytest.mark.xdist_group("cluster")
@pytest.mark.parametrize("name", ["me@home", "plain"])
@pytest.mark.parametrize("number", range(NUMBER))
def test_shaky(name, number):
    seen = pathlib.Path(f"seen-{name}-{number}")
    count = len(seen.read_text()) if seen.exists() else 0
    seen.write_text("x" * (count + 1))
    assert name == "plain" or count >= FAILURES

def test_ungrouped():
    seen = pathlib.Path("ungrouped")
    seen.write_text(seen.read_text() + "x" if seen.exists() else "x")
"""


def run_suite(directory: Path, *, number: int, failures: int) -> subprocess.CompletedProcess[str]:
    text = TESTS.replace("NUMBER", str(number)).replace("FAILURES", str(failures))
    (directory / "test_shaky.py").write_text(text)
    environ = {name: value for name, value in os.environ.items() if not name.startswith("PYTEST")}
    return subprocess.run(
        [sys.executable, str(REPOSITORY / "tests" / "suite.py"), "2"],
        cwd=directory,
        env=environ,
        check=False,
        capture_output=True,
        text=True,
    )


def test_what_passes_alone_is_told_and_fails_nothing(tmp_path: Path) -> None:
    done = run_suite(tmp_path, number=2, failures=1)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "once more, alone: 2 of the tests failed among the others" in done.stdout
    unsteady = done.stdout.partition("unsteady: ")[2].splitlines()[1:]
    assert unsteady == ["  test_shaky.py::test_shaky[0-me@home]", "  test_shaky.py::test_shaky[1-me@home]"]
    # What passed among the others is not run again.
    seen = {path.name: len(path.read_text()) for path in tmp_path.glob("seen-*")}
    assert seen == {"seen-me@home-0": 2, "seen-me@home-1": 2, "seen-plain-0": 1, "seen-plain-1": 1}
    assert (tmp_path / "ungrouped").read_text() == "x"


def test_what_fails_twice_fails_the_suite(tmp_path: Path) -> None:
    done = run_suite(tmp_path, number=1, failures=2)
    assert done.returncode == 1, done.stdout + done.stderr
    assert "once more, alone" in done.stdout
    assert "unsteady" not in done.stdout


def test_many_failures_are_no_chance(tmp_path: Path) -> None:
    done = run_suite(tmp_path, number=suite.UNSTEADY_AT_MOST + 1, failures=1)
    assert done.returncode == 1, done.stdout + done.stderr
    assert "once more" not in done.stdout


@pytest.mark.parametrize(
    ("name", "own"),
    [
        ("a.py::T::test_x@cluster", "a.py::T::test_x"),
        ("a.py::test_x[me@home]@cluster", "a.py::test_x[me@home]"),
        ("a.py::test_x[me@home]", "a.py::test_x[me@home]"),
        ("a.py", "a.py"),
    ],
)
def test_a_test_in_a_group_has_its_own_name(name: str, own: str) -> None:
    assert suite._without_group(name) == own
