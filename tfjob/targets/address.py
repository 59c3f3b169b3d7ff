"""How a Docker Engine or a login node is reached, taken apart.

>>> address_of("ssh://trainer@[fe80::1]:2222")
Address(scheme='ssh', host='fe80::1', port=2222, user='trainer', rest='')
>>> address_of("unix:///run/docker.sock").rest, address_of("context:lab").rest
('/run/docker.sock', 'lab')
"""

from __future__ import annotations

import re
from typing import NamedTuple

__all__ = ["Address", "address_of"]

_ADDRESS = re.compile(
    r"(?P<scheme>ssh|tcp)://(?:(?P<user>[^@/]+)@)?(?:\[(?P<ipv6>[^\]]+)\]|(?P<host>[^:/\[\]]+))(?::(?P<port>\d+))?(?P<path>/.*)?"
)


class Address(NamedTuple):
    """The parts of an address. `rest` is the path of a socket, here (``unix``) or there, or the name of a ``context``."""

    scheme: str
    host: str = ""
    port: int | None = None
    user: str | None = None
    rest: str = ""


def address_of(text: str) -> Address:
    """Take an engine's address apart, which has been checked against the schema of target files. Raises ValueError for others."""
    if text == "local":
        return Address("local")
    for scheme, start in (("unix", "unix://"), ("context", "context:")):
        if text.startswith(start) and len(text) > len(start):
            return Address(scheme, rest=text.removeprefix(start))
    match = _ADDRESS.fullmatch(text)
    if match is None:
        raise ValueError(f"{text!r} is no address of a Docker Engine")
    port = match["port"]
    host = match["ipv6"] or match["host"]
    return Address(match["scheme"], host, int(port) if port else None, match["user"], match["path"] or "")
