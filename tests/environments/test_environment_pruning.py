"""What a store holds and what pruning frees, with the real uv and a real channel; bytes are compared with the disk's."""

from __future__ import annotations

import fcntl
import os
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING

import conda_channel
import pytest

from tfjob.durable import try_lock
from tfjob.environments import Definition, Prefix
from tfjob.environments.conda_cache import in_use, sweep
from tfjob.environments.place import Machine
from tfjob.environments.pruning import prune, total_bytes, usage

if TYPE_CHECKING:
    from environment_parts import Made, Packages

pytestmark = pytest.mark.real
pytest_plugins = ("environment_parts",)

BIG = "x = 1\n" * 100_000


def unused(made: Made, prefix: Prefix, days: float) -> None:
    """Make it as if the prefix was last asked for some days ago, and all of the caches is that old."""
    then = time.time() - days * 86_400
    os.utime(made.store.root / "used" / prefix.key, (then, then))
    for pattern in ("uv/archive-v0/*", "conda/packages/*", "locks/*"):
        for path in made.store.root.glob(pattern):
            os.utime(path, (then, then))


def disk_bytes(root: Path) -> int:
    """What the disk has given to the files and folders of a store, each counted once."""
    seen = {}
    for folder, _, names in os.walk(root):
        for path in (Path(folder), *(Path(folder) / name for name in names)):
            status = path.lstat()
            seen[status.st_ino] = status.st_blocks * 512
    return sum(seen.values())


@pytest.fixture
def two(packages: Packages, made: Made) -> tuple[Prefix, Prefix]:
    """Two prefixes that share `big`; only the second has `more`."""
    packages.wheel("big", files={"big.py": BIG})
    packages.wheel("more", files={"more.py": BIG + "y = 2\n"})
    return made("big"), made("big", "more")


def test_shared_bytes_are_counted_once(made: Made, two: tuple[Prefix, Prefix]) -> None:
    by_key = {one.key: one for one in usage(made.store)}
    first, second = by_key[two[0].key], by_key[two[1].key]
    assert first.path == two[0].path
    assert first.size_bytes > len(BIG)
    assert second.size_bytes > 2 * len(BIG)
    assert first.own_bytes < len(BIG) / 2
    assert len(BIG) < second.own_bytes < second.size_bytes - len(BIG)
    assert total_bytes(made.store) == disk_bytes(made.store.root)
    assert total_bytes(made.store) < first.size_bytes + second.size_bytes
    assert [one.key for one in usage(made.store)] == [two[1].key, two[0].key]


def test_what_is_told_as_freed_is_what_the_disk_has_back(made: Made, two: tuple[Prefix, Prefix]) -> None:
    unused(made, two[1], days=10)
    before = disk_bytes(made.store.root)
    would = prune(made.store, unused_days=7, dry_run=True)
    assert disk_bytes(made.store.root) == before
    assert made.names("building") == []
    pruned = prune(made.store, unused_days=7)
    assert pruned == would
    assert pruned.prefixes == (two[1].key,)
    assert pruned.cached_packages == 1
    assert pruned.freed_bytes == before - disk_bytes(made.store.root)
    assert pruned.freed_bytes > len(BIG)
    assert made.names("prefixes") == [two[0].key]
    assert made.names("used") == [two[0].key]
    assert len(made.names("known")) == len(made.names("locks")) == 1
    assert made("big") == two[0]
    assert made.steps == []
    assert made("big", "more").key == two[1].key
    assert prune(made.store, unused_days=7).freed_bytes == 0


def test_what_is_used_or_kept_or_being_built_stays(made: Made, two: tuple[Prefix, Prefix]) -> None:
    for prefix in two:
        unused(made, prefix, days=10)
    assert made("big") == two[0]
    kept = prune(made.store, unused_days=7, keep=frozenset({two[1].key}))
    assert (kept.prefixes, kept.kept) == ((), (two[1].key,))
    holds = try_lock(made.store.root / "building" / f"{two[1].key}.lock")
    assert holds is not None
    assert prune(made.store, unused_days=7).kept == (two[1].key,)
    os.close(holds)
    assert made.store.find(Definition(requirements=("big", "more")), Machine()) == two[1]
    assert prune(made.store, unused_days=7).prefixes == ()
    assert prune(made.store, unused_days=0, keep=frozenset({two[0].key})).prefixes == (two[1].key,)


def test_a_run_that_comes_while_it_is_looked_at_is_not_left_without(
    made: Made, two: tuple[Prefix, Prefix], monkeypatch: pytest.MonkeyPatch
) -> None:
    unused(made, two[1], days=10)
    renaming, held = threading.Event(), threading.Event()
    rename = Path.rename

    def late(path: Path, target: Path) -> Path:
        if path == two[1].path:
            renaming.set()
            assert not held.wait(0.5)  # who comes now waits until it is gone, and then finds that
        return rename(path, target)

    def hold() -> int | None:
        assert renaming.wait(60)
        descriptor = made.store.hold(two[1].key)
        held.set()
        assert not two[1].path.exists()
        return descriptor

    monkeypatch.setattr(Path, "rename", late)
    with ThreadPoolExecutor(1) as pool:
        coming = pool.submit(hold)
        assert prune(made.store, unused_days=7).prefixes == (two[1].key,)
        descriptor = coming.result()
    assert descriptor is not None
    os.close(descriptor)


