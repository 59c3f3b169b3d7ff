"""What some job files of specs/ need beside them."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

import yaml
from support import REPOSITORY

if TYPE_CHECKING:
    from web_server import WebServer

__all__ = ["GOAL", "served", "shorter"]

GOAL = 0.9
"""The accuracy that a spec reaches at the least in the epochs of `shorter`; in its own, it is 0.95."""


def served(web: WebServer, spec: str) -> tuple[str, ...]:
    """Have the digits on a server for the job that fetches them; returns what its submit is given."""
    if spec != "digits-web":
        return ()
    for file in (REPOSITORY / "specs" / "data").glob("*.gz"):
        web.put(file.name, file.read_bytes())
    return ("--set", f"parameters.server={web.address}")


def shorter(spec: str) -> tuple[str, ...]:
    """What `submit` is given to train for a third of a spec's epochs, where another test of the engine does for all of them."""
    asked = yaml.safe_load((REPOSITORY / "specs" / f"{spec}.yml").read_text(encoding="utf-8"))["arguments"]
    return ("--set", "arguments=" + json.dumps([*asked, "--epochs", 12, "--accuracy-goal", GOAL]))
