"""What servers may say on the wire: bodies of every kind, and what is no HTTP."""

from __future__ import annotations

import hashlib
import socket
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from web_server import Cut, Raw, Redirect

from tfjob.datasets import web as module
from tfjob.datasets.cache import Cache
from tfjob.datasets.fetch import fetch
from tfjob.datasets.wanted import Settings, Wanted
from tfjob.errors import PreparationError

if TYPE_CHECKING:
    from web_server import WebServer


Serve = Callable[..., str]
OK = b"HTTP/1.1 200 OK\r\n"


@pytest.fixture
def serve() -> Iterator[Serve]:
    """Has a server say these bytes to each request, or what a function makes of the request; returns its address."""
    opened: list[socket.socket] = []

    def serve(answer: bytes | Callable[[bytes], bytes]) -> str:
        listener = socket.create_server(("127.0.0.1", 0))
        opened.append(listener)

        def work() -> None:
            while True:
                try:
                    client, _ = listener.accept()
                except OSError:
                    return
                with client:
                    if request := _request(client):
                        client.sendall(answer(request) if callable(answer) else answer)

        threading.Thread(target=work, daemon=True).start()
        return f"http://127.0.0.1:{listener.getsockname()[1]}"

    yield serve
    for one in opened:
        one.shutdown(
            socket.SHUT_RDWR
        )  # or its thread waits on, and may accept what another server of its number is asked
        one.close()


def content(cache: Cache, url: str) -> bytes:
    with cache.filling():
        known = fetch(
            [Wanted(url, -1, "", "d")], cache, Settings(timeout_s=30, tries=2, pause_s=0.01), lambda _: None
        ).known
    return Path(cache.object(known[url].sha256)).read_bytes()


def _request(client: socket.socket) -> bytes:
    request = b""
    while b"\r\n\r\n" not in request and (data := client.recv(65536)):
        request += data
    return request


@pytest.mark.parametrize(
    "answer",
    [
        OK + b"content-length:7\r\n\r\ncontent",
        OK + b"Transfer-Encoding: chunked\r\n\r\n3\r\ncon\r\n4;x=y\r\ntent\r\n0\r\nTrailer: x\r\n\r\n",
        OK + b"Connection: close\r\n\r\ncontent",
        b"HTTP/1.0 200 OK\r\n\r\ncontent",
        b"HTTP/1.1 100 Continue\r\n\r\n" + OK + b"Content-Length: 7\r\n\r\ncontent",
        b"HTTP/1.1 200\r\nContent-Length: 7\r\n\r\ncontent",
        OK + b"Content-Length: 7\r\nContent-Length: 7\r\n\r\ncontent",
        OK + b"Content-Length: 99\r\nTransfer-Encoding: Chunked\r\n\r\n7\r\ncontent\r\n0\r\n\r\n",
    ],
)
def test_a_body_of_every_kind_is_read(cache: Cache, serve: Serve, answer: bytes) -> None:
    assert content(cache, f"{serve(answer)}/a") == b"content"


@pytest.mark.parametrize(
    ("answer", "message"),
    [
        (b"SSH-2.0-x\r\n\r\n", r"gave an answer that is none: it says 'SSH-2.0-x'"),
        (OK + b"Content-Length: many\r\n\r\n", r"its Content-Length is 'many'"),
        (OK + b"Content-Length: 7\r\ncontent-length: 4\r\n\r\ncontent", r"its Content-Length is '7' and '4'"),
        (OK + b"Content-Length: " + b"7" * 5000 + b"\r\n\r\n", r"its Content-Length is '7777"),
        (OK + b"Content-Length: -7\r\n\r\ncontent", r"its Content-Length is '-7'"),
        (OK + b"Transfer-Encoding: gzip, chunked\r\n\r\n0\r\n\r\n", r"its Transfer-Encoding is 'gzip, chunked'"),
        (OK + b"Content-Length: 7\r\nTransfer-Encoding: gzip\r\n\r\ncontent", r"its Transfer-Encoding is 'gzip'"),
        (OK + b"Transfer-Encoding: chunked\r\n\r\n-5\r\ncontent", r"a chunk has the length b'-5'"),
        (OK + b"Transfer-Encoding: chunked\r\n\r\n0x3\r\ncon\r\n0\r\n\r\n", r"a chunk has the length b'0x3'"),
        (OK + b"Transfer-Encoding: chunked\r\n\r\n3\r\ncontent\r\n0\r\n\r\n", r"a chunk is longer than it said"),
        (OK + b"Transfer-Encoding: chunked\r\n\r\nxyz\r\n", r"a chunk has the length b'xyz'"),
        (OK + b"Transfer-Encoding: chunked\r\n\r\n9\r\ncon", r"it ended in the middle of a chunk"),
        (b"HTTP/1.1 200 OK\r\n" + b"X: y\r\n" * 20_000, r"its head is longer than 64 KiB"),
        (b"", r"the connection to \S+ broke: Connection closed by the server"),
    ],
)
def test_what_is_no_answer_is_told(cache: Cache, serve: Serve, answer: bytes, message: str) -> None:
    with pytest.raises(PreparationError, match=message):
        content(cache, f"{serve(answer)}/a")
    assert not list(cache.root.glob("objects/*/*"))


def test_a_kept_connection_that_was_closed_is_opened_again(cache: Cache, serve: Serve) -> None:
    base = serve(OK + b"Content-Length: 7\r\n\r\ncontent")  # it closes, and does not say so
    urls = [f"{base}/{number}" for number in range(3)]
    with cache.filling():
        settings = Settings(connections=1, tries=1)
        known = fetch([Wanted(url, -1, "", "d") for url in urls], cache, settings, lambda _: None).known
    assert {known[url].sha256 for url in urls} == {hashlib.sha256(b"content").hexdigest()}


