"""Where the nodes of a cluster reach each other, and whether they do.

Each node listens at its address on a port that its system chooses, for half a minute at most. Each of the others connects
there and must be told a word that only this check knows: the ports are like those of tasks, and nothing else that listens
is taken for the node.
"""

from __future__ import annotations

import json
import os
import secrets
import shlex
import socket
import subprocess
from collections.abc import Mapping, Sequence
from concurrent.futures import Executor
from contextlib import closing, suppress
from typing import TYPE_CHECKING, Final, NamedTuple

from tfjob.dockerapi.reach import host_of
from tfjob.errors import TargetError
from tfjob.targets.address import address_of

if TYPE_CHECKING:
    from tfjob.targets.definition import ClusterDefinition, NodeDefinition
    from tfjob.targets.node_shell import NodeShell

__all__ = ["Peer", "check_peers", "host_for_peers", "peer_addresses"]

_LISTEN_S: Final = 30
_CONNECT_S: Final = 5
_RUN_S: Final = 30.0

_LISTENER: Final = """\
import os, socket, sys, time
word, seconds, address = sys.argv[1].encode(), float(sys.argv[2]), sys.argv[3]
try:
    family, kind, protocol, _, place = socket.getaddrinfo(address, 0, type=socket.SOCK_STREAM)[0]
    server = socket.socket(family, kind, protocol)
    server.bind(place)
    server.listen(64)
except OSError as error:
    sys.exit("failed " + (error.strerror or str(error)))
print("port", server.getsockname()[1], flush=True)
if os.fork():
    os._exit(0)
os.setsid()
null = os.open(os.devnull, os.O_RDWR)
for stream in (0, 1, 2):
    os.dup2(null, stream)
server.settimeout(1)
end = time.monotonic() + seconds
while time.monotonic() < end:
    try:
        peer = server.accept()[0]
        peer.settimeout(2)
        peer.sendall(word)
        peer.close()
    except OSError:
        pass
"""
_CONNECTOR: Final = """\
import json, socket, sys, threading
word, seconds, found = sys.argv[1].encode(), float(sys.argv[2]), {}
def reach(address, port):
    try:
        with socket.create_connection((address, port), seconds) as peer:
            peer.settimeout(seconds)
            told = b""
            while len(told) < len(word):
                more = peer.recv(len(word) - len(told))
                if not more:
                    break
                told += more
        return "" if told == word else "something else answers there"
    except socket.timeout:
        return "no answer"
    except OSError as error:
        return error.strerror or str(error)
def note(name, address, port):
    found[name] = reach(address, port)
threads = [threading.Thread(target=note, args=one) for one in json.loads(sys.argv[3])]
for thread in threads:
    thread.start()
for thread in threads:
    thread.join()
print("found", json.dumps(found))
"""


class _Deaf(NamedTuple):
    """Why a node does not listen; `is_wrong` where its address is to blame."""

    why: str
    is_wrong: bool = False


class Peer(NamedTuple):
    """Whether a node reaches another at its address; None where that was not tried, and `note` says why."""

    name: str
    address: str
    reached: bool | None
    note: str = ""


def peer_addresses(cluster: ClusterDefinition, environ: Mapping[str, str] | None = None) -> dict[str, str]:
    """Where each node is reached by the others, by name: as its definition says, or else the host of its engine.

    The host of an ``ssh://`` address may be an alias of the user's ssh configuration: it is the HostName there. An engine
    of this machine is reached at the address this machine has on the way to the others.
    """
    known = os.environ if environ is None else environ
    found = {node.name: node.address or host_for_peers(node, known) for node in cluster.nodes}
    others = [address for address in found.values() if address]
    return {name: address or _own_address(others) for name, address in found.items()}


def host_for_peers(node: NodeDefinition, environ: Mapping[str, str]) -> str:
    """The host of a node's engine, as other machines know it; empty for an engine of this machine."""
    if address_of(node.engine).scheme == "ssh":
        return _ssh_host(node.engine, environ)
    try:
        return host_of(node.engine, environ) or ""
    except (TargetError, ValueError):  # a context that is not there: told where the engine is asked
        return ""


