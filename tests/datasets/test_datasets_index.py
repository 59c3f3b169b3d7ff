"""The index of what addresses held, while several processes note what they fetched."""

from __future__ import annotations

import os
import sqlite3
import time
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from datasets.test_datasets_fetch import QUICK, got

from tfjob.datasets import index as index_module
from tfjob.datasets.cache import Cache
from tfjob.datasets.index import Index, Known, _opened

if TYPE_CHECKING:
    from web_server import WebServer


def test_the_stamp_of_the_index_is_told_to_who_alone_notes(cache: Cache) -> None:
    index = cache.index
    assert index.stamp() == (0, 0)
    row = ("https://host/a", Known("", 1, "ab", 0))
    with index.noting() as note:
        assert note([row]) == index.stamp() != (0, 0)
        Cache(cache.root).index.remember([row])
        assert note([row]) is None
        assert note([row]) is None  # what the other noted has not been read
    with index.looking() as look:
        assert [look("https://host/a"), look("https://host/b")] == [row[1], None]


@pytest.mark.parametrize("is_known", [False, True])
def test_what_another_noted_since_the_index_was_read_is_not_fetched_again(
    web: WebServer, cache: Cache, monkeypatch: pytest.MonkeyPatch, *, is_known: bool
) -> None:
    """Another process notes a file, and lets go of it, before this one takes its lock."""
    url = web.put("a", b"before")
    if is_known:
        got(cache, url)
        os.utime(cache.root / "index.db", ns=(0, 0))  # not just now: clocks of file systems are coarse
        web.put("a", b"content")
    known = Index.known
    others = [Cache(cache.root)]

    def read(index: Index, sources: Sequence[str]) -> dict[str, Known]:
        found = known(index, sources)
        while others:
            got(others.pop(), url)
        return found

    monkeypatch.setattr(Index, "known", read)
    got(cache, url)
    assert "If-None-Match" in web.asked("a")[-1]
    assert web.asked("a")[-1]["If-None-Match"] == web.tag(web.files["/a"])


def test_what_is_noted_meanwhile_does_not_have_the_index_opened_for_each_file(
    web: WebServer, cache: Cache, monkeypatch: pytest.MonkeyPatch
) -> None:
    urls = [web.put(str(number), b"%d" % number) for number in range(30)]
    opened: list[Path] = []

    def open_it(path: Path) -> sqlite3.Connection:
        opened.append(path)
        return _opened(path)

    monkeypatch.setattr(index_module, "_opened", open_it)
    monkeypatch.setattr(Index, "stamp", lambda _: (time.monotonic_ns(), 0))  # all the time
    got(cache, *urls, settings=QUICK)
    assert len(opened) <= 2 + QUICK.connections  # to read, to note, and for each thread
