"""Solving: a definition becomes a lock, for one place.

Conda packages are chosen by rattler, packages of the pip section by uv. uv is told what conda has chosen, so that the
pip section adds to it and never silently replaces it.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from tfjob.environments import conda, standins, wheels
from tfjob.environments.credentials import without_credentials
from tfjob.environments.lock import Lock
from tfjob.environments.pip_hashes import only_asked
from tfjob.environments.requirements import CONSTRAINT, is_option
from tfjob.errors import PreparationError

if TYPE_CHECKING:
    from collections.abc import Callable

    from tfjob.environments.definition import Definition
    from tfjob.environments.interpreters import Interpreter
    from tfjob.environments.place import Place
    from tfjob.environments.uv import Uv

__all__ = ["Solving", "options_file", "solve"]


@dataclass(frozen=True)
class Solving:
    """What a solve needs beside the definition: `root` is the store's directory, `work` an empty folder in it.

    `kept` is where the lock will be kept, for hints; `holds` the descriptor of the lock that is held meanwhile.
    """

    place: Place
    root: Path
    work: Path
    kept: Path
    uv: Uv
    log: Callable[[str], None]
    holds: int


def solve(definition: Definition, interpreter: Interpreter | None, solving: Solving) -> Lock:
    """Solve a definition for a Python of the place, or (None) with a Python from the definition's channels.

    Raises PreparationError when there is no solution, a package is missing, or an index or a channel does not answer.
    """
    place = solving.place
    mapping = None
    if interpreter is None:
        mapping = conda.solve(definition, place, solving.root / "conda", solving.work, solving.log)
        python_version = conda.python_version(mapping)
    else:
        python_version = interpreter.version_text
    lock = Lock.make(
        definition=definition.digest(),
        asked=_asked(definition),
        python_version=python_version,
        platform=place.platform,
        base=place.pinned or None,
        pip_text="",
        conda=mapping,
    )
    if not _requirements(definition, lock):
        return lock
    return lock.with_pip(_solve_pip(definition, interpreter, lock, solving))


def _solve_pip(definition: Definition, interpreter: Interpreter | None, lock: Lock, solving: Solving) -> str:
    """Return the pip part: a requirements file with hashes."""
    uv, work = solving.uv, solving.work
    source, solved, constraints = work / "requirements.in", work / "lock.txt", work / "constraints.in"
    limits = [line.removeprefix(CONSTRAINT) for line in definition.requirements if line.startswith(CONSTRAINT)]
    command: list[str | Path] = ["pip", "compile", source.name, "-o", solved.name]
    taken: dict[str, str] = {}
    variables: dict[str, str] = {}
    if interpreter is not None:
        command += ["--python", interpreter.path]
    else:
        stage = conda.stage_python(lock, definition, solving.root / "conda", work / "python", solving.log)
        taken = standins.make(stage, work / "conda-packages")
        limits += [f"{name}=={version}" for name, version in taken.items()]
        command += ["--python", stage / "bin" / "python", *(f"--no-emit-package={name}" for name in taken)]
        variables = conda.variables(stage)
        links = uv.settings.environment.get("UV_FIND_LINKS", "")
        variables["UV_FIND_LINKS"] = ",".join(filter(None, [links, str(work / "conda-packages")]))
    command += ["--generate-hashes", "--no-header", *uv.settings.arguments]
    command += ["--constraints", constraints.name] if limits else []
    command += ["--prerelease=allow"] if "--pre" in definition.requirements else []
    requirements = _requirements(definition, lock)
    command += wheels.metadata_options(requirements, work)
    lines = [*_uv_options(definition), *requirements]
    source.write_text("\n".join(lines) + "\n", encoding="utf-8")
    constraints.write_text("\n".join(limits) + "\n", encoding="utf-8")
    said: list[str] = []

    def log(line: str) -> None:
        said.append(line)
        solving.log(line)

    try:
        uv(command, cwd=work, log=log, holds=solving.holds, done="chosen", lock=solving.kept, variables=variables)
    except PreparationError as error:
        if explained := standins.conflict(" ".join(" ".join(said).split()), taken):
            raise PreparationError(f"{error.message}\n  {explained[0]}", explained[1]) from error
        raise
    return only_asked(_without_options(solved.read_text(encoding="utf-8")), definition.requirements, taken)


def options_file(definition: Definition, work: Path) -> list[Path]:
    """Write the definition's own options on where to look for packages as a file for uv; without any, no file."""
    options = _uv_options(definition)
    if not options:
        return []
    path = work / "options.in"
    path.write_text("\n".join(options) + "\n", encoding="utf-8")
    return [path]


def _uv_options(definition: Definition) -> list[str]:
    """Return the option lines uv reads in a requirements file; ``--pre`` and limits it takes as arguments only."""
    options = [line for line in definition.requirements if is_option(line)]
    return [line for line in options if line != "--pre" and not line.startswith(CONSTRAINT)]


def _requirements(definition: Definition, lock: Lock) -> list[str]:
    """Return what the pip part is solved from; pip itself comes from conda where Python does."""
    requirements = [line for line in definition.requirements if not is_option(line)]
    return requirements + (["pip"] if definition.has_pip and lock.conda is None else [])


def _asked(definition: Definition) -> list[str]:
    """Return what is asked for as lines for the lock's header."""
    lines = [f"python{definition.python or ''}" if definition.python else "", *definition.packages]
    lines += [f"pip: {line}" for line in definition.requirements if not is_option(line)]
    lines += ["pip" if definition.has_pip else ""]
    lines += [f"channel: {channel}" for channel in definition.channels]
    return [without_credentials(re.sub(r"\s+", " ", line)) for line in lines if line]


def _without_options(text: str) -> str:
    """Return a solved requirements file without option lines, which hold addresses and decide nothing of what is locked."""
    return "".join(f"{line}\n" for line in text.splitlines() if not line.startswith("-"))
