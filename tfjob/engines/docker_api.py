"""The few calls of the Docker Engine's API that running containers needs, over its socket, with the standard library alone.

Loading the docker package takes longer than to start a container. Every call is a connection of its own: threads may
call at the same time, and an engine that hangs or restarts spoils no other call.

Source: Docker Engine API, https://docs.docker.com/reference/api/engine/.
"""

from __future__ import annotations

import http.client
import json
import socket
from collections.abc import Mapping
from typing import Any, Final
from urllib.parse import quote, urlencode

from tfjob.errors import TargetError

__all__ = ["DockerApi", "RefusalError", "socket_of"]

_SOCKET: Final = "unix:///var/run/docker.sock"
_TIMEOUT_S: Final = 120.0
_NEWEST: Final = (1, 51)
"""The API that the fields tfjob uses were last compared with. Engines of Docker 20.10 and later know them all."""


class RefusalError(Exception):
    """The engine answered that it can't: an HTTP status, and why in its own words."""

    def __init__(self, status: int, message: str) -> None:
        super().__init__(message)
        self.status = status
        self.message = message


class DockerApi:
    """A Docker Engine at the socket `address` (``unix:///path``).

    Calls raise TargetError when nobody answers within the time, RefusalError when the engine can't do what is asked.
    """

    def __init__(self, address: str) -> None:
        self.address = address
        self._version = ""

    def check(self, timeout_s: float = 10.0) -> frozenset[str]:
        """Whether the engine answers, and its security options, such as ``rootless`` and ``userns``."""
        options = self.get("/info", timeout_s=timeout_s).get("SecurityOptions") or []
        return frozenset(option.removeprefix("name=").partition(",")[0] for option in options)

    def create(self, name: str, body: Mapping[str, Any]) -> str:
        """Make a container, and return its id."""
        query = f"?{urlencode({'name': name})}" if name else ""
        made = self._json("POST", f"/containers/create{query}", body)
        return str(made["Id"])

    def start(self, container: str) -> None:
        """Start a container. Returns when its first process runs."""
        self._send("POST", f"/containers/{container}/start")

    def state(self, container: str, timeout_s: float = _TIMEOUT_S) -> dict[str, Any]:
        """A container's state: ``Running``, ``Pid``, ``ExitCode``, ``OOMKilled``, ``Error``."""
        found: dict[str, Any] = self.get(f"/containers/{container}/json", timeout_s=timeout_s)["State"]
        return found

    def wait(self, container: str, timeout_s: float) -> None:
        """Wait until the engine knows that a container has ended."""
        self._send("POST", f"/containers/{container}/wait", timeout_s=timeout_s)

    def with_labels(self, labels: Mapping[str, str], timeout_s: float = _TIMEOUT_S) -> list[dict[str, Any]]:
        """All containers, ended ones too, that have these labels: ``Id``, ``Labels``, ``State`` of each."""
        filters = json.dumps({"label": [f"{key}={value}" for key, value in labels.items()]})
        found: list[dict[str, Any]] = self.get(
            f"/containers/json?{urlencode({'all': 1, 'filters': filters})}", timeout_s=timeout_s
        )
        return found

    def last_words(self, container: str, lines: int, timeout_s: float) -> str:
        """The last lines that a container's first process wrote."""
        query = urlencode({"stdout": 1, "stderr": 1, "tail": lines})
        return _unframed(self._send("GET", f"/containers/{container}/logs?{query}", timeout_s=timeout_s))

    def file(self, container: str, path: str) -> bytes:
        """A tar archive with one file of a container, which need not run."""
        return self._send("GET", f"/containers/{container}/archive?{urlencode({'path': path})}")

    def remove(self, container: str, timeout_s: float = _TIMEOUT_S) -> None:
        """Kill a container if it runs, and remove it with the volumes that are its own."""
        self._send("DELETE", f"/containers/{quote(container)}?force=1&v=1", timeout_s=timeout_s)

    def get(self, path: str, *, timeout_s: float = _TIMEOUT_S) -> Any:
        """What the engine says of something."""
        return json.loads(self._send("GET", path, timeout_s=timeout_s))

    def _json(self, method: str, path: str, body: Mapping[str, Any]) -> Any:
        return json.loads(self._send(method, path, body))

    def _send(
        self, method: str, path: str, body: Mapping[str, Any] | None = None, *, timeout_s: float = _TIMEOUT_S
    ) -> bytes:
        if not self._version:
            _, headers = self._exchange("GET", "/_ping", None, timeout_s)
            newest = tuple(map(int, headers.get("Api-Version", "1.41").split(".")))
            self._version = "/v{}.{}".format(*min(newest, _NEWEST))
        return self._exchange(method, f"{self._version}{path}", body, timeout_s)[0]

    def _exchange(
        self, method: str, path: str, body: Mapping[str, Any] | None, timeout_s: float
    ) -> tuple[bytes, Mapping[str, str]]:
        connection = _Connection(self.address.removeprefix("unix://"), timeout_s)
        content = None if body is None else json.dumps(body).encode()
        try:
            connection.request(method, path, content, {"Content-Type": "application/json"} if content else {})
            response = connection.getresponse()
            answer = response.read()
        except PermissionError as error:
            raise TargetError(
                f"this user may not use the Docker Engine at {self.address}",
                "Add the user to the group that owns the socket (mostly `docker`), and log in again.",
            ) from error
        except TimeoutError as error:
            raise TargetError(
                f"the Docker Engine at {self.address} did not answer within {timeout_s:g} s", "Restart Docker."
            ) from error
        except (OSError, http.client.HTTPException) as error:
            raise TargetError(
                f"no Docker Engine answers at {self.address}",
                "Start Docker, or say where its socket is: DOCKER_HOST=unix:///path/to/docker.sock.",
            ) from error
        finally:
            connection.close()
        if response.status >= http.HTTPStatus.BAD_REQUEST:
            raise RefusalError(response.status, _reason(answer))
        return answer, dict(response.getheaders())


def socket_of(environ: Mapping[str, str]) -> str:
    """The address of this machine's Docker Engine: DOCKER_HOST, or the usual socket.

    Raises TargetError for an engine reached by network: containers there can't have this machine's directories.
    """
    address = environ.get("DOCKER_HOST") or _SOCKET
    if not address.startswith("unix://"):
        raise TargetError(
            f"DOCKER_HOST names {address}, an engine reached by network: "
            "its containers can't have the run directory, which is on this machine",
            "Unset DOCKER_HOST, or name a socket of this machine: DOCKER_HOST=unix:///path/to/docker.sock.",
        )
    return address


class _Connection(http.client.HTTPConnection):
    """HTTP to a Unix socket."""

    def __init__(self, path: str, timeout_s: float) -> None:
        super().__init__("localhost", timeout=timeout_s)
        self._path = path

    def connect(self) -> None:
        """Connect to the socket."""
        self.sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self.sock.settimeout(self.timeout)
        self.sock.connect(self._path)


def _reason(answer: bytes) -> str:
    try:
        return str(json.loads(answer)["message"]).strip()
    except (ValueError, KeyError, TypeError):
        return answer.decode(errors="replace").strip() or "it did not say why"


def _unframed(stream: bytes) -> str:
    """The text of a log without the frames that keep its two streams apart: 8 bytes, the last 4 of them the length."""
    parts = []
    while len(stream) >= 8:
        length = int.from_bytes(stream[4:8], "big")
        parts.append(stream[8 : 8 + length])
        stream = stream[8 + length :]
    return b"".join(parts).decode(errors="replace")
