"""What the tests' set-up programs have in common: ``up`` starts something and leaves it, ``env`` says how to use it, ``down`` ends it."""

from __future__ import annotations

import sys
from collections.abc import Callable, Mapping

__all__ = ["CannotRunError", "NotRunningError", "set_up_program"]


class CannotRunError(Exception):
    """There can be no such thing here; the reason in words."""


class NotRunningError(CannotRunError):
    """It was not started: `what` is not."""

    def __init__(self, what: str) -> None:
        super().__init__(f"{what} is not running: python {sys.argv[0]} up")


def set_up_program(up: Callable[[], object], env: Callable[[], Mapping[str, str]], down: Callable[[], object]) -> int:
    """Do what the command line says. `env` gives a shell's variables, which `up` prints as well."""
    verb = sys.argv[1] if len(sys.argv) == 2 else ""
    if verb not in {"up", "env", "down"}:
        sys.stderr.write(f"usage: python {sys.argv[0]} up|env|down\n")
        return 2
    try:
        if verb == "down":
            down()
            return 0
        if verb == "up":
            up()
        for name, value in env().items():
            sys.stdout.write(f"export {name}={value}\n")
    except CannotRunError as reason:
        sys.stderr.write(f"{reason}\n")
        return 1
    return 0
