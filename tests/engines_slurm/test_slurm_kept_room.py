"""What runs from elsewhere use on a cluster goes when there is no room, never while a run uses it, and is nobody else's."""

from __future__ import annotations

import json
import os
import tarfile
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import IO

import pytest
from engines_slurm.test_slurm_kept_there import (
    CODE,
    MB,
    Shell,
    a_run,
    files,
    no_word_of_progress,
    nothing,
    send,
    writes,
)
from support import eventually

from tfjob.engines.base import tell_nobody
from tfjob.engines.slurm.archive import image_directory
from tfjob.engines.slurm.kept_there import Kept, KeptThere, Placed, Removed
from tfjob.errors import PreparationError
from tfjob.rundir import RunDirectory

__all__ = ["no_word_of_progress"]

IMAGE = Kept("images", "sha-1")


@pytest.fixture
def there(tmp_path: Path) -> KeptThere:
    return KeptThere(Shell(), tmp_path / "shared")


@pytest.fixture
def run(tmp_path: Path) -> RunDirectory:
    return a_run(tmp_path, "r1")


def use_of(there: KeptThere, run: RunDirectory) -> Path:
    """The file that says what a run uses."""
    return there.store / "uses" / f"workspace-{run.id}"


def grow_old(path: Path) -> None:
    """Have a file older than the hour for which a hold counts."""
    os.utime(path, (path.stat().st_mtime - 7200,) * 2)


def test_what_a_tfjob_on_the_login_node_keeps_stays(there: KeptThere, tmp_path: Path) -> None:
    own = [tmp_path / "shared" / "store" / name for name in ("uv/archive-v0", "prefixes/key", "images/key", "wheels/a")]
    own += [there.store / "a-later-version" / "key"]
    for path in own:
        path.mkdir(parents=True)
        (path / "file").write_text("its own")
    assert there.free() == ()
    assert [path for path in own if not (path / "file").exists()] == []


def test_a_run_holds_what_it_uses_while_it_waits_for_another(
    there: KeptThere, run: RunDirectory, tmp_path: Path
) -> None:
    prefix, goes_on, other = Kept("prefixes", "p"), threading.Event(), a_run(tmp_path, "r2")
    there.hold(run, [prefix])
    there.hold(other, [prefix])

    def fill(stream: IO[bytes]) -> None:
        with tarfile.open(fileobj=stream, mode="w|"):
            goes_on.wait(60)

    with ThreadPoolExecutor() as pool:
        sent = pool.submit(there.send, run, prefix, fill, tell_nobody, what="it")
        eventually(lambda: list((there.store / "prefixes").glob(".p.part-*")), "the first sends")
        waited = pool.submit(there.send, other, prefix, fill, tell_nobody, what="it")
        grow_old(use_of(there, other))
        old = use_of(there, other).stat().st_mtime
        try:
            eventually(lambda: use_of(there, other).stat().st_mtime > old, "the hold to be renewed")
        finally:
            goes_on.set()
        sent.result()
        waited.result()


def test_a_hold_that_was_lost_is_taken_again(there: KeptThere, run: RunDirectory, tmp_path: Path) -> None:
    there.hold(run, [CODE])
    use_of(there, run).unlink()  # by a run that ended, after an hour
    there.send_tree(run, CODE, files(tmp_path, a=b"a"), tell_nobody, what="the code")
    there.place(run, nothing, [Placed("code", CODE, "link")])
    assert json.loads(use_of(there, run).read_text())["wanted"] == [list(CODE)]
    grow_old(use_of(there, run))
    assert there.free() == ()
    there.hold(run, [IMAGE])
    with pytest.raises(PreparationError, match="images/sha-1: it was removed or written to before the run could begin"):
        there.place(run, nothing, [])
    assert not run.path.exists()


def test_an_image_that_nodes_fetch_is_held_and_not_sent(there: KeptThere, run: RunDirectory, tmp_path: Path) -> None:
    here = RunDirectory(tmp_path / "here")
    (here.path / "slurm").mkdir(parents=True)
    container = {"archive": None, "reference": "some/image:1", "directory": str(there.store / "images")}
    (here.path / "slurm" / "gang.json").write_text(json.dumps({"container": container}))
    directory = image_directory(here)
    assert directory is not None
    named = Kept("images", directory.name)
    assert there.hold(run, [named]) == frozenset()
    there.place(run, nothing, [])
    directory.mkdir(parents=True)  # by a node
    (directory / "image.sif").write_bytes(b"x" * 1000)
    grow_old(use_of(there, run))
    assert there.free() == ()
    there.release(run)
    assert there.free() == (Removed(named, 1000),)


