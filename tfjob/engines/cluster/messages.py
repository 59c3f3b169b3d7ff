"""What the agent on a node says, taken apart."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from contextlib import suppress
from typing import Any

from tfjob.dockerapi.stream import STDOUT, Hijacked

__all__ = ["messages"]


def messages(stream: Hijacked) -> Iterator[tuple[dict[str, Any], bytes]]:
    """The agent's messages: a header, and the bytes that belong to it. Raises OSError, and ValueError for what is none."""
    buffer = bytearray()
    header: dict[str, Any] | None = None
    while (frame := stream.read_frame()) is not None:
        if frame[0] != STDOUT:  # a fault of the agent's: where faults of the supervisor's go
            with suppress(OSError):  # on a full disk
                sys.stderr.write(frame[1].decode(errors="replace"))
            continue
        buffer += frame[1]
        while True:
            if header is None:
                end = buffer.find(b"\n")
                if end < 0:
                    break
                header = json.loads(buffer[:end])
                del buffer[: end + 1]
            length = header.get("length", 0)
            if len(buffer) < length:
                break
            data = bytes(buffer[:length])
            del buffer[:length]
            yield header, data
            header = None
