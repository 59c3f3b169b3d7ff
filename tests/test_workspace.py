from __future__ import annotations

import os
import pwd
import stat
import tempfile
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
    assert made.environments == made.root / "environments"  # made by whoever registers one
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


def test_a_relative_tfjob_store_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TFJOB_STORE", "some/store")
    with pytest.raises(UsageError, match="TFJOB_STORE is some/store") as caught:
        default_config()
    assert "absolute" in caught.value.hint


def test_a_relative_store_in_config_begins_beside_the_workspace(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    made, _ = make_workspace(tmp_path / "project")
    (made.root / "config.yml").write_text("store: ../envs\n")
    monkeypatch.chdir("/")
    monkeypatch.setenv("TFJOB_STORE", "")
    assert made.config.store == tmp_path / "envs"
    monkeypatch.setenv("TFJOB_STORE", "/elsewhere")
    assert Workspace(made.root).config.store == Path("/elsewhere")


def test_without_a_home_there_is_no_store(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def nobody(_: object) -> object:
        raise KeyError

    monkeypatch.delenv("HOME")
    monkeypatch.setattr(pwd, "getpwuid", nobody)
    with pytest.raises(UsageError, match="HOME is not set") as caught:
        default_config()
    assert "TFJOB_STORE" in caught.value.hint
    monkeypatch.setenv("TFJOB_STORE", "~/store")
    with pytest.raises(UsageError, match="TFJOB_STORE is ~/store"):
        default_config()
    monkeypatch.setenv("TFJOB_STORE", str(tmp_path))
    assert default_config().store == tmp_path
    monkeypatch.setenv("HOME", "relative")
    monkeypatch.delenv("TFJOB_STORE")
    with pytest.raises(UsageError, match="HOME is relative"):
        default_config()


def test_a_workspace_is_its_owners_alone(tmp_path: Path) -> None:
    made, _ = make_workspace(tmp_path / "project")
    assert stat.S_IMODE(made.root.stat().st_mode) == 0o700
    made.root.chmod(0o750)  # its owner's choice
    make_workspace(tmp_path / "project")
    assert stat.S_IMODE(made.root.stat().st_mode) == 0o750


def test_anothers_workspace_is_refused_unless_it_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    made, _ = make_workspace(tmp_path)
    below = tmp_path / "below"
    below.mkdir()
    monkeypatch.setattr(os, "geteuid", lambda: made.root.stat().st_uid + 4321)
    owner = pwd.getpwuid(made.root.stat().st_uid).pw_name
    for do in (find_workspace, open_workspace):
        with pytest.raises(UsageError, match=rf"{made.root} belongs to {owner}") as caught:
            do(below)
        assert f"TFJOB_WORKSPACE={tmp_path};" in caught.value.hint
        assert "tfjob init" in caught.value.hint
    with pytest.raises(UsageError, match=f"belongs to {owner}"):
        make_workspace(tmp_path)
    monkeypatch.setenv("TFJOB_WORKSPACE", str(tmp_path / "other"))
    with pytest.raises(UsageError, match=f"belongs to {owner}"):
        make_workspace(tmp_path)
    monkeypatch.setenv("TFJOB_WORKSPACE", str(tmp_path))
    assert find_workspace(below) == made
    assert make_workspace(tmp_path) == (made, False)


def test_an_owner_without_a_name_is_named_by_number(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def nobody(_: object) -> object:
        raise KeyError

    made, _ = make_workspace(tmp_path)
    monkeypatch.setattr(os, "geteuid", lambda: 4321)
    monkeypatch.setattr(pwd, "getpwuid", nobody)
    with pytest.raises(UsageError, match=f"the user with the number {made.root.stat().st_uid}"):
        find_workspace(tmp_path)


@pytest.mark.root
@pytest.mark.skipif(os.getuid() != 0, reason="only root can be two users")
def test_anothers_closed_workspace_is_refused_too() -> None:
    with tempfile.TemporaryDirectory() as parent:
        Path(parent).chmod(0o755)
        make_workspace(Path(parent))
        pid = os.fork()
        if pid == 0:
            code = 2
            try:
                os.setgroups([])
                os.setgid(65534)
                os.setuid(65534)
                find_workspace(Path(parent))
            except UsageError as error:
                code = 0 if "belongs to root" in error.message else 1
            finally:
                os._exit(code)
        assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0
