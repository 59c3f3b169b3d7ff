"""The Docker Engine that builds and keeps images: how it is reached, what its errors mean, where an image comes from.

The engine is the one that Docker's own tools would use: ``DOCKER_HOST``, or the usual socket; registries are asked
with the credentials of Docker's own configuration. Looking up an image by its name is one request over the socket
without the docker package, which takes longer to load than the answer takes.
"""

from __future__ import annotations

import contextlib
import http.client
import json
import os
import re
import socket
from typing import TYPE_CHECKING, Any
from urllib.parse import quote

from tfjob.errors import PreparationError, TargetError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Mapping

    from docker import DockerClient

__all__ = [
    "address",
    "connected",
    "explained",
    "find_image",
    "find_or_pull",
    "is_here",
    "messages",
    "refusal",
    "repository_and_tag",
]

_TIMEOUT_S = 60
_PATIENT_S = 24 * 3600
_SOCKET = "unix:///var/run/docker.sock"
_START_HINT = "Is the Docker Engine running? Start it, or say where it is with DOCKER_HOST; `docker info` must answer."
_GROUP_HINT = (
    "Become a member of the group `docker` (`sudo usermod -aG docker $USER`, then log in again), or ask who runs it."
)
_FULL_HINT = "Free space in the Docker Engine's data root (`docker system df`, `docker image prune`) and try again."
_ABSENT = re.compile(r"not found|no such image|manifest unknown|does not exist", re.IGNORECASE)
_REFUSED = re.compile(r"denied|unauthori[sz]ed|authentication required|no basic auth", re.IGNORECASE)
_UNREACHED = re.compile(
    r"no such host|i/o timeout|connection refused|network is unreachable|temporary failure|tls:|x509|server gave HTTP",
    re.IGNORECASE,
)


def address() -> str:
    """Return the address of the Docker Engine that is used, for messages and as a key."""
    return os.environ.get("DOCKER_HOST") or _SOCKET


@contextlib.contextmanager
def connected(doing: str = "", *, patient: bool = False) -> Iterator[DockerClient]:
    """Give a client of the Docker Engine; inside, errors of the docker package become tfjob's (see `explained`).

    With `patient` the engine may be silent for as long as it works; that it stopped is noticed by its socket.
    """
    import docker  # noqa: PLC0415  # 100 ms that only those who use an engine should pay

    with explained(doing):
        client = docker.from_env(timeout=_PATIENT_S if patient else _TIMEOUT_S)
        try:
            yield client
        finally:
            client.close()


@contextlib.contextmanager
def explained(doing: str = "") -> Iterator[None]:
    """Turn errors of the Docker Engine into tfjob's own; `doing` says what could not be done: ``build the image``.

    Raises TargetError when the engine cannot be reached, PreparationError when it stopped, is full or refused.
    """
    from docker.errors import APIError, DockerException  # noqa: PLC0415
    from requests.exceptions import RequestException  # noqa: PLC0415
    from urllib3.exceptions import HTTPError  # noqa: PLC0415

    try:
        yield
    except APIError as error:
        raise refusal(str(error.explanation or error), doing) from error
    except (DockerException, RequestException, HTTPError, http.client.HTTPException, OSError) as error:
        if isinstance(error, OSError) and error.filename is not None:
            raise  # a file of this machine
        raise _unreachable(error, doing) from error


def refusal(said: str, doing: str) -> PreparationError:
    """Return the error for what the engine said when it could not do something."""
    said = " ".join(said.split()) or "it gave no reason"
    first = f"the Docker Engine could not {doing}" if doing else "the Docker Engine refused"
    full = "no space left on device" in said.lower()
    return PreparationError(f"{first}: {said}", _FULL_HINT if full else "")


def _unreachable(error: BaseException, doing: str) -> TargetError | PreparationError:
    """Return the error for an engine that does not answer, or stopped answering while it worked."""
    if _has(error, PermissionError):
        return TargetError(f"no permission to use the Docker Engine at {address()}", _GROUP_HINT)
    if doing and not _has(error, (ConnectionRefusedError, FileNotFoundError)):
        return stopped(doing)
    return TargetError(f"no Docker Engine answers at {address()}", _START_HINT)


def stopped(doing: str) -> PreparationError:
    """Return the error for an engine that stopped while it worked."""
    return PreparationError(
        f"the Docker Engine at {address()} stopped answering while it was to {doing}",
        "Look at it (`docker info`, its log), start it again and submit again; what was done is kept.",
    )


def _has(error: BaseException | None, kinds: type[BaseException] | tuple[type[BaseException], ...]) -> bool:
    """Whether an error, or one it was made from, is of these kinds. requests and urllib3 wrap theirs in arguments."""
    seen: list[BaseException] = []
    todo: list[Any] = [error]
    while todo:
        one = todo.pop()
        if isinstance(one, BaseException) and one not in seen:
            if isinstance(one, kinds):
                return True
            seen.append(one)
            todo += [one.__cause__, one.__context__, getattr(one, "reason", None), *one.args]
    text = str(error)
    named = kinds if isinstance(kinds, tuple) else (kinds,)
    return any(kind.__name__ in text for kind in named)


