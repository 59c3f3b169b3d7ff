"""Connections of the program that fetches many small files (`small_files.py`): none waits, and what is not plain is left.

Standard library only, and little of it: the program starts in milliseconds.
"""

from __future__ import annotations

import re
import select
import socket
import time

TYPE_CHECKING = False  # typing.TYPE_CHECKING, without importing typing
if TYPE_CHECKING:
    import ssl
    from typing import Any

    from tfjob.datasets.small_files import Loop

LARGEST = 4 << 20  # bytes of a file that is held in memory; a larger one is left
LONGEST_HEAD = 16 << 10
LONGEST_TAG = 300
PIECE = 128 << 10
PATIENCE = (408, 425, 429, 500, 502, 503, 504)  # answers of a server that is not to be asked for more at once

LENGTH = re.compile(rb"\r\ncontent-length:[ \t]*(\d{1,18})[ \t]*(?:\r\n|$)")
TAG = re.compile(rb"\r\netag:[ \t]*([^\r\n]*)")
MODIFIED = re.compile(rb"\r\nlast-modified:[ \t]*([^\r\n]*)")
CLOSES = re.compile(rb"\r\nconnection:[^\r\n]*close")
STATUS = re.compile(rb"HTTP/1\.1 (\d{3})[ \r]")


def tag_from(etag: str, modified: str) -> str:
    """What tells a content from another at the same address: a strong ETag, or else the time of change; empty without."""
    return etag if etag and not etag.startswith("W/") else modified or etag


class Origin:
    """A server: where it is, and what stands in every request to it."""

    def __init__(self, is_tls: bool, host: str, port: int, headers: str) -> None:
        self.host = host
        self.tail = b" HTTP/1.1\r\n" + headers.encode("latin-1") + b"\r\n"
        self.tls: ssl.SSLContext | None = None
        if is_tls:
            import ssl  # noqa: PLC0415  # 30 ms that servers without TLS do not cost

            self.tls = ssl.create_default_context()
        try:
            self.addresses = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)
        except (OSError, UnicodeError):
            self.addresses = []
        self.answers = 0  # which of the addresses does


class Left(Exception):
    """A file is left: `status` of the answer, or 0."""

    def __init__(self, status: int = 0) -> None:
        super().__init__(status)
        self.status = status


