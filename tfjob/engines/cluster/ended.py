"""Why a container of a run ended, by what its engine says."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Final

__all__ = ["Ended", "end_of"]

_KILLED: Final = 137
_REBOOTED: Final = 255
"""What the Docker Engine says of containers that ran when it, or its machine, went down."""


@dataclass(frozen=True)
class Ended:
    """Why a node says nothing any more. `lost`: the machine, not the container, is to blame."""

    message: str
    lost: bool = False
    out_of_memory: bool = False


def end_of(name: str, state: Mapping[str, Any], words: Callable[[], str], *, was_told: bool) -> Ended:
    """How the container on the node `name` ended. `words`: its last ones; `was_told`: to end, from outside."""
    code = int(state["ExitCode"])
    if was_told:
        why = f"its container was stopped from outside: {name}, or its Docker Engine, was shut down"
        return Ended(why, lost=True)
    if state.get("OOMKilled"):
        return Ended("the kernel killed its container: out of memory", out_of_memory=True)
    if code == _REBOOTED:
        return Ended(f"{name}, or its Docker Engine, was restarted", lost=True)
    said = "; ".join(words().splitlines())
    how = "was killed from outside" if code == _KILLED else f"ended with code {code}"
    return Ended(f"its container {how}" + (f": {said}" if said else ""))
