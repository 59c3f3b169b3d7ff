"""Very many small files: what processes beside fetch, what they leave to threads, and what is left when one of them is killed."""

from __future__ import annotations

import hashlib
import os
import signal
import socket
import ssl
import subprocess
import sys
import threading
from collections import Counter
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path
from typing import cast

import pytest
from support import Tfjob, eventually, kill
from web_server import Cut, Hang, Redirect, Slow, Status, WebServer

from tfjob.datasets import standby, workers
from tfjob.datasets import web as web_module
from tfjob.datasets.cache import OBJECT_TIME_NS, Cache
from tfjob.datasets.connections import LARGEST, Connection, Left
from tfjob.datasets.fetch import fetch
from tfjob.datasets.index import Known
from tfjob.datasets.small_files import Loop
from tfjob.datasets.wanted import Settings, Wanted
from tfjob.datasets.workers import Plain, plain_files
from tfjob.errors import PreparationError
from tfjob.spec import addresses

MANY = Settings(connections=4, timeout_s=30, tries=3, pause_s=0.01, many=20)


def put(web: WebServer, count: int = 60) -> dict[str, bytes]:
    """Files of the server, by their addresses."""
    return {
        web.put(f"{number % 7}/{number}.bin", f"file {number}".encode()): b"file %d" % number for number in range(count)
    }


def got(cache: Cache, urls: dict[str, bytes], *more: Wanted, settings: Settings = MANY) -> dict[str, Known]:
    wanted = [*(Wanted(url, -1, "", "digits@1") for url in urls), *more]
    with cache.filling():
        return fetch(wanted, cache, settings, lambda _: None).known


def require_whole(cache: Cache, urls: dict[str, bytes], found: dict[str, Known]) -> None:
    for url, content in urls.items():
        assert found[url].sha256 == hashlib.sha256(content).hexdigest()
        path = Path(cache.object(found[url].sha256))
        assert path.read_bytes() == content
        assert path.stat().st_mode & 0o777 == 0o444
        assert path.stat().st_mtime_ns == OBJECT_TIME_NS
    assert [path.name for path in (cache.root / "partial").iterdir()] == []


def require_no_half(root: Path) -> None:
    for path in (root / "objects").glob("*/*"):
        assert hashlib.sha256(path.read_bytes()).hexdigest() == path.name


def fetches(web: WebServer) -> Counter[str]:
    return Counter(path for _, path, headers in web.requests if "If-None-Match" not in headers)


def children(of: int | None = None) -> list[int]:
    """The processes that fetch small files, of this process or another."""
    found: list[int] = []
    for task in Path(f"/proc/{of or os.getpid()}/task").iterdir():
        with suppress(OSError):  # it has ended meanwhile
            pids = (task / "children").read_text().split()
            found.extend(int(pid) for pid in pids if b"small_files" in Path(f"/proc/{pid}/cmdline").read_bytes())
    return found


