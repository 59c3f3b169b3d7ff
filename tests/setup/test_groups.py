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
"""


def test_a_group_stays_on_one_worker(tmp_path: Path) -> None:
    (tmp_path / "test_group.py").write_text(TESTS)
    command = [sys.executable, "-m", "pytest", "-n", "2", "--dist", "loadgroup", "-v", "-p", "no:cacheprovider"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=True)
    assert len(set(re.findall(r"\[(gw\d)\] .*PASSED", done.stdout))) == 1
