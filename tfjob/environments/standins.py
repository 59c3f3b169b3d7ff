"""What conda has installed, shown to uv: a stand-in wheel for each Python package, so that pip's part builds on it.

A stand-in has the name and version that the conda package's own metadata say (conda's name may be another) and no
dependencies of its own, because those are conda's business. It is used to choose versions and never installed.
"""

from __future__ import annotations

import re
import zipfile
from email.parser import HeaderParser
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

__all__ = ["conflict", "make"]

_WHEEL = "Wheel-Version: 1.0\nGenerator: tfjob\nRoot-Is-Purelib: true\nTag: py3-none-any\n"

# Who asks for what follows, in uv's sentences: a package, or (empty) the requirements it was given.
_ASKS = re.compile(r"([\w.-]+)(?:[=<>!~]\S*)? depends? on|you require")


def make(prefix: Path, folder: Path) -> dict[str, str]:
    """Write the stand-ins for a prefix's Python packages into a new `folder`; return their versions by normalized name."""
    folder.mkdir()
    found: dict[str, str] = {}
    for path in sorted(prefix.glob("lib/python3*/site-packages/*.dist-info/METADATA")):
        metadata = HeaderParser().parsestr(path.read_text(encoding="utf-8", errors="replace"))
        name, version = _normalized(str(metadata["Name"])), str(metadata["Version"])
        extras = [f"Provides-Extra: {extra}\n" for extra in metadata.get_all("Provides-Extra", [])]
        extras += [f"Requires-Dist: {one}\n" for one in metadata.get_all("Requires-Dist", []) if "extra ==" in str(one)]
        stem = f"{name.replace('-', '_')}-{version}"
        with zipfile.ZipFile(folder / f"{stem}-py3-none-any.whl", "w") as wheel:
            head = f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n"
            wheel.writestr(f"{stem}.dist-info/METADATA", head + "".join(extras))
            wheel.writestr(f"{stem}.dist-info/WHEEL", _WHEEL)
            wheel.writestr(f"{stem}.dist-info/RECORD", "")
        found[name] = version
    return found


def conflict(said: str, taken: Mapping[str, str]) -> tuple[str, str] | None:
    """Return what uv's failure (`said`, one line) has to do with conda's packages `taken`, and what to do; None when nothing."""
    for name, version in taken.items():
        for asked in re.finditer(rf"(?<![\w.-]){_pattern(name)}[=<>!~][\w.,<>=!~*]*", said):
            what = asked[0].rstrip(",.")
            if re.sub(r"^.*?==", "", what) == version:  # that is what uv was told of conda's
                continue
            askers = _ASKS.findall(said, 0, asked.start())
            if not askers:
                continue
            who = askers[-1] or "the pip section"
            return (
                f"{name} {version} comes from conda, {who} asks for {what}.",
                f"Ask conda for one that fits both (`{what}` under `dependencies:`), or move {name} to the pip section.",
            )
    return None


def _normalized(name: str) -> str:
    """Return a package's name as indexes compare it (PEP 503)."""
    return re.sub(r"[-_.]+", "-", name).lower()


def _pattern(name: str) -> str:
    """Return a pattern for a normalized name in any spelling."""
    return "[-_.]+".join(re.escape(part) for part in name.split("-"))
