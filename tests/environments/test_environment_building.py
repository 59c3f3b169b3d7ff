"""The folder for work in progress, without anything that is built."""

from __future__ import annotations

from pathlib import Path

import pytest
from support import without_locks

from tfjob.environments.building import Building
from tfjob.errors import PreparationError


def test_a_store_without_locks_is_refused_and_not_waited_for(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    without_locks(monkeypatch)
    with (
        pytest.raises(
            PreparationError, match="on a file system that can't lock files: Function not implemented"
        ) as caught,
        Building(tmp_path).holding("key", pytest.fail),
    ):
        pytest.fail("it works there")
    assert "`store`" in caught.value.hint
