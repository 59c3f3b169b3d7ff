"""Trees of the cache: read-only, made once, made anew when somebody changed them; and what goes when room is needed."""

from __future__ import annotations

import hashlib
import json
import os
from pathlib import Path

import pytest

from tfjob.datasets.cache import Cache
from tfjob.datasets.eviction import Evicted, evict, usage
from tfjob.datasets.growing import GrowingTree
from tfjob.datasets.index import Known
from tfjob.errors import PreparationError

Rows = list[tuple[str, str, int, str]]


def kept(cache: Cache, *contents: bytes) -> Rows:
    """Have these contents among the objects; returns the rows of a tree that holds them."""
    rows = []
    with cache.filling():
        for number, content in enumerate(contents):
            partial = cache.partial(str(number))
            descriptor = os.open(partial, os.O_RDWR | os.O_CREAT)
            os.write(descriptor, content)
            sha256 = hashlib.sha256(content).hexdigest()
            cache.keep(partial, descriptor, sha256)
            os.close(descriptor)
            rows.append((f"deep/{number}", "", len(content), sha256))
    return rows


def used_by(tmp_path: Path, name: str, *, ended: str | None) -> Path:
    run = tmp_path / name
    run.mkdir()
    (run / "record.json").write_text(json.dumps({"ended": ended}))
    return run


def test_a_tree_is_read_only_and_made_once(cache: Cache) -> None:
    rows = kept(cache, b"a", b"bb")
    tree = cache.tree(rows)
    assert [tree.stat().st_mode & 0o777, (tree / "deep").stat().st_mode & 0o777] == [0o555, 0o555]
    assert (tree / "deep/1").stat().st_mode & 0o777 == 0o444
    assert (tree / "deep/1").samefile(cache.object(rows[1][3]))
    before = tree.stat().st_ino
    assert cache.tree(rows).stat().st_ino == before


def test_a_tree_that_was_changed_is_made_anew_beside_the_one_in_use(cache: Cache, tmp_path: Path) -> None:
    rows = kept(cache, b"a")
    tree = cache.tree(rows)
    cache.use(tree, used_by(tmp_path, "run-1", ended=None))
    (tree / "deep").chmod(0o755)
    (tree / "deep/added").touch()
    inside = os.open(tree / "deep", os.O_RDONLY)  # as a container has it mounted
    assert cache.known_tree(tree.name) is None
    assert cache.tree(rows) == tree
    assert os.listdir(tree / "deep") == ["0"]
    evict(cache, limit_bytes=0)
    assert sorted(os.listdir(inside)) == ["0", "added"]
    (tmp_path / "run-1/record.json").write_text('{"ended": "now"}')
    evict(cache, limit_bytes=0)
    assert os.listdir(inside) == []
    os.close(inside)


def test_what_was_used_last_stays_longest_and_shared_files_stay_with_it(cache: Cache, tmp_path: Path) -> None:
    first = cache.tree(kept(cache, b"one", b"both"))
    second = cache.tree(kept(cache, b"two", b"both"))
    os.utime(first.with_suffix(".json"), (1, 1))
    loose = kept(cache, b"of no tree")[0][3]
    assert usage(cache).size_bytes == 3 + 3 + 4 + 10
    gone = evict(cache, limit_bytes=7, dry_run=True)
    assert (gone.trees, gone.object_count, gone.freed_bytes) == ((first.name,), 2, 13)
    assert first.is_dir()
    assert evict(cache, limit_bytes=7) == gone
    assert not first.exists()
    assert not os.path.exists(cache.object(loose))
    assert (second / "deep/1").read_bytes() == b"both"
    for name, ended in (("over", "now"), ("runs", None)):
        cache.use(second, used_by(tmp_path, name, ended=ended))
    assert [tree.used_by for tree in usage(cache).trees] == [("runs",)]
    assert evict(cache, limit_bytes=0).trees == ()


def test_while_others_fetch_nothing_goes(cache: Cache) -> None:
    cache.tree(kept(cache, b"one"))
    with Cache(cache.root).filling():
        assert evict(cache, limit_bytes=0).is_busy
    assert evict(cache, limit_bytes=0).object_count == 1


def test_a_run_whose_directory_is_gone_uses_nothing(cache: Cache, tmp_path: Path) -> None:
    tree = cache.tree(kept(cache, b"one"))
    cache.use(tree, tmp_path / "gone")
    assert evict(cache, limit_bytes=0).trees == (tree.name,)


def test_an_index_that_can_not_be_opened_is_told_and_stays(cache: Cache) -> None:
    index = cache.root / "index.db"
    index.mkdir(parents=True)
    with pytest.raises(PreparationError, match=r"index\.db can't be used: unable to open database file"):
        cache.index.remember([("https://host/a", Known("", 1, "ab", 0))])
    assert index.is_dir()


