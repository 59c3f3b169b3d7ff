"""How mpirun reaches a run's nodes by ssh: one configuration file for all of them, made of values. Pure.

An engine that starts MPI on several nodes writes it to ``${{ run.dir }}/ssh/config`` on node 0 (see planning/mpi.py).
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import NamedTuple

__all__ = ["SshHost", "known_hosts", "ssh_config"]


class SshHost(NamedTuple):
    """A node's sshd: its peer address, port, user, and its host key as in a public key file ("ssh-ed25519 AAAA...")."""

    address: str
    port: int
    user: str
    host_key: str


def ssh_config(hosts: Iterable[SshHost], *, identity: str, known_hosts: str) -> str:
    """The text that tells ssh of these hosts: it reaches them by this key, and each only if its host key is the known one.

    `identity` and `known_hosts` are absolute paths where it is used. It is read in place of the user's own (ssh(1), -F).
    Source: ssh_config(5).
    """
    common = {
        "IdentityFile": _quoted(identity),
        "IdentitiesOnly": "yes",
        "UserKnownHostsFile": _quoted(known_hosts),
        "GlobalKnownHostsFile": "/dev/null",
        "StrictHostKeyChecking": "yes",
        "BatchMode": "yes",
        "ConnectTimeout": "10",
        "ServerAliveInterval": "5",
        "LogLevel": "ERROR",
    }
    lines = []
    for host in hosts:
        own = {"HostName": host.address, "Port": str(host.port), "User": host.user}
        lines += [f"Host {host.address}", *(f"  {key} {value}" for key, value in {**own, **common}.items())]
    return "\n".join(lines) + "\n"


def known_hosts(hosts: Iterable[SshHost]) -> str:
    """The text of the file with the hosts' keys (sshd(8), "SSH_KNOWN_HOSTS FILE FORMAT")."""
    return "".join(f"[{host.address}]:{host.port} {' '.join(host.host_key.split()[:2])}\n" for host in hosts)


def _quoted(path: str) -> str:
    """A path as ssh_config(5) reads it: in quotes, a percent sign doubled."""
    return '"' + path.replace("%", "%%") + '"'
