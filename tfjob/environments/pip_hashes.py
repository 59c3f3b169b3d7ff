"""Hashes that the lines of a pip section name themselves: of what an index offers, only these files may be locked.

uv writes the hashes of every file of the version it chose, whatever hashes it was given (pip's documentation, "Secure
installs").
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

from tfjob.environments.requirements import CONSTRAINT, is_option
from tfjob.errors import PreparationError

if TYPE_CHECKING:
    from collections.abc import Collection, Iterable

__all__ = ["only_asked"]

_HASH = re.compile(r"--hash(?:\s*=\s*|\s+)[\"']?([\w-]+:[0-9A-Fa-f]+)")
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]*")
_HINT = "Name that version with `==` and a hash of a file of it, in the algorithm the index has, or leave `--hash` out."


def only_asked(pip_text: str, requirements: Iterable[str], taken: Collection[str]) -> str:
    """Return a solved requirements file with only those hashes of a package that `requirements` name, where they name any.

    `taken` are the packages that come from conda. Raises PreparationError when none is left, and for hashes of those.
    """
    asked = _asked(requirements)
    if not asked:
        return pip_text
    if from_conda := sorted(asked.keys() & {_normal(name) for name in taken}):
        raise PreparationError(
            f"the pip section names a `--hash` of {from_conda[0]}, which comes from conda: it is another file",
            "Leave the hash out, or the conda package.",
        )
    blocks: list[list[str]] = []
    for line in pip_text.splitlines():
        if not blocks or not line.startswith((" ", "\t")):
            blocks.append([])
        blocks[-1].append(line)
    return "".join(f"{line}\n" for block in blocks for line in _limited(block, asked))


def _limited(block: list[str], asked: dict[str, set[str]]) -> list[str]:
    """Return the lines of one package with those of its hashes that are asked for."""
    text = " ".join(line for line in block if not line.lstrip().startswith("#"))
    name = _NAME.match(text)
    if name is None or _normal(name[0]) not in asked:
        return block
    wanted = asked[_normal(name[0])]
    kept = [one for one in _HASH.findall(text) if one.lower() in wanted]
    pin = text.partition(" \\")[0].partition(" --hash")[0].strip()
    if not kept:
        found = len(_HASH.findall(text))
        raise PreparationError(
            f"{pin} was chosen, and none of its {found} file{'s' * (found != 1)} has a hash that the pip section names: "
            f"{', '.join(sorted(wanted))}",
            _HINT,
        )
    comments = [line for line in block if line.lstrip().startswith("#")]
    return [" \\\n".join([pin, *(f"    --hash={one}" for one in kept)]), *comments]


def _asked(requirements: Iterable[str]) -> dict[str, set[str]]:
    """Return the hashes by normalized name: any of those of its requirements, which those of a constraint limit further."""
    found: tuple[dict[str, set[str]], dict[str, set[str]]] = ({}, {})
    for line in requirements:
        limits = line.startswith(CONSTRAINT)
        text = line.removeprefix(CONSTRAINT)
        hashes = {one.lower() for one in _HASH.findall(text)}
        name = _NAME.match(text)
        if hashes and name is not None and not is_option(text):
            found[limits].setdefault(_normal(name[0]), set()).update(hashes)
    own, limit = found
    both = {name: own[name] & limit[name] for name in own.keys() & limit.keys()}
    return {**limit, **own, **both}


def _normal(name: str) -> str:
    """Return the name that all spellings of a package's share (PEP 503)."""
    return re.sub(r"[-_.]+", "-", name).lower()
