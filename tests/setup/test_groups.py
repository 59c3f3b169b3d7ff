"""The test run itself: tests of one group share what only one may use at a time, and so share a worker."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

TESTS = """
import pytest
pytestmark = [pytest.mark.xdist_group("one")]
@pytest.mark.parametrize("number", range(8))
def test_it(number):
    pass
@pytest.mark.xdist_group("two")
@pytest.mark.parametrize("number", range(8))
def test_of_two_groups(number):
    pass
"""


def test_a_group_stays_on_one_worker_and_who_is_in_two_is_in_a_third(tmp_path: Path) -> None:
    (tmp_path / "test_group.py").write_text(TESTS)
    command = [sys.executable, "-m", "pytest", "-n", "2", "--dist", "loadgroup", "-v", "-p", "no:cacheprovider"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=True)
    ran = {group: re.findall(rf"\[(gw\d)\] .*PASSED .*@{group}\b", done.stdout) for group in ("one", "one_two")}
    assert [(len(workers), len(set(workers))) for workers in ran.values()] == [(8, 1), (8, 1)]
