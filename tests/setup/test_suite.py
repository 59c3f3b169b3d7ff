"""`make test` itself: chance is told, and nothing else is forgiven."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

from support import eventually

SUITE = Path(__file__).parents[1] / "suite.py"
OWN = {name: value for name, value in os.environ.items() if name != "PYTEST_ADDOPTS"}
"""What the suite around this one was told is not meant for those within."""
UNSTEADY = """
from pathlib import Path
def test_unsteady():
    seen = Path("seen")
    before = seen.exists()
    seen.touch()
    assert before, "at first"
"""
WRONG = "def test_{0}():\n    assert False, 'wrong {0}'\n"
WELL = "def test_well():\n    with open('well', 'a') as runs:\n        runs.write('x')\n"


def suite(directory: Path, *tests: str, workers: int = 0) -> tuple[int, str]:
    (directory / "test_it.py").write_text("\n".join([WELL, *tests]))
    command = [sys.executable, str(SUITE), str(workers)]
    done = subprocess.run(
        command, cwd=directory, env=OWN, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, check=False
    )
    return done.returncode, done.stdout


def test_what_fails_among_the_others_and_passes_alone_is_told_and_no_more(tmp_path: Path) -> None:
    code, told = suite(tmp_path, UNSTEADY, workers=2)
    assert code == 0
    assert "AssertionError: at first" in told
    assert told.endswith("want to be looked at\n  test_it.py::test_unsteady\n")
    assert (tmp_path / "well").read_text() == "x"


GROUPED = """
import pytest
from pathlib import Path

@pytest.mark.xdist_group("cluster")
@pytest.mark.parametrize("name", ["me@home", "plain"])
def test_grouped(name):
    with open(name, "a") as runs:
        runs.write("x")
    assert name == "plain" or len(Path(name).read_text()) > 1
"""


def test_a_test_of_a_group_is_found_again_and_no_other_is_run(tmp_path: Path) -> None:
    """With `--dist loadgroup` a test's name has its group behind an @, which its parameter may have, too."""
    code, told = suite(tmp_path, GROUPED, UNSTEADY, workers=2)
    assert code == 0, told
    assert "once more, alone: 2 of the tests failed" in told
    assert told.endswith("looked at\n  test_it.py::test_grouped[me@home]\n  test_it.py::test_unsteady\n")
    runs = {name: (tmp_path / name).read_text() for name in ("me@home", "plain", "well")}
    assert runs == {"me@home": "xx", "plain": "x", "well": "x"}


def test_what_fails_twice_fails_the_suite(tmp_path: Path) -> None:
    code, told = suite(tmp_path, UNSTEADY, WRONG.format("one"))
    assert code == 1
    assert told.count("AssertionError: wrong one") == 2 * told.count("AssertionError: at first")
    assert "unsteady: " not in told


def test_many_failures_are_no_chance(tmp_path: Path) -> None:
    code, told = suite(tmp_path, UNSTEADY, *(WRONG.format(number) for number in range(4)))
    assert code == 1
    assert "once more" not in told


def test_what_is_no_failure_of_a_test_is_not_tried_again(tmp_path: Path) -> None:
    for workers in (0, 2):
        code, told = suite(tmp_path, "import nowhere_to_be_found", workers=workers)
        assert code != 0
        assert "once more" not in told
        (tmp_path / "test_other.py").write_text("def test_other():\n    pass\n")


SLOW = """
import time
from pathlib import Path
import pytest
@pytest.fixture
def machine():
    yield
    Path("ended").touch()
def test_slow(machine):
    Path("begun").touch()
    time.sleep(100)
"""


def test_who_interrupts_it_has_what_tests_started_ended_and_the_report(tmp_path: Path) -> None:
    (tmp_path / "test_it.py").write_text(SLOW)
    with (tmp_path / "out").open("w") as out:
        process = subprocess.Popen(
            [sys.executable, str(SUITE), "0"], cwd=tmp_path, env=OWN, stdout=out, start_new_session=True
        )
    eventually((tmp_path / "begun").exists, "the test has begun")
    os.killpg(process.pid, signal.SIGINT)
    assert process.wait(60) == 2
    assert (tmp_path / "ended").exists()
    told = (tmp_path / "out").read_text()
    assert "KeyboardInterrupt" in told
    assert "once more" not in told


def test_all_well(tmp_path: Path) -> None:
    code, told = suite(tmp_path)
    assert code == 0
    assert "once more" not in told