def find_image(reference: str) -> Mapping[str, Any] | None:
    """Return what the engine knows of an image it has (as ``docker image inspect`` shows it), None when it has not.

    Raises TargetError when no engine answers.
    """
    host = address()
    if not host.startswith("unix://"):
        from docker.errors import ImageNotFound  # noqa: PLC0415

        with connected() as client:
            try:
                return dict(client.images.get(reference).attrs)
            except ImageNotFound:
                return None
    connection = _UnixConnection(host.removeprefix("unix://"), timeout=_TIMEOUT_S)
    try:
        connection.request("GET", f"/images/{quote(reference, safe='/:@')}/json")
        answer = connection.getresponse()
        body = answer.read()
    except (OSError, http.client.HTTPException) as error:
        raise _unreachable(error, "") from error
    finally:
        connection.close()
    if answer.status == http.HTTPStatus.OK:
        found = json.loads(body)
        return found if isinstance(found, dict) else None
    if answer.status in {http.HTTPStatus.NOT_FOUND, http.HTTPStatus.BAD_REQUEST}:
        return None
    raise refusal(body.decode(errors="replace"), f"look up the image {reference}")


class _UnixConnection(http.client.HTTPConnection):
    """HTTP over a Unix socket."""

    def __init__(self, path: str, *, timeout: float) -> None:
        super().__init__("localhost", timeout=timeout)
        self._path = path

    def connect(self) -> None:
        """Open the socket."""
        self.sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self.sock.settimeout(self.timeout)
        self.sock.connect(self._path)


def find_or_pull(reference: str, *, log: Callable[[str], None], progress: Callable[[str], None]) -> str:
    """Return the id of an image, pulled from its registry when the engine does not have it.

    `progress` gets how far it is, `log` what the engine says. Raises PreparationError when it cannot be had.
    """
    found = find_image(reference)
    if found is None:
        _pull(reference, log=log, progress=progress)
        found = find_image(reference)
    if found is None:
        raise _absent(reference, "the registry sent another image")
    return str(found["Id"])


def repository_and_tag(reference: str) -> tuple[str, str]:
    """Split the name of an image, such as ``registry.example:5000/team/name:1``; without a tag it is ``latest``."""
    from docker.utils import parse_repository_tag  # noqa: PLC0415

    repository, tag = parse_repository_tag(reference)
    return str(repository), str(tag or "latest")


def _pull(reference: str, *, log: Callable[[str], None], progress: Callable[[str], None]) -> None:
    """Pull an image and say how many of its layers, and bytes, are there."""
    from docker.errors import APIError  # noqa: PLC0415

    repository, tag = repository_and_tag(reference)
    progress(f"pulling {reference}")
    try:
        with connected(f"pull {reference}", patient=True) as client:
            stream = client.api.pull(repository, tag=tag, stream=True, decode=True)
            for message in messages(stream, f"pull {reference}"):
                log(_line(message))
                progress(f"pulling {reference}: {message['so far']}")
    except PreparationError as error:
        if not isinstance(error.__cause__, APIError) and "could not pull" not in error.message:
            raise
        said = error.message.partition(f"pull {reference}: ")[2] or error.message
        if "no space left" in said:
            raise
        raise _absent(reference, said) from error


def _absent(reference: str, said: str) -> PreparationError:
    """Return the error for an image that is neither in the engine nor in a registry it could be pulled from."""
    own = "Or make one from a root file system or Debian's packages: `tfjob env base create`."
    if _REFUSED.search(said):
        hint = f"Check its name; if it is private, log in first: `docker login`. {own}"
    elif _UNREACHED.search(said):
        hint = f"Check the network, a proxy of the engine, and the registry; or bring it here: `docker load`. {own}"
    elif _ABSENT.search(said):
        hint = f"Check its name and tag (`images:` in config.yml for `cpu` and `gpu`). {own}"
    else:
        hint = f"Bring it here by other means: `docker load`. {own}"
    return PreparationError(f"the Docker Engine has no image {reference}, and it could not be pulled: {said}", hint)


def messages(stream: Iterable[Mapping[str, Any]], doing: str) -> Iterator[dict[str, Any]]:
    """Pass on what the engine says while it moves layers; ``so far`` in each sums them up: ``3 of 7 layers, 40 MB``.

    Raises PreparationError for the error that the engine reports in its stream.
    """
    layers: dict[str, tuple[bool, int, int]] = {}
    for message in stream:
        if error := message.get("error"):
            raise refusal(str(error), doing)
        name, status = str(message.get("id", "")), str(message.get("status", ""))
        if name and not status.startswith(("Pulling from", "Digest")):
            detail = message.get("progressDetail") or {}
            known = layers.get(name, (False, 0, 0))
            moves = status in {"Downloading", "Pushing", "Loading layer"}
            current = int(detail.get("current", 0)) if moves else known[1]
            total = int(detail.get("total", 0)) if moves else known[2]
            done = status in {"Pull complete", "Already exists", "Pushed", "Layer already exists", "Mounted from"}
            layers[name] = (done or known[0], total if done else current, max(total, known[2]))
        finished = sum(done for done, _, _ in layers.values())
        moved = sum(current for _, current, _ in layers.values())
        all_bytes = sum(total for _, _, total in layers.values())
        sizes = f", {moved / 1e6:.0f} of {all_bytes / 1e6:.0f} MB" if all_bytes else ""
        yield {**message, "so far": f"{finished} of {len(layers)} layers{sizes}"}


def _line(message: Mapping[str, Any]) -> str:
    parts = (message.get("id"), message.get("status") or message.get("stream"), message.get("progress"))
    return " ".join(str(part).rstrip() for part in parts if part)


def is_here(client: DockerClient) -> bool:
    """Whether the engine runs on this machine, so that directories of this machine can be mounted in its containers.

    The engine's kernel and host name are compared with this machine's; an engine in a virtual machine has others.
    """
    if not address().startswith("unix://"):
        return False
    info = client.info()
    here = os.uname()
    return (info.get("KernelVersion"), info.get("Name")) == (here.release, here.nodename)
