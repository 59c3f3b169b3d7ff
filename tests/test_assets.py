from __future__ import annotations

import json
import multiprocessing
import os
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from tfjob.assets import Assets, split_name
from tfjob.errors import NotFound, UsageError


@pytest.fixture
def assets(tmp_path: Path) -> Assets:
    return Assets(tmp_path / "environments", "environment", reserved_prefix="tfjob-")


def test_an_entry_can_be_read_with_cat(assets: Assets) -> None:
    entry = assets.register("tf", {"image": "a"}, description="words", tags=(("team", "demo"),))
    kept = json.loads((assets.root / "tf" / "1.json").read_text())
    assert kept == {
        "name": "tf",
        "version": "1",
        "created": entry.created,
        "digest": entry.digest,
        "description": "words",
        "tags": {"team": "demo"},
        "content": {"image": "a"},
    }
    assert list(kept)[-1] == "content"
    assert assets.find("tf") == assets.find("tf@1") == entry
    assert entry.full_name == "tf@1"


def test_unchanged_content_makes_no_new_version(assets: Assets) -> None:
    first = assets.register("tf", {"a": 1, "b": [2]})
    for again in (
        assets.register("tf", {"b": [2], "a": 1}),
        assets.register("tf", {"a": 1, "b": [2]}, new_version=True),
        assets.register("tf", {"a": 1, "b": [2]}, version="1"),
    ):
        assert (again.version, again.created, again.is_new) == ("1", first.created, False)
    assert first.is_new
    assert len(assets.list(all_versions=True)) == 1


def test_changed_content_says_what_differs_and_the_ways_out(assets: Assets) -> None:
    assets.register("tf", {"conda": {"dependencies": ["python =3.11", {"pip": ["numpy", "keras"]}]}, "base": "cpu"})
    with pytest.raises(UsageError) as caught:
        assets.register("tf", {"conda": {"dependencies": ["python =3.11", {"pip": ["numpy<2", "keras"]}]}, "x": None})
    assert caught.value.message == (
        "the environment tf exists, and its latest version 1 differs:\n"
        '  - conda.dependencies[1].pip: without "numpy"\n'
        '  - conda.dependencies[1].pip: with "numpy<2"\n'
        '  - base: "cpu" → nothing\n'
        "  - x: nothing → null"
    )
    assert caught.value.hint == (
        "Keep this beside it with --new-version (or --version NAME), or register it under another name."
    )


@pytest.mark.parametrize(
    ("old", "new", "expected"),
    [
        ([1, 2], [2, 1], ["a: in another order"]),
        ([{"b": 1}], [{"b": 1}, {"b": 2}], ['a: with {"b": 2}']),
        ("x" * 60, "y", ['a: "' + "x" * 38 + '… → "y"']),
        ([*range(20)], [], [*(f"a: without {n}" for n in range(8)), "… and 12 more"]),
    ],
)
def test_differences(assets: Assets, old: object, new: object, expected: list[str]) -> None:
    assets.register("tf", {"a": old})
    with pytest.raises(UsageError) as caught:
        assets.register("tf", {"a": new})
    assert caught.value.message.splitlines()[1:] == [f"  - {line}" for line in expected]


def test_versions_count_up_and_the_latest_is_the_one_made_last(assets: Assets) -> None:
    assets.register("tf", {"n": 1})
    assets.register("tf", {"n": 2}, new_version=True)
    assert assets.register("tf", {"n": 3}, version="2026-05").version == "2026-05"
    assert assets.find("tf").content == {"n": 3}
    assert assets.register("tf", {"n": 4}, new_version=True).version == "3"
    assert assets.register("tf", {"n": 0}, version="0.1").version == "0.1"
    assert assets.find("tf").full_name == assets.find("tf@latest").full_name == "tf@0.1"
    with pytest.raises(UsageError, match="'latest' can't be a version: it means the one that was made last"):
        assets.register("tf", {"n": 5}, version="latest")
    assert [entry.version for entry in assets.list(all_versions=True)] == ["1", "2", "2026-05", "3", "0.1"]
    assert [entry.full_name for entry in assets.list()] == ["tf@0.1"]


def test_an_explicit_version_never_changes(assets: Assets) -> None:
    assets.register("tf", {"n": 1}, version="a")
    with pytest.raises(UsageError, match=r"tf@a exists with another content:\n  - n: 1 → 2") as caught:
        assets.register("tf", {"n": 2}, version="a", new_version=True)
    assert caught.value.hint == "A version never changes: give another one, or leave it out and use --new-version."


def test_the_order_survives_a_clock_that_is_set_back(assets: Assets, monkeypatch: pytest.MonkeyPatch) -> None:
    assets.register("tf", {"n": 1})
    monkeypatch.setattr("tfjob.assets.time.time", lambda: 1.0)
    assets.register("tf", {"n": 2}, new_version=True)
    assets.register("tf", {"n": 3}, new_version=True)
    assert [entry.version for entry in assets.versions("tf")] == ["1", "2", "3"]


