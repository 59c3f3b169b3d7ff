"""The keys of one run's mpirun: a key pair, a host key, and the files by which ssh and sshd use them, for this run alone."""

from __future__ import annotations

import shutil
import subprocess
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from tfjob.errors import TargetError
from tfjob.planning.ssh import SshHost, known_hosts, ssh_config
from tfjob.rundir import RunDirectory

__all__ = ["Door", "ssh_files"]

_TIMEOUT_S = 30.0


@dataclass(frozen=True)
class Door:
    """Where a node of the run takes ssh connections: the address its peers know, the port, and the user ranks run as."""

    address: str
    port: int
    user: str


def ssh_files(run: RunDirectory, doors: Sequence[Door], path: str) -> list[dict[str, tuple[str, int]]]:
    """The files of each node, path in the run's directory → (text, mode); `run` is the directory as tasks know it.

    Ranks are started by an sshd that lets nobody in but the holder of the run's key; its host key is the one that the
    run's own known_hosts names. `path` is the PATH that mpirun's remote end needs: sshd gives a bare one.
    Sources: sshd_config(5); Open MPI's documentation, "Launching with SSH".
    Raises TargetError when this machine has no ssh-keygen.
    """
    key, public = _key_pair()
    host_key, host_public = _key_pair()
    ssh = f"{run.path}/ssh"
    hosts = [SshHost(door.address, door.port, door.user, host_public) for door in doors]
    config = ssh_config(hosts, identity=f"{ssh}/id", known_hosts=f"{ssh}/known_hosts")
    files = []
    for door in doors:
        daemon = (
            f"ListenAddress {door.address}\nPort {door.port}\nHostKey {ssh}/host_key\nAuthorizedKeysFile {ssh}/authorized_keys\n"
            "PermitRootLogin prohibit-password\nPasswordAuthentication no\nKbdInteractiveAuthentication no\nUsePAM no\n"
            "StrictModes no\nUseDNS no\nPidFile none\nMaxStartups 1000\nX11Forwarding no\nAllowTcpForwarding no\n"
            f"AllowAgentForwarding no\nPermitUserRC no\nSetEnv PATH={path}\n"
        )
        files.append(
            {
                "ssh/id": (key, 0o600),
                "ssh/host_key": (host_key, 0o600),
                "ssh/authorized_keys": (public, 0o600),
                "ssh/known_hosts": (known_hosts(hosts), 0o600),
                "ssh/config": (config, 0o600),
                "ssh/sshd_config": (daemon, 0o600),
            }
        )
    return files


def _key_pair() -> tuple[str, str]:
    """A new Ed25519 key pair, which is on this machine's disk for a moment, in a directory of this user alone."""
    program = shutil.which("ssh-keygen")
    if program is None:
        raise TargetError(
            "this machine has no ssh-keygen, which makes the keys of an MPI run", "Install the OpenSSH client."
        )
    with tempfile.TemporaryDirectory(prefix="tfjob-key-") as directory:
        file = Path(directory, "key")
        subprocess.run(
            [program, "-q", "-t", "ed25519", "-N", "", "-C", "tfjob", "-f", str(file)],
            check=True,
            capture_output=True,
            timeout=_TIMEOUT_S,
        )
        return file.read_text(encoding="ascii"), file.with_suffix(".pub").read_text(encoding="ascii")
