"""The Pythons of this machine: on PATH, made by pyenv or by uv, and the one tfjob runs with.

Only real interpreters count: a shell script that may or may not find one (a pyenv shim) is passed over, and a virtual
environment stands for the Python it was made from.
"""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from tfjob.errors import PreparationError

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping

__all__ = ["Interpreter", "choose", "fitting", "installed", "matches"]

_NAME = re.compile(r"python3(\.\d+)?")
_CLAUSE = re.compile(r"(==|!=|>=|<=|~=|<|>)(\d+(?:\.\d+)*)(\.\*)?")
_QUERY = (
    "import json, sys; one = sys.implementation; "
    "print(json.dumps([one.name, list(sys.version_info), one.cache_tag, getattr(sys, 'abiflags', '')]))"
)
_QUERY_TIMEOUT_S = 30


@dataclass(frozen=True)
class Interpreter:
    """One Python: the executable (no symbolic link), its version, and the tag of the bytecode it reads."""

    path: Path
    version: tuple[int, int, int]
    cache_tag: str

    @property
    def version_text(self) -> str:
        """The full version, such as ``3.11.7``."""
        return ".".join(str(number) for number in self.version)


def installed(environ: Mapping[str, str]) -> tuple[Interpreter, ...]:
    """Find every CPython of this machine that starts, newest first: from 3.8, released, with the usual build options."""
    paths = {os.path.realpath(path): None for path in _candidates(environ)}
    asked = []
    for path in paths:
        if _is_program(path):
            command = [path, "-I", "-S", "-c", _QUERY]
            try:
                asked.append((path, subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL)))
            except OSError:
                continue
    found = [interpreter for path, process in asked if (interpreter := _answer(path, process)) is not None]
    return tuple(sorted(found, key=lambda interpreter: interpreter.version, reverse=True))


def fitting(specifier: str | None, interpreters: Iterable[Interpreter]) -> Interpreter | None:
    """Return the newest Python that fits; when any will do, the newest of the minor version tfjob itself runs with."""
    newest_first = sorted(interpreters, key=lambda interpreter: interpreter.version, reverse=True)
    found = [one for one in newest_first if specifier is None or matches(one.version, specifier)]
    if specifier is None:
        found.sort(key=lambda one: one.version[:2] != sys.version_info[:2])
    return found[0] if found else None


def choose(
    specifier: str | None, interpreters: Iterable[Interpreter], *, place: str = "this machine", can_install: bool = True
) -> Interpreter:
    """Return the Python of `place` (its name, for the message) that `fitting` finds.

    Raises PreparationError, naming the ones there are, when none fits; `can_install` when uv may install one there.
    """
    newest_first = sorted(interpreters, key=lambda interpreter: interpreter.version, reverse=True)
    if (found := fitting(specifier, newest_first)) is not None:
        return found
    asked = specifier or ""
    numbers = 3 if re.search(r"\d\.\d+\.\d", asked) else 2  # a patch version matters only to who asks for one
    there = sorted({one.version[:numbers] for one in newest_first})
    has = ", ".join(".".join(map(str, version)) for version in there) or "no Python that tfjob can use"
    wanted = re.search(r"\d+\.\d+", asked)
    minor = wanted[0] if wanted else "3.11"
    other = (
        f"install it: `uv python install {minor}`" if can_install else "list a channel that has it under `channels:`"
    )
    hint = f"Ask for one of these, or {other}."
    if not there:
        hint = f"{other[0].upper()}{other[1:]}."
    elif any(f"{one.version[0]}.{one.version[1]}" == minor for one in newest_first):
        hint = f"Write `python={minor}`, with one `=`, to take any {minor} there is."
    raise PreparationError(f"the environment asks for python{_as_conda(asked)}; {place} has {has}", hint)


def _as_conda(specifier: str) -> str:
    """Return a PEP 440 specifier as people write it in a conda file: ``==3.11.*`` is ``=3.11`` there."""
    return re.sub(r"==(\d+(?:\.\d+)*)\.\*", r"=\1", specifier)


def matches(version: tuple[int, int, int], specifier: str) -> bool:
    """Whether a released version fits a PEP 440 specifier of plain numbers: ``==3.11.*``, ``>=3.10,<3.12``."""
    return all(_fits(version, clause) for clause in specifier.split(","))


def _fits(version: tuple[int, ...], clause: str) -> bool:
    match = _CLAUSE.fullmatch(clause)
    if match is None:
        return False
    operator, star = match[1], bool(match[3])
    numbers = tuple(int(number) for number in match[2].split("."))
    other = numbers + (0,) * (3 - len(numbers))
    equal = version[: len(numbers)] == numbers if star else version == other
    if operator == "~=":
        return version >= other and version[: len(numbers) - 1] == numbers[:-1]
    return {
        "==": equal,
        "!=": not equal,
        ">=": version >= other,
        "<=": version <= other,
        ">": version > other,
        "<": version < other,
    }[operator]


def _candidates(environ: Mapping[str, str]) -> Iterator[Path]:
    """Files that may be a Python, by name and place."""
    yield Path(sys.base_prefix) / "bin" / f"python3.{sys.version_info.minor}"
    home = Path(environ.get("HOME") or Path.home())
    data = Path(environ.get("XDG_DATA_HOME") or home / ".local" / "share")
    folders = [Path(folder) for folder in environ.get("PATH", os.defpath).split(os.pathsep) if folder]
    folders += _listed(Path(environ.get("PYENV_ROOT") or home / ".pyenv") / "versions", "bin")
    folders += _listed(Path(environ.get("UV_PYTHON_INSTALL_DIR") or data / "uv" / "python"), "bin")
    for folder in dict.fromkeys(folders):
        yield from (path for path in _listed(folder) if _NAME.fullmatch(path.name))


def _listed(folder: Path, inside: str = "") -> list[Path]:
    """Return what is in a folder (or the folder `inside` each), sorted; nothing of one that cannot be read."""
    try:
        return sorted(path / inside for path in folder.iterdir())
    except OSError:
        return []


def _is_program(path: str) -> bool:
    """Whether `path` is an executable binary, not a script that starts something else."""
    try:
        with Path(path).open("rb") as file:
            return os.access(path, os.X_OK) and file.read(2) != b"#!"
    except OSError:
        return False


def _answer(path: str, process: subprocess.Popen[bytes]) -> Interpreter | None:
    """Return what a started Python said about itself; None when it is not one to build on."""
    try:
        output, _ = process.communicate(timeout=_QUERY_TIMEOUT_S)
    except subprocess.TimeoutExpired:
        process.kill()
        process.communicate()
        return None
    try:
        implementation, version, cache_tag, flags = json.loads(output)
    except ValueError:
        return None
    if implementation != "cpython" or version[:2] < [3, 8] or version[3] != "final" or flags:
        return None
    return Interpreter(path=Path(path), version=(version[0], version[1], version[2]), cache_tag=cache_tag)
