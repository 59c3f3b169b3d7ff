"""The folder for work in progress, without anything that is built."""

from __future__ import annotations

import contextlib
import shutil
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


def given_up(folder: Path) -> Path:
    """The folder of a piece of work that was given up."""
    with contextlib.suppress(InterruptedError), Building(folder).holding("key", pytest.fail) as (work, _):
        (work / "prefix").mkdir()
        raise InterruptedError
    return work


def test_what_is_written_while_a_folder_is_removed_goes_too(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Threads of a library whose work was given up write for a moment longer; a removal that meets them stops half-way."""
    removed = shutil.rmtree
    times: list[Path] = []

    def rmtree(path: Path, *, ignore_errors: bool) -> None:
        times.append(path)
        removed(path, ignore_errors=ignore_errors)
        if len(times) == 1:  # what the thread makes meanwhile
            (path / "prefix").mkdir(parents=True)

    monkeypatch.setattr(shutil, "rmtree", rmtree)
    assert not given_up(tmp_path).exists()
    assert len(times) == 2


def test_a_folder_that_cannot_be_removed_is_not_waited_for_for_ever(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("tfjob.environments.building._WRITERS_S", 0.1)
    monkeypatch.setattr(shutil, "rmtree", lambda *_, **__: None)
    assert given_up(tmp_path).exists()
    assert not (tmp_path / "key.lock").exists()
