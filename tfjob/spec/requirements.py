"""The requirements files that a pip list names: those that are not there, and what is wrong in those that are."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING

from tfjob.spec import text as texts
from tfjob.spec.nearest import nearest
from tfjob.spec.packages import file_of, pip_line
from tfjob.spec.tree import Place, Where, quoted

if TYPE_CHECKING:
    from collections.abc import Iterator

    from tfjob.errors import Problem

__all__ = ["check"]


def check(line: str, folder: Path, shown_dir: str, place: Place, where: Where) -> list[Problem]:
    """Return the problems of the requirements file that `line`, which stands at `place`, names, and of those it names.

    Paths are relative to `folder`, which problems call `shown_dir`. Of a line that names no file there are none.
    """
    return list(_check(line, folder, shown_dir, place, where, seen=set()))


def _check(line: str, folder: Path, shown_dir: str, place: Place, where: Where, *, seen: set[str]) -> Iterator[Problem]:
    name = file_of(line)
    if name is None or "://" in name:
        return
    path = folder / name
    if not os.path.isfile(path):
        message = f"found {quoted(line)}, which names no file; the name of an existing file is allowed"
        yield place.problem(where, message, _hint(path, seen))
    elif (real := os.path.realpath(path)) not in seen:
        seen.add(real)
        shown = os.path.join(shown_dir, name)
        for number, inner in _lines(path):
            at = Place(shown if shown.isprintable() else quoted(shown), number, 1)
            if objection := pip_line(inner):
                yield at.problem((), *objection)
            yield from _check(inner, Path(os.path.dirname(real)), os.path.dirname(shown), at, (), seen=seen)


def _hint(path: Path, seen: set[str]) -> str:
    def is_other_file(name: str) -> bool:
        return os.path.isfile(path.parent / name) and os.path.realpath(path.parent / name) not in seen

    try:
        guess = nearest(path.name, sorted(os.listdir(path.parent)), is_other_file)
    except (OSError, ValueError):
        guess = None
    shown = str(path)
    return (
        f"Did you mean {guess}?" if guess else f"It is looked for as {shown if shown.isprintable() else quoted(shown)}"
    )


def _lines(path: Path) -> Iterator[tuple[int, str]]:
    """Yield the lines of the file at `path`, those that a backslash continues as one, each with its number.

    A file that cannot be read, or is no text, has none: `tfjob.environments` says why.
    """
    try:
        if path.stat().st_size > texts.MAX_BYTES:
            return
        text = path.read_text(encoding="utf-8-sig")
    except (OSError, UnicodeDecodeError):
        return
    first = 1
    parts: list[str] = []
    for number, line in enumerate(text.splitlines(), 1):
        first = first if parts else number
        parts.append(line.removesuffix("\\"))
        if not line.endswith("\\"):
            yield first, " ".join(parts)
            parts.clear()
    if parts:
        yield first, " ".join(parts)
