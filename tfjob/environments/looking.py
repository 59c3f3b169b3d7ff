"""What a place is asked about itself, by a shell in it, and what its answers mean: its C library, its Pythons, its programs.

A base image answers in a container, a login node over ssh.
"""

from __future__ import annotations

import json
import os
import re
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from tfjob.environments.interpreters import Interpreter

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

__all__ = ["QUESTION", "answered", "interpreters_of", "platform_of", "python_of", "script"]

QUESTION: Final = (
    "import json, os, sys; one = sys.implementation; print(json.dumps([one.name, list(sys.version_info), one.cache_tag, "
    "getattr(sys, 'abiflags', ''), sys.executable and os.path.realpath(sys.executable)], separators=(',', ':')))"
)
"""What each Python is asked: the text after its ``-c``."""

_SHARED_LIBC: Final = re.compile(r"(\d+\.\d+)\s*$|version (\d+\.\d+)")


def script() -> str:
    """The questions, for any POSIX shell; its argument is `QUESTION`. It prints lines of `key value`."""
    return Path(__file__).with_name("looking.sh").read_text(encoding="utf-8")


def answered(lines: Sequence[str]) -> dict[str, Any]:
    """What the script's lines say, as a JSON object. A C library that is not GNU's stands there in words."""
    pairs = [line.partition(" ")[::2] for line in lines]
    first = dict(reversed(pairs))
    glibc = _SHARED_LIBC.search(first.get("libc", ""))
    libc = "glibc"
    if "musl" in first or glibc is None:
        libc = "musl as its C library" if "musl" in first else "no GNU C library that tells its version"
    return {
        "machine": first.get("machine", os.uname().machine),
        "libc": libc,
        "glibc": (glibc[1] or glibc[2]) if glibc is not None else "",
        "system": first.get("system", ""),
        "tools": sorted({value for key, value in pairs if key == "tool"}),
        "pythons": [python for key, value in pairs if key == "python" if (python := python_of(value)) is not None],
    }


def python_of(answer: str) -> dict[str, Any] | None:
    """Return what a Python said about itself; None when it is not one to build on.

    What was started may be a script that starts it, such as a shim of pyenv's: the Python itself knows better where it is.
    """
    said, _, started = answer.rpartition(" /")
    try:
        implementation, version, cache_tag, flags, path = json.loads(said)
    except ValueError:
        return None
    if implementation != "cpython" or version[:2] < [3, 8] or version[3] != "final" or flags:
        return None
    return {"path": path or f"/{started}", "version": version[:3], "cache_tag": cache_tag}


def interpreters_of(facts: Mapping[str, Any]) -> tuple[Interpreter, ...]:
    """The Pythons among the answers, newest first."""
    found = (
        Interpreter(Path(one["path"]), (one["version"][0], one["version"][1], one["version"][2]), one["cache_tag"])
        for one in facts["pythons"]
    )
    return tuple(sorted(found, key=lambda one: one.version, reverse=True))


def platform_of(facts: Mapping[str, Any]) -> str:
    """The kind of machine as packages know it, such as ``linux-x86_64-glibc2.36``."""
    return f"linux-{facts['machine']}-" + (f"glibc{facts['glibc']}" if facts["libc"] == "glibc" else "other")
