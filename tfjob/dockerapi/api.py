"""The calls of the Docker Engine's API that running containers needs, with the standard library alone.

Loading the docker package takes longer than to start a container. Every call is a connection of its own: threads may
call at the same time, and an engine that hangs or restarts spoils no other call.

Source: Docker Engine API, https://docs.docker.com/reference/api/engine/.
"""

from __future__ import annotations

import http.client
import json
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from email.utils import parsedate_to_datetime
from typing import Any, Final, Self
from urllib.parse import quote, urlencode

from tfjob.dockerapi.stream import Hijacked
from tfjob.dockerapi.transport import Transport, UnixTransport
from tfjob.errors import TargetError, TargetRefused

__all__ = ["DockerApi", "RefusalError", "socket_of"]

_SOCKET: Final = "unix:///var/run/docker.sock"
_TIMEOUT_S: Final = 120.0
_NEWEST: Final = (1, 51)
"""The API that the fields tfjob uses were last compared with. Engines of Docker 20.10 and later know them all."""

_CHUNK_BYTES: Final = 1 << 20


class RefusalError(Exception):
    """The engine answered that it can't: an HTTP status, and why in its own words."""

    def __init__(self, status: int, message: str) -> None:
        super().__init__(message)
        self.status = status
        self.message = message


class DockerApi:
    """A Docker Engine: at a socket of this machine (``unix:///path``), or wherever a transport leads.

    Calls raise TargetError when nobody answers within the time, RefusalError when the engine can't do what is asked.
    """

    def __init__(self, reached: str | Transport) -> None:
        self.transport = UnixTransport(reached) if isinstance(reached, str) else reached
        self.address = self.transport.address
        self._version = ""

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Log out where a login leads to the engine. Later calls log in again."""
        self.transport.close()

    # The engine itself.

    def check(self, timeout_s: float = 10.0) -> frozenset[str]:
        """Whether the engine answers, and its security options, such as ``rootless`` and ``userns``."""
        options = self.info(timeout_s).get("SecurityOptions") or []
        return frozenset(option.removeprefix("name=").partition(",")[0] for option in options)

    def info(self, timeout_s: float = 10.0) -> dict[str, Any]:
        """What the engine says of itself: ``ServerVersion``, ``DockerRootDir``, ``NCPU``, ``MemTotal``, ``Name``."""
        found: dict[str, Any] = self.get("/info", timeout_s=timeout_s)
        return found

    def clock(self, timeout_s: float = 10.0) -> float:
        """The engine's own time in seconds since the epoch, in whole seconds: the Date of its answer (RFC 9110, 6.6.1)."""
        with self._exchange("GET", "/_ping", None, timeout_s) as response:
            response.read()
            return parsedate_to_datetime(response.headers["Date"]).timestamp()

    # Containers.

    def create(self, name: str, body: Mapping[str, Any], timeout_s: float = _TIMEOUT_S) -> str:
        """Make a container, and return its id."""
        query = f"?{urlencode({'name': name})}" if name else ""
        made = self._json("POST", f"/containers/create{query}", body, timeout_s)
        return str(made["Id"])

    def start(self, container: str, timeout_s: float = _TIMEOUT_S) -> None:
        """Start a container. Returns when its first process runs."""
        self._send("POST", f"/containers/{container}/start", timeout_s=timeout_s)

    def state(self, container: str, timeout_s: float = _TIMEOUT_S) -> dict[str, Any]:
        """A container's state: ``Running``, ``Pid``, ``ExitCode``, ``OOMKilled``, ``Error``."""
        found: dict[str, Any] = self.get(f"/containers/{container}/json", timeout_s=timeout_s)["State"]
        return found

    def wait(self, container: str, timeout_s: float) -> None:
        """Wait until the engine knows that a container has ended."""
        self._send("POST", f"/containers/{container}/wait", timeout_s=timeout_s)

    def kill(self, container: str, signal: str = "SIGKILL", timeout_s: float = _TIMEOUT_S) -> None:
        """Send a signal to a container's first process."""
        self._send("POST", f"/containers/{container}/kill?{urlencode({'signal': signal})}", timeout_s=timeout_s)

    def with_labels(self, labels: Mapping[str, str], timeout_s: float = _TIMEOUT_S) -> list[dict[str, Any]]:
        """All containers, ended ones too, that have these labels (an empty value: any): ``Id``, ``Labels``, ``State`` of each."""
        found: list[dict[str, Any]] = self.get(f"/containers/json?all=1&{_filter(labels)}", timeout_s=timeout_s)
        return found

    def last_words(self, container: str, lines: int, timeout_s: float) -> str:
        """The last lines that a container's first process wrote."""
        query = urlencode({"stdout": 1, "stderr": 1, "tail": lines})
        return _unframed(self._send("GET", f"/containers/{container}/logs?{query}", timeout_s=timeout_s))

    def file(self, container: str, path: str, timeout_s: float = _TIMEOUT_S) -> bytes:
        """A tar archive with one file or directory of a container, which need not run."""
        return self._send("GET", f"/containers/{container}/archive?{urlencode({'path': path})}", timeout_s=timeout_s)

    @contextmanager
    def files(self, container: str, path: str, timeout_s: float = _TIMEOUT_S) -> Iterator[http.client.HTTPResponse]:
        """The same, to be read as it comes."""
        query = urlencode({"path": path})
        with self._exchange("GET", self._path(f"/containers/{container}/archive?{query}"), None, timeout_s) as response:
            yield response

    def put(self, container: str, path: str, archive: bytes | Iterable[bytes], timeout_s: float = _TIMEOUT_S) -> None:
        """Unpack a tar archive in a directory of a container, which need not run."""
        target = f"/containers/{container}/archive?{urlencode({'path': path})}"
        headers = {"Content-Type": "application/x-tar"}
        with self._exchange("PUT", self._path(target, timeout_s), archive, timeout_s, headers) as response:
            response.read()

    def remove(self, container: str, timeout_s: float = _TIMEOUT_S) -> None:
        """Kill a container if it runs, and remove it with the volumes that are its own."""
        self._send("DELETE", f"/containers/{quote(container)}?force=1&v=1", timeout_s=timeout_s)

    def execute(
        self, container: str, argv: Iterable[str], *, user: str = "", timeout_s: float = _TIMEOUT_S
    ) -> Hijacked:
        """Run a program in a running container, and be connected to its three streams."""
        body = {"AttachStdin": True, "AttachStdout": True, "AttachStderr": True, "Cmd": list(argv), "User": user}
        made = self._json("POST", f"/containers/{container}/exec", body, timeout_s)
        return self._hijack(f"/exec/{made['Id']}/start", {"Detach": False, "Tty": False}, timeout_s)

    # Volumes: named places of an engine. Making one that exists returns it as it is.

    def make_volume(self, name: str, labels: Mapping[str, str], timeout_s: float = _TIMEOUT_S) -> dict[str, Any]:
        """Make a volume, or find the one of that name, whoever made it: its ``Labels`` say which."""
        body = {"Name": name, "Labels": dict(labels)}
        found: dict[str, Any] = self._json("POST", "/volumes/create", body, timeout_s)
        return found

    def volumes(self, labels: Mapping[str, str], timeout_s: float = _TIMEOUT_S) -> list[dict[str, Any]]:
        """The volumes that have these labels (an empty value: any): ``Name``, ``Labels``, ``CreatedAt`` of each."""
        found: list[dict[str, Any]] = self.get(f"/volumes?{_filter(labels)}", timeout_s=timeout_s).get("Volumes") or []
        return found

    def remove_volume(self, name: str, timeout_s: float = _TIMEOUT_S) -> None:
        """Remove a volume that no container uses."""
        self._send("DELETE", f"/volumes/{quote(name)}", timeout_s=timeout_s)

    # Images.

    def image(self, reference: str, timeout_s: float = _TIMEOUT_S) -> dict[str, Any] | None:
        """What the engine knows of an image (as ``docker image inspect`` shows it), None if it does not have it."""
        try:
            found: dict[str, Any] = self.get(f"/images/{quote(reference, safe='/:@')}/json", timeout_s=timeout_s)
        except RefusalError as error:
            if error.status in {http.HTTPStatus.NOT_FOUND, http.HTTPStatus.BAD_REQUEST}:
                return None
            raise
        return found

    def images(self, timeout_s: float = _TIMEOUT_S) -> list[dict[str, Any]]:
        """All images: ``Id``, ``RepoTags``, ``Labels``, ``Created`` of each."""
        found: list[dict[str, Any]] = self.get("/images/json", timeout_s=timeout_s)
        return found

    @contextmanager
    def saved(self, references: Iterable[str], timeout_s: float = _TIMEOUT_S) -> Iterator[http.client.HTTPResponse]:
        """The archive that ``docker save`` makes of images, to be read as it comes."""
        query = urlencode([("names", one) for one in references])
        with self._exchange("GET", self._path(f"/images/get?{query}"), None, timeout_s) as response:
            yield response

    def load(self, archive: Iterable[bytes], said: Callable[[dict[str, Any]], None], timeout_s: float) -> None:
        """Have the engine load the images of an archive. `said` gets its messages; RefusalError is its error."""
        headers = {"Content-Type": "application/x-tar"}
        with self._exchange("POST", self._path("/images/load?quiet=1"), archive, timeout_s, headers) as response:
            _messages(response, said)

    def pull(
        self, reference: str, tag: str, credentials: str, said: Callable[[dict[str, Any]], None], timeout_s: float
    ) -> None:
        """Have the engine pull an image. `credentials` as the API's X-Registry-Auth wants them, or empty."""
        query = urlencode({"fromImage": reference, "tag": tag})
        headers = {"X-Registry-Auth": credentials} if credentials else {}
        path = self._path(f"/images/create?{query}")
        with self._exchange("POST", path, None, timeout_s, headers) as response:
            _messages(response, said)

    def remove_image(self, image: str, timeout_s: float = _TIMEOUT_S) -> None:
        """Remove an image that no container has and that has one name at most."""
        self._send("DELETE", f"/images/{quote(image, safe='/:@')}?force=0", timeout_s=timeout_s)

    def tag(self, image: str, repository: str, tag: str, timeout_s: float = _TIMEOUT_S) -> None:
        """Give an image a further name."""
        query = urlencode({"repo": repository, "tag": tag})
        self._send("POST", f"/images/{quote(image, safe='/:@')}/tag?{query}", timeout_s=timeout_s)

    # How calls are made.

    def get(self, path: str, *, timeout_s: float = _TIMEOUT_S) -> Any:
        """What the engine says of something."""
        return self._understood(self._send("GET", path, timeout_s=timeout_s))

    def _json(self, method: str, path: str, body: Mapping[str, Any], timeout_s: float = _TIMEOUT_S) -> Any:
        return self._understood(self._send(method, path, body, timeout_s=timeout_s))

    def _understood(self, answer: bytes) -> Any:
        try:
            return json.loads(answer)
        except ValueError as error:
            raise TargetError(
                f"what answers at {self.address} does not speak as a Docker Engine does: {answer[:80]!r}",
                "Is something between here and there, such as a proxy?",
            ) from error

    def _send(
        self, method: str, path: str, body: Mapping[str, Any] | None = None, *, timeout_s: float = _TIMEOUT_S
    ) -> bytes:
        content = None if body is None else json.dumps(body).encode()
        headers = {"Content-Type": "application/json"} if content else {}
        with self._exchange(method, self._path(path, timeout_s), content, timeout_s, headers) as response:
            return response.read()

    def _path(self, path: str, timeout_s: float = _TIMEOUT_S) -> str:
        """The path of a call in the newest version of the API that both sides know."""
        if not self._version:
            with self._exchange("GET", "/_ping", None, timeout_s) as response:
                response.read()
                newest = tuple(map(int, response.headers.get("Api-Version", "1.41").split(".")))
            self._version = "/v{}.{}".format(*min(newest, _NEWEST))
        return f"{self._version}{path}"

    @contextmanager
    def _exchange(
        self,
        method: str,
        path: str,
        content: bytes | Iterable[bytes] | None,
        timeout_s: float,
        headers: Mapping[str, str] | None = None,
    ) -> Iterator[http.client.HTTPResponse]:
        connection = _Connection(self.transport, timeout_s)
        sent = dict(headers or {})
        is_stream = content is not None and not isinstance(content, bytes)
        if is_stream:
            sent["Transfer-Encoding"] = "chunked"
        try:
            with suppress(
                BrokenPipeError, ConnectionResetError
            ):  # an engine that refuses reads no further: why comes next
                connection.request(method, path, content, sent, encode_chunked=is_stream)
            response = connection.getresponse()
            _require_success(response)
            yield response
        except RefusalError as error:
            if error.status == http.HTTPStatus.BAD_REQUEST and "to an HTTPS server" in error.message:
                raise TargetRefused(
                    f"the Docker Engine at {self.address} asks for TLS",
                    "Name the directory of ca.pem, cert.pem and key.pem: `tls`.",
                ) from error
            raise
        except (OSError, http.client.HTTPException) as error:
            if isinstance(error, OSError) and error.filename is not None:
                raise  # a file of this machine
            raise self._unanswered(error, timeout_s) from error
        finally:
            connection.close()

    def _hijack(self, path: str, body: Mapping[str, Any], timeout_s: float) -> Hijacked:
        """A call whose connection becomes a stream of both directions."""
        connection = _Connection(self.transport, timeout_s)
        headers = {"Content-Type": "application/json", "Connection": "Upgrade", "Upgrade": "tcp"}
        try:
            connection.request("POST", self._path(path, timeout_s), json.dumps(body).encode(), headers)
            response = connection.getresponse()
            _require_success(response)
        except (OSError, http.client.HTTPException) as error:
            connection.close()
            raise self._unanswered(error, timeout_s) from error
        except RefusalError:
            connection.close()
            raise
        return Hijacked(connection.sock, response)

    def _unanswered(self, error: Exception, timeout_s: float) -> TargetError:
        if isinstance(error, PermissionError):
            return TargetRefused(
                f"this user may not use the Docker Engine at {self.address}",
                "Add the user to the group that owns the socket (mostly `docker`), and log in again.",
            )
        if isinstance(error, TimeoutError):
            return TargetError(
                f"the Docker Engine at {self.address} did not answer within {timeout_s:g} s",
                "Restart Docker." if self.transport.is_local else "Look at the network and at Docker there.",
            )
        return self.transport.unanswered(error)


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
    """HTTP over whatever a transport connects to."""

    def __init__(self, transport: Transport, timeout_s: float) -> None:
        super().__init__("localhost", timeout=timeout_s, blocksize=_CHUNK_BYTES)
        self._transport = transport
        self._timeout_s = timeout_s

    def connect(self) -> None:
        """Connect to the engine."""
        self.sock = self._transport.connect(self._timeout_s)
        self.sock.settimeout(self._timeout_s)


def _filter(labels: Mapping[str, str]) -> str:
    wanted = [f"{key}={value}" if value else key for key, value in labels.items()]
    return urlencode({"filters": json.dumps({"label": wanted})})


def _messages(response: http.client.HTTPResponse, said: Callable[[dict[str, Any]], None]) -> None:
    """Pass on the messages of a long call, a line each. Raises RefusalError for the error among them."""
    for line in response:
        if not line.strip():
            continue
        message = json.loads(line)
        if error := message.get("error"):
            raise RefusalError(http.HTTPStatus.INTERNAL_SERVER_ERROR, str(error).strip())
        said(message)


def _require_success(response: http.client.HTTPResponse) -> None:
    if response.status >= http.HTTPStatus.BAD_REQUEST:
        raise RefusalError(response.status, _reason(response.read()))


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
