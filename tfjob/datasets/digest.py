"""The SHA-256 of a file while it comes, worked out beside the thread that receives it: OpenSSL lets others run meanwhile."""

from __future__ import annotations

import hashlib
import queue
import threading
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    import io
    from hashlib import _Hash

__all__ = ["Digest"]

_LARGE_BYTES: Final = 4 << 20
"""What comes after these is worth a thread."""
_PIECE_BYTES: Final = 512 << 10
_PIECES: Final = 8


class Digest:
    """A SHA-256, used by one thread. `close` ends the one beside it.

    Pieces are received into memory that is used again and again (`room`): to get as much anew from the system for each takes
    longer than to receive it.
    """

    def __init__(self, before: io.BufferedReader | io.BytesIO | None = None) -> None:
        """Begin with what is there already, if there is anything."""
        self._hash: _Hash = hashlib.file_digest(before, "sha256") if before is not None else hashlib.sha256()
        self._seen = 0
        self._free: queue.SimpleQueue[memoryview] = queue.SimpleQueue()
        self._made = 0
        self._pieces: queue.Queue[bytes | memoryview] | None = None
        self._thread: threading.Thread | None = None

    def room(self) -> memoryview:
        """Memory for the next piece, until `update` has been told of it; waits when the other thread has all there is."""
        if self._free.empty() and (self._pieces is None or self._made < _PIECES):
            self._made += 1
            return memoryview(bytearray(_PIECE_BYTES))
        return self._free.get()

    def update(self, data: bytes | memoryview) -> None:
        """Add what came; an empty piece adds nothing. Waits when the other thread is behind: what waits for it stays small."""
        if self._pieces is not None:
            if data:
                self._pieces.put(data)
            return
        self._hash.update(data)
        self._seen += len(data)
        self._give_back(data)
        if self._seen >= _LARGE_BYTES:
            self._pieces = queue.Queue(_PIECES)
            self._thread = threading.Thread(target=self._work, args=(self._pieces,), daemon=True)
            self._thread.start()

    def hexdigest(self) -> str:
        """The digest of all that was added."""
        self.close()
        return self._hash.hexdigest()

    def close(self) -> None:
        """End the other thread, once it has done what it was given. More can be added afterwards."""
        if self._pieces is not None and self._thread is not None:
            self._pieces.put(b"")
            self._thread.join()
            self._pieces = self._thread = None

    def _give_back(self, data: bytes | memoryview) -> None:
        if isinstance(data, memoryview):
            self._free.put(memoryview(data.obj))

    def _work(self, pieces: queue.Queue[bytes | memoryview]) -> None:
        while data := pieces.get():
            self._hash.update(data)
            self._give_back(data)
