"""A finished environment: a directory with a Python and packages, and the marker that says it is whole.

Kept apart from what builds it: finding an environment that is there must cost no more than reading two small files.
"""

from __future__ import annotations

import json
import os
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Mapping

__all__ = [
    "BUILDER",
    "MARKER",
    "Prefix",
    "glibc_of",
    "modified_ns",
    "platform_name",
    "read_json",
    "read_prefix",
    "runs_on",
    "variables",
]

# The file that is written last into a prefix; the metadata in it are of `build.build`.
MARKER = "tfjob-prefix.json"
# Part of every prefix's key: raise it when the way prefixes are built changes what is in them.
BUILDER = 3


@dataclass(frozen=True)
class Prefix:
    """A finished environment: its directory (``bin/python`` in it), and the lock it was made from.

    `path` is where the store keeps it, `final` where the tasks that use it see it (the same, but for containers).
    `packages` counts those of both parts of the lock.
    """

    path: Path
    key: str
    python_version: str
    packages: int
    lock: Path
    final: Path


def variables(prefix: Path) -> dict[str, str]:
    """Return what a task needs in its environment to use a prefix; the caller puts ``prefix/bin`` first in PATH.

    Nothing of the user's own packages is seen, and Python writes no bytecode into the prefix. PYTHONHOME and
    PYTHONPATH, where the submitting shell has them, must be taken out by the caller.
    """
    return {"VIRTUAL_ENV": str(prefix), "PYTHONNOUSERSITE": "1", "PYTHONDONTWRITEBYTECODE": "1"}


def read_prefix(path: Path, lock: Path) -> Prefix | None:
    """Return the prefix at `path` if it is whole, built as this tfjob builds, and nothing was installed into it since.

    Its Python may be one of another place, so the link to it is all that is looked at.
    """
    marker = read_json(path / MARKER)
    try:
        if marker is None or marker["builder"] != BUILDER:
            return None
        if modified_ns(path, marker["python"]) != marker["modified_ns"]:
            return None
        (path / "bin" / "python").lstat()
        return Prefix(path, path.name, marker["python"], len(marker["packages"]), lock, Path(marker["final"]))
    except (OSError, KeyError, TypeError):
        return None


def modified_ns(prefix: Path, python_version: str) -> dict[str, int]:
    """Return when the folders that an installer would write to were last changed, in nanoseconds. Raises OSError."""
    minor = ".".join(python_version.split(".")[:2])
    return {folder: (prefix / folder).stat().st_mtime_ns for folder in ("bin", f"lib/python{minor}/site-packages")}


def platform_name() -> str:
    """Return the kind of machine as far as packages know it: ``linux-x86_64-glibc2.36``."""
    try:
        libc = os.confstr("CS_GNU_LIBC_VERSION") or ""
    except (ValueError, OSError):
        libc = ""
    return f"linux-{os.uname().machine}-{libc.replace(' ', '') or 'other'}"


def runs_on(made_for: str, there: str) -> bool:
    """Whether what was made or chosen for one kind of machine runs on another: on the same processor, with no older C library."""
    if made_for == there:
        return True
    least, has = glibc_of(made_for), glibc_of(there)
    return made_for.rpartition("-")[0] == there.rpartition("-")[0] and bool(least) and least <= has


def glibc_of(platform: str) -> tuple[int, ...]:
    """The version of a platform's C library, to be compared; empty where it is not GNU's."""
    return tuple(int(part) for part in platform.rpartition("-glibc")[2].split(".") if part.isdigit())


def read_json(path: Path) -> Mapping[str, Any] | None:
    """Return the JSON object in a file, None when there is none."""
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    return value if isinstance(value, dict) else None
