"""Files copied to a directory of the user's: into directories of other disks, by two at once, and after one that was killed."""

from __future__ import annotations

import errno
import os
import subprocess
import sys
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from tfjob.datasets import beside as module
from tfjob.datasets.beside import beside
from tfjob.datasets.export import export
from tfjob.datasets.files import find_files
from tfjob.datasets.partials import is_ours
from tfjob.datasets.wanted import Settings
from tfjob.errors import UsageError

if TYPE_CHECKING:
    from tfjob.datasets.cache import Cache

NAMES = ("plain.txt", "small/a.txt", "small/own/b.txt", "small/sub/deep/c.txt", "link/d.txt", "link/sub/e.txt")

BEGINS = """
import sys, time
from pathlib import Path
from tfjob.datasets.beside import beside
with beside(Path(sys.argv[1])) as fresh:
    (fresh / "sub").mkdir()
    (fresh / "sub" / "half").write_text("half")
    print(fresh, flush=True)
    time.sleep(600)
"""


def made(root: Path, names: tuple[str, ...] = NAMES) -> Path:
    """A directory with files of these names, each with its name in it."""
    for name in names:
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(name)
    return root


def exported(data: Path, target: Path, cache: Cache) -> int:
    return export(find_files([str(data)]), target, cache, Settings(), registry=target, progress=print)


def left(directory: Path) -> list[Path]:
    return list(directory.rglob(".tfjob-*"))


@pytest.mark.root
def test_an_export_goes_into_directories_of_another_disk(tmp_path: Path, cache: Cache, small: Path) -> None:
    made(small, ("own/mine.txt", "linked/mine.txt"))
    (small / "a.txt").write_text("old")
    (tmp_path / "link").symlink_to(small / "linked")
    before = os.umask(0o027)
    try:
        assert exported(made(tmp_path / "data"), tmp_path, cache) == sum(map(len, NAMES))
    finally:
        os.umask(before)
    assert {name: (tmp_path / name).read_text() for name in NAMES} == {name: name for name in NAMES}
    assert {(tmp_path / name).stat().st_mode & 0o777 for name in NAMES} == {0o640}
    assert (small / "own" / "mine.txt").exists()
    assert (small / "linked" / "mine.txt").exists()
    assert (small / "linked" / "sub" / "e.txt").exists()
    assert left(tmp_path) == []


@pytest.mark.root
def test_another_disk_that_is_full_is_told_and_keeps_what_it_has(tmp_path: Path, cache: Cache, small: Path) -> None:
    (small / "a.txt").write_text("old")
    made(tmp_path / "data")
    (tmp_path / "data" / "small" / "a.txt").write_bytes(bytes(3 << 20))
    with pytest.raises(UsageError, match="small can't be written: No space left on device"):
        exported(tmp_path / "data", tmp_path, cache)
    assert (small / "a.txt").read_text() == "old"
    assert left(tmp_path) == []


