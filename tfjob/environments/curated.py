"""The environments that come with tfjob: an environment file each, in the folder beside this module.

Their names start with `PREFIX`, which nothing else may be called. A file has a version of its own, which changes with
what it asks for, so that ``name@version`` of one tfjob is never something else in another.

The GPU ones name the tag of a CUDA image as their base. A tag may come to mean another image; so the tag is resolved to
a digest when the environment is locked, the lock keeps ``IMAGE@sha256:…``, and what is built from the lock later starts
from that very image.
"""

from __future__ import annotations

import functools
from pathlib import Path
from typing import TYPE_CHECKING

from tfjob.errors import NotFound
from tfjob.spec.nearest import nearest

if TYPE_CHECKING:
    from tfjob.spec.environment_file import EnvironmentFile

__all__ = ["PREFIX", "names", "path", "read"]

PREFIX = "tfjob-"
_FOLDER = Path(__file__).with_name("curated")


def names() -> tuple[str, ...]:
    """Return the names of all curated environments: the oldest TensorFlow first, for each first that for CPUs."""
    return tuple(sorted((file.stem for file in _FOLDER.glob("*.yml")), key=_order))


def path(name: str) -> Path:
    """Return the environment file of a curated environment. Raises NotFound with the name that is probably meant."""
    if name not in names():
        guess = nearest(name, names())
        raise NotFound(
            f"there is no environment {name!r} in this version of tfjob",
            f"Did you mean {guess}?" if guess else f"It has {', '.join(names())}.",
        )
    return _FOLDER / f"{name}.yml"


@functools.cache
def read(name: str) -> EnvironmentFile:
    """Return what a curated environment is made of. Raises NotFound for a name that is none."""
    from tfjob.spec.environment_file import load  # noqa: PLC0415  # YAML and schemas only where one is used

    return load(path(name))


def _order(name: str) -> tuple[list[int], str]:
    digits = "".join(letter if letter.isdigit() else " " for letter in name)
    return [int(number) for number in digits.split()], name
