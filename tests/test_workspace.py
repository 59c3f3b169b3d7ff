from __future__ import annotations

from pathlib import Path

import pytest

from tfjob.errors import NotFound, UsageError
from tfjob.workspace import Workspace, default_config, find_workspace, make_workspace, open_workspace


@pytest.fixture(autouse=True)
def nothing_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("TFJOB_WORKSPACE", "TFJOB_STORE", "XDG_CACHE_HOME"):
        monkeypatch.delenv(name, raising=False)


def test_a_workspace_is_made_once(tmp_path: Path) -> None:
    made, is_new = make_workspace(tmp_path)
    assert is_new
    assert made == Workspace(tmp_path / ".tfjob")
    assert made.runs.is_dir()
    assert (made.root / ".gitignore").read_text() == "*\n"
    (made.root / "config.yml").write_text("# mine\n")
    assert make_workspace(tmp_path) == (made, False)
    assert (made.root / "config.yml").read_text() == "# mine\n"


def test_it_is_found_from_the_folder_upward(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    outer, _ = make_workspace(tmp_path)
    deep = tmp_path / "a" / "b"
    deep.mkdir(parents=True)
    assert find_workspace(deep) == outer
    monkeypatch.chdir(deep)
    assert find_workspace() == outer
    inner, _ = make_workspace(tmp_path / "a")
    assert find_workspace(deep) == inner
    assert find_workspace(tmp_path) == outer


def test_a_directory_of_that_name_alone_is_no_workspace(tmp_path: Path) -> None:
    outer, _ = make_workspace(tmp_path)
    (tmp_path / "a" / ".tfjob").mkdir(parents=True)
    assert find_workspace(tmp_path / "a") == outer


@pytest.mark.parametrize("tail", ["", ".tfjob"])
def test_the_one_that_is_named_comes_first(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, tail: str) -> None:
    named, _ = make_workspace(tmp_path / "named")
    make_workspace(tmp_path / "here")
    monkeypatch.setenv("TFJOB_WORKSPACE", str(tmp_path / "named" / tail))
    assert find_workspace(tmp_path / "here") == named


def test_a_named_workspace_must_be_there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    make_workspace(tmp_path)
    monkeypatch.setenv("TFJOB_WORKSPACE", str(tmp_path / "gone"))
    with pytest.raises(NotFound, match="gone") as caught:
        find_workspace(tmp_path)
    assert "tfjob init" in caught.value.hint


def test_opening_says_how_to_make_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    if find_workspace(tmp_path) is not None:
        pytest.skip("there is a workspace above the temporary directory")
    with pytest.raises(NotFound) as caught:
        open_workspace(tmp_path)
    assert "tfjob init" in caught.value.hint
    made, _ = make_workspace(tmp_path)
    monkeypatch.chdir(tmp_path)
    assert open_workspace() == made


def test_it_can_be_made_in_a_folder_that_is_not_there_yet(tmp_path: Path) -> None:
    made, is_new = make_workspace(tmp_path / "a" / "b")
    assert is_new
    assert find_workspace(tmp_path / "a" / "b") == made


def test_a_folder_that_is_a_file_is_refused(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(UsageError, match="can't be made"):
        make_workspace(tmp_path / "file")


def test_environments_are_kept_where_the_user_says(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    assert default_config().store == tmp_path / "home" / ".cache" / "tfjob"
    monkeypatch.setenv("XDG_CACHE_HOME", "relative")  # to be ignored, says the XDG specification
    assert default_config().store == tmp_path / "home" / ".cache" / "tfjob"
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    assert default_config().store == tmp_path / "cache" / "tfjob"
    monkeypatch.setenv("TFJOB_STORE", "~/store")
    assert default_config().store == tmp_path / "home" / "store"
