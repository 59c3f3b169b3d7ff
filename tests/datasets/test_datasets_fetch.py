"""Fetching over a real connection: what is asked of servers, what is kept, and how each fault is told."""

from __future__ import annotations

import hashlib
import itertools
import os
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import SimpleNamespace

import pytest
from support import eventually, openers
from web_server import Cut, Fault, Hang, Held, Raw, Redirect, Slow, Status, WebServer

from tfjob.datasets import web_fetch
from tfjob.datasets.cache import Cache
from tfjob.datasets.fetch import _progress, fetch
from tfjob.datasets.index import Known
from tfjob.datasets.sizes import web_sizes
from tfjob.datasets.standby import Standby
from tfjob.datasets.wanted import Settings, Transfer, Wanted
from tfjob.errors import ExitCode, PreparationError
from tfjob.spec import addresses

QUICK = Settings(connections=4, timeout_s=30, tries=3, pause_s=0.01)
TWICE = Settings(connections=4, timeout_s=30, tries=2, pause_s=0.01)
IMPATIENT = Settings(connections=4, timeout_s=1, tries=2, pause_s=0.01)
BIG = os.urandom(3 << 20)
SILENT = r"(127\.0\.0\.1:\d+ sends nothing|only 4 bytes came in \S+ s)"  # the second: who reads had no processor


