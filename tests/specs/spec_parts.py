"""What some job files of specs/ need beside them."""

from __future__ import annotations

from typing import TYPE_CHECKING

from support import REPOSITORY

if TYPE_CHECKING:
    from web_server import WebServer

__all__ = ["served"]


def served(web: WebServer, spec: str) -> tuple[str, ...]:
    """Have the digits on a server for the job that fetches them; returns what its submit is given."""
    if spec != "digits-web":
        return ()
    for file in (REPOSITORY / "specs" / "data").glob("*.gz"):
        web.put(file.name, file.read_bytes())
    return ("--set", f"parameters.server={web.address}")
