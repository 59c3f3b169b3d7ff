"""Connections of the program that fetches many small files (`small_files.py`): none waits, and what is not plain is left.

Standard library only, and little of it: the program starts in milliseconds. `socket` and `re` would take as long as all the rest.
"""

from __future__ import annotations

import _socket
import select
import time

TYPE_CHECKING = False  # typing.TYPE_CHECKING, without importing typing
if TYPE_CHECKING:
    import ssl
    from collections.abc import Callable
    from typing import Any

    from tfjob.datasets.small_files import File, Loop

LARGEST = 4 << 20  # bytes of a file that is held in memory; a larger one is left
LONGEST_HEAD = 16 << 10
LONGEST_TAG = 300
LONGEST_LENGTH = 18  # digits
ROOM = memoryview(
    bytearray(128 << 10)
)  # for all pieces: so much memory for each would be had from the system and given back
PATIENCE = (408, 425, 429, 500, 502, 503, 504)  # answers of a server that is not to be asked for more at once
LENGTH = b"\r\ncontent-length:"
ENCODING, ENCODINGS = b"encoding:", (b"\r\ntransfer-encoding:", b"\r\ncontent-encoding:")
TAG, MODIFIED, CONNECTION = b"\r\netag:", b"\r\nlast-modified:", b"\r\nconnection:"


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
            self.addresses = _socket.getaddrinfo(host, port, 0, _socket.SOCK_STREAM)
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
        self.file: File | None = None
        self.is_used = False  # it has answered before
        self.began = 0.0
        self.received = 0
        self.head = b""  # what has come of it
        self.body: list[bytes] = []
        self.missing = -1  # bytes of the body; -1 before the head is there
        self.tag = ""
        self.closes = False
        self.peeked = 0  # bytes that were looked at, and are still to be taken from the system

    def begin(self, file: File) -> None:
        """Ask for a file, over the connection that is open if it leads there. Raises Left, and OSError."""
        self.file = file
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
        self.socket = _socket.socket(family, kind, protocol)
        self.socket.setblocking(False)
        self.socket.setsockopt(_socket.IPPROTO_TCP, _socket.TCP_NODELAY, 1)
        self.socket.connect_ex(at)
        self.step = self.connected
        self.loop.watch(self, select.EPOLLOUT)

    def connected(self) -> None:
        """Go on when the connection is there, or with the origin's next address."""
        assert self.origin is not None  # noqa: S101  # the same
        if self.socket.getsockopt(_socket.SOL_SOCKET, _socket.SO_ERROR):
            self.address += 1
            if self.address - self.origin.answers >= len(self.origin.addresses):
                raise Left
            self.connect()
            return
        self.origin.answers = self.address % len(self.origin.addresses)
        if self.origin.tls is None:
            self.expect_answers(self.receive)
            return
        import socket  # noqa: PLC0415  # TLS has it loaded, and needs it

        self.loop.forget(self)
        plain = socket.socket(fileno=self.socket.detach())
        plain.setblocking(
            False
        )  # the new object takes it to wait, whatever the old one was told, and TLS takes that over
        self.socket = self.origin.tls.wrap_socket(
            plain, server_hostname=self.origin.host, do_handshake_on_connect=False
        )
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
            self.expect_answers(self.receive_secured)

    def expect_answers(self, step: Callable[[], None]) -> None:
        """Ask for the file, and take what comes from now on."""
        self.step = step
        self.loop.expect(self, select.EPOLLIN)
        self.ask()

    def ask(self) -> None:
        """Send the request; it is short, and fits what the system holds for a connection that has nothing else to send."""
        assert self.file is not None and self.origin is not None  # noqa: S101, PT018  # set by `begin`
        request = b"GET " + self.file[2] + self.origin.tail
        self.missing = -1
        try:
            sent = self.socket.send(request)
        except ConnectionError:
            self.again()
            return
        if sent != len(request):
            raise Left
        if self.peeked:
            self.drop()

    def drop(self) -> None:
        """Have the system forget what was looked at. Raises Left where it has less."""
        count, self.peeked = self.peeked, 0
        if self.socket.recv_into(ROOM, count, _socket.MSG_TRUNC) != count:
            raise Left

    def again(self) -> None:
        """Ask again over a new connection: servers may close one that was used. Raises Left when it was new."""
        if not self.is_used:
            raise Left
        self.connect()

    def receive(self) -> None:
        """Take what has come. Raises Left for what is not plain, and OSError.

        Where it is an answer's beginning, it is only looked at: taking it would have the system confirm it in a packet of its
        own. Where it is the whole answer, that goes with the next request.
        """
        is_begun = self.missing >= 0
        try:
            count = self.socket.recv_into(ROOM, 0, 0 if is_begun else _socket.MSG_PEEK)
        except BlockingIOError:
            return
        except ConnectionError:
            count = 0
        if not is_begun:
            self.peeked = count
        self.take(ROOM[:count].tobytes())
        if self.peeked:
            self.drop()

    def receive_secured(self) -> None:
        """The same over TLS, which may have taken from the system what nothing tells of then."""
        import ssl  # noqa: PLC0415  # it is there already

        try:
            data = ROOM[: self.socket.recv_into(ROOM)].tobytes()
            while self.socket.pending():
                data += ROOM[: self.socket.recv_into(ROOM)].tobytes()
        except (BlockingIOError, ssl.SSLWantReadError):
            return
        except ConnectionError:
            data = b""
        self.take(data)

    def take(self, data: bytes) -> None:
        """Take what has come; nothing at the end of the connection. Raises Left for what is not plain."""
        if not data:
            if self.received:
                raise Left
            self.again()
            return
        self.received += len(data)
        if self.missing < 0:
            if self.head:
                data = self.head + data
            end = data.find(b"\r\n\r\n")
            if end < 0:
                self.head = data
                if len(data) > LONGEST_HEAD:
                    raise Left
                return
            self.head = b""
            self.read_head(data[: end + 2])
            data = data[end + 4 :]
            if len(data) == self.missing:  # nearly always
                self.loop.came(self, data)
                return
        self.missing -= len(data)
        self.body.append(data)
        if self.missing < 0:  # more than it said: nothing that comes here can be trusted
            raise Left
        if not self.missing:
            body, self.body = b"".join(self.body), []
            self.loop.came(self, body)

    def read_head(self, head: bytes) -> None:
        """Take what matters from a head, each line with its end. Raises Left when it is not the plain answer."""
        assert self.file is not None  # noqa: S101  # set by `begin`
        if not head.startswith((b"HTTP/1.1 200 ", b"HTTP/1.1 200\r")):
            told = head[9:12]
            raise Left(int(told) if head.startswith(b"HTTP/1.1 ") and told.isdigit() else 0)
        lower = head.lower()
        at = lower.find(LENGTH)
        length = value_at(head, at + len(LENGTH))
        if at < 0 or not length.isdigit() or len(length) > LONGEST_LENGTH:
            raise Left(200)
        if lower.find(LENGTH, at + 1) >= 0:
            raise Left(200)
        if ENCODING in lower and any(one in lower for one in ENCODINGS):
            raise Left(200)
        etag, modified, connection = lower.find(TAG), lower.find(MODIFIED), lower.find(CONNECTION)
        tag = tag_from(
            "" if etag < 0 else value_at(head, etag + len(TAG)).decode("latin-1").strip(),
            "" if modified < 0 else value_at(head, modified + len(MODIFIED)).decode("latin-1").strip(),
        )
        self.closes = connection >= 0 and b"close" in lower[connection:]  # in a line after that one, it does no harm
        self.tag, self.missing = tag, int(length)
        _, _, _, size, expected, _ = self.file
        if self.missing > LARGEST or size not in {-1, self.missing} or len(tag) > LONGEST_TAG or not tag.isprintable():
            raise Left(200)
        if expected and expected != tag:
            raise Left(200)

    def close(self) -> None:
        """End the connection."""
        if self.socket is not None:
            self.loop.forget(self)
            self.socket.close()
            self.socket = None
        self.is_used = False
        self.head, self.body, self.peeked = b"", [], 0


def value_at(head: bytes, start: int) -> bytes:
    """The value of the header whose name ends at `start`."""
    return head[start : head.find(b"\r\n", start)].strip(b" \t")