def test_what_is_not_there(assets: Assets) -> None:
    with pytest.raises(NotFound, match="there is no environment 'tf' in this workspace") as caught:
        assets.find("tf")
    assert caught.value.hint == "See those there are: tfjob env list."
    assets.register("tf-cpu", {"n": 1})
    assets.register("tf-cpu", {"n": 2}, new_version=True)
    with pytest.raises(NotFound) as caught:
        assets.find("tf-cup")
    assert caught.value.hint == "Did you mean tf-cpu?"
    with pytest.raises(NotFound) as caught:
        assets.find("elsewhre", also=["elsewhere"])
    assert caught.value.hint == "Did you mean elsewhere?"
    with pytest.raises(NotFound, match="tf-cpu has no version '7'") as caught:
        assets.find("tf-cpu@7")
    assert caught.value.hint == "Its versions, latest first: 2, 1."
    for odd in ("", "@", "../x", "tf-cpu@", "tf-cpu@../1", ".lock"):
        with pytest.raises(NotFound):
            assets.find(odd)


@pytest.mark.parametrize("name", ["", "a b", "../a", ".a", "a/b", "a@b", "x" * 64, "a\n"])
def test_names_and_versions_that_cannot_be(assets: Assets, name: str) -> None:
    with pytest.raises(UsageError, match="can't be the name of an environment"):
        assets.register(name, {})
    with pytest.raises(UsageError, match="can't be a version of an environment"):
        assets.register("tf", {}, version=name)
    assert not assets.root.exists()


def test_a_reserved_prefix(assets: Assets) -> None:
    with pytest.raises(UsageError, match="names that start with tfjob- are tfjob's own") as caught:
        assets.register("tfjob-mine", {})
    assert caught.value.hint == "Choose another name, such as mine."


def test_removing(assets: Assets) -> None:
    for n in (1, 2, 3):
        assets.register("tf", {"n": n}, new_version=True)
    assert [entry.full_name for entry in assets.remove("tf@3")] == ["tf@3"]
    assert assets.find("tf").version == "2"
    assert assets.register("tf", {"n": 4}, new_version=True).version == "4", "tf@3 never means something else"
    assert [entry.version for entry in assets.remove("tf")] == ["1", "2", "4"]
    assert assets.names() == ()
    assert not (assets.root / "tf").exists()
    with pytest.raises(NotFound):
        assets.remove("tf")


def test_what_a_killed_writer_left_is_not_seen(assets: Assets) -> None:
    assets.register("tf", {"n": 1})
    (assets.root / "half").mkdir()
    (assets.root / "tf" / ".2.json.x7").write_text('{"name": "tf", "ver')
    assert assets.names() == ("tf",)
    assert assets.find("tf").version == "1"
    assets.remove("tf")
    assert not (assets.root / "tf").exists()


def test_a_damaged_entry_is_named(assets: Assets) -> None:
    assets.register("tf", {"n": 1})
    (assets.root / "tf" / "1.json").write_text("{}")
    with pytest.raises(UsageError, match=r"tf/1\.json can't be read"):
        assets.find("tf")


def test_a_directory_that_cannot_be_written(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(UsageError, match="can't be written: Not a directory"):
        Assets(tmp_path / "file" / "environments", "environment").register("tf", {})
    assert Assets(tmp_path / "file" / "environments", "environment").list() == ()


def _register(root: str, number: int, start: object) -> None:
    start.wait()  # type: ignore[attr-defined]  # a multiprocessing.Barrier
    assets = Assets(Path(root), "environment")
    assets.register("different", {"n": number}, new_version=True)
    assets.register("same", {"n": 0}, new_version=True)


def test_many_processes_at_once_get_different_versions_or_the_same_for_the_same(tmp_path: Path) -> None:
    context = multiprocessing.get_context("fork")
    start = context.Barrier(6)
    processes = [context.Process(target=_register, args=(str(tmp_path), n, start)) for n in range(6)]
    for process in processes:
        process.start()
    for process in processes:
        process.join()
        assert process.exitcode == 0
    assets = Assets(tmp_path, "environment")
    different = assets.versions("different")
    assert [entry.version for entry in different] == ["1", "2", "3", "4", "5", "6"]
    assert sorted(entry.content["n"] for entry in different) == [0, 1, 2, 3, 4, 5]
    assert [entry.version for entry in assets.versions("same")] == ["1"]


def test_threads_wait_for_each_other_too(assets: Assets) -> None:
    with ThreadPoolExecutor(4) as pool:
        list(pool.map(lambda n: assets.register("tf", {"n": n}, new_version=True), range(8)))
    assert sorted(int(entry.version) for entry in assets.versions("tf")) == [*range(1, 9)]


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write everywhere")
def test_no_permission(assets: Assets) -> None:
    assets.register("tf", {"n": 1})
    (assets.root / "tf").chmod(0o500)
    with pytest.raises(UsageError, match=r"can't be kept in .*: Permission denied"):
        assets.register("tf", {"n": 2}, new_version=True)


def test_splitting() -> None:
    assert split_name("a@") == ("a", "")