def lives(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


def test_many_are_fetched_by_processes_and_each_once(web: WebServer, cache: Cache) -> None:
    urls = {**put(web), web.put("same.bin", b"file 7"): b"file 7", web.put("empty.bin", b""): b""}
    found = got(cache, urls)
    require_whole(cache, urls, found)
    assert set(fetches(web).values()) == {1}
    assert web.most_open <= 4
    assert {known.tag for known in found.values()} == {known.tag for known in cache.index.known(list(urls)).values()}
    assert all(known.tag.startswith('"') for known in found.values())
    assert children() == []
    again = got(cache, urls)
    assert {url: known.sha256 for url, known in again.items()} == {url: known.sha256 for url, known in found.items()}
    assert sum(fetches(web).values()) == len(urls)


def test_few_are_not(web: WebServer, cache: Cache, monkeypatch: pytest.MonkeyPatch) -> None:
    urls = put(web, 19)
    monkeypatch.setattr(standby, "_PROGRAM", "import sys; sys.exit(1)")
    require_whole(cache, urls, got(cache, urls))


def test_processes_that_can_not_be_started_are_done_without(
    web: WebServer, cache: Cache, monkeypatch: pytest.MonkeyPatch
) -> None:
    urls = put(web)
    monkeypatch.setattr(standby, "_PROGRAM", "import sys; sys.exit(1)")
    require_whole(cache, urls, got(cache, urls))
    monkeypatch.setattr(sys, "executable", "/nowhere")
    require_whole(cache, urls, got(Cache(cache.root.parent / "another"), urls))


def test_file_systems_without_files_without_a_name(
    web: WebServer, cache: Cache, monkeypatch: pytest.MonkeyPatch
) -> None:
    refused = "from tfjob.datasets import objects; objects._NAMELESS = objects.os.O_TMPFILE; from tfjob.datasets.small"
    assert "from tfjob.datasets.small" in standby._PROGRAM
    monkeypatch.setattr(standby, "_PROGRAM", standby._PROGRAM.replace("from tfjob.datasets.small", refused))
    urls = put(web)
    require_whole(cache, urls, got(cache, urls))
    assert set(fetches(web).values()) == {1}


def test_what_broke_off_before_is_gone_on_with(web: WebServer, cache: Cache) -> None:
    """Workers begin each file anew: one of which there is something is not theirs."""
    big = os.urandom(2 << 20)
    urls = {**put(web), (url := web.put("0/big.bin", big, Cut(3 << 19))): big}
    settings = Settings(connections=4, timeout_s=5, tries=1, pause_s=0.01)
    with pytest.raises(PreparationError, match="ended after"):
        got(cache, {url: big}, settings=settings)
    require_whole(cache, urls, got(cache, urls))
    asked = [headers.get("Range") for _, path, headers in web.requests if path == "/0/big.bin"]
    assert asked == [None, f"bytes={3 << 19}-"]


def test_what_is_not_plain_is_left_to_who_can_do_it(web: WebServer, cache: Cache) -> None:
    big = os.urandom(LARGEST + 1)
    urls = {
        **put(web),
        web.put("big.bin", big, Cut(2 << 20), None): big,
        web.put("cut.bin", b"content", Cut(3), None): b"content",
        web.put("here.bin", b"", Redirect("/there.bin")): b"elsewhere",
        web.put("slow.bin", b"in pieces", Slow(2, 0.02)): b"in pieces",
    }
    web.put("there.bin", b"elsewhere")
    require_whole(cache, urls, got(cache, urls))


def test_a_server_that_is_busy_is_given_its_time(web: WebServer, cache: Cache) -> None:
    urls = {**put(web), web.put("0/busy.bin", b"late", Status(503, (("Retry-After", "0"),)), None): b"late"}
    require_whole(cache, urls, got(cache, urls))


def test_a_server_where_nothing_is_plain_is_asked_by_threads(web: WebServer, cache: Cache) -> None:
    web.tells_size = False
    urls = put(web, 200)
    require_whole(cache, urls, got(cache, urls))
    asked = fetches(web)
    assert sum(asked.values()) - len(asked) < 160


HEAD = "HTTP/1.1 200 OK\r\nContent-Length: 7\r\n"


@pytest.mark.parametrize(
    ("head", "tag", "closes"),
    [
        (HEAD, "", False),
        ("HTTP/1.1 200\r\ncontent-length:7\r\n", "", False),
        (HEAD + 'ETAG: \t"a: b" \r\nlast-modified: then\r\n', '"a: b"', False),
        (HEAD + 'ETag: W/"a"\r\nLast-Modified: then\r\n', "then", False),
        (HEAD + 'ETag: W/"a"\r\n', 'W/"a"', False),
        (HEAD + "Vary: Accept-Encoding\r\nX-Stored-Content-Encoding: gzip\r\n", "", False),
        (HEAD + "X-ETag: a\r\nX: etag: b\r\n", "", False),
        (HEAD + "Connection: keep-alive\r\nconnection: Upgrade, Close\r\n", "", True),
        ("HTTP/1.1 200 OK\r\nConnection: keep-alive\r\nContent-Length: 7\r\n", "", False),
    ],
)
def test_a_plain_head(head: str, tag: str, *, closes: bool) -> None:
    connection = connection_for()
    connection.read_head(head.encode())
    assert [connection.missing, connection.tag, connection.closes] == [7, tag, closes]


@pytest.mark.parametrize(
    ("head", "status"),
    [
        ("HTTP/1.1 404 Not Found\r\nContent-Length: 7\r\n", 404),
        ("HTTP/1.1 206 Partial Content\r\nContent-Length: 7\r\n", 206),
        ("HTTP/1.1 2000 OK\r\nContent-Length: 7\r\n", 200),
        ("HTTP/1.0 200 OK\r\nContent-Length: 7\r\n", 0),
        ("HTTP/1.1 twice\r\nContent-Length: 7\r\n", 0),
        ("220 mail.example.com ESMTP\r\n", 0),
        ("HTTP/1.1 200 OK\r\n", 200),
        ("HTTP/1.1 200 OK\r\nX-Content-Length: 7\r\n", 200),
        ("HTTP/1.1 200 OK\r\nContent-Length:\r\n", 200),
        ("HTTP/1.1 200 OK\r\nContent-Length: 7, 7\r\n", 200),
        ("HTTP/1.1 200 OK\r\nContent-Length: +7\r\n", 200),
        ("HTTP/1.1 200 OK\r\nContent-Length: \xb2\r\n", 200),
        ("HTTP/1.1 200 OK\r\nContent-Length:\r\n 7\r\n", 200),
        (f"HTTP/1.1 200 OK\r\nContent-Length: {7:050}\r\n", 200),
        (HEAD + "content-length: 7\r\n", 200),
        (HEAD + "Transfer-Encoding: chunked\r\n", 200),
        (HEAD + "content-encoding: gzip\r\n", 200),
        (HEAD + 'ETag: "a\nX: b"\r\n', 200),
        (HEAD + f"ETag: {'long' * 100}\r\n", 200),
        (f"HTTP/1.1 200 OK\r\nContent-Length: {LARGEST + 1}\r\n", 200),
    ],
)
def test_a_head_that_is_not_plain(head: str, status: int) -> None:
    with pytest.raises(Left) as left:
        connection_for().read_head(head.encode("latin-1"))
    assert left.value.status == status


def test_a_head_of_another_file() -> None:
    for size, tag in ((8, ""), (7, '"a"'), (-1, '"a"')):
        with pytest.raises(Left):
            connection_for(size, tag).read_head(HEAD.encode())
    connection_for(7, '"a"').read_head(f'{HEAD}ETag: "a"\r\n'.encode())


def connection_for(size: int = -1, tag: str = "") -> Connection:
    """A connection that has asked for a file."""
    connection = Connection(cast("Loop", None))
    connection.file = (1, 0, b"/file", size, tag, "")
    return connection


_FORGETS_BADLY = """
from tfjob.datasets.connections import Connection, Left
drop = Connection.drop
def drop_and_fail(connection):
    drop(connection)
    if connection.file is None:
        raise Left
Connection.drop = drop_and_fail
main()
"""


def test_a_connection_that_fails_once_its_file_came_is_free_once(
    web: WebServer, cache: Cache, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Two files would share it otherwise, and nobody would hear of one of them."""
    assert standby._PROGRAM.endswith("; main()")
    monkeypatch.setattr(standby, "_PROGRAM", standby._PROGRAM.removesuffix("; main()") + _FORGETS_BADLY)
    monkeypatch.setattr(workers, "_DEALT_AT_ONCE", 4)
    monkeypatch.setattr(workers, "_IN_HAND", 0)  # there are none that wait, again and again
    urls = put(web)
    require_whole(cache, urls, got(cache, urls))
    assert set(fetches(web).values()) == {1}


def test_a_server_that_closes_now_and_then(cache: Cache) -> None:
    """Every second connection is closed after its first answer, without a word or with one. Nothing is asked before it is whole."""
    asked_at_once: set[int] = set()
    listener = socket.create_server(("127.0.0.1", 0))
    answers = [b'HTTP/1.1 200 OK\r\nETag: W/"x"\r\nLast-Modified: then\r\nContent-Length: 1\r\n', b"\r\n", b"x"]

    def serve(client: socket.socket, number: int) -> None:
        with client:
            for _ in range(1 if number % 2 else 100):
                request = b""
                while b"\r\n\r\n" not in request:
                    data = client.recv(65536)
                    if not data:
                        return
                    request += data
                asked_at_once.add(request.count(b"GET "))
                client.sendall(answers[0] + (b"Connection: Close\r\n" if number % 3 == 1 else b""))
                client.sendall(answers[1])
                client.sendall(answers[2])
                if number % 3 == 1:
                    return

    def accept() -> None:
        number = 0
        while True:
            try:
                client, _ = listener.accept()
            except OSError:
                return
            number += 1
            threading.Thread(target=serve, args=(client, number), daemon=True).start()

    threading.Thread(target=accept, daemon=True).start()
    with listener:
        port = listener.getsockname()[1]
        urls = {f"http://localhost:{port}/{number}": b"x" for number in range(60)}
        found = got(cache, urls)
        listener.shutdown(socket.SHUT_RDWR)  # or the thread waits on
    require_whole(cache, urls, found)
    assert {known.tag for known in found.values()} == {"then"}
    assert asked_at_once == {1}


@pytest.mark.parametrize(
    ("fault", "message"),
    [
        (Status(404), r"there is no file \S+/0/fault.bin \(404 Not Found\)"),
        (Status(503), r"the server answered 503 Service Unavailable \(tried 2 times\)"),
        (Cut(4), r"the answer ended after 4 of 7 bytes \(tried 2 times\)"),
        # The second where who reads had no processor.
        (Hang(4), r"(127\.0\.0\.1:\d+ sends nothing|only 4 bytes came in \S+ s) \(tried 2 times\)"),
    ],
)
def test_each_fault_has_its_own_words(web: WebServer, cache: Cache, fault: Status | Cut | Hang, message: str) -> None:
    urls = {**put(web), web.put("0/fault.bin", b"content", fault): b"content"}
    timeout_s = 0.5 if isinstance(fault, Hang) else 30
    settings = Settings(connections=4, timeout_s=timeout_s, tries=2, pause_s=0.01, many=20)
    with pytest.raises(PreparationError, match=message):
        got(cache, urls, settings=settings)
    assert children() == []
    assert not os.path.exists(cache.object(hashlib.sha256(b"content").hexdigest()))


@pytest.mark.parametrize(
    ("mark", "size", "message"),
    [
        (f"sha256:{'0' * 64}", -1, "and 0{64} is asked for"),
        (f"seen:{'0' * 64}", -1, "has changed since digits@1 was registered: its SHA-256 was"),
        ('tag:"before"', -1, "its server called it"),
        (f"seen:{'0' * 64}", 4, "it had 4 bytes and has 7"),
    ],
)
def test_what_has_changed_is_refused_and_not_kept(
    web: WebServer, cache: Cache, mark: str, size: int, message: str
) -> None:
    url = web.put("0/changed.bin", b"changed")
    with pytest.raises(PreparationError, match=message):
        got(cache, put(web), Wanted(url, size, mark, "digits@1"))
    assert not os.path.exists(cache.object(hashlib.sha256(b"changed").hexdigest()))


def test_several_who_want_the_same_fetch_it_once(web: WebServer, cache: Cache, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(addresses, "MANY", 100)
    urls = put(web, 120)
    with ThreadPoolExecutor(3) as pool:
        found = list(pool.map(lambda _: got(Cache(cache.root), urls), range(3)))
    for one in found:
        require_whole(cache, urls, one)
    assert [len(web.requests), set(fetches(web).values())] == [120, {1}]


def test_a_process_that_is_killed_costs_nothing_but_time(web: WebServer, cache: Cache) -> None:
    urls = put(web, 200)
    for path in list(web.files)[::5]:
        web.faults[path] = [Slow(3, 0.01)]
    web.faults["/0/0.bin"] = [Hang(2), None]  # the first that is asked for: who has it in hand lives until it is killed
    with ThreadPoolExecutor(1) as pool:
        fetching = pool.submit(got, cache, urls)
        eventually(lambda: len(web.requests) > 20, "they fetch")
        pids = children()
        kill(*pids)
        assert pids
        require_whole(cache, urls, fetching.result(60))
    assert fetches(web)["/0/0.bin"] == 2


def test_a_file_that_a_process_can_not_be_told_of_costs_no_other(
    web: WebServer, cache: Cache, monkeypatch: pytest.MonkeyPatch
) -> None:
    urls = put(web)

    def with_a_fault(wanted: Iterable[Wanted], settings: Settings) -> list[Plain]:
        return [
            one._replace(target="/\u20ac") if one.target == "/3/31.bin" else one
            for one in plain_files(wanted, settings)
        ]

    monkeypatch.setattr(workers, "plain_files", with_a_fault)
    require_whole(cache, urls, got(cache, urls))


def test_who_is_interrupted_ends_the_processes(web: WebServer, cache: Cache) -> None:
    urls = {**put(web), web.put("hangs.bin", b"content", Hang(3)): b"content"}

    class Stop(BaseException):
        pass

    def progress(_: str) -> None:
        raise Stop

    with cache.filling(), pytest.raises(Stop):
        fetch([Wanted(url, -1, "", "x") for url in urls], cache, MANY, progress)
    assert children() == []
    assert not [one for one in threading.enumerate() if "_talk" in one.name or "_work" in one.name]


def test_a_process_that_hears_nothing_keeps_nobody(
    web: WebServer, cache: Cache, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(standby, "_PROGRAM", "import time; time.sleep(600)")
    monkeypatch.setattr(workers, "_PATIENCE_S", 0.1)
    urls = [f"{web.address}/{number}/{'long' * 1000}" for number in range(200)]  # more than a pipe holds

    class Stop(BaseException):
        pass

    def progress(_: str) -> None:
        raise Stop

    with cache.filling(), pytest.raises(Stop):
        fetch([Wanted(url, -1, "", "x") for url in urls], cache, MANY, progress)
    assert not [one for one in threading.enumerate() if "_talk" in one.name or "_send" in one.name]


_FETCH = """
import sys
from pathlib import Path
from tfjob.datasets.cache import Cache
from tfjob.datasets.fetch import fetch
from tfjob.datasets.small_files import Loop
from tfjob.datasets.wanted import Settings, Wanted
cache = Cache(Path(sys.argv[1]))
with cache.filling():
    fetch([Wanted(url, -1, "", "x") for url in sys.argv[2:]], cache, Settings(many=20), print)
"""


def test_processes_do_not_outlive_who_was_killed_and_what_came_is_whole(web: WebServer, cache: Cache) -> None:
    urls = put(web, 120)
    for path in sorted(web.files)[60:]:
        web.faults[path] = [Hang(2), Hang(2), None]
    process = subprocess.Popen([sys.executable, "-c", _FETCH, str(cache.root), *urls], stdout=subprocess.DEVNULL)
    eventually(lambda: len(web.requests) > 40, "it fetches")
    workers = children(process.pid)
    assert workers
    process.kill()
    process.wait()
    eventually(lambda: not any(map(lives, workers)), "they end")
    require_no_half(cache.root)
    assert [path.name[:5] for path in (cache.root / "partial").iterdir()] == ["many-"]
    web.faults.clear()
    require_whole(cache, urls, got(cache, urls))


def test_an_interrupt_of_the_terminal_ends_all_and_nothing_looks_whole(
    tfjob: Tfjob, web: WebServer, tmp_path: Path
) -> None:
    urls = put(web, 310)
    for path in sorted(web.files)[100:]:
        web.faults[path] = [Hang(2)]
    environ = {**os.environ, **tfjob.environ, "TFJOB_STORE": str(tmp_path / "store")}
    tfjob.write("urls.txt", "\n".join(urls))
    job = Tfjob(tfjob.directory, environ)
    web_faults, web.faults = web.faults, {}
    job("dataset", "create", "--name", "many", "--paths-from", "urls.txt")
    web.faults = web_faults
    before = len(web.requests)
    program_of = Path(sys.executable).with_name("tfjob")
    process = subprocess.Popen(
        [
            "env",
            "--default-signal=INT",
            program_of,
            "dataset",
            "download",
            "many",
        ],  # a shell's background job ignores it
        cwd=tfjob.directory,
        env=environ,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        start_new_session=True,
    )
    eventually(lambda: len(web.requests) > before + 90, "it fetches")
    workers = children(process.pid)
    assert workers
    os.killpg(process.pid, signal.SIGINT)
    process.communicate(timeout=60)
    assert process.returncode == 130
    eventually(lambda: not any(map(lives, workers)), "they end")
    assert not (tfjob.directory / "many").exists()
    require_no_half(tmp_path / "store" / "datasets")


@pytest.mark.root
@pytest.mark.parametrize("full", ["size=1m", "nr_inodes=40"])
def test_a_full_disk_is_told(tmp_path: Path, web: WebServer, full: str) -> None:
    if os.geteuid():
        pytest.skip("needs root: a small file system is mounted")
    small = tmp_path / "small"
    small.mkdir()
    mounted = subprocess.run(["mount", "-t", "tmpfs", "-o", full, "tmpfs", small], capture_output=True, check=False)
    if mounted.returncode:
        pytest.skip(f"tmpfs can't be mounted here: {mounted.stderr.decode()}")
    try:
        cache = Cache(small / "cache")
        urls = {web.put(f"{number}", content): content for number in range(60) if (content := os.urandom(30_000))}
        for _ in range(2):  # what the first leaves does not keep the second from trying
            with pytest.raises(PreparationError, match=r"is full|index\.db can't be used"):
                got(cache, urls)
            require_no_half(cache.root)
            left = [path.stat() for path in (cache.root / "partial").iterdir()]
            # A part, of a process that was ended as it wrote, can be gone on with; what is whole would only take room.
            assert [one.st_size for one in left if one.st_size == 30_000 or not one.st_mode & 0o200] == []
        subprocess.run(["mount", "-o", "remount,size=9m,nr_inodes=1000", small], check=True)
        found = got(cache, urls)
        assert all(os.path.exists(cache.object(one.sha256)) for one in found.values())
    finally:
        subprocess.run(["umount", "-l", small], check=True)


def test_servers_with_tls_prove_who_they_are(secure: WebServer, cache: Cache, monkeypatch: pytest.MonkeyPatch) -> None:
    urls = {**put(secure, 40), secure.put("larger.bin", large := os.urandom(100_000)): large}
    require_whole(cache, urls, got(cache, urls))
    monkeypatch.delenv("SSL_CERT_FILE")
    web_module._tls.cache_clear()
    with pytest.raises(PreparationError, match=r"127\.0\.0\.1:\d+ can't prove who it is: self.signed"):
        got(Cache(cache.root.parent / "another"), urls)


@pytest.mark.usefixtures("secure")  # for its certificate
@pytest.mark.parametrize("is_in_record", [False, True])
def test_servers_with_tls_that_fall_silent_are_not_waited_for(
    cache: Cache, tmp_path: Path, *, is_in_record: bool
) -> None:
    """One says nothing to the handshake; one sends the beginning of its answer's first record."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(tmp_path / "certificate.pem", tmp_path / "key.pem")
    clients: list[ssl.SSLSocket] = []

    def serve(client: socket.socket) -> None:
        with suppress(OSError):
            secured = context.wrap_socket(client, server_side=True)
            clients.append(secured)
            if secured.recv(65536):
                os.write(secured.fileno(), b"\x17\x03\x03\x10\x00" + bytes(100))

    def accept() -> None:
        with suppress(OSError):
            while True:
                client, _ = listener.accept()
                threading.Thread(target=serve, args=(client,), daemon=True).start()

    settings = Settings(connections=4, timeout_s=0.5, tries=2, pause_s=0.01, many=20)
    with socket.create_server(("127.0.0.1", 0)) as listener:
        if is_in_record:
            threading.Thread(target=accept, daemon=True).start()
        address = f"https://127.0.0.1:{listener.getsockname()[1]}"
        with pytest.raises(PreparationError, match=r"127\.0\.0\.1:\d+ sends nothing \(tried 2 times\)"):
            got(cache, {f"{address}/{number}": b"" for number in range(25)}, settings=settings)
    assert children() == []
    for client in clients:
        client.close()


def test_processes_that_wait_are_taken_first_and_the_others_end(web: WebServer, cache: Cache) -> None:
    waiting = standby.Standby()
    count = standby.process_count(60, MANY) + 2
    waiting.start(count)
    eventually(lambda: len(children()) == count, "all have become the program")
    before = children()
    urls = put(web)
    with cache.filling():
        known = fetch([Wanted(url, -1, "", "d") for url in urls], cache, MANY, lambda _: None, standby=waiting).known
    require_whole(cache, urls, known)
    left = children()
    assert len(left) == 2
    assert set(left) < set(before)
    waiting.end()
    assert children() == []


def test_few_files_and_a_single_connection_have_no_processes() -> None:
    assert standby.process_count(MANY.many - 1, MANY) == 0
    assert standby.process_count(100_000, Settings(connections=1)) == 0
    assert 1 <= standby.process_count(100_000, Settings(connections=3)) <= 2
