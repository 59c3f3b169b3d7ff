"""What is left on nodes: of which runs and attempts it is, and that it is removed."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from tfjob.engines.cluster.clean import is_left, know_runs


@pytest.fixture
def runs(tmp_path: Path) -> Path:
    (tmp_path / "runs").mkdir()
    return tmp_path / "runs"


def labels(runs: Path, run: str, attempt: int | None = None) -> dict[str, str]:
    own = {"tfjob.run": run, "tfjob.workspace": know_runs(runs)}
    return own if attempt is None else {**own, "tfjob.attempt": str(attempt)}


def record(runs: Path, run: str, **facts: Any) -> None:
    (runs / run).mkdir(exist_ok=True)
    (runs / run / "record.json").write_text(json.dumps(facts))


def test_an_attempt_that_is_over_is_left_while_its_run_goes_on(runs: Path) -> None:
    record(runs, "fox", state="Running", attempts=[])
    assert not is_left(labels(runs, "fox", 1))
    record(runs, "fox", state="Scaling", attempts=[{"number": 1}])
    assert is_left(labels(runs, "fox", 1))
    assert not is_left(labels(runs, "fox", 2))
    assert not is_left(labels(runs, "fox"))  # its claims are the next attempt's, too


def test_of_a_run_that_is_over_everything_is_left(runs: Path) -> None:
    record(runs, "fox", state="Failed", attempts=[])
    assert is_left(labels(runs, "fox", 1))
    assert is_left(labels(runs, "fox"))
    assert is_left(labels(runs, "gone"))
    assert not is_left({"tfjob.run": "fox", "tfjob.workspace": "another's"})
