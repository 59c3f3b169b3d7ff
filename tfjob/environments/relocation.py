"""Files of a prefix that say where they were made, changed to say where they will be.

rattler does that for conda's packages. What uv writes (scripts, records) names the stage.
"""

from __future__ import annotations

import base64
import hashlib
import os
import re
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence
    from pathlib import Path

__all__ = ["rewrite"]

_SIZE_MAX_BYTES = 4 << 20
# The longest first line the kernel takes for a script's interpreter (Linux: BINPRM_BUF_SIZE, 256 since 5.1; 128 before).
_SHEBANG_MAX_BYTES = 127
_TRAMPOLINE = re.compile(rb"#!/bin/sh\n'''exec' [\"']?(?P<program>[^\"'\n]+?)[\"']? \"\$0\" \"\$@\"\n' '''\n")
_SHEBANG = re.compile(rb"#!(?P<program>/[^\s]+)(?P<argument>[^\n]*)\n")


def rewrite(stage: Path, final: Path) -> list[str]:
    """Put `final` for `stage` in every text file that names it; return these files, relative to the stage.

    A file that is a hard link came from a cache as it is: it names no stage, and must not be written to.
    """
    old, new = os.fsencode(stage), os.fsencode(final)
    changed = []
    for entry in _files(str(stage)):
        status = entry.stat(follow_symlinks=False)
        if status.st_nlink > 1 or status.st_size > _SIZE_MAX_BYTES:
            continue
        with open(entry.path, "rb") as file:
            data = file.read()
        if old not in data or b"\0" in data:
            continue
        temporary = f"{entry.path}.tfjob"
        with open(temporary, "wb") as file:
            file.write(_as_script(data, old, new).replace(old, new))
        os.chmod(temporary, status.st_mode & 0o7777)
        os.replace(temporary, entry.path)
        changed.append(os.path.relpath(entry.path, stage))
    _update_records(stage, changed)
    return changed


def _update_records(stage: Path, changed: Sequence[str]) -> None:
    """Put the changed files' hashes into the records of the packages they are of (PEP 376: RECORD)."""
    for record in stage.glob("lib/python3*/site-packages/*.dist-info/RECORD"):
        if record.stat().st_nlink > 1:
            continue
        old = new = record.read_text(encoding="utf-8")
        for name in changed:
            entry = os.path.relpath(stage / name, record.parent.parent)
            if f"{entry},sha256=" in old:
                data = (stage / name).read_bytes()
                digest = base64.urlsafe_b64encode(hashlib.sha256(data).digest()).rstrip(b"=").decode()
                new = re.sub(rf"(?m)^{re.escape(entry)},sha256=.*$", f"{entry},sha256={digest},{len(data)}", new)
        if new != old:
            record.write_text(new, encoding="utf-8")


def _as_script(data: bytes, old: bytes, new: bytes) -> bytes:
    """Return a Python script with a first line that finds its Python under `new`; anything else as it is."""
    match = _TRAMPOLINE.match(data) or _SHEBANG.match(data)
    if match is None or not match["program"].startswith(old) or b"python" not in match["program"]:
        return data
    program, argument = match["program"].replace(old, new), match.groupdict().get("argument") or b""
    line = b"#!" + program + argument + b"\n"
    if len(line) > _SHEBANG_MAX_BYTES or b" " in program:  # a line that the shell and Python read each in their way
        line = b"#!/bin/sh\n'''exec' \"" + program + b'"' + argument + b" \"$0\" \"$@\"\n' '''\n"
    return line + data[match.end() :]


def _files(folder: str) -> Iterator[os.DirEntry[str]]:
    with os.scandir(folder) as entries:
        for entry in entries:
            if entry.is_dir(follow_symlinks=False):
                yield from _files(entry.path)
            elif entry.is_file(follow_symlinks=False):
                yield entry