def _ssh_host(engine: str, environ: Mapping[str, str]) -> str:
    """The host that ssh connects to. Source: ssh(1), -G."""
    host = address_of(engine).host
    config = environ.get("TFJOB_SSH_CONFIG")
    command = ["ssh", *(["-F", config] if config else []), "-G", "--", host]
    with suppress(OSError, subprocess.SubprocessError):
        told = subprocess.run(
            command, env=environ, stdin=subprocess.DEVNULL, capture_output=True, timeout=10, check=True
        )
        for line in told.stdout.decode(errors="replace").splitlines():
            key, _, value = line.partition(" ")
            if key == "hostname" and value:
                return value
    return host


def _own_address(others: Sequence[str]) -> str:
    """The address this machine has on the way to the first of the others that has a route. No packet is sent."""
    for other in others:
        with suppress(OSError):
            family, kind, protocol, _, address = socket.getaddrinfo(other, 9, type=socket.SOCK_DGRAM)[0]
            with closing(socket.socket(family, kind, protocol)) as way:
                way.connect(address)
                return str(way.getsockname()[0])
    return "127.0.0.1"


def check_peers(
    shells: Mapping[str, NodeShell], addresses: Mapping[str, str], pool: Executor
) -> dict[str, tuple[Peer, ...]]:
    """Have every node reach every other one; `shells` are those of the nodes that can be asked, by name.

    The answer is by node, and has a Peer for every other node of `addresses`.
    """
    word = secrets.token_hex(8)
    ports = dict(zip(shells, pool.map(lambda name: _listen(shells[name], word, addresses[name]), shells), strict=True))

    def peers_of(name: str) -> tuple[Peer, ...]:
        others = [other for other in addresses if other != name]
        wanted = [(other, addresses[other], port) for other in others if isinstance(port := ports.get(other), int)]
        found = _connect(shells[name], word, wanted) if name in shells and wanted else {}
        return tuple(_peer(other, addresses[other], found, ports.get(other), shells.get(name)) for other in others)

    return dict(zip(addresses, pool.map(peers_of, addresses), strict=True))


def _listen(shell: NodeShell, word: str, address: str) -> int | _Deaf:
    """The port that the node listens on from now on, or why it does not."""
    try:
        told = shell.run(_python(_LISTENER, word, str(_LISTEN_S), address), _RUN_S)
    except TargetError as error:
        return _Deaf(error.message)
    for line in told.text.splitlines():
        start, _, port = line.partition(" ")
        if start == "port" and port.isdecimal():
            return int(port)
        if start == "failed":
            return _Deaf(f"{address} is no address of its own: {port}", is_wrong=True)
    return _Deaf("there is no python3 on it" if "not found" in told.text else "its python3 does not run")


def _connect(shell: NodeShell, word: str, wanted: list[tuple[str, str, int]]) -> dict[str, str]:
    """What hindered the node from reaching each of those `wanted`; empty text where nothing did."""
    try:
        told = shell.run(_python(_CONNECTOR, word, str(_CONNECT_S), json.dumps(wanted)), _RUN_S)
    except TargetError:
        return {}
    for line in told.text.splitlines():
        if line.startswith("found "):
            with suppress(ValueError):
                return {str(name): str(why) for name, why in json.loads(line.removeprefix("found ")).items()}
    return {}


def _peer(other: str, address: str, found: dict[str, str], port: int | _Deaf | None, shell: NodeShell | None) -> Peer:
    if other in found:
        return Peer(other, address, not found[other], found[other])
    if isinstance(port, _Deaf):
        return Peer(other, address, False if port.is_wrong else None, f"{other}: {port.why}")
    if shell is None:
        return Peer(other, address, None, "neither ssh nor an image to ask it with")
    return Peer(other, address, None, f"{other} can't be asked" if port is None else "it can't be asked")


def _python(program: str, *arguments: str) -> str:
    return shlex.join(["python3", "-c", program, *arguments])
