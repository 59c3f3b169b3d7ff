"""Whether this machine has a Docker Engine that answers."""

from __future__ import annotations

import os
from typing import NamedTuple

__all__ = ["DockerProbe", "probe_docker"]

_TIMEOUT_S = 5


class DockerProbe(NamedTuple):
    """What was found: the engine's version, or None and why not."""

    version: str | None
    note: str = ""


def probe_docker() -> DockerProbe:
    """Ask the Docker Engine that the environment names (DOCKER_HOST, or the usual socket) for its version."""
    import docker  # noqa: PLC0415  # 100 ms that only a probe should pay
    from docker.constants import DEFAULT_UNIX_SOCKET  # noqa: PLC0415
    from docker.errors import DockerException  # noqa: PLC0415

    try:
        client = docker.from_env(timeout=_TIMEOUT_S)
        try:
            return DockerProbe(str(client.version()["Version"]))
        finally:
            client.close()
    except (DockerException, OSError, KeyError):
        address = os.environ.get("DOCKER_HOST") or DEFAULT_UNIX_SOCKET.removeprefix("http+unix://")
        return DockerProbe(None, f"no Docker Engine answers on {address}")
