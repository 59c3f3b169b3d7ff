"""Docker Engines that are not there: they answer in this process what finding room asks, through tfjob's own HTTP client.

What is left out is the network and the engine's own work, which all nodes do at the same time.
"""

from __future__ import annotations

import io
import json
import threading
import time
from datetime import UTC, datetime
from email.utils import formatdate
from typing import TYPE_CHECKING, Any
from urllib.parse import parse_qs, unquote, urlsplit

if TYPE_CHECKING:
    import socket

    from tfjob.errors import TargetError


class SimulatedEngine:
    """One engine, and the transport that leads to it: it knows volumes with labels, and runs no containers."""

    def __init__(self, name: str) -> None:
        self.address = f"simulated://{name}"
        self.is_local = False
        self.calls = 0
        self._volumes: dict[str, dict[str, Any]] = {}
        self._lock = threading.Lock()

    def close(self) -> None:
        """Nothing is kept open."""

    def variables(self) -> dict[str, str]:
        return {}

    def connect(self, _timeout_s: float) -> socket.socket:
        """Return what the HTTP client takes for a connection."""
        return _Connection(self)  # type: ignore[return-value]  # it has the methods that are called

    def unanswered(self, error: Exception) -> TargetError:
        """Fail: a simulated engine always answers."""
        raise error

    def answer(self, method: str, target: str, body: bytes) -> Any:
        """Return what an engine says to a call, as JSON has it; None for 204 No Content."""
        parts = urlsplit(target)
        path = parts.path.partition("/v1.")[2].partition("/")[2] or parts.path.lstrip("/")
        with self._lock:
            self.calls += 1
            if method == "POST" and path == "volumes/create":
                asked = json.loads(body)
                made = {"Name": asked["Name"], "Labels": asked["Labels"], "CreatedAt": _now()}
                return self._volumes.setdefault(asked["Name"], made)
            if method == "DELETE":
                self._volumes.pop(unquote(path.removeprefix("volumes/")), None)
                return None
            if path == "volumes":
                return {"Volumes": [one for one in self._volumes.values() if _has(one, parts.query)]}
        return {"info": {"ServerVersion": "0", "SecurityOptions": [], "Name": self.address}, "containers/json": []}.get(
            path, {}
        )


class _Connection:
    """The one exchange that a connection of the client's has."""

    def __init__(self, engine: SimulatedEngine) -> None:
        self._engine = engine
        self._request = b""

    def sendall(self, data: bytes) -> None:
        """Take the request, which may come in parts."""
        self._request += data

    def makefile(self, _mode: str) -> io.BytesIO:
        """Return the answer as a file."""
        head, _, body = self._request.partition(b"\r\n\r\n")
        method, target, _ = head.split(b"\r\n", 1)[0].decode().split(" ")
        answer = self._engine.answer(method, target, body)
        status, content = ("204 No Content", b"") if answer is None else ("200 OK", json.dumps(answer).encode())
        headers = f"Api-Version: 1.43\r\nDate: {formatdate(time.time(), usegmt=True)}\r\nContent-Length: {len(content)}"
        return io.BytesIO(f"HTTP/1.1 {status}\r\n{headers}\r\n\r\n".encode() + content)

    def settimeout(self, _timeout_s: float) -> None:
        """Nothing takes any time."""

    def close(self) -> None:
        """Nothing is open."""


def _has(volume: dict[str, Any], query: str) -> bool:
    wanted = json.loads(parse_qs(query)["filters"][0])["label"]
    labels = volume["Labels"]
    return all(labels.get(key) == value if is_said else key in labels for key, is_said, value in _pairs(wanted))


def _pairs(wanted: list[str]) -> list[tuple[str, str, str]]:
    return [one.partition("=") for one in wanted]


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="seconds")
