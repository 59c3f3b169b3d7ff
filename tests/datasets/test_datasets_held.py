"""What the cache holds already is not taken for something to come, and what was written to is told to all who read it."""

from __future__ import annotations

import hashlib
import os
import sqlite3
from collections import deque
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from tfjob.datasets.cache import OBJECT_TIME_NS, Cache
from tfjob.datasets.eviction import evict
from tfjob.datasets.fetch import fetch
from tfjob.datasets.files import Remote, laid_out
from tfjob.datasets.index import Known
from tfjob.datasets.registered import Asked, _heads, find_registered, note_contents, register
from tfjob.datasets.wanted import Settings, Wanted
from tfjob.errors import PreparationError
from tfjob.planning.plan import DatasetPlan
from tfjob.rundir import RunDirectory
from tfjob.runs.data import RunData
from tfjob.runs.record import Record, write_record
from tfjob.submission import plan

if TYPE_CHECKING:
    from web_server import WebServer

ONCE = Settings(tries=1, pause_s=0.01)
GIB = 1 << 30


def data_of(directory: Path, cache: Cache, run: str, *remote: Remote, limit_bytes: int = GIB) -> RunData:
    found = laid_out([], remote)
    size = sum(size for _, _, size in found.files)
    dataset = DatasetPlan("d", "directory", "mount", found.digest, len(remote), size, found.files, found.marks)
    job = directory / "job.yml"
    job.write_text("name: held\ncommand: 'true'\n")
    own = RunDirectory(directory / run)
    own.path.mkdir()
    write_record(own, Record(run, "held", "held", "Preparing", "2026-01-01T00:00:00Z", run, "local"))
    whole = replace(plan(job), datasets=(dataset,))
    return RunData(whole, own, cache, limit_bytes / GIB, directory / "registry", ONCE)


def tagged(web: WebServer, name: str, content: bytes) -> Remote:
    """A file whose server has told its tag, as registering one finds out."""
    url = web.put(name, content)
    return Remote(url, name, len(content), f"tag:{_heads(deque([url]), ONCE)[url][1]}")


def end(data: RunData) -> None:
    record = Record(
        "r", "held", "held", "Completed", "2026-01-01T00:00:00Z", "r", "local", ended="2026-01-01T00:00:01Z"
    )
    write_record(data.run, record)


def test_what_is_asked_for_again_neither_goes_nor_pushes_others_out(
    web: WebServer, tmp_path: Path, cache: Cache
) -> None:
    own, other = tagged(web, "own", os.urandom(600)), tagged(web, "other", os.urandom(300))
    for run, remote in (("run-1", own), ("run-2", other)):
        data = data_of(tmp_path, cache, run, remote, limit_bytes=1000)
        data.prepare(lambda _: None)
        end(data)
    data_of(tmp_path, cache, "run-3", own, limit_bytes=1000).prepare(lambda _: None)
    assert len(list(cache.root.glob("objects/*/*"))) == 2
    assert evict(cache, limit_bytes=1000).trees == ()


@pytest.mark.root
@pytest.mark.parametrize("in_part", [False, True])
def test_a_full_disk_has_room_for_what_is_there_already(small: Path, web: WebServer, in_part: bool) -> None:
    cache = Cache(small / "cache")
    content = os.urandom(1_200_000)
    url = web.put("big", content)
    wanted = Wanted(url, len(content), f"seen:{hashlib.sha256(content).hexdigest()}", "d@1")
    with cache.filling():
        if in_part:  # it is there in part: the rest has room
            Path(cache.partial(url)).write_bytes(content[:1_000_000])
        else:
            fetch([wanted], cache, ONCE, lambda _: None)
        (small / "rest").write_bytes(bytes(600_000))
        known = fetch([wanted], cache, ONCE, lambda _: None).known
    assert known[url].sha256 == hashlib.sha256(content).hexdigest()