def test_what_follows_an_answer_is_not_the_next(cache: Cache, serve: Serve) -> None:
    follows = OK + b"Content-Length: 7\r\n\r\nanother"
    base = serve(OK + b"Content-Length: 7\r\n\r\ncontent" + follows)
    urls = [f"{base}/{number}" for number in range(3)]
    with cache.filling():
        settings = Settings(connections=1, tries=1)
        known = fetch([Wanted(url, -1, "", "d") for url in urls], cache, settings, lambda _: None).known
    assert {known[url].sha256 for url in urls} == {hashlib.sha256(b"content").hexdigest()}


def test_names_and_queries_go_as_they_must(cache: Cache, serve: Serve) -> None:
    asked: list[bytes] = []

    def answer(request: bytes) -> bytes:
        asked.append(request.partition(b" HTTP")[0])
        return OK + b"Content-Length: 1\r\n\r\nx"

    content(cache, f"{serve(answer)}/a%20b/ü c.txt?q=ä b&x=1")
    assert asked == [b"GET /a%20b/%C3%BC%20c.txt?q=%C3%A4%20b&x=1"]


@pytest.mark.parametrize(
    ("location", "target"),
    [
        ("/donn\u00e9es.csv?q=\u00e9".encode(), b"/donn%C3%A9es.csv?q=%C3%A9"),
        ("/donn\u00e9es.csv?q=%20".encode("latin-1"), b"/donn%E9es.csv?q=%20"),
        (b"/donn%C3%A9es.csv?q=a%2Fb", b"/donn%C3%A9es.csv?q=a%2Fb"),
    ],
)
def test_redirects_lead_to_names_of_any_letters(cache: Cache, serve: Serve, location: bytes, target: bytes) -> None:
    asked: list[bytes] = []

    def answer(request: bytes) -> bytes:
        asked.append(request.split(b" ")[1])
        if len(asked) > 1:
            return OK + b"Content-Length: 7\r\n\r\ncontent"
        return b"HTTP/1.1 302 Found\r\nLocation: " + location + b"\r\nContent-Length: 0\r\n\r\n"

    assert content(cache, f"{serve(answer)}/a") == b"content"
    assert asked == [b"/a", target]


def test_credentials_of_netrc_go_to_their_host_only(
    cache: Cache, web: WebServer, serve: Serve, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "netrc").write_text("machine 127.0.0.1 login me password hidden\n")
    monkeypatch.setenv("NETRC", str(tmp_path / "netrc"))
    asked: list[bytes] = []

    def answer(request: bytes) -> bytes:
        asked.append(request)
        return f"HTTP/1.1 302 Found\r\nLocation: {web.url('a')}\r\nContent-Length: 0\r\n\r\n".encode()

    web.put("a", b"content")
    assert content(cache, f"{serve(answer)}/a") == b"content"
    assert b"Authorization: Basic bWU6aGlkZGVu" in asked[0]
    assert "Authorization" not in web.asked("a")[0]


def test_a_proxy_is_asked_for_the_whole_address(cache: Cache, serve: Serve, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[bytes] = []

    def answer(request: bytes) -> bytes:
        asked.append(request)
        return OK + b"Content-Length: 7\r\n\r\ncontent"

    for name in ("no_proxy", "NO_PROXY"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("http_proxy", serve(answer).replace("//", "//me:word@"))
    for cached in (module._proxies, module._proxy_of):
        cached.cache_clear()
    try:
        assert content(cache, "http://data.invalid/a.txt") == b"content"
    finally:
        for cached in (module._proxies, module._proxy_of):
            cached.cache_clear()
    assert asked[0].startswith(b"GET http://data.invalid/a.txt HTTP/1.1\r\nHost: data.invalid\r\n")
    assert b"Proxy-Authorization: Basic " in asked[0]


def test_a_server_proves_who_it_is(cache: Cache, secure: WebServer, monkeypatch: pytest.MonkeyPatch) -> None:
    url = secure.put("a", b"content")
    assert content(cache, url) == b"content"
    monkeypatch.delenv("SSL_CERT_FILE")
    module._tls.cache_clear()
    with pytest.raises(PreparationError, match=r"127\.0\.0\.1:\d+ can't prove who it is: self.signed") as caught:
        content(cache, url)
    assert "SSL_CERT_FILE" in caught.value.hint


def test_the_end_of_a_connection_with_tls_is_no_end_of_a_file(cache: Cache, secure: WebServer) -> None:
    secure.tells_size = False  # and the server closes as one that was cut: it does not say so to TLS
    url = secure.put("a", b"content")
    with pytest.raises(PreparationError, match=r"127\.0\.0\.1:\d+ broke: it ended without an end of TLS"):
        content(cache, url)
    assert not list(cache.root.glob("objects/*/*"))
    secure.ends_tls = True
    assert content(cache, url) == b"content"
    assert len(secure.requests) == 3


def test_a_length_that_was_told_needs_no_end_of_tls(cache: Cache, secure: WebServer) -> None:
    secure.put("a", b"content", Raw(200, (("Connection", "close"),), b"content"))
    assert content(cache, secure.url("a")) == b"content"
    secure.put("b", b"content", Cut(3), None)
    assert content(cache, secure.url("b")) == b"content"


def test_a_redirect_from_https_to_http_is_not_followed(cache: Cache, web: WebServer, secure: WebServer) -> None:
    url = secure.put("a", b"", Redirect(web.put("a", b"content")))
    with pytest.raises(PreparationError, match="from https to http, where anybody can change the file"):
        content(cache, url)
    assert web.requests == []
