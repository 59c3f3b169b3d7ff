"""Whether this machine has a Docker Engine that answers."""

from __future__ import annotations

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
    from docker.errors import DockerException  # noqa: PLC0415

    try:
        client = docker.from_env(timeout=_TIMEOUT_S)
        try:
            return DockerProbe(str(client.version()["Version"]))
        finally:
            client.close()
    except (DockerException, OSError, KeyError) as error:
        return DockerProbe(None, f"no Docker Engine answers ({_short(error)})")


def _short(error: Exception) -> str:
    """The innermost words of Docker's nested errors."""
    text = str(error).rpartition("(")[2].strip(")'\" ") or str(error)
    return text.replace("'", "")[:100]
