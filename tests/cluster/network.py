"""The wires of a test cluster: a bridge in a namespace of its own, a cable to each node, one to this machine.

The bridge is not in the machine's own namespace, so that nothing of its firewall has a say between the nodes, and nothing
of the machine's own settings is changed.
"""

from __future__ import annotations

import ipaddress
import json
import signal
import subprocess
from pathlib import Path
from typing import TYPE_CHECKING

from docker_parts import CannotRunError, signalled, wait_for

if TYPE_CHECKING:
    from cluster.layout import Layout

__all__ = ["connect", "disconnect", "is_plugged", "make_switch", "occupants", "plug", "remove_switch"]

NAMESPACES = Path("/run/netns")
BRIDGE = "br0"
UPLINK = "machine"
END_S = 10


def ip(*arguments: str) -> str:
    """Run ``ip``; returns what it printed. Raises CannotRunError with what it said when it cannot."""
    done = subprocess.run(["ip", *arguments], check=False, capture_output=True, text=True)
    if done.returncode != 0:
        raise CannotRunError(f"ip {' '.join(arguments)}: {done.stderr.strip()[-300:]}")
    return done.stdout


def batch(*commands: str) -> None:
    """Run several ``ip`` commands as one."""
    lines = "\n".join(commands) + "\n"
    done = subprocess.run(["ip", "-batch", "-"], input=lines, check=False, capture_output=True, text=True)
    if done.returncode != 0:
        raise CannotRunError(f"ip: {done.stderr.strip()[-300:]}; it was told: {'; '.join(commands)}")


def make_switch(layout: Layout) -> None:
    """Make the bridge and the cable from it to this machine, unless they are there."""
    if (NAMESPACES / layout.switch).exists():
        return
    _refuse_taken_network(layout)
    subprocess.run(["ip", "link", "del", layout.machine_interface], check=False, capture_output=True)
    ip("netns", "add", layout.switch)
    try:
        batch(
            f"link add {layout.machine_interface} type veth peer name {UPLINK} netns {layout.switch}",
            f"addr add {layout.machine_address}/24 dev {layout.machine_interface}",
            f"link set {layout.machine_interface} up",
        )
        for command in (
            f"link add {BRIDGE} type bridge forward_delay 0",
            f"link set {BRIDGE} up",
            f"link set {UPLINK} master {BRIDGE} up",
        ):
            ip("-n", layout.switch, *command.split())
    except CannotRunError:
        remove_switch(layout)
        raise


def remove_switch(layout: Layout) -> None:
    """Remove the bridge and the machine's cable, and end what runs beside the bridge; nodes are disconnected before."""
    _end(layout, "switch")
    for command in (("link", "del", layout.machine_interface), ("netns", "del", layout.switch)):
        subprocess.run(["ip", *command], check=False, capture_output=True)


def connect(layout: Layout, name: str, address: str) -> None:
    """Make a node's namespace, with its address and a plugged cable to the bridge, in place of one that was there."""
    disconnect(layout, name)
    namespace = layout.namespace(name)
    ip("netns", "add", namespace)
    mac = ":".join(f"{number:02x}" for number in (2, 0, *map(int, address.split("."))))  # the same after every boot
    end = ["eth0", "address", mac, "netns", namespace]
    ip("link", "add", *end, "type", "veth", "peer", "name", name, "netns", layout.switch)
    ip("-n", layout.switch, "link", "set", name, "master", BRIDGE, "up")
    ip("-n", namespace, "link", "set", "lo", "up")
    ip("-n", namespace, "addr", "add", f"{address}/24", "dev", "eth0")
    ip("-n", namespace, "link", "set", "eth0", "up")


def disconnect(layout: Layout, name: str) -> None:
    """Remove a node's namespace and cable, and end whatever still runs in it."""
    _end(layout, name)
    subprocess.run(["ip", "-n", layout.switch, "link", "del", name], check=False, capture_output=True)
    subprocess.run(["ip", "netns", "del", layout.namespace(name)], check=False, capture_output=True)


def occupants(layout: Layout, name: str) -> list[int]:
    """The processes in the network of a node or, by the name ``switch``, beside the bridge; in containers too."""
    if not (NAMESPACES / layout.namespace(name)).exists():
        return []
    listed = subprocess.run(
        ["ip", "netns", "pids", layout.namespace(name)], check=False, capture_output=True, text=True
    )
    return [int(pid) for pid in listed.stdout.split()]


def _end(layout: Layout, name: str) -> None:
    for pid in occupants(layout, name):
        signalled(pid, signal.SIGKILL)
    wait_for(lambda: not occupants(layout, name), END_S)


def plug(layout: Layout, name: str, *, plugged: bool) -> None:
    """Plug a node's cable, or pull it."""
    ip("-n", layout.switch, "link", "set", name, "up" if plugged else "down")


def is_plugged(layout: Layout, name: str) -> bool:
    shown = subprocess.run(
        ["ip", "-n", layout.switch, "-j", "link", "show", name], check=False, capture_output=True, text=True
    )
    return shown.returncode == 0 and "UP" in json.loads(shown.stdout)[0]["flags"]


def _refuse_taken_network(layout: Layout) -> None:
    ours = ipaddress.ip_network(f"{layout.network}.0/24")
    for route in json.loads(ip("-j", "-4", "route", "show") or "[]"):
        if route["dst"] == "default" or route.get("dev") == layout.machine_interface:
            continue
        theirs = ipaddress.ip_network(route["dst"])
        if theirs.prefixlen > 12 and theirs.overlaps(ours):  # the machine's own route to all of 10/8 is no obstacle
            raise CannotRunError(f"the test cluster's network {ours} is in use here: {route['dst']} dev {route['dev']}")
