"""Files given in the place of another: said at once, instead of what YAML would make of their first line."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

from tfjob.spec.tree import Place

if TYPE_CHECKING:
    from tfjob.errors import Problem

__all__ = ["mistaken_for_conda", "mistaken_for_job"]

_FIRST_BYTES = 1024
_ARCHIVES = (b"\x1f\x8b", b"PK\x03\x04")
_MARKS = (b"\xff\xfe", b"\xfe\xff", b"\x00\x00\xfe\xff")  # of UTF-16 and UTF-32, which have a problem of their own
_KEY = re.compile(rb"(?m)^(?:script|command|code|dependencies)[ \t]*:")
_PROGRAM = re.compile(rb"(?m)\A(?:\xef\xbb\xbf)?#!.*python|^(?:import [\w.]+|from [\w.]+ import |def \w+ *\()")
_REQUIREMENT = re.compile(
    r"(?:-r|-c|--?[a-z][a-z-]+)(?:[ =].*)?|[A-Za-z0-9][\w.-]*(?:\[[\w., -]*\])?\s*(?:(?:===?|[~!<>]=|[<>])[^:#]*|@ \S.*|;.*)?"
)
_COMMENT = re.compile(r"(?:^|\s)#.*$")


def mistaken_for_job(data: bytes, file: str) -> Problem | None:
    """Return the problem that `data`, the content of `file`, is something else than a job file, if it plainly is."""
    return _program(data, file, "a job file")


def mistaken_for_conda(data: bytes, file: str) -> Problem | None:
    """Return the problem that `data`, the content of `file`, is something else than a conda file, if it plainly is."""
    if problem := _program(data, file, "a conda file"):
        return problem
    lines = [_COMMENT.sub("", line).strip() for line in data.decode("utf-8-sig", "replace").splitlines()]
    lines = [line for line in lines if line]
    if not lines or not all(map(_REQUIREMENT.fullmatch, lines)):
        return None
    name = file.rpartition("/")[2]
    listed = f"dependencies: [python, {{pip: [-r {name if name.isprintable() else 'requirements.txt'}]}}]"
    return Place(file, 1, 1).problem(
        (), f"this looks like a requirements.txt; list it in an environment.yml as: {listed}"
    )


def _program(data: bytes, file: str, wanted: str) -> Problem | None:
    place, first = Place(file, 1, 1), data[:_FIRST_BYTES]
    if first.startswith(_ARCHIVES) or (b"\0" in first and not first.startswith(_MARKS)):
        return place.problem((), f"this is a binary file, not {wanted}")
    if _KEY.search(data):
        return None
    if file.endswith(".py") or _PROGRAM.search(data[: 1 << 16]):
        hint = "Name it in a job file: code: DIRECTORY and script: FILE." if wanted == "a job file" else ""
        return place.problem((), f"this looks like a Python program, not {wanted}", hint)
    if first.startswith(b"#!"):
        return place.problem((), f"this looks like a program, not {wanted}")
    return None