class Connection:
    """One connection, and the file that comes over it."""

    def __init__(self, loop: Loop) -> None:
        self.loop = loop
        self.socket: Any = None
        self.origin: Origin | None = None
        self.address = 0  # of the origin
        self.step = self.receive  # what to do when the socket is ready
        self.file: list[Any] | None = None
        self.partial = -1
        self.is_tls = False
        self.is_used = False  # it has answered before
        self.began = 0.0
        self.received = 0
        self.buffer = b""
        self.body: list[bytes] = []
        self.missing = -1  # bytes of the body; -1 before the head is there
        self.tag = ""
        self.closes = False

    def begin(self, file: list[Any], partial: int) -> None:
        """Ask for a file, over the connection that is open if it leads there."""
        self.file, self.partial = file, partial
        self.began, self.received = time.monotonic(), 0
        origin = self.loop.origins[file[1]]
        if self.socket is not None and self.origin is origin:
            self.ask()
            return
        self.origin, self.address = origin, origin.answers
        self.connect()

    def connect(self) -> None:
        """Open the connection. Raises Left when the origin has no address."""
        self.close()
        assert self.origin is not None  # noqa: S101  # set by `begin`
        if not self.origin.addresses:
            raise Left
        family, kind, protocol, _, at = self.origin.addresses[self.address % len(self.origin.addresses)]
        self.is_tls = False
        self.socket = socket.socket(family, kind, protocol)
        self.socket.setblocking(False)
        self.socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self.socket.connect_ex(at)
        self.step = self.connected
        self.loop.watch(self, select.EPOLLOUT)

    def connected(self) -> None:
        """Go on when the connection is there, or with the origin's next address."""
        assert self.origin is not None  # noqa: S101  # the same
        if self.socket.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR):
            self.address += 1
            if self.address - self.origin.answers >= len(self.origin.addresses):
                raise Left
            self.connect()
            return
        self.origin.answers = self.address % len(self.origin.addresses)
        if self.origin.tls is None:
            self.ask()
            return
        self.loop.forget(self)
        self.socket = self.origin.tls.wrap_socket(
            self.socket, server_hostname=self.origin.host, do_handshake_on_connect=False
        )
        self.is_tls = True
        self.step = self.shake_hands
        self.loop.watch(self, select.EPOLLOUT)

    def shake_hands(self) -> None:
        """Agree on TLS, as far as it gets without waiting."""
        import ssl  # noqa: PLC0415  # it is there already

        try:
            self.socket.do_handshake()
        except ssl.SSLWantReadError:
            self.loop.expect(self, select.EPOLLIN)
        except ssl.SSLWantWriteError:
            self.loop.expect(self, select.EPOLLOUT)
        else:
            self.ask()

    def ask(self) -> None:
        """Send the request; it is short, and fits what the system holds for a connection that has nothing else to send."""
        assert self.file is not None and self.origin is not None  # noqa: S101, PT018  # set by `begin`
        self.buffer, self.body, self.missing = b"", [], -1
        request = b"GET " + self.file[2].encode("latin-1") + self.origin.tail
        if self.step != self.receive:
            self.step = self.receive
            self.loop.expect(self, select.EPOLLIN)
        try:
            sent = self.socket.send(request)
        except (ConnectionError, BrokenPipeError):
            self.again()
            return
        if sent != len(request):
            raise Left

    def again(self) -> None:
        """Ask again over a new connection: servers may close one that was used. Raises Left when it was new."""
        if not self.is_used:
            raise Left
        self.connect()

    def receive(self) -> None:
        """Take what has come. Raises Left for what is not plain, and OSError."""
        data = self.take()
        if data is None:
            return
        if not data:
            if self.received:
                raise Left
            self.again()
            return
        self.received += len(data)
        if self.missing < 0:
            self.buffer = self.buffer + data if self.buffer else data
            end = self.buffer.find(b"\r\n\r\n")
            if end < 0:
                if len(self.buffer) > LONGEST_HEAD:
                    raise Left
                return
            self.read_head(self.buffer[:end])
            data = self.buffer[end + 4 :]
        self.missing -= len(data)
        self.body.append(data)
        if self.missing < 0:  # more than it said: nothing that comes here can be trusted
            raise Left
        if not self.missing:
            self.loop.came(self)

    def take(self) -> bytes | None:
        """What has come; nothing at the end of the connection, and None where nothing has come. Raises OSError."""
        try:
            data: bytes = self.socket.recv(PIECE)
            while (
                self.is_tls and self.socket.pending()
            ):  # it has been taken from the system, which would not tell of it
                data += self.socket.recv(PIECE)
        except BlockingIOError:
            return None
        except ConnectionError:
            return b""
        except OSError as error:
            if type(error).__name__ == "SSLWantReadError":
                return None
            raise
        return data

    def read_head(self, head: bytes) -> None:
        """Take what matters from a head. Raises Left when it is not the plain answer."""
        assert self.file is not None  # noqa: S101  # set by `begin`
        told = STATUS.match(head)
        if told is None:
            raise Left
        if told[1] != b"200":
            raise Left(int(told[1]))
        lower = head.lower()
        length = LENGTH.search(lower)
        if length is None or lower.count(b"\r\ncontent-length:") > 1 or b"\r\ntransfer-encoding:" in lower:
            raise Left(200)
        etag, modified = TAG.search(lower), MODIFIED.search(lower)
        self.tag = tag_from(
            head[slice(*etag.span(1))].decode("latin-1").strip() if etag else "",
            head[slice(*modified.span(1))].decode("latin-1").strip() if modified else "",
        )
        self.closes = CLOSES.search(lower) is not None
        self.missing = int(length[1])
        _, _, _, _, size, tag, _ = self.file
        if self.missing > LARGEST or size not in {-1, self.missing} or len(self.tag) > LONGEST_TAG:
            raise Left(200)
        if tag and tag != self.tag:
            raise Left(200)

    def close(self) -> None:
        """End the connection."""
        if self.socket is not None:
            self.loop.forget(self)
            self.socket.close()
            self.socket = None
        self.is_used = False