def test_a_disk_that_takes_nothing_from_beside_is_told(
    tmp_path: Path, cache: Cache, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refused(source: str, target: str) -> None:
        raise OSError(errno.EXDEV, "Invalid cross-device link", source, None, target)

    monkeypatch.setattr(os, "replace", refused)
    with pytest.raises(UsageError, match=r"to/\S+ can't be written: Invalid cross-device link"):
        exported(made(tmp_path / "data"), tmp_path / "to", cache)
    assert list((tmp_path / "to").iterdir()) == []


def test_a_file_where_a_directory_is_to_be_is_told(tmp_path: Path, cache: Cache) -> None:
    made(tmp_path / "to", ("small",))
    with pytest.raises(UsageError, match=f"{tmp_path}/to/small can't be written: Not a directory"):
        exported(made(tmp_path / "data"), tmp_path / "to", cache)
    assert (tmp_path / "to" / "small").read_text() == "small"
    assert left(tmp_path) == []


def test_two_exports_to_one_directory_at_once_meet(
    tmp_path: Path, cache: Cache, monkeypatch: pytest.MonkeyPatch
) -> None:
    data = made(tmp_path / "data", ("sub/a.txt", "sub/b.txt"))
    both, target = threading.Barrier(2, timeout=60), tmp_path / "to"
    is_directory = os.path.isdir

    def asked(path: str) -> bool:
        found = is_directory(path)
        if path == str(target / "sub"):
            both.wait()
        return found

    monkeypatch.setattr(sys.modules[export.__module__].os.path, "isdir", asked)
    with ThreadPoolExecutor(2) as threads:
        assert list(threads.map(lambda _: exported(data, target, cache), range(2))) == [18, 18]
    assert sorted(path.name for path in (target / "sub").iterdir()) == ["a.txt", "b.txt"]
    assert left(target) == []


def begun(target: Path) -> tuple[subprocess.Popen[str], Path]:
    """Somebody who makes files ready there, and where."""
    process = subprocess.Popen([sys.executable, "-P", "-c", BEGINS, target], stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    return process, Path(process.stdout.readline().strip())


def test_what_a_killed_export_left_is_removed_by_the_next_and_what_is_used_stays(tmp_path: Path, cache: Cache) -> None:
    data, target = made(tmp_path / "data"), tmp_path / "to"
    target.mkdir()
    (killed, gone), (alive, used) = begun(target), begun(target)
    with killed, alive:
        try:
            killed.kill()
            killed.wait()
            assert (gone / "sub" / "half").exists()
            exported(data, target, cache)
            assert left(target) == [used.parent]
            assert (used / "sub" / "half").exists()
        finally:
            alive.kill()
            killed.kill()
    exported(data, target, cache)
    assert left(target) == []


def test_an_export_removes_nothing_of_the_users(tmp_path: Path, cache: Cache) -> None:
    target = tmp_path / "to"
    kept = (
        ".tfjob-download-abcdefg1/new/mine",
        ".tfjob-download-abcdefg2/lock",
        ".tfjob-download-abcdefg2/mine",
        ".tfjob-download-abcdefg/lock",
        ".tfjob-download/lock",
        ".tfjob-abcdefg4/new/mine",
        ".tfjob/runs/mine",
    )
    made(target, kept)
    made(tmp_path / "other", ("lock", "new/mine"))
    (target / ".tfjob-download-abcdefg5").symlink_to(tmp_path / "other")
    (target / ".tfjob-download-abcdefg6").write_text("mine")
    exported(made(tmp_path / "data"), target, cache)
    for name in (*kept, ".tfjob-download-abcdefg5/new/mine", ".tfjob-download-abcdefg6"):
        assert (target / name).exists()


def test_a_directory_that_was_removed_before_its_lock_was_taken_is_made_anew(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    others = [1, 2]

    def late(descriptor: int) -> bool:
        if not others:
            return is_ours(descriptor)
        if others.pop() == 1:  # somebody has the lock
            return False
        monkeypatch.setattr(module, "is_ours", is_ours)
        module._remove_left(tmp_path)
        monkeypatch.setattr(module, "is_ours", late)
        return is_ours(descriptor)

    monkeypatch.setattr(module, "is_ours", late)
    with beside(tmp_path) as fresh:
        assert fresh.is_dir()
        assert others == []
        assert len(left(tmp_path)) == 2
    monkeypatch.undo()
    with beside(tmp_path) as fresh:
        assert left(tmp_path) == [fresh.parent]


def test_where_there_are_no_locks_nothing_is_removed(
    tmp_path: Path, cache: Cache, monkeypatch: pytest.MonkeyPatch
) -> None:
    def none(_: int) -> bool:
        raise OSError(errno.ENOLCK, "No locks available")

    made(tmp_path / "to", (".tfjob-download-abcdefgh/lock", ".tfjob-download-abcdefgh/new/half"))
    monkeypatch.setattr(module, "is_ours", none)
    exported(made(tmp_path / "data"), tmp_path / "to", cache)
    assert left(tmp_path / "to") == [tmp_path / "to" / ".tfjob-download-abcdefgh"]
    assert (tmp_path / "to" / "plain.txt").exists()
