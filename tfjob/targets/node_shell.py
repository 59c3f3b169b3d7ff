"""Short programs on a node, to find out what it is like: by ssh where it is reached so, else in a container there.

A container needs an image that is on the node already: nothing is pulled to ask a question.
"""

from __future__ import annotations

import shlex
import subprocess
from contextlib import contextmanager, suppress
from typing import TYPE_CHECKING, Final, NamedTuple, Protocol

from tfjob.dockerapi.api import RefusalError
from tfjob.dockerapi.ssh import SshTransport
from tfjob.errors import TargetError

if TYPE_CHECKING:
    from collections.abc import Collection, Iterator

    from tfjob.dockerapi.api import DockerApi

__all__ = ["ContainerShell", "LocalShell", "NodeShell", "SshShell", "Told", "container_shell", "known_image"]

_LIFETIME_S: Final = 300  # a container whose tfjob was killed ends by itself, and the engine removes it
_OWN_IMAGES: Final = ("tfjob/",)
LABEL: Final = "tfjob.probe"


class Told(NamedTuple):
    """What a program printed, and its exit code; stdout and stderr together."""

    exit_code: int
    text: str


class NodeShell(Protocol):
    """Somewhere to run a line of the shell on a node."""

    def run(self, line: str, timeout_s: float) -> Told:
        """Run it. Raises TargetError when the node does not answer in time."""
        ...


class SshShell:
    """The node's own shell, over the login that tfjob has there anyway."""

    def __init__(self, transport: SshTransport) -> None:
        self._transport = transport

    def run(self, line: str, timeout_s: float) -> Told:
        """Run the line in sh, whatever shell the user has there."""
        try:
            done = self._transport.run(f"sh -c {shlex.quote(f'exec 2>&1; {line}')}", timeout_s)
        except subprocess.TimeoutExpired as error:
            raise TargetError(
                f"{self._transport.address} did not answer within {timeout_s:g} s", "Log in by hand and look."
            ) from error
        return Told(done.returncode, done.stdout.decode(errors="replace"))


class LocalShell:
    """This machine, which is the node."""

    def run(self, line: str, timeout_s: float) -> Told:
        """Run the line in sh."""
        try:
            done = subprocess.run(
                ["sh", "-c", f"exec 2>&1; {line}"],
                stdin=subprocess.DEVNULL,
                capture_output=True,
                timeout=timeout_s,
                check=False,
            )
        except subprocess.TimeoutExpired as error:
            raise TargetError(f"this machine did not answer within {timeout_s:g} s") from error
        return Told(done.returncode, done.stdout.decode(errors="replace"))


class ContainerShell:
    """A container that waits, on the node's own network, and in which lines are run."""

    def __init__(self, api: DockerApi, container: str) -> None:
        self._api = api
        self._container = container

    def run(self, line: str, timeout_s: float) -> Told:
        """Run the line in the container's sh."""
        # The API tells an exit code in a further call; the line can say it itself.
        stream = self._api.execute(
            self._container, ["sh", "-c", f"({line}) 2>&1; code=$?; echo; echo $code"], timeout_s=timeout_s
        )
        try:
            data = b""
            while (frame := stream.read_frame()) is not None:
                data += frame[1]
        except OSError as error:
            raise TargetError(f"{self._api.address} broke off: {error}", "Look at Docker there.") from error
        finally:
            stream.close()
        text, _, code = data.decode(errors="replace").rstrip("\n").rpartition("\n")
        return Told(int(code) if code.isdecimal() else 1, text.removesuffix("\n"))


@contextmanager
def container_shell(
    api: DockerApi, image: str, *, gpus: bool = False, timeout_s: float = 30.0
) -> Iterator[ContainerShell]:
    """Run a container of `image` for as long as the block lasts; with `gpus`, all GPUs of the node are in it.

    Raises TargetError when the engine does not answer, RefusalError when it can't do it.
    """
    host: dict[str, object] = {"NetworkMode": "host", "AutoRemove": True, "Init": True}
    if gpus:
        host["DeviceRequests"] = [{"Driver": "", "Count": -1, "Capabilities": [["gpu", "utility"]]}]
    body = {
        "Image": image,
        "Entrypoint": ["sh", "-c", f"sleep {_LIFETIME_S}"],
        "Cmd": [],
        "Env": ["NVIDIA_DRIVER_CAPABILITIES=utility"],
        "Labels": {LABEL: "1"},
        "HostConfig": host,
    }
    container = api.create("", body, timeout_s)
    try:
        api.start(container, timeout_s)
        yield ContainerShell(api, container)
    finally:
        with suppress(RefusalError, TargetError):  # it removes itself, later
            api.remove(container, timeout_s)


def known_image(api: DockerApi, names: Collection[str], timeout_s: float = 30.0) -> str | None:
    """The id of an image on the node that tfjob may run: one of `names`, or one that tfjob has made. None if there is none."""
    found = [(tag, str(image["Id"])) for image in api.images(timeout_s) for tag in image.get("RepoTags") or ()]
    by_tag = dict(found)
    named = next((by_tag[tag] for name in names for tag in (name, f"{name}:latest") if tag in by_tag), None)
    return named or next((one for tag, one in found if tag.startswith(_OWN_IMAGES)), None)
