"""Files by SFTP: fsspec's file system over a connection whose server has proved who it is.

As with OpenSSH, the host, port, user and key of an address are those of ~/.ssh/config, keys are those of the agent and
of ~/.ssh, and the server's key must be in known_hosts (ssh_config(5), sshd(8)). Nobody is asked for a password.
"""

from __future__ import annotations

import functools
import os
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import unquote, urlsplit

from tfjob.errors import PreparationError

if TYPE_CHECKING:
    from collections.abc import Mapping

__all__ = ["sftp_file_system"]

_GLOBAL_HOSTS = "/etc/ssh/ssh_known_hosts"


def sftp_file_system(address: str) -> tuple[Any, str]:
    """The file system that an address is on, connected, and its path there. One for each thread.

    Raises ImportError when paramiko or fsspec is missing, and PreparationError when the host does not let us in.
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
            self.client = _connected(self.host, self.ssh_kwargs)
            self.ftp = self.client.open_sftp()

        def connect_again(self) -> None:
            """Connect if the connection was lost: fsspec gives a thread the same object for as long as it lives."""
            transport = self.client.get_transport()
            if transport is None or not transport.is_active():
                self._connect()

        def walk(self, path: str, maxdepth: int | None = None, **options: Any) -> Any:
            """Raises what keeps a directory from being listed. fsspec's own leaves such a directory out."""
            return super().walk(path, maxdepth, **{**options, "on_error": "raise"})

    return Sftp


def _connected(host: str, asked: Mapping[str, Any]) -> Any:
    import paramiko  # noqa: PLC0415  # it may be missing, and takes 100 ms

    said = _configuration(paramiko, host)
    client = paramiko.SSHClient()
    client.load_system_host_keys()
    for path in (_GLOBAL_HOSTS, *said.get("userknownhostsfile", "").split()):
        known = os.path.expanduser(path)
        if os.path.exists(known):
            client.load_system_host_keys(known)
    client.set_missing_host_key_policy(paramiko.RejectPolicy())
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
    except (paramiko.SSHException, OSError) as error:
        hint = f"If its key is not known yet, log in once and look at it: ssh {host}"
        why = (error.strerror if isinstance(error, OSError) else None) or error
        raise PreparationError(f"the host {host} can't be reached by ssh: {why}", hint) from error
    return client


def _configuration(paramiko: Any, host: str) -> dict[str, Any]:
    path = Path.home() / ".ssh" / "config"
    if not path.is_file():
        return {}
    found: dict[str, Any] = dict(paramiko.SSHConfig.from_path(str(path)).lookup(host))
    return found
