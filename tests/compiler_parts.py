"""Compilers on this machine, which source packages are built with: those it has, or Debian's."""

from __future__ import annotations

import shutil

import pytest
from docker_parts import CannotRunError, install


@pytest.fixture(scope="session")
def compilers() -> None:
    """Skips, with the reason, where there are none and none can be installed."""
    if all(shutil.which(program) for program in ("cc", "c++", "make")):
        return
    try:
        install("g++", "make")
    except CannotRunError as reason:
        pytest.skip(str(reason))
