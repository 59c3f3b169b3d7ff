"""A web server on loopback whose files, and whose faults, a test decides."""

from __future__ import annotations

import hashlib
import re
import ssl
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

__all__ = ["Cut", "Hang", "Held", "Raw", "Redirect", "Slow", "Status", "WebServer", "web_server"]


@dataclass(frozen=True)
class Status:
    """Answers with a status and no file."""

    code: int
    headers: tuple[tuple[str, str], ...] = ()


@dataclass(frozen=True)
class Raw:
    """Answers with these headers and this body, whatever is asked."""

    code: int
    headers: tuple[tuple[str, str], ...] = ()
    body: bytes = b""


@dataclass(frozen=True)
class Redirect:
    """Leads elsewhere."""

    to: str
    code: int = 302


@dataclass(frozen=True)
class Cut:
    """Sends so many bytes of the body and closes the connection."""

    after: int


@dataclass(frozen=True)
class Hang:
    """Sends so many bytes of the body, and then nothing until the server is closed."""

    after: int = 0


@dataclass(frozen=True)
class Slow:
    """Sends the body in pieces with pauses between them."""

    piece: int
    pause_s: float


@dataclass(frozen=True)
class Held:
    """Sends little of the body, again and again, so that nobody gives up; and the rest once the gate is open."""

    gate: threading.Event


Fault = Status | Raw | Redirect | Cut | Hang | Slow | Held | None


