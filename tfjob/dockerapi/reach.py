"""From the address of a Docker Engine, in any of its forms, to the engine."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Mapping
from pathlib import Path
from urllib.parse import urlsplit

from tfjob.dockerapi.api import DockerApi, socket_of
from tfjob.dockerapi.ssh import REMOTE_SOCKET, SshHost, SshTransport
from tfjob.dockerapi.transport import PLAIN_PORT, TLS_PORT, TcpTransport, Transport, UnixTransport
from tfjob.errors import TargetRefused

__all__ = ["FORMS", "engine_at", "engine_of_tools", "host_of", "transport_to"]

FORMS = "ssh://user@host, tcp://host:2376, unix:///path/to/docker.sock, context:NAME or local"


def engine_at(address: str, *, tls: str | None = None, environ: Mapping[str, str] | None = None) -> DockerApi:
    """The engine at an address. Nothing is asked of it yet. Raises TargetError for an address that leads nowhere."""
    return DockerApi(transport_to(address, tls=tls, environ=environ))


def engine_of_tools(environ: Mapping[str, str]) -> DockerApi:
    """The engine that Docker's own tools would use: DOCKER_HOST, by TLS where DOCKER_TLS_VERIFY says so, or the usual socket."""
    tls = environ.get("DOCKER_CERT_PATH") if environ.get("DOCKER_TLS_VERIFY") else None
    return engine_at(environ.get("DOCKER_HOST") or f"unix://{REMOTE_SOCKET}", tls=tls, environ=environ)


def transport_to(address: str, *, tls: str | None = None, environ: Mapping[str, str] | None = None) -> Transport:
    """How the engine at `address` is reached; `tls` is the directory of certificates for ``tcp://``."""
    known = os.environ if environ is None else environ
    if address == "local":
        return UnixTransport(socket_of(known))
    if address.startswith("unix://"):
        return UnixTransport(address)
    if address.startswith("context:"):
        host, certificates = _context(address.removeprefix("context:"), known)
        return transport_to(host, tls=tls or certificates, environ=known)
    try:
        if address.startswith("ssh://"):
            return SshTransport(SshHost.of(address), known)
        parts = urlsplit(address)
        if parts.scheme == "tcp" and parts.hostname:
            port = parts.port or (TLS_PORT if tls else PLAIN_PORT)
            return TcpTransport(address, parts.hostname, port, Path(tls).expanduser() if tls else None)
    except ValueError as error:
        raise TargetRefused(str(error), f"Allowed: {FORMS}.") from error
    raise TargetRefused(f"{address} is no address of a Docker Engine", f"Allowed: {FORMS}.")


def host_of(address: str, environ: Mapping[str, str] | None = None) -> str | None:
    """The host that an address leads to, as ssh's configuration has it; None for an engine of this machine."""
    if address.startswith("context:"):
        return host_of(
            _context(address.removeprefix("context:"), os.environ if environ is None else environ)[0], environ
        )
    if address.startswith("ssh://"):
        return SshTransport(SshHost.of(address), environ).hostname()
    return urlsplit(address).hostname if address.startswith("tcp://") else None


def _context(name: str, environ: Mapping[str, str]) -> tuple[str, str | None]:
    """The host and the certificates of a context of Docker's own configuration.

    Source: docker/cli, "Docker contexts": contexts/meta/DIGEST/meta.json and contexts/tls/DIGEST/docker, DIGEST the SHA-256 of the name.
    """
    home = environ.get("HOME") or os.path.expanduser("~")
    contexts = Path(environ.get("DOCKER_CONFIG") or Path(home) / ".docker") / "contexts"
    digest = hashlib.sha256(name.encode()).hexdigest()
    try:
        meta = json.loads((contexts / "meta" / digest / "meta.json").read_bytes())
        host = str(meta["Endpoints"]["docker"]["Host"])
    except FileNotFoundError:
        raise TargetRefused(f"there is no Docker context {name}", "See those there are: docker context ls.") from None
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise TargetRefused(
            f"the Docker context {name} can't be read: {error}", "Look at it: docker context inspect."
        ) from error
    certificates = contexts / "tls" / digest / "docker"
    return host, str(certificates) if certificates.is_dir() else None
