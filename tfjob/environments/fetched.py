"""Pythons that uv fetches where this machine has none that fits, from where the site says (UV_PYTHON_INSTALL_MIRROR).

Without that variable nothing is fetched: tfjob asks no public host by itself.
"""

from __future__ import annotations

import os
import re
from typing import TYPE_CHECKING

from tfjob.environments.interpreters import Interpreter, installed

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from tfjob.environments.place import Place
    from tfjob.environments.uv import Uv

__all__ = ["fetch", "interpreters", "is_possible", "plain"]

_MIRROR = "UV_PYTHON_INSTALL_MIRROR"


def is_possible(place: Place) -> bool:
    """Whether uv may fetch a Python for a place: this machine, at a site that says from where."""
    return not place.identity and bool(os.environ.get(_MIRROR))


def plain(specifier: str | None) -> str:
    """Return a PEP 440 specifier as uv has it on its command line: ``==3.11.*`` is ``3.11`` there."""
    return re.sub(r"^==(\d+(?:\.\d+)*)(\.\*)?$", r"\1", specifier or "")


def interpreters(root: Path, place: Place) -> tuple[Interpreter, ...]:
    """Return the Pythons fetched into the store at `root` before, for a place that can use them."""
    folder = root / "pythons"
    if place.identity or not folder.is_dir():
        return ()
    found = installed({"PATH": "", "HOME": str(root), "UV_PYTHON_INSTALL_DIR": str(folder)})
    return tuple(one for one in found if folder in one.path.parents)


def fetch(root: Path, specifier: str | None, uv: Uv, *, work: Path, log: Callable[[str], None], holds: int) -> None:
    """Fetch the newest Python that fits a PEP 440 specifier into the store at `root`. Raises PreparationError."""
    asked = plain(specifier) or "3"
    variables = {_MIRROR: os.environ[_MIRROR], "UV_PYTHON_DOWNLOADS": "manual"}
    uv(
        ["python", "install", "--no-bin", "--install-dir", root / "pythons", asked],
        cwd=work,
        log=log,
        holds=holds,
        done="given a Python",
        lock=work,
        variables=variables,
    )
