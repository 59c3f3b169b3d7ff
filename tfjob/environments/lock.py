"""A lock: every package of an environment with its version and the hashes of its files, solved once and kept.

The file is what ``uv pip compile --generate-hashes`` writes, a requirements file of pip's format: a person can read it,
and ``pip install --require-hashes -r`` makes the same environment from it.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import TYPE_CHECKING

from tfjob.durable import digest_of, replace_text
from tfjob.environments.prefix import platform_name
from tfjob.environments.requirements import CONSTRAINT, is_option

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from tfjob.environments.definition import Definition
    from tfjob.environments.interpreters import Interpreter
    from tfjob.environments.uv import Uv

__all__ = ["Lock", "options_file", "solve"]

_PIN = re.compile(
    r"^(?P<name>[A-Za-z0-9][A-Za-z0-9._-]*)(?:\[[^]]*\])?\s*(?:==\s*(?P<version>[^\s;\\]+)|@\s*(?P<url>\S+))"
)


@dataclass(frozen=True)
class Lock:
    """A lock's text and what is in it."""

    path: Path
    text: str

    @classmethod
    def read(cls, path: Path) -> Lock | None:
        """Return the lock kept at `path`, None when there is none."""
        try:
            return cls(path, path.read_text(encoding="utf-8"))
        except FileNotFoundError:
            return None

    @property
    def pins(self) -> tuple[str, ...]:
        """Each package on one line with its hashes, sorted; nothing that does not decide what is installed."""
        lines = (line.strip() for line in self.text.replace("\\\n", " ").splitlines())
        return tuple(sorted(" ".join(line.split()) for line in lines if line and not line.startswith(("#", "-"))))

    @property
    def packages(self) -> dict[str, str]:
        """The version of each package by its name; the URL of one that came from a URL."""
        found = (match for pin in self.pins if (match := _PIN.match(pin)))
        return {match["name"]: match["version"] or match["url"] for match in found}

    @property
    def has_all_hashes(self) -> bool:
        """Whether every package has a hash; those from version control have a commit instead."""
        return all("--hash=" in pin for pin in self.pins)

    def key(self, interpreter: Interpreter, builder: int) -> str:
        """Return the name of the prefix made from this lock: 32 hex digits.

        It depends on all that decides what is in the prefix: the files, the Python and where it is (a prefix points to
        it), the kind of machine, and the version of the code that builds.
        """
        parts = [self.pins, interpreter.version_text, interpreter.cache_tag, str(interpreter.path), platform_name()]
        return digest_of([*parts, builder])[:32]


def solve(
    definition: Definition,
    interpreter: Interpreter,
    *,
    into: Path,
    work: Path,
    uv: Uv,
    log: Callable[[str], None],
    holds: int,
) -> Lock:
    """Solve a definition for a Python on this machine and keep the lock as the file `into`; `work` is an empty folder.

    Raises PreparationError when there is no solution, a package is missing or the index does not answer.
    """
    text = ""
    requirements = [line for line in definition.requirements if not is_option(line)]
    requirements += ["pip"] if definition.has_pip else []
    limits = [line.removeprefix(CONSTRAINT) for line in definition.requirements if line.startswith(CONSTRAINT)]
    if requirements:
        source, solved, constraints = work / "requirements.in", work / "lock.txt", work / "constraints.in"
        source.write_text("\n".join([*_uv_options(definition), *requirements]) + "\n", encoding="utf-8")
        constraints.write_text("\n".join(limits) + "\n", encoding="utf-8")
        command: list[str | Path] = ["pip", "compile", source.name, "-o", solved.name, "--python", interpreter.path]
        command += ["--generate-hashes", "--no-header", *uv.settings.arguments]
        command += ["--constraints", constraints.name] if limits else []
        command += ["--prerelease=allow"] if "--pre" in definition.requirements else []
        uv(command, cwd=work, log=log, holds=holds, done="chosen", lock=into)
        text = solved.read_text(encoding="utf-8")
    header = [f"Locked by tfjob for Python {interpreter.version_text} on {platform_name()}, from:"]
    header += [f"  {line}" for line in requirements or ["(no packages)"]]
    replace_text(into, "".join(f"# {line}\n" for line in header) + text)
    return Lock(into, "".join(f"# {line}\n" for line in header) + text)


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