def sum_of(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()


def got(cache: Cache, *urls: str, mark: str = "", size: int = -1, settings: Settings = QUICK) -> dict[str, Known]:
    said: list[str] = []
    with cache.filling():
        return fetch([Wanted(url, size, mark, "digits@1") for url in urls], cache, settings, said.append).known


def objects(cache: Cache) -> list[str]:
    return sorted(path.name for path in (cache.root / "objects").glob("*/*"))


def partials(cache: Cache) -> list[int]:
    return sorted(path.stat().st_size for path in (cache.root / "partial").glob("*") if path.suffix != ".json")


def test_files_are_fetched_side_by_side_and_kept_by_content(web: WebServer, cache: Cache) -> None:
    urls = [web.put(f"data/{number}.bin", f"file {number}".encode()) for number in range(50)]
    again = web.put("elsewhere/7.bin", b"file 7")
    found = got(cache, *urls, again)
    assert [found[url].sha256 for url in urls] == [sum_of(f"file {number}".encode()) for number in range(50)]
    assert len(objects(cache)) == 50
    kept = Path(cache.object(sum_of(b"file 7")))
    assert kept.read_bytes() == b"file 7"
    assert kept.stat().st_mode & 0o777 == 0o444
    assert partials(cache) == []


def test_an_empty_file_is_a_file(web: WebServer, cache: Cache) -> None:
    assert got(cache, web.put("empty", b"")).popitem()[1].size == 0
    assert objects(cache) == [sum_of(b"")]


def test_what_has_not_changed_is_not_fetched_again(web: WebServer, cache: Cache) -> None:
    url = web.put("a", b"content")
    first = got(cache, url)[url]
    assert got(cache, url)[url].sha256 == first.sha256
    assert web.asked("a")[1]["If-None-Match"] == first.tag
    web.put("a", b"changed")
    assert got(cache, url)[url].sha256 == sum_of(b"changed")


def test_nothing_has_changed_is_no_answer_to_who_did_not_ask_that(web: WebServer, cache: Cache) -> None:
    web.has_tags = False
    url = web.put("a", b"content")
    got(cache, url)
    web.put("a", b"changed", Raw(304), None)
    assert got(cache, url)[url].sha256 == sum_of(b"changed")


def test_a_server_without_tags_is_asked_for_the_file_again(web: WebServer, cache: Cache) -> None:
    web.has_tags = False
    url = web.put("a", b"content")
    got(cache, url)
    web.put("a", b"CONTENT")
    assert got(cache, url)[url].sha256 == sum_of(b"CONTENT")


def test_a_known_sum_in_the_cache_needs_no_server(web: WebServer, cache: Cache) -> None:
    url = web.put("a", b"content")
    got(cache, url)
    sha256 = sum_of(b"content")
    assert got(cache, "http://127.0.0.1:9/a", mark=f"sha256:{sha256}") == {
        "http://127.0.0.1:9/a": Known("", 7, sha256, 0)
    }
    assert len(web.requests) == 1


def test_many_addresses_are_asked_once_an_hour(web: WebServer, cache: Cache, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(addresses, "MANY", 3)
    urls = [web.put(str(number), b"%d" % number) for number in range(4)]
    got(cache, *urls)
    got(cache, *urls)
    assert len(web.requests) == 4
    later = time.time() + 3601
    monkeypatch.setattr("tfjob.datasets.fetch.time.time", lambda: later)
    got(cache, *urls)
    assert len(web.requests) == 8


def test_what_broke_off_goes_on_from_there(web: WebServer, cache: Cache) -> None:
    url = web.put("big", BIG, Cut(2 << 20), None)
    assert got(cache, url)[url].sha256 == sum_of(BIG)
    first, second = web.asked("big")
    assert "Range" not in first
    assert second["Range"] == f"bytes={2 << 20}-"


def test_another_process_goes_on_from_there_too(web: WebServer, cache: Cache) -> None:
    url = web.put("big", BIG, Cut(2 << 20), Status(404))
    with pytest.raises(PreparationError, match="there is no file"):
        got(cache, url)
    assert partials(cache) == [2 << 20]
    web.put("big", BIG)
    assert got(cache, url)[url].sha256 == sum_of(BIG)
    assert web.asked("big")[-1]["Range"] == f"bytes={2 << 20}-"


def test_a_part_of_a_file_that_has_changed_is_thrown_away(web: WebServer, cache: Cache) -> None:
    url = web.put("big", BIG, Cut(2 << 20), Status(404))
    with pytest.raises(PreparationError):
        got(cache, url)
    changed = BIG[::-1]
    web.put("big", changed)
    assert got(cache, url)[url].sha256 == sum_of(changed)


def test_a_server_without_ranges_is_asked_for_all_of_it_again(web: WebServer, cache: Cache) -> None:
    web.has_ranges = False
    url = web.put("big", BIG, Cut(2 << 20), Cut(2 << 20), None)
    assert got(cache, url)[url].sha256 == sum_of(BIG)


@pytest.mark.parametrize("size", [-1, len(BIG)])
@pytest.mark.parametrize("tells_whole", [True, False])
def test_parts_shorter_than_asked_for_are_put_together(
    web: WebServer, cache: Cache, size: int, *, tells_whole: bool
) -> None:
    web.longest_range, web.tells_whole = 300 << 10, tells_whole
    url = web.put("big", BIG, Cut(2 << 20), None)
    found = got(cache, url, size=size)[url]
    assert (found.tag, found.size, found.sha256) == (web.tag(BIG), len(BIG), sum_of(BIG))
    assert Path(cache.object(sum_of(BIG))).read_bytes() == BIG
    starts = [int(headers["Range"][6:-1]) for headers in web.asked("big") if "Range" in headers]
    is_asked_at_the_end = size < 0 and not tells_whole
    assert starts == list(range(2 << 20, len(BIG) + is_asked_at_the_end, 300 << 10)) + [len(BIG)] * is_asked_at_the_end


def test_a_part_shorter_than_asked_for_that_breaks_off_is_gone_on_with(web: WebServer, cache: Cache) -> None:
    web.longest_range = 300 << 10
    url = web.put("big", BIG, Cut(2 << 20), Cut(200 << 10), Cut(0), None)
    assert got(cache, url)[url].sha256 == sum_of(BIG)


@pytest.mark.parametrize(
    ("told", "length"),
    [
        ("", 1 << 20),
        ("bytes 0-1048575/3145728", 1 << 20),
        ("bytes 2097152-2097151/3145728", 0),
        ("bytes 2097152-3145727/3145727", 1 << 20),
        ("bytes 2097152-3145727/3145728", 1 << 19),
        ("bytes 2097152-3145727/3145728 and more", 1 << 20),
    ],
)
def test_a_part_that_contradicts_itself_is_not_taken(web: WebServer, cache: Cache, told: str, length: int) -> None:
    answer = Raw(206, (("Content-Range", told), ("ETag", web.tag(BIG))), BIG[2 << 20 :][:length])
    url = web.put("big", BIG, Cut(2 << 20), answer, None)
    assert got(cache, url)[url].sha256 == sum_of(BIG)
    assert ["Range" in headers for headers in web.asked("big")] == [False, True, False]


@pytest.mark.parametrize(
    "answer",
    [
        Raw(206, (("Content-Range", "bytes 0-3/4"),), b"cont"),
        Raw(416, (("Content-Range", "bytes */0"),)),
        Raw(304, (("ETag", '"x"'),)),
    ],
)
def test_an_answer_to_a_range_that_was_not_asked_for_is_not_taken(web: WebServer, cache: Cache, answer: Raw) -> None:
    url = web.put("a", b"content", answer, None)
    assert got(cache, url)[url].sha256 == sum_of(b"content")


@pytest.mark.parametrize("coding", ["gzip", "BR", "deflate, gzip"])
def test_a_file_that_comes_encoded_is_refused(web: WebServer, cache: Cache, coding: str) -> None:
    url = web.put("a.csv?word=hidden", b"", Raw(200, (("Content-Encoding", coding),), b"packed"))
    with pytest.raises(
        PreparationError, match=rf"gives \S+/a\.csv encoded \({coding.lower()}\), and the file as it is was asked for"
    ) as caught:
        got(cache, url)
    assert f"such as a.csv.gz; or fetch it yourself (curl --compressed -O {web.url('a.csv')})" in caught.value.hint
    assert "hidden" not in caught.value.message
    assert objects(cache) == []
    assert sum(partials(cache)) == 0


@pytest.mark.parametrize(
    ("name", "coding"),
    [
        ("a.csv.gz", "gzip"),
        ("A.TGZ", "x-gzip"),
        ("a.br", "br"),
        ("a.csv.zst", "zstd"),
        ("a.csv", "identity"),
        ("a.csv", "aws-chunked"),
        ("a.csv", "aws-chunked,"),
        ("a.csv", "utf-8"),
    ],
)
def test_a_file_whose_name_says_how_it_is_packed_is_kept_as_it_comes(
    web: WebServer, cache: Cache, name: str, coding: str
) -> None:
    url = web.put(name, b"", Raw(200, (("Content-Encoding", coding),), b"packed"))
    assert got(cache, url)[url].sha256 == sum_of(b"packed")


def test_every_try_that_gets_further_is_worth_another(web: WebServer, cache: Cache) -> None:
    url = web.put("big", BIG, *[Cut(400 << 10)] * 6, None)
    assert got(cache, url)[url].sha256 == sum_of(BIG)


def test_redirects_are_followed(web: WebServer, cache: Cache) -> None:
    web.put("real/file", b"content")
    url = web.put("a", b"", Redirect("/b", 301))
    web.put("b", b"", Redirect(web.url("real/file"), 307))
    assert got(cache, url)[url].sha256 == sum_of(b"content")


def test_a_slow_answer_is_no_failure(web: WebServer, cache: Cache) -> None:
    url = web.put("slow", bytes(40_000), Slow(500, 0.1))
    assert got(cache, url, settings=Settings(timeout_s=6))[url].size == 40_000  # which takes 8 s
    assert len(web.requests) == 1


def test_what_has_come_whole_is_taken_however_late_it_is_read(
    web: WebServer, cache: Cache, monkeypatch: pytest.MonkeyPatch
) -> None:
    late = itertools.count(0, 100)
    monkeypatch.setattr(web_fetch, "time", SimpleNamespace(monotonic=lambda: next(late), time=time.time))
    url = web.put("a", b"content")
    assert got(cache, url)[url].size == 7
    assert len(web.requests) == 1


def test_a_busy_server_is_asked_again(web: WebServer, cache: Cache) -> None:
    url = web.put("a", b"content", Status(503, (("Retry-After", "0"),)), Status(500), None)
    assert got(cache, url)[url].sha256 == sum_of(b"content")


@pytest.mark.parametrize(
    ("fault", "message", "hint"),
    [
        (Status(404), r"there is no file \S+/a \(404 Not Found\)", "Check the address"),
        (Status(410), r"there is no file \S+/a \(410 Gone\)", "Check the address"),
        (Status(403), r"the server does not give \S+/a to us \(403 Forbidden\)", "who may read it"),
        (Status(401), r"the server does not give \S+/a to us \(401 Unauthorized\)", "netrc"),
        (Status(503), r"can't be fetched: the server answered 503 Service Unavailable \(tried 2 times\)", "try again"),
        (Status(418), r"it answered 418", "Check the address"),
        (Redirect("/a"), r"redirects in a circle: \S+/a → \S+/a", "never answers with a file"),
        (Redirect("http://x:99999/a"), r"redirects to http://x:99999/a, which is no web address", "Check the address"),
        (Redirect("http://me:hidden@[x/a"), r"redirects to http://\[x/a, which is no web address", "Check the address"),
        (Redirect("ftp://x/a"), r"redirects to ftp://x/a, which is no web address", "Check the address"),
        (Cut(4), r"can't be fetched: the answer ended after 4 of 7 bytes \(tried 2 times\)", "try again"),
        (Hang(), r"can't be fetched: 127\.0\.0\.1:\d+ sends nothing \(tried 2 times\)", "try again"),
        (Hang(4), rf"can't be fetched: {SILENT} \(tried 2 times\)", "try again"),
    ],
)
def test_each_fault_has_its_own_words(web: WebServer, cache: Cache, fault: Fault, message: str, hint: str) -> None:
    with pytest.raises(PreparationError, match=message) as caught:
        got(cache, web.put("a", b"content", fault), settings=IMPATIENT if isinstance(fault, Hang) else TWICE)
    assert hint in caught.value.hint
    assert caught.value.exit_code == ExitCode.PREPARATION_FAILED
    assert objects(cache) == []
    assert sum(partials(cache)) == 0


def test_a_glob_of_the_web_is_told_as_that(web: WebServer, cache: Cache) -> None:
    with pytest.raises(PreparationError, match=r"there is no file \S+\*\.txt") as caught:
        got(cache, web.url("*.txt"))
    assert caught.value.hint == "The web knows no globs: give the address of each file."


def test_a_long_way_of_redirects_ends(web: WebServer, cache: Cache) -> None:
    for number in range(20):
        web.put(str(number), b"", Redirect(f"/{number + 1}"))
    with pytest.raises(PreparationError, match="redirects more than 10 times"):
        got(cache, web.url("0"))


def test_a_server_that_is_not_there_is_named(cache: Cache) -> None:
    with pytest.raises(PreparationError, match=r"the connection to 127\.0\.0\.1:9 broke: Connection refused"):
        got(cache, "http://127.0.0.1:9/a")


@pytest.mark.parametrize("host", ["a..invalid", "\u00fc..invalid", f"{'a' * 64}.invalid"])
def test_what_is_no_name_of_a_host_is_told(web: WebServer, cache: Cache, host: str) -> None:
    for url in (f"http://{host}/a", web.put("a", b"", Redirect(f"http://{host.encode().decode('latin-1')}/a"))):
        with pytest.raises(PreparationError, match=rf"{host} is no name of a host"):
            got(cache, url, settings=TWICE)


def test_a_wrong_sum_is_refused_and_nothing_is_kept(web: WebServer, cache: Cache) -> None:
    url = web.put("a", b"content")
    with pytest.raises(PreparationError, match=f"SHA-256 {sum_of(b'content')}, and {'0' * 64} is asked for"):
        got(cache, url, mark=f"sha256:{'0' * 64}")
    assert objects(cache) == []
    assert sum(partials(cache)) == 0


def test_a_registered_content_that_has_changed_is_refused(web: WebServer, cache: Cache) -> None:
    url = web.put("a", b"content")
    tag = got(cache, url)[url].tag
    seen = f"seen:{sum_of(b'content')}"
    assert got(cache, url, mark=seen, size=7)[url].sha256 == sum_of(b"content")
    web.put("a", b"another length")
    for mark, size, message in (
        (seen, 7, "it had 7 bytes and has 14"),
        (seen, -1, "its SHA-256 was"),
        (f"tag:{tag}", 7, "its server called it"),
    ):
        with pytest.raises(PreparationError, match=f"has changed since digits@1 was registered: {message}") as caught:
            got(cache, url, mark=mark, size=size)
        assert "tfjob dataset create --name digits@1 --refresh" in caught.value.hint


def test_what_is_complete_is_told_as_complete(cache: Cache) -> None:
    transfer = Transfer(cache, Settings(), Standby(), done_bytes=3_000_008, total_bytes=3_000_008)
    assert _progress(3, 3, transfer, 1.0).startswith("fetching data: 3 of 3 files, 4 of 4 MB, ")
    transfer.done_bytes = 2_999_999
    assert _progress(2, 3, transfer, 1.0).startswith("fetching data: 2 of 3 files, 2 of 4 MB, ")


def test_a_registered_content_in_the_cache_outlives_its_server(web: WebServer, cache: Cache) -> None:
    url = web.put("a", b"content")
    got(cache, url)
    web.put("a", b"content", Status(503))
    with cache.filling():
        wanted = Wanted(url, 7, f"seen:{sum_of(b'content')}", "digits@1")
        fetched = fetch([wanted], cache, IMPATIENT, lambda _: None)
    assert fetched.known[url].sha256 == sum_of(b"content")
    assert "could not be asked whether it has changed" in fetched.notes[0]


def test_an_object_that_was_written_to_is_fetched_again(web: WebServer, cache: Cache) -> None:
    url = web.put("a", b"content")
    got(cache, url)
    kept = Path(cache.object(sum_of(b"content")))
    kept.chmod(0o644)
    kept.write_bytes(b"CONTENT")
    got(cache, url)
    assert kept.read_bytes() == b"content"


def test_one_failure_ends_the_others_and_keeps_their_parts(web: WebServer, cache: Cache) -> None:
    slow = web.put("big", BIG, Hang(2 << 20))
    gone = web.put("gone", b"", Slow(1, 0), Status(404))
    web.files.pop("/gone")
    began = time.monotonic()
    with pytest.raises(PreparationError, match="there is no file"):
        got(cache, slow, gone, settings=Settings(connections=2, timeout_s=60))
    assert time.monotonic() - began < 30
    assert objects(cache) == []


def test_many_who_want_a_file_at_once_fetch_it_once(web: WebServer, cache: Cache) -> None:
    gate = threading.Event()
    urls = [web.put("big", BIG, Held(gate)), web.put("small", b"small")]
    with ThreadPoolExecutor(6) as pool:
        fetching = [pool.submit(got, Cache(cache.root), *urls) for _ in range(6)]
        try:
            eventually(lambda: openers(cache.partial(urls[0])) == 6, "one fetches it, and the others wait for that")
        finally:
            gate.set()
        found = [one.result() for one in fetching]
    assert {one[urls[0]].sha256 for one in found} == {sum_of(BIG)}
    assert len([headers for headers in web.asked("big") if "If-None-Match" not in headers]) == 1
    assert partials(cache) == []


def test_who_is_interrupted_leaves_at_once(web: WebServer, cache: Cache) -> None:
    url = web.put("a", b"content", Hang(3))

    class Stop(BaseException):
        pass

    def progress(_: str) -> None:
        raise Stop

    began = time.monotonic()
    with cache.filling(), pytest.raises(Stop):
        fetch([Wanted(url, -1, "", "x")], cache, Settings(timeout_s=60), progress)
    assert time.monotonic() - began < 30
    assert not [thread for thread in threading.enumerate() if "_work" in thread.name]


def test_what_was_killed_just_before_it_became_an_object_is_fetched_again(web: WebServer, cache: Cache) -> None:
    url = web.put("a", b"content")
    with cache.filling():
        path = Path(cache.partial(url))
    path.write_bytes(b"content")
    path.chmod(0o444)
    assert got(cache, url)[url].sha256 == sum_of(b"content")
    assert partials(cache) == []


def test_a_damaged_index_is_made_anew(web: WebServer, cache: Cache) -> None:
    url = web.put("a", b"content")
    got(cache, url)
    (cache.root / "index.db").write_bytes(b"no database" * 1000)
    assert got(cache, url)[url].sha256 == sum_of(b"content")
    got(cache, url)
    assert "If-None-Match" in web.asked("a")[-1]


def test_sizes_are_asked_without_fetching(web: WebServer) -> None:
    urls = [web.put("a", b"12345"), web.put("empty", b""), web.put("b", bytes(100_000))]
    assert web_sizes(urls, QUICK) == dict(zip(urls, (5, 0, 100_000), strict=True))
    assert {headers["Range"] for _, _, headers in web.requests} == {"bytes=0-0"}
    web.has_ranges = False
    assert web_sizes(urls, QUICK) == dict(zip(urls, (5, 0, 100_000), strict=True))
    assert web_sizes([*urls, web.url("nothing")], QUICK) is None
    web.has_ranges, web.tells_size = True, False
    assert web_sizes([web.url("a")], QUICK) == {web.url("a"): 5}
    assert web_sizes(["s3://bucket/a"], QUICK) is None