def test_all_who_had_it_mounted_are_told_that_a_file_was_written_to(
    web: WebServer, tmp_path: Path, cache: Cache
) -> None:
    remote = tagged(web, "a", b"sound")
    runs = [data_of(tmp_path, cache, f"run-{number}", remote) for number in (1, 2)]
    plans = [data.prepare(lambda _: None)[0] for data in runs]
    assert [data.changes(now) for data, now in zip(runs, plans, strict=True)] == [(), ()]
    path = tmp_path / "run-1" / "datasets" / "d" / "a"
    path.chmod(0o644)
    path.write_text("wrong")
    told = "dataset d was changed while the run went on: a was written to; it was taken out of the cache"
    assert [data.changes(now) for data, now in zip(runs, plans, strict=True)] == [(told,), (told,)]
    os.utime(cache.root / "harmed" / hashlib.sha256(b"sound").hexdigest(), (1, 1))  # a run that begins later
    after = data_of(tmp_path, cache, "run-3", remote)
    assert after.changes(after.prepare(lambda _: None)[0]) == ()
    assert (tmp_path / "run-3" / "datasets" / "d" / "a").read_bytes() == b"sound"


def test_a_dataset_that_has_moved_is_another_version_with_its_own_files(tmp_path: Path) -> None:
    registry = tmp_path / "registry"
    first, second = tmp_path / "a" / "x.csv", tmp_path / "b" / "x.csv"
    for path in (first, second):
        path.parent.mkdir()
        path.write_text("same")
        os.utime(path, ns=(OBJECT_TIME_NS, OBJECT_TIME_NS))
    register(Asked((str(first),), (), "d"), registry, ONCE)
    register(Asked((str(second),), (), "d"), registry, ONCE, new_version=True)
    first.unlink()
    assert find_registered("d@2", registry).files == ((str(second), "x.csv", 4),)
    with pytest.raises(PreparationError, match=r"no file matches \S+/a/x\.csv"):
        find_registered("d@1", registry)


def test_a_link_that_leads_elsewhere_is_told_as_that(tmp_path: Path) -> None:
    registry = tmp_path / "registry"
    for name in ("a", "b"):
        (tmp_path / name).write_text("same")
        os.utime(tmp_path / name, ns=(OBJECT_TIME_NS, OBJECT_TIME_NS))
    link = tmp_path / "link"
    link.symlink_to("a")
    register(Asked((str(link),), (), "d"), registry, ONCE)
    link.unlink()
    link.symlink_to("b")
    with pytest.raises(PreparationError, match=f"link is {tmp_path}/b where it was {tmp_path}/a"):
        find_registered("d@1", registry)


def test_the_same_content_at_another_address_is_fetched_from_there(web: WebServer, tmp_path: Path) -> None:
    registry = tmp_path / "registry"
    content = b"the same"
    sha256 = hashlib.sha256(content).hexdigest()
    urls = [web.put(f"{place}/x.csv", content) for place in ("old", "new")]
    for number, url in enumerate(urls):
        register(Asked((url,), ((url, sha256),), "d"), registry, ONCE, new_version=bool(number))
    note_contents("d@1", registry, {urls[0]: (len(content), sha256)})
    assert [find_registered(f"d@{number}", registry).files[0][0] for number in (1, 2)] == urls


ROWS = [(f"https://host/{number}", Known("", 1, f"{number:064d}", 0)) for number in range(500)]


@pytest.fixture
def damaged(cache: Cache) -> Path:
    """The index of the cache with its rows in pages that are no more."""
    cache.index.remember(ROWS)
    path = cache.root / "index.db"
    whole = bytearray(path.read_bytes())
    whole[8192:-4096] = b"\xff" * (len(whole) - 12288)
    path.write_bytes(whole)
    return path


def test_an_index_with_a_damaged_page_is_forgotten(cache: Cache, damaged: Path) -> None:
    with pytest.raises(sqlite3.DatabaseError), sqlite3.connect(damaged) as index:
        index.execute("select count(tag) from addresses").fetchall()
    assert cache.index.known([source for source, _ in ROWS]) == {}
    assert not damaged.exists()
    cache.index.remember(ROWS[:3])
    assert cache.index.known([ROWS[0][0]]) == dict(ROWS[:1])


@pytest.mark.usefixtures("damaged")
def test_an_index_that_is_found_damaged_when_it_is_written_to_is_told_once(cache: Cache) -> None:
    with pytest.raises(PreparationError, match=r"was damaged .* and has been removed: what it knew is found again"):
        cache.index.remember(ROWS)
    cache.index.remember(ROWS)
    assert len(cache.index.known([source for source, _ in ROWS])) == 500
