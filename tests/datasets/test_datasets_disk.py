"""A disk that is full, a cache that can't be written, and what engines are given of a dataset."""

from __future__ import annotations

import hashlib
import os
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from tfjob.datasets import placing
from tfjob.datasets.cache import Cache
from tfjob.datasets.fetch import fetch
from tfjob.datasets.files import find_files
from tfjob.datasets.placing import place
from tfjob.datasets.wanted import Settings, Wanted
from tfjob.engines.dataset_contents import contents
from tfjob.errors import PreparationError
from tfjob.planning.plan import DatasetPlan

if TYPE_CHECKING:
    from web_server import WebServer


@pytest.mark.root
@pytest.mark.parametrize("tells_size", [True, False])
def test_a_full_disk_is_told_and_nothing_is_left(small: Path, web: WebServer, tells_size: bool) -> None:
    cache = Cache(small / "cache")
    url = web.put("big", os.urandom(3 << 20))
    web.tells_size = tells_size
    message = r"needs 3 MB, and the disk that holds \S+ has \d+ MB free" if tells_size else r"is full"
    with cache.filling(), pytest.raises(PreparationError, match=message) as caught:
        fetch([Wanted(url, -1, "", "d")], cache, Settings(tries=1), lambda _: None)
    assert "tfjob dataset cache --prune" in caught.value.hint
    assert sum(path.stat().st_size for path in (cache.root / "partial").iterdir()) == 0
    assert list(cache.root.glob("objects/*/*")) == []


@pytest.mark.root
@pytest.mark.parametrize("many", [1, 1000])
def test_a_full_disk_ends_the_copy_of_few_files_and_of_many(
    small: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, many: int
) -> None:
    monkeypatch.setattr(placing, "_MANY", many)
    for number in range(100):
        (tmp_path / f"{number}.bin").write_bytes(os.urandom(30_000))
    with pytest.raises(PreparationError, match=r"\d+\.bin can't be used: No space left on device"):
        place(find_files([f"{tmp_path}/*.bin"]).files, small / "copy", copy=True)


def test_engines_are_given_every_file_with_its_sum(web: WebServer, cache: Cache, tmp_path: Path) -> None:
    (tmp_path / "data").mkdir()
    local = tmp_path / "data" / "l.txt"
    local.write_text("local")
    url = web.put("a.txt", b"content")
    sums = [hashlib.sha256(one).hexdigest() for one in (b"content", b"local")]
    with cache.filling():
        fetch([Wanted(url, -1, "", "d")], cache, Settings(), lambda _: None)
    dataset = DatasetPlan(
        "d", "directory", "mount", "", 2, 12, ((url, "a.txt", 7), (str(local), "l.txt", 5)), (f"sha256:{sums[0]}", "")
    )
    expected = [(cache.object(sums[0]), "a.txt", 7, sums[0]), (str(local), "l.txt", 5, sums[1])]
    assert list(contents(dataset, cache)) == expected
    assert Path(expected[0][0]).read_bytes() == b"content"
    assert list(contents(dataset, cache)) == expected
    local.write_text("LOCAL")
    assert (
        next(one.sha256 for one in contents(dataset, cache) if one.name == "l.txt")
        == hashlib.sha256(b"LOCAL").hexdigest()
    )
    local.write_text("longer than before")
    with pytest.raises(PreparationError, match="has changed since the job was submitted"):
        list(contents(dataset, cache))


def test_engines_are_given_files_of_this_machine_alone(cache: Cache, tmp_path: Path) -> None:
    (tmp_path / "a").write_text("a")
    found = find_files([str(tmp_path / "a")])
    (one,) = contents(DatasetPlan("d", "directory", "mount", found.digest, 1, 1, found.files), cache)
    assert one == (str(tmp_path / "a"), "a", 1, hashlib.sha256(b"a").hexdigest())
