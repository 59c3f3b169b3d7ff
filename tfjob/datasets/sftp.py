"""Files by SFTP: fsspec's file system over a connection whose server has proved who it is.

As with OpenSSH, the host, port, user and key of an address are those of ~/.ssh/config, keys are those of the agent and
of ~/.ssh, and the server's key must be in known_hosts (ssh_config(5), sshd(8)). Nobody is asked for a password.
"""

from __future__ import annotations

import functools
import os
import threading
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final
from urllib.parse import unquote, urlsplit

from tfjob.errors import PreparationError

if TYPE_CHECKING:
    from collections.abc import Mapping

__all__ = ["UnreachableError", "sftp_file_system"]

TIMEOUT_S = 30.0
"""So long an answer is waited for."""
_ALIVE_S: Final = 15
"""So often the server is told something: what is between may forget a connection that is silent."""
_LETTING_IN: Final = threading.BoundedSemaphore(4)
"""So many connections are begun at once: past 10 that it has not let in yet, a server drops some (sshd_config(5), MaxStartups).

It may take a moment longer than its client to see that one was let in."""
_GLOBAL_HOSTS = "/etc/ssh/ssh_known_hosts"


class UnreachableError(PreparationError):
    """A host can't be reached now; another try may help."""


def sftp_file_system(address: str) -> tuple[Any, str]:
    """The file system that an address is on, connected, and its path there. One for each thread.

    Raises ImportError when paramiko or fsspec is missing, PreparationError when the host does not let us in, and
    UnreachableError, which is one too, when it can't be reached.
    """
    start, _, path = address.partition("://")[2].partition("/")
    parts = urlsplit(f"//{start}")
    made = _kind()(parts.hostname or "", port=parts.port or 0, username=parts.username or "")
    made.connect_again()
    return made, f"/{unquote(path)}"  # in which # and ? are letters as others


@functools.cache
def _kind() -> Any:
    from fsspec.implementations.sftp import SFTPFileSystem  # noqa: PLC0415  # it may be missing

    class Sftp(SFTPFileSystem):  # type: ignore[misc]  # the package has no types
        """Connects as OpenSSH does. fsspec's own takes any key that a server shows."""

        def _connect(self) -> None:
            with _LETTING_IN:
                self.client = _connected(self.host, self.ssh_kwargs)
            self.ftp = _opened(self.host, self.client)

        def connect_again(self) -> None:
            """Connect if the connection was lost: fsspec gives a thread the same object for as long as it lives."""
            transport = self.client.get_transport()
            if transport is None or not transport.is_active():
                self._connect()

        def walk(self, path: str, maxdepth: int | None = None, **options: Any) -> Any:
            """Raises what keeps a directory from being listed. fsspec's own leaves such a directory out."""
            return super().walk(path, maxdepth, **{**options, "on_error": "raise"})

    return Sftp


def _opened(host: str, client: Any) -> Any:
    """What speaks SFTP over a connection. Where no answer comes in time, the connection is closed: what came of it has no use."""
    too_late = threading.Timer(TIMEOUT_S, client.close)
    too_late.daemon = True
    too_late.start()
    try:
        opened = client.open_sftp()
        client.get_transport().set_keepalive(_ALIVE_S)
    except Exception as error:
        client.close()
        raise UnreachableError(f"the host {host} does not answer by SFTP: {error or 'nothing came'}", "") from error
    finally:
        too_late.cancel()
    channel = opened.get_channel()
    channel.settimeout(TIMEOUT_S)
    receive = channel.recv

    def recv(count: int) -> bytes:
        try:
            return bytes(receive(count))
        except TimeoutError:
            client.close()
            raise TimeoutError(f"the host {host} has said nothing for {TIMEOUT_S:g} s") from None

    channel.recv = recv
    return opened


class _KnownOnly:
    """What paramiko asks about a host whose key is not known."""

    def __init__(self, host: str) -> None:
        self._host = host

    def missing_host_key(self, *_: object) -> None:
        raise PreparationError(
            f"the host {self._host} can't be reached by ssh: its key is not in ~/.ssh/known_hosts",
            f"Log in once and look at it: ssh {self._host}",
        )


def _connected(host: str, asked: Mapping[str, Any]) -> Any:
    import paramiko  # noqa: PLC0415  # it may be missing, and takes 100 ms

    said = _configuration(paramiko, host)
    client = paramiko.SSHClient()
    client.load_system_host_keys()
    for path in (_GLOBAL_HOSTS, *said.get("userknownhostsfile", "").split()):
        known = os.path.expanduser(path)
        if os.path.exists(known):
            client.load_system_host_keys(known)
    client.set_missing_host_key_policy(_KnownOnly(host))
    try:
        client.connect(
            said.get("hostname", host),
            port=asked["port"] or int(said.get("port", 22)),
            username=asked["username"] or said.get("user"),
            key_filename=said.get("identityfile"),
            timeout=30,
            banner_timeout=30,
            auth_timeout=30,
        )
    except paramiko.BadHostKeyException as error:
        raise PreparationError(
            f"the host {host} shows another key than the one in ~/.ssh/known_hosts: {error}",
            "Somebody may be listening. If the host was set up anew, remove the old key: ssh-keygen -R HOST",
        ) from error
    except paramiko.AuthenticationException as error:
        raise PreparationError(
            f"the host {host} does not let us in: {error}",
            f"Try it: ssh {host}. Keys are taken from the agent, ~/.ssh and ~/.ssh/config.",
        ) from error
    except (paramiko.SSHException, OSError, EOFError) as error:
        why = (error.strerror if isinstance(error, OSError) else None) or error
        raise UnreachableError(f"the host {host} can't be reached by ssh: {why}", f"Try it: ssh {host}") from error
    return client


def _configuration(paramiko: Any, host: str) -> dict[str, Any]:
    path = Path.home() / ".ssh" / "config"
    if not path.is_file():
        return {}
    found: dict[str, Any] = dict(paramiko.SSHConfig.from_path(str(path)).lookup(host))
    return found
