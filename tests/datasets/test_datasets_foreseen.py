"""A run's data that is very many small files: what begins before the run is ready, and what is noted of it."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
from datasets.test_datasets_workers import children
from support import eventually
from web_server import Status, WebServer

from tfjob.datasets.cache import Cache
from tfjob.datasets.files import Remote, find_files, laid_out
from tfjob.datasets.registered import Asked, content_of, register
from tfjob.datasets.wanted import Settings
from tfjob.errors import PreparationError
from tfjob.planning.plan import DatasetPlan, Plan
from tfjob.rundir import RunDirectory
from tfjob.runs.data import RunData
from tfjob.runs.record import Record, write_record
from tfjob.submission import plan

MANY = Settings(connections=4, timeout_s=30, tries=1, pause_s=0.01, many=250)


def planned(urls: list[str], tmp_path: Path, name: str | None = None) -> Plan:
    found = laid_out([], [Remote(url, url.rpartition("/")[2], -1, "") for url in urls])
    dataset = DatasetPlan("d", "directory", "mount", found.digest, len(urls), -1, found.files, found.marks, name)
    job = tmp_path / "job.yml"
    job.write_text("name: many\ncommand: 'true'\n")
    return replace(plan(job), datasets=(dataset,))


def data_of(urls: list[str], tmp_path: Path, cache: Cache, run: str, name: str | None = None) -> RunData:
    directory = RunDirectory(tmp_path / run)
    directory.path.mkdir()
    write_record(directory, Record(run, "many", "many", "Preparing", "2026-01-01T00:00:00Z", run, "local"))
    return RunData(planned(urls, tmp_path, name), directory, cache, 1, tmp_path / "registry", MANY)


def put(web: WebServer, count: int) -> list[str]:
    return [web.put(f"{number}.txt", b"%d" % number) for number in range(count)]


def test_what_fetches_is_started_before_it_is_needed_and_ends_with_it(
    web: WebServer, tmp_path: Path, cache: Cache
) -> None:
    data = data_of(put(web, 300), tmp_path, cache, "run-1")
    data.foresee()
    eventually(lambda: children() != [], "what fetches has become the program")
    fetched, _ = data.prepare(lambda _: None)
    assert children() == []
    mounted = tmp_path / "run-1" / "datasets" / "d"
    assert (mounted / "299.txt").read_bytes() == b"299"
    assert len(list(mounted.iterdir())) == fetched.datasets[0].file_count == 300


def test_what_is_there_needs_nobody(web: WebServer, tmp_path: Path, cache: Cache) -> None:
    urls = put(web, 300)
    data_of(urls, tmp_path, cache, "run-1").prepare(lambda _: None)
    again = data_of(urls, tmp_path, cache, "run-2")
    again.foresee()
    assert children() == []
    few = data_of(urls[:240], tmp_path, cache, "run-3")
    few.foresee()
    assert children() == []


def test_nobody_stays_when_something_can_not_be_had(web: WebServer, tmp_path: Path, cache: Cache) -> None:
    urls = [*put(web, 300), web.put("gone.txt", b"", Status(404))]
    data = data_of(urls, tmp_path, cache, "run-1")
    data.foresee()
    with pytest.raises(PreparationError, match="404"):
        data.prepare(lambda _: None)
    assert children() == []
    assert list((cache.root / "trees").glob(".*")) == []


def test_of_two_first_uses_at_once_the_first_counts(web: WebServer, tmp_path: Path, cache: Cache) -> None:
    urls = put(web, 3)
    root = tmp_path / "registry"
    entry = register(Asked(tuple(urls), (), "words"), root, MANY)
    first = data_of(urls, tmp_path, cache, "run-1", entry.full_name)
    second = data_of(urls, tmp_path, cache, "run-2", entry.full_name)
    first.prepare(lambda _: None)
    pinned = content_of(entry, root)
    assert {url: size for url, (size, _) in pinned.items()} == dict.fromkeys(urls, 1)
    data_of(urls, tmp_path, cache, "run-3", entry.full_name).prepare(lambda _: None)
    web.put("1.txt", b"x")
    with pytest.raises(PreparationError, match=r"1\.txt has changed since another run was the first to use words@1"):
        second.prepare(lambda _: None)
    assert content_of(entry, root) == pinned


def test_a_file_that_was_written_to_while_the_environment_was_made_is_noticed(
    tmp_path: Path, cache: Cache, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("tfjob.runs.data._JUST_S", 0.0)
    monkeypatch.setattr("tfjob.runs.ahead._SOON_S", 0.0)
    file = tmp_path / "file"
    file.write_text("whole")
    found = find_files([str(file)])
    local = DatasetPlan("d", "directory", "download", found.digest, 1, 5, found.files, found.marks)
    data = data_of([], tmp_path, cache, "run-1")
    data = replace(data, plan=replace(data.plan, datasets=(local,)), here=False)
    data.begin(lambda _: None)
    eventually(lambda: data._ahead is not None and data._ahead._is_over.is_set(), "the file was looked at")
    file.write_text("other")
    with pytest.raises(PreparationError, match="one of its files was written to"):
        data.prepare(lambda _: None)
