"""Two nodes on this machine to start MPI on: each a network and a host name of its own, and an sshd on a port of its own."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from functools import partial
from pathlib import Path
from typing import NamedTuple

import pytest
from docker_parts import program
from support import eventually

from tfjob.planning.ssh import SshHost

NEEDED = {"ip": "iproute2", "unshare": "util-linux", "ssh-keygen": "openssh-client", "sshd": "openssh-server"}
SUBNET = "10.83.0.0/24"
_WHERE = f"{os.environ.get('PATH', '')}:/usr/sbin:/sbin"


def need() -> None:
    """Have what the nodes are made of installed, if that can be; skips with what is missing."""
    if os.geteuid() != 0:
        pytest.skip("nodes with networks of their own need root")
    for name, package in NEEDED.items():
        program(name, package)


class VirtualNode(NamedTuple):
    """One node: its host name, how mpirun reaches it, and what runs a command there."""

    name: str
    host: SshHost
    inside: tuple[str, ...]


@contextmanager
def two_nodes(directory: Path, programs: Path) -> Iterator[tuple[VirtualNode, VirtualNode]]:
    """The nodes, as long as the context lasts. `programs` is a directory of programs that a login finds."""
    tag, nodes = f"tfjob-{os.getpid()}", []
    for key in ("id", "host"):
        run("ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", str(directory / key))
    with ExitStack() as stack:
        switch = _namespace(stack, f"{tag}-switch")
        run("ip", "-n", switch, "link", "add", "br0", "type", "bridge", "forward_delay", "0")
        run("ip", "-n", switch, "link", "set", "br0", "up")
        for number in range(2):
            name, address, port = f"{tag}-{number}", f"10.83.0.1{number}", 2300 + number
            space = _namespace(stack, name)
            run(
                "ip",
                "link",
                "add",
                "peer0",
                "netns",
                space,
                "type",
                "veth",
                "peer",
                "name",
                f"p{number}",
                "netns",
                switch,
            )
            run("ip", "-n", switch, "link", "set", f"p{number}", "master", "br0", "up")
            run("ip", "-n", space, "addr", "add", f"{address}/24", "dev", "peer0")
            for device in ("lo", "peer0"):
                run("ip", "-n", space, "link", "set", device, "up")
            # Another network, which does not connect the nodes: what is not told of the right one may try it.
            run("ip", "-n", space, "addr", "add", f"10.84.{number}.1/24", "dev", "lo", "scope", "global")
            inside = (
                *("ip", "netns", "exec", space, "unshare", "--uts", "sh", "-c"),
                f'hostname {name}; exec "$@"',
                "sh",
            )
            file = directory / f"sshd{number}"
            file.write_text(
                f"Port {port}\nListenAddress {address}\nHostKey {directory}/host\nAuthorizedKeysFile {directory}/id.pub\n"
                "PermitRootLogin yes\nPasswordAuthentication no\nStrictModes no\nUsePAM no\nUseDNS no\nPidFile none\n"
                f"SetEnv PATH={programs}:/usr/bin:/bin\n"
            )
            Path("/run/sshd").mkdir(exist_ok=True)
            sshd = shutil.which("sshd", path=_WHERE) or "sshd"
            process = stack.enter_context(
                subprocess.Popen([*inside, sshd, "-D", "-e", "-f", str(file)], stderr=subprocess.DEVNULL)
            )
            stack.callback(process.kill)
            host = SshHost(address, port, "root", (directory / "host.pub").read_text())
            nodes.append(VirtualNode(name, host, inside))
        for node in nodes:
            eventually(partial(_answers, node.host, nodes[0]), f"sshd of {node.name} answers")
        yield nodes[0], nodes[1]


def _namespace(stack: ExitStack, name: str) -> str:
    run("ip", "netns", "add", name)
    stack.callback(run, "ip", "netns", "del", name)
    return name


def _answers(host: SshHost, there: VirtualNode) -> bool:
    probe = f"import socket; socket.create_connection(('{host.address}', {host.port}), 1)"
    command = [*there.inside, sys.executable, "-S", "-c", probe]
    return subprocess.run(command, check=False, capture_output=True).returncode == 0


def run(*command: str) -> None:
    environ = {**os.environ, "PATH": _WHERE}
    subprocess.run(command, env=environ, check=True, capture_output=True)