def test_what_is_pruned_for_long_is_not_held(made: Made, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tfjob.environments.store._LOOKED_AT_S", 0.1)
    (made.store.root / "used").mkdir(parents=True, exist_ok=True)
    descriptor = os.open(made.store.root / "used" / "key", os.O_CREAT | os.O_RDWR)
    fcntl.flock(descriptor, fcntl.LOCK_EX)
    assert made.store.hold("key") is None
    os.close(descriptor)


def test_all_of_it_goes_and_comes_back(made: Made, two: tuple[Prefix, Prefix]) -> None:
    for prefix in two:
        unused(made, prefix, days=1)
    pruned = prune(made.store, unused_days=0.5)
    assert set(pruned.prefixes) == {prefix.key for prefix in two}
    for folder in ("prefixes", "known", "locks", "used", "building", "uv/archive-v0"):
        assert made.names(folder) == []
    assert made("big", "more").key == two[1].key


def test_conda_packages_in_no_prefix_go_too(made: Made) -> None:
    channels = (conda_channel.channel().as_uri(),)

    def prepare(*names: str) -> Prefix:
        asked = Definition(packages=names, channels=channels)
        return made.store.prepare(asked, Machine(), log=made.log.append, progress=made.steps.append)

    first, second = prepare("greet-data"), prepare("greet-data", "where")
    unused(made, second, days=10)
    pruned = prune(made.store, unused_days=7)
    assert pruned.prefixes == (second.key,)
    cached = {name.partition("-")[0] for name in made.names("conda/packages") if not name.endswith("lock")}
    assert cached == {"python", "greet"}
    assert prepare("greet-data") == first
    assert prepare("greet-data", "where") == second


def test_a_pruning_that_was_killed_is_finished_by_the_next(made: Made, two: tuple[Prefix, Prefix]) -> None:
    two[1].path.rename(made.store.root / "building" / f"{two[1].key}-pruned")
    assert [one.key for one in usage(made.store)] == [two[0].key]
    prune(made.store, unused_days=7)
    assert made.names("building") == []
    assert made("big", "more").key == two[1].key


def contents(root: Path) -> dict[str, tuple[int, int]]:
    """Every name in a store with its time and size: folders too, whose times tell of files that came and went."""
    paths = [root, *root.rglob("*")]
    return {str(path): (path.lstat().st_mtime_ns, path.lstat().st_size) for path in paths}


def test_a_dry_run_writes_nothing(made: Made, two: tuple[Prefix, Prefix]) -> None:
    unused(made, two[1], days=10)
    (made.store.root / "building").rmdir()
    (made.store.root / "known" / ".left").touch()
    before = contents(made.store.root)
    assert prune(made.store, unused_days=7, dry_run=True).prefixes == (two[1].key,)
    assert contents(made.store.root) == before
    (made.store.root / "building").mkdir()
    holds = try_lock(made.store.root / "building" / f"{two[1].key}.lock")
    assert holds is not None
    assert prune(made.store, unused_days=7, dry_run=True).kept == (two[1].key,)
    os.close(holds)


def test_what_others_are_writing_stays(made: Made, two: tuple[Prefix, Prefix]) -> None:
    root, now = made.store.root, time.time()
    names = {".x.lock.tmp": 3600, ".old.lock.tmp": 90_000, "fresh.lock": 60, "unused.lock": 3600, "notes.txt": 90_000}
    for folder in ("known", "locks"):
        for name, age_s in names.items():
            (root / folder / name).touch()
            os.utime(root / folder / name, (now - age_s, now - age_s))
    before = set(made.names("locks"))
    prune(made.store, unused_days=0, keep=frozenset(prefix.key for prefix in two))
    assert before - set(made.names("locks")) == {".old.lock.tmp", "unused.lock"}
    assert {name for name in made.names("known") if not name.endswith(".json")} == set(names) - {".old.lock.tmp"}


def test_images_for_slurms_nodes_go_when_nobody_used_them(made: Made) -> None:
    old, new = (made.store.root / "images" / name for name in ("old", "new"))
    for image in (old, new):
        image.mkdir(parents=True)
        (image / "image.tar").write_bytes(b"x" * 10_000)
    os.utime(old, (0, 0))
    assert prune(made.store, unused_days=5).freed_bytes > 10_000
    assert (old.exists(), new.exists()) == (False, True)


def test_images_that_runs_wait_for_or_that_are_being_written_stay(made: Made, tmp_path: Path) -> None:
    images = made.store.root / "images"
    for name in ("waits", "written", "old"):
        (images / name).mkdir(parents=True)
        os.utime(images / name, (0, 0))
    other_way = tmp_path / "other-way"
    other_way.symlink_to(images)
    lock = try_lock(images / "written" / "archive.lock")
    assert lock is not None
    os.utime(images / "written", (0, 0))
    prune(made.store, unused_days=5, keep_images=frozenset({other_way / "waits"}))
    os.close(lock)
    assert made.names("images") == ["waits", "written"]


def test_half_a_conda_package_goes_at_any_age(made: Made) -> None:
    cache = made.store.root / "conda"
    left, lock = cache / "packages" / ".greet-1.0-0aBc", cache / "packages" / "gone-1.0-0.lock"
    channels = (conda_channel.channel().as_uri(),)

    def leave() -> None:
        left.mkdir(parents=True, exist_ok=True)
        (left / "half").write_text("x")
        lock.touch()

    leave()
    (cache / ".lock").touch()
    with in_use(cache):
        prune(made.store, unused_days=7)
        sweep(cache)
        assert left.exists()
    prune(made.store, unused_days=7)
    assert not left.exists()
    assert not lock.exists()
    leave()
    asked = Definition(packages=("greet-data",), channels=channels)
    made.store.solve(asked, Machine(), log=made.log.append, progress=made.steps.append)
    assert not left.exists()


def test_a_store_that_is_not_there_holds_nothing(made: Made) -> None:
    assert usage(made.store) == ()
    assert total_bytes(made.store) == 0
    assert prune(made.store, unused_days=0).freed_bytes == 0
    assert not made.store.root.exists()
