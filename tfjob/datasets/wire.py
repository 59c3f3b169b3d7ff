"""One HTTP/1.1 connection, with little between the socket and the caller: there may be tens of thousands of files.

The standard library's client takes longer to read the head of an answer than a near server to send a small file. What
is read here is what RFC 9112 has: a head, and a body of a length, in chunks, or to the end of the connection.
"""

from __future__ import annotations

import re
import socket
import ssl
from typing import Final, NamedTuple

__all__ = ["Garbled", "Head", "Wire", "connect"]

_LONGEST_HEAD: Final = 64 * 1024
_PIECE: Final = 64 * 1024
_NO_BODY: Final = {204, 304}
_LENGTHS: Final = {"content-length", "transfer-encoding"}
_LONGEST_LENGTH: Final = 18
_CHUNK: Final = re.compile(rb"[0-9A-Fa-f]{1,15}")


class Garbled(Exception):  # as TimedOut: it says what it is
    """The other side does not speak HTTP/1.1, in words."""


class Head(NamedTuple):
    """The head of an answer. Names of headers are in lower case."""

    status: int
    reason: str
    headers: dict[str, str]


def connect(
    host: str,
    port: int,
    timeout_s: float,
    *,
    tls: ssl.SSLContext | None = None,
    through: tuple[str, int, dict[str, str]] | None = None,
) -> Wire:
    """Connect to a host, with TLS or without; `through` a proxy that makes a tunnel (RFC 9110, 9.3.6).

    Raises OSError, and Garbled when the proxy refuses.
    """
    at = (host, port) if through is None else through[:2]
    wire = Wire(socket.create_connection(at, timeout_s))
    try:
        if through is not None:
            head = wire.ask("CONNECT", f"{host}:{port}", {"Host": f"{host}:{port}", **through[2]})
            if head.status != 200:
                raise Garbled(f"the proxy {at[0]} answered {head.status} {head.reason}")  # noqa: TRY301  # closed below
        if tls is not None:
            # Where no length is told, what came is all of it only if the server says that it ends (RFC 9112, 9.8).
            wire = Wire(tls.wrap_socket(wire.socket, server_hostname=host, suppress_ragged_eofs=False))
    except BaseException:
        wire.close()
        raise
    wire.socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    return wire


def _refuse_two_lengths(lines: list[str], headers: dict[str, str]) -> None:
    """Refuse a head in which one line about the length of the body contradicts another."""
    for line in lines[1:]:
        name, _, value = line.partition(":")
        if name.lower() in _LENGTHS and (last := headers[name.lower()]) != value.strip():
            raise Garbled(f"its {name} is {value.strip()[:40]!r} and {last[:40]!r}")


class Wire:
    """Asks and reads, one after the other, over a socket that has a timeout."""

    def __init__(self, at: socket.socket) -> None:
        """Use a connected socket."""
        self.socket = at
        self.length: int | None = 0
        """Bytes of the body of the last answer; None where the server does not say."""
        self._left: int | None = 0
        self._in_chunks = False
        self._keeps = True
        self._buffer = b""

    @property
    def is_free(self) -> bool:
        """Whether the last answer was read to its end, and another can be asked for."""
        return self._keeps and self._left == 0 and not self._buffer  # what follows would be taken for the next answer

    def close(self) -> None:
        """End the connection."""
        self._keeps = False
        self.socket.close()

    def ask(self, method: str, target: str, headers: dict[str, str]) -> Head:
        """Send a request and read the head of its answer. Raises OSError, and Garbled for what is no head."""
        lines = "".join([f"{name}: {value}\r\n" for name, value in headers.items()])
        self.socket.sendall(f"{method} {target} HTTP/1.1\r\n{lines}\r\n".encode("latin-1"))
        while True:
            head = self._head()
            if head.status >= 200:
                break
        told = head.headers
        coding = told.get("transfer-encoding", "").lower()
        if coding not in {"", "identity", "chunked"}:  # others may be sent only to who asks for them
            raise Garbled(f"its Transfer-Encoding is {coding[:40]!r}")
        self._in_chunks = coding == "chunked"
        length = told.get("content-length", "")
        if method in {"HEAD", "CONNECT"} or head.status in _NO_BODY:
            self.length = 0
        elif self._in_chunks or not length:
            self.length = None
        elif length.isdecimal() and len(length) <= _LONGEST_LENGTH:
            self.length = int(length)
        else:
            raise Garbled(f"its Content-Length is {length[:40]!r}")
        self._left = self.length
        self._keeps = "close" not in told.get("connection", "").lower() and (self._in_chunks or self.length is not None)
        if self._in_chunks:
            self._left = self._next_chunk()
        return head

    def read_into(self, room: memoryview) -> int:
        """Read what is there of the body, as far as there is room; how much that was: 0 at its end. Raises OSError and Garbled."""
        if self._left == 0:
            return 0
        want = len(room) if self._left is None else min(len(room), self._left)
        if self._buffer:
            data, self._buffer = self._buffer[:want], self._buffer[want:]
            count = len(data)
            room[:count] = data
        else:
            count = self.socket.recv_into(room, want)
        if not count:
            self._keeps = False
            if self._in_chunks:
                raise Garbled("it ended in the middle of a chunk")
            self._left = 0
        elif self._left is not None:
            self._left -= count
            if self._left == 0 and self._in_chunks:
                self._left = None  # whatever comes now: the connection is not free before the last one
                if self._line():
                    raise Garbled("a chunk is longer than it said")
                self._left = self._next_chunk()
        return count

    def _head(self) -> Head:
        while (end := self._buffer.find(b"\r\n\r\n")) < 0:
            if len(self._buffer) > _LONGEST_HEAD:
                raise Garbled("its head is longer than 64 KiB")
            self._more()
        lines, self._buffer = self._buffer[:end].decode("latin-1").split("\r\n"), self._buffer[end + 4 :]
        version, _, rest = lines[0].partition(" ")
        status, _, reason = rest.partition(" ")
        if not version.startswith("HTTP/1.") or len(status) != 3 or not status.isdecimal():
            raise Garbled(f"it says {lines[0][:60]!r}")
        headers = {}
        for line in lines[1:]:
            name, _, value = line.partition(":")
            headers[name.lower()] = value.strip()
        if len(headers) < len(lines) - 1:
            _refuse_two_lengths(lines, headers)
        if version == "HTTP/1.0":
            headers.setdefault("connection", "close")
        return Head(int(status), reason, headers)

    def _next_chunk(self) -> int:
        """The bytes of the next chunk; what follows the last one is read."""
        size = self._line().partition(b";")[0].strip()
        if not _CHUNK.fullmatch(size):
            raise Garbled(f"a chunk has the length {size[:40]!r}")
        count = int(size, 16)
        if count == 0:
            while self._line():
                pass
            self._in_chunks = False
        return count

    def _line(self) -> bytes:
        while (end := self._buffer.find(b"\r\n")) < 0:
            if len(self._buffer) > _LONGEST_HEAD:
                raise Garbled("a line in it is longer than 64 KiB")
            self._more()
        line, self._buffer = self._buffer[:end], self._buffer[end + 2 :]
        return line

    def _more(self) -> None:
        data = self.socket.recv(_PIECE)
        if not data:
            self._keeps = False
            raise ConnectionResetError(104, "Connection closed by the server")
        self._buffer += data