def growing(cache: Cache, rows: Rows) -> GrowingTree:
    """A tree for these rows, each file behind an address of its own."""
    return GrowingTree(cache, [(f"at:{name}", name, size) for name, _, size, _ in rows])


def held(rows: Rows) -> list[tuple[str, Known]]:
    return [(f"at:{name}", Known("", size, sha256, 0)) for name, _, size, sha256 in rows]


def test_a_tree_grows_while_its_objects_come_and_is_as_any_other(cache: Cache) -> None:
    rows = kept(cache, b"a", b"bb", b"ccc")
    grown = growing(cache, rows)
    grown.add(held(rows[:1]))
    grown.add([*held(rows[1:2]), ("at:elsewhere", Known("", 1, "0" * 64, 0))])
    assert grown.path is not None
    inode = grown.path.stat().st_ino
    tree = cache.tree(rows, grown)
    grown.end()
    assert tree.stat().st_ino == inode
    assert [tree.stat().st_mode & 0o777, (tree / "deep").stat().st_mode & 0o777] == [0o555, 0o555]
    assert [(tree / name).samefile(cache.object(sha256)) for name, _, _, sha256 in rows] == [True] * 3
    assert sorted(path.suffix for path in (cache.root / "trees").iterdir()) == ["", ".json", ".lock"]
    assert cache.known_tree(tree.name) == tree


def test_what_grew_otherwise_than_the_files_are_in_the_end_is_put_right(cache: Cache) -> None:
    rows = kept(cache, b"a", b"bb")
    grown = growing(cache, rows)
    grown.add(held([(*rows[0][:3], rows[1][3]), rows[1]]))  # the first has the second's content
    tree = cache.tree(rows, grown)
    grown.end()
    assert [(tree / name).samefile(cache.object(sha256)) for name, _, _, sha256 in rows] == [True] * 2


def test_what_grew_and_is_of_no_use_is_removed(cache: Cache) -> None:
    rows = kept(cache, b"a", b"bb")
    tree = cache.tree(rows)
    before = tree.stat().st_ino
    grown, unused = growing(cache, rows), growing(cache, rows)
    with cache.filling():
        grown.add(held(rows))
        assert cache.tree(rows, grown).stat().st_ino == before
        grown.end()
        unused.end()
    abandoned = growing(cache, rows)
    abandoned.add(held(rows))  # by a process that is killed then
    assert len(list((cache.root / "trees").glob(".*"))) == 1
    evict(cache, limit_bytes=1 << 30)
    assert list((cache.root / "trees").glob(".*")) == []
    assert cache.known_tree(tree.name) == tree


def test_an_object_that_can_not_be_linked_is_told_by_who_makes_the_tree(cache: Cache) -> None:
    rows = kept(cache, b"a", b"bb")
    os.unlink(cache.object(rows[0][3]))
    grown = growing(cache, rows)
    grown.add(held(rows))
    with pytest.raises(PreparationError, match="can't be put together"):
        cache.tree(rows, grown)
    grown.end()
    assert [path.suffix for path in (cache.root / "trees").iterdir()] == [".lock"]


def test_what_is_there_needs_no_room_and_stays(cache: Cache) -> None:
    rows = kept(cache, b"x" * 60, b"y" * 60)
    tree = cache.tree(rows[:1])
    there, other, new = (rows[0][3], 60), (rows[1][3], 60), ("", 30)
    assert evict(cache, limit_bytes=150, coming=[there, new]).freed_bytes == 0
    assert evict(cache, limit_bytes=1, coming=[there, other]).freed_bytes == 0
    assert evict(cache, limit_bytes=80, coming=[there, new]) == Evicted((tree.name,), 1, 60)
    assert [os.path.exists(cache.object(sha256)) for sha256, _ in (there, other)] == [True, False]


def test_what_can_not_be_put_together_meanwhile_is_given_up(cache: Cache) -> None:
    rows = kept(cache, b"a", b"bb")
    (cache.root / "trees").touch()  # where a directory belongs
    grown = growing(cache, rows)
    before = len(os.listdir("/proc/self/fd"))
    for _ in range(5):
        grown.add(held(rows))
    grown.end()
    assert len(os.listdir("/proc/self/fd")) <= before  # of earlier tests some may be closed meanwhile
    (cache.root / "trees").unlink()
    assert sorted(os.listdir(cache.tree(rows, grown) / "deep")) == ["0", "1"]


def test_a_known_tree_is_not_evicted_before_it_is_used(cache: Cache, tmp_path: Path) -> None:
    tree = cache.tree(kept(cache, b"a"))
    cache.use(tree, used_by(tmp_path, "run-1", ended=None))
    assert evict(cache, limit_bytes=0).trees == ()
    assert cache.known_tree(tree.name) == tree
