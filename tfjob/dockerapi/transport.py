"""Ways to a Docker Engine: a socket of this machine, TCP with or without TLS; by ssh, see `tfjob.dockerapi.ssh`."""

from __future__ import annotations

import socket
import ssl
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Final, Protocol

from tfjob.errors import TargetError, TargetRefused

__all__ = ["TcpTransport", "Transport", "UnixTransport"]

TLS_PORT: Final = 2376
PLAIN_PORT: Final = 2375
_LIFE: Final = {
    socket.TCP_KEEPIDLE: 10,
    socket.TCP_KEEPINTVL: 5,
    socket.TCP_KEEPCNT: 4,
    socket.TCP_USER_TIMEOUT: 30_000,
}
"""So that a machine without power ends a long call within half a minute, whichever side was to speak (tcp(7); the last in ms)."""


class Transport(Protocol):
    """How an engine is reached. `address` names it in messages."""

    @property
    def address(self) -> str:
        """The engine's address, as the user wrote it."""
        ...

    @property
    def is_local(self) -> bool:
        """Whether the engine is at a socket of this machine."""
        ...

    def connect(self, timeout_s: float) -> socket.socket:
        """A new connection to the engine. Raises OSError, or TargetError where more is known."""
        ...

    def variables(self) -> dict[str, str]:
        """The variables by which Docker's own tools reach the engine from here, for as long as this is not closed."""
        ...

    def unanswered(self, error: Exception) -> TargetError:
        """The error for an engine that could not be reached, or broke off."""
        ...

    def close(self) -> None:
        """Let go of what is kept open between calls, if anything. A later call opens it again."""
        ...


@dataclass(frozen=True)
class UnixTransport:
    """A socket of this machine: ``unix:///path``."""

    address: str

    @property
    def is_local(self) -> bool:
        """It is."""
        return True

    def connect(self, timeout_s: float) -> socket.socket:
        """Connect to the socket."""
        connection = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        connection.settimeout(timeout_s)
        try:
            connection.connect(self.address.removeprefix("unix://"))
        except BaseException:
            connection.close()
            raise
        return connection

    def close(self) -> None:
        """Nothing is kept between calls."""

    def variables(self) -> dict[str, str]:
        """Its socket."""
        return {"DOCKER_HOST": self.address}

    def unanswered(self, error: Exception) -> TargetError:  # noqa: ARG002  # there is one reason only
        """Nobody listens there."""
        return TargetError(
            f"no Docker Engine answers at {self.address}",
            "Start Docker, or say where its socket is: DOCKER_HOST=unix:///path/to/docker.sock.",
        )


@dataclass(frozen=True)
class TcpTransport:
    """``tcp://host:port``; with `tls`, a directory of ca.pem, cert.pem and key.pem, as Docker's own tools keep them."""

    address: str
    host: str
    port: int
    tls: Path | None = None

    @property
    def is_local(self) -> bool:
        """It may be, but its files are not taken to be this machine's."""
        return False

    @cached_property
    def _context(self) -> ssl.SSLContext | None:
        """Checks the engine's certificate, and shows our own. Source: Docker, "Protect the Docker daemon socket", TLS."""
        if self.tls is None:
            return None
        try:
            context = ssl.create_default_context(cafile=str(self.tls / "ca.pem"))
            context.load_cert_chain(self.tls / "cert.pem", self.tls / "key.pem")
        except OSError as error:  # ssl.SSLError is one
            raise TargetRefused(
                f"the certificates in {self.tls} can't be used: {error.strerror or error}",
                "The directory must hold ca.pem, cert.pem and key.pem.",
            ) from error
        return context

    def connect(self, timeout_s: float) -> socket.socket:
        """Connect, and agree on encryption where there is any."""
        context = self._context
        connection = socket.create_connection((self.host, self.port), timeout_s)
        try:
            connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            connection.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
            for option, value in _LIFE.items():
                connection.setsockopt(socket.IPPROTO_TCP, option, value)
            return context.wrap_socket(connection, server_hostname=self.host) if context else connection
        except BaseException:
            connection.close()
            raise

    def close(self) -> None:
        """Nothing is kept between calls."""

    def variables(self) -> dict[str, str]:
        """Its address, and the certificates."""
        secured = {"DOCKER_TLS_VERIFY": "1", "DOCKER_CERT_PATH": str(self.tls)} if self.tls else {}
        return {"DOCKER_HOST": f"tcp://{self.host}:{self.port}", **secured}

    def unanswered(self, error: Exception) -> TargetError:
        """Say whether the certificate was refused or nobody was there."""
        if isinstance(error, ssl.SSLCertVerificationError):
            return TargetRefused(
                f"the certificate of the Docker Engine at {self.address} is not to be trusted: {error.verify_message}",
                "Its certificate must name this host, and be signed by the ca.pem that `tls` names.",
            )
        if isinstance(error, ssl.SSLError):
            return TargetRefused(
                f"the Docker Engine at {self.address} and tfjob can't agree on TLS: {error.reason or error}",
                "Set `tls` for an engine that asks for certificates, and leave it out for one that does not.",
            )
        if isinstance(error, socket.gaierror) and error.errno != socket.EAI_AGAIN:
            return TargetRefused(f"there is no host {self.host}: {error.strerror}", "Check the node's `engine`.")
        return TargetError(
            f"no Docker Engine answers at {self.address}: {getattr(error, 'strerror', None) or error}",
            "Is the machine up, and does Docker listen there?",
        )