def test_what_nodes_make_of_an_image_is_counted(there: KeptThere, run: RunDirectory) -> None:
    there.hold(run, [IMAGE])
    there.send(run, IMAGE, writes(b"x" * 1000), tell_nobody, what="it", file="image.tar")
    (there.path(IMAGE) / "image.sif").write_bytes(b"x" * 500)
    there.release(run)
    assert there.free(1500) == ()
    assert there.free(1499) == (Removed(IMAGE, 1500),)


def test_several_remove_the_same_at_once(there: KeptThere, tmp_path: Path) -> None:
    for number in range(60):
        tree = there.path(Kept("trees", f"t{number}"))
        (tree / "deep").mkdir(parents=True)
        for name in ("a", "b"):
            (tree / "deep" / name).write_bytes(b"x" * 10)
        tree.with_name(f"{tree.name}.files").write_text("[]")
        tree.with_name(f"{tree.name}.json").write_text('{"size_bytes": 20}')
    (there.store / "uses").mkdir()
    for number in range(60):  # of runs that are gone
        use = there.store / "uses" / f"workspace-{number}"
        use.write_text(json.dumps({"run": str(tmp_path / "gone"), "wanted": [["trees", f"t{number}"]]}))
        grow_old(use)
    with ThreadPoolExecutor() as pool:
        freed = [one for gone in pool.map(lambda _: there.free(), range(4)) for one in gone]
    assert sorted(one.kept.key for one in freed) == sorted(f"t{number}" for number in range(60))
    left = [one.name for kind in ("trees", "uses") for one in (there.store / kind).iterdir()]
    assert [one for one in left if not one.endswith(".lock")] == []


def test_a_large_tree_that_changed_is_sent_as_far_as_it_changed(
    there: KeptThere, run: RunDirectory, tmp_path: Path
) -> None:
    send(there, run, CODE, files(tmp_path, big=b"b" * MB, small=b"s"))
    there.release(run)
    limited = KeptThere(Shell(), tmp_path / "shared", limit_gib=1.5 * MB / (1 << 30))
    changed = files(tmp_path, big=b"b" * MB, small=b"t" * 600_000)
    assert send(limited, run, Kept("trees", "changed"), changed) == [
        "ssh://me@here has removed what no run has used for longest: 1.0 MB",
        "sending the code to ssh://me@here: 1 of 2 files, 0.6 MB",
    ]


def test_what_came_of_a_sending_that_broke_is_counted_and_goes(
    there: KeptThere, run: RunDirectory, tmp_path: Path
) -> None:
    send(there, run, CODE, files(tmp_path, own=b"o" * 1000))
    there.release(run)
    lost = files(tmp_path, first=b"1" * MB, second=b"2")
    (tmp_path / "here" / "second").unlink()
    broken = a_run(tmp_path, "r2")
    with pytest.raises(PreparationError, match="second is gone"):
        send(there, broken, Kept("trees", "lost"), lost)
    (there.store / "prefixes").mkdir()
    part = there.store / "prefixes" / ".p.part-1"  # of a program that was killed
    part.mkdir()
    (part / "file").write_bytes(b"x" * 500)
    assert there.free(MB + 1500) == ()
    assert there.free(MB + 1499) == (Removed(CODE, 1000),)
    assert there.free() == ()  # another may be sending it
    there.release(broken)
    assert there.free() == (Removed(Kept("objects", "half-sent"), MB + 500),)
    assert [path for path in (there.store / "objects").rglob("*") if path.is_file()] == []
    assert not part.exists()


def test_what_is_kept_is_nobody_elses(run: RunDirectory, tmp_path: Path) -> None:
    there = KeptThere(Shell("umask 002"), tmp_path / "shared")
    there.store.mkdir(parents=True, mode=0o775)
    there.hold(run, [IMAGE])
    there.send(run, IMAGE, writes(b"layers"), tell_nobody, what="it", file="image.tar")
    paths = [there.store, there.store / "uses", there.store / "images", there.path(IMAGE)]
    assert [oct(path.stat().st_mode & 0o777) for path in paths] == ["0o700"] * 4
    assert (there.path(IMAGE) / "image.tar").stat().st_mode & 0o777 == 0o600