@dataclass
class WebServer:
    """`files` by their paths; `faults` by path: one for each request, the last of them for all that follow."""

    address: str = ""
    files: dict[str, bytes] = field(default_factory=dict)
    faults: dict[str, list[Fault]] = field(default_factory=dict)
    has_ranges: bool = True
    has_tags: bool = True
    tells_size: bool = True
    tells_whole: bool = True
    """Whether the answer to a range request says how many bytes the file has."""
    longest_range: int = 1 << 40
    """Bytes that it gives at most to a range request."""
    ends_tls: bool = False
    """Whether it says so to TLS before it closes a connection; many servers do not."""
    requests: list[tuple[str, str, dict[str, str]]] = field(default_factory=list)
    clients: list[str] = field(default_factory=list)
    opened: int = 0
    open_count: int = 0
    most_open: int = 0
    lock: threading.Lock = field(default_factory=threading.Lock)
    closing: threading.Event = field(default_factory=threading.Event)

    def url(self, path: str) -> str:
        return f"{self.address}/{path}"

    def tag(self, content: bytes) -> str:
        """The ETag of a content."""
        return f'"{hashlib.sha256(content).hexdigest()[:16]}"'

    def put(self, path: str, content: bytes, *faults: Fault) -> str:
        self.files[f"/{path}"] = content
        self.faults[f"/{path}"] = list(faults)
        return self.url(path)

    def asked(self, path: str) -> list[dict[str, str]]:
        """The headers of every request for a path so far."""
        with self.lock:
            return [headers for _, asked, headers in self.requests if asked == f"/{path}"]

    def asked_by(self, path: str) -> list[tuple[str, str]]:
        """Who asked for a path so far, and for which range (empty: all of it)."""
        with self.lock:
            asked = zip(self.requests, self.clients, strict=True)
            return [(client, headers.get("Range", "")) for (_, one, headers), client in asked if one == f"/{path}"]

    def next_fault(self, path: str) -> Fault:
        with self.lock:
            faults = self.faults.get(path, [])
            return faults.pop(0) if len(faults) > 1 else faults[0] if faults else None


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True  # a body that follows its head would wait 40 ms
    web: WebServer

    def setup(self) -> None:
        super().setup()
        with self.web.lock:
            self.web.opened += 1
            self.web.open_count += 1
            self.web.most_open = max(self.web.open_count, self.web.most_open)

    def finish(self) -> None:
        with self.web.lock:
            self.web.open_count -= 1
        super().finish()
        if self.web.ends_tls and isinstance(self.connection, ssl.SSLSocket):
            self.connection.unwrap()

    def do_GET(self) -> None:
        web, path = self.web, self.path
        with web.lock:
            web.requests.append((self.command, path, dict(self.headers)))
            web.clients.append(str(self.client_address[0]))
        fault = web.next_fault(path)
        if isinstance(fault, Status | Redirect):
            more = (("Location", fault.to),) if isinstance(fault, Redirect) else fault.headers
            self._head(fault.code, (*more, ("Content-Length", "0")))
            return
        if isinstance(fault, Raw):
            self._head(fault.code, (*fault.headers, ("Content-Length", str(len(fault.body)))))
            self.wfile.write(fault.body)
            return
        content = web.files.get(path)
        if content is None:
            self._head(404, (("Content-Length", "0"),))
            return
        tag = web.tag(content)
        tags = (("ETag", tag),) if web.has_tags else ()
        if web.has_tags and self.headers.get("If-None-Match") == tag:
            self._head(304, tags)
            return
        self._body(content, tag, tags, fault)

    def log_message(self, *_arguments: Any) -> None:
        """Nothing: the requests are kept."""

    def _body(self, content: bytes, tag: str, tags: tuple[tuple[str, str], ...], fault: Fault) -> None:
        asked = re.fullmatch(r"bytes=(\d+)-(\d*)", self.headers.get("Range", ""))
        start, status = 0, 200
        more: tuple[tuple[str, str], ...] = ()
        if asked and self.web.has_ranges and self.headers.get("If-Range", tag) == tag:
            start = int(asked[1])
            end = min(int(asked[2] or len(content)), len(content) - 1, start + self.web.longest_range - 1)
            if start >= len(content):
                self._head(416, (*tags, ("Content-Range", f"bytes */{len(content)}"), ("Content-Length", "0")))
                return
            whole = len(content) if self.web.tells_whole else "*"
            status, more = 206, (("Content-Range", f"bytes {start}-{end}/{whole}"),)
            content = content[start : end + 1]
        size = (("Content-Length", str(len(content))),) if self.web.tells_size else (("Connection", "close"),)
        self._head(status, (*tags, *more, *size))
        if isinstance(fault, Cut | Hang):
            self.wfile.write(content[: fault.after])
            self.wfile.flush()
            if isinstance(fault, Hang):
                self.web.closing.wait()
            self.close_connection = True
        elif isinstance(fault, Slow):
            for at in range(0, len(content), fault.piece):
                self.wfile.write(content[at : at + fault.piece])
                self.wfile.flush()
                time.sleep(fault.pause_s)
        elif isinstance(fault, Held):
            at = 0
            while not self.web.closing.is_set() and not fault.gate.wait(0.2):
                self.wfile.write(content[at : at + 100])
                at += 100
            self.wfile.write(content[at:])
        else:
            self.wfile.write(content)

    def _head(self, status: int, headers: tuple[tuple[str, str], ...]) -> None:
        self.send_response(status)
        for name, value in headers:
            self.send_header(name, value)
        self.end_headers()


@contextmanager
def web_server(tls: ssl.SSLContext | None = None, host: str = "127.0.0.1") -> Iterator[WebServer]:
    """A server on a free port of loopback (or of another address of this machine), with TLS or without, until the end of the block."""
    web = WebServer()
    handler: Callable[..., Any] = type("Handler", (_Handler,), {"web": web})

    class Server(ThreadingHTTPServer):
        daemon_threads = True

        def handle_error(self, *_arguments: Any) -> None:
            """Nothing: clients that leave are what the tests are about."""

    server = Server((host, 0), handler)
    if tls is not None:
        server.socket = tls.wrap_socket(server.socket, server_side=True, do_handshake_on_connect=False)
    web.address = f"{'https' if tls else 'http'}://{host}:{server.server_port}"
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True)
    thread.start()
    try:
        yield web
    finally:
        web.closing.set()
        server.shutdown()
        server.server_close()
        thread.join()
