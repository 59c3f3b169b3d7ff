"""A connection to a program in a container: its stdin, and its stdout and stderr in one stream of frames."""

from __future__ import annotations

import socket
import ssl
from contextlib import suppress
from typing import BinaryIO, Final

__all__ = ["STDERR", "STDOUT", "Hijacked"]

STDOUT: Final = 1
STDERR: Final = 2
_HEADER_BYTES: Final = 8


class Hijacked:
    """What a hijacked call of the Docker Engine's API leaves: bytes to the program, frames from it.

    A frame's header is its stream (1 byte), 3 zeros and its length (4 bytes, big-endian). Source: Docker Engine API,
    "Attach to a container", stream format. One thread may read while another writes.
    """

    def __init__(self, connection: socket.socket, response: BinaryIO) -> None:
        self._connection = connection
        self._response = response  # which closes its file when it is gone
        # The answer's own file may have read ahead: some bytes of the stream are in its buffer.
        self._file = getattr(response, "fp", None) or connection.makefile("rb")

    def settimeout(self, timeout_s: float | None) -> None:
        """How long a read or a write may take."""
        self._connection.settimeout(timeout_s)

    def write(self, data: bytes) -> None:
        """Send to the program's stdin. Raises OSError when the connection is gone."""
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
            more = self._file.read(count - len(data))
            if not more:
                return None
            data += more
        return data

    def end_input(self) -> None:
        """Let the program see the end of its stdin; over TLS it sees that only with `close`."""
        if isinstance(self._connection, ssl.SSLSocket):
            return  # its shutdown drops the encryption, in both directions
        with suppress(OSError):
            self._connection.shutdown(socket.SHUT_WR)

    def close(self) -> None:
        """Close the connection. Another thread that reads from it sees its end."""
        with suppress(OSError):
            self._connection.shutdown(socket.SHUT_RDWR)
        with suppress(OSError):
            self._file.close()
        self._connection.close()
