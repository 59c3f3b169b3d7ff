"""A connection to a program in a container: its stdin, and its stdout and stderr in one stream of frames."""

from __future__ import annotations

import select
import socket
import ssl
import threading
import time
from contextlib import suppress
from typing import BinaryIO, Final

__all__ = ["STDERR", "STDOUT", "Hijacked"]

STDOUT: Final = 1
STDERR: Final = 2
_HEADER_BYTES: Final = 8
_LOOK_S: Final = 0.5


class Hijacked:
    """What a hijacked call of the Docker Engine's API leaves: bytes to the program, frames from it.

    A frame's header is its stream (1 byte), 3 zeros and its length (4 bytes, big-endian). Source: Docker Engine API,
    "Attach to a container", stream format. One thread may read while another writes.
    """

    def __init__(self, connection: socket.socket, response: BinaryIO) -> None:
        self._response = response  # which closes its file when it is gone
        # The answer's own file may have read ahead: some bytes of the stream are in its buffer.
        self._file = getattr(response, "fp", None) or connection.makefile("rb")
        self._connection = connection
        self._tls = _Tls(connection, self._file) if isinstance(connection, ssl.SSLSocket) else None

    def settimeout(self, timeout_s: float | None) -> None:
        """How long a read or a write may take."""
        if self._tls is not None:
            self._tls.timeout_s = timeout_s
        else:
            self._connection.settimeout(timeout_s)

    def write(self, data: bytes) -> None:
        """Send to the program's stdin. Raises OSError when the connection is gone."""
        if self._tls is not None:
            self._tls.write(data)
        else:
            self._connection.sendall(data)

    def read_frame(self) -> tuple[int, bytes] | None:
        """The next frame: its stream and its bytes; None at the end. Raises OSError (TimeoutError when nothing comes in time)."""
        header = self._exactly(_HEADER_BYTES)
        if header is None:
            return None
        data = self._exactly(int.from_bytes(header[4:], "big"))
        return None if data is None else (header[0], data)

    def _exactly(self, count: int) -> bytes | None:
        data = b""
        while len(data) < count:
            more = self._tls.read(count - len(data)) if self._tls is not None else self._file.read(count - len(data))
            if not more:
                return None
            data += more
        return data

    def close(self) -> None:
        """Close the connection. Another thread that reads from it sees its end."""
        with suppress(OSError):
            self._connection.shutdown(socket.SHUT_RDWR)
        with suppress(OSError):
            self._file.close()
        self._connection.close()


class _Tls:
    """A connection with TLS that one thread reads from while another writes.

    OpenSSL does not allow that at the same moment (its FAQ, "Is OpenSSL thread-safe?"), and before 3.13 Python lets it
    happen. So both take turns, and neither waits for the network while it is its turn.
    """

    def __init__(self, connection: ssl.SSLSocket, file: BinaryIO) -> None:
        self.timeout_s = connection.gettimeout()
        self._connection = connection
        self._turn = threading.Lock()
        connection.settimeout(0)
        self._ahead = b""
        with suppress(ssl.SSLWantReadError, ssl.SSLWantWriteError):
            self._ahead = getattr(file, "peek", lambda: b"")()

    def read(self, count: int) -> bytes:
        """Some bytes, at most `count`; none at the end."""
        if self._ahead:
            data, self._ahead = self._ahead[:count], self._ahead[count:]
            return data
        deadline = self._deadline()
        while True:
            try:
                with self._turn:
                    return self._connection.recv(count)
            except ssl.SSLWantReadError:
                self._wait(deadline, to_write=False)
            except ssl.SSLWantWriteError:
                self._wait(deadline, to_write=True)

    def write(self, data: bytes) -> None:
        """Send all of it."""
        deadline = self._deadline()
        view = memoryview(data)
        while view:
            try:
                with self._turn:
                    view = view[self._connection.send(view) :]
            except ssl.SSLWantReadError:
                self._wait(deadline, to_write=False)
            except ssl.SSLWantWriteError:
                self._wait(deadline, to_write=True)

    def _deadline(self) -> float | None:
        return None if self.timeout_s is None else time.monotonic() + self.timeout_s

    def _wait(self, deadline: float | None, *, to_write: bool) -> None:
        """Wait for the network, not longer than a while: what the other thread read may have been what is waited for."""
        if deadline is not None and time.monotonic() > deadline:
            raise TimeoutError("timed out")
        waiter = select.poll()
        try:
            waiter.register(self._connection, select.POLLOUT if to_write else select.POLLIN)
        except ValueError as error:  # closed meanwhile
            raise OSError("the connection was closed") from error
        waiter.poll(_LOOK_S * 1000)
