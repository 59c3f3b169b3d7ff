"""What packages a job asks for, as one value: a conda specification read, checked and put in one form.

The forms of a conda dependency and what they mean are those of conda's package match specifications: ``python=3.11``
is any 3.11, ``python==3.11.7`` and ``python 3.11.7`` are exactly that. They are turned into the version specifiers of
the Python packaging world (PEP 440): ``==3.11.*``, ``==3.11.7``.

Reading the requirements files that a pip section names is the only thing done here outside memory.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tfjob.durable import digest_of
from tfjob.environments.requirements import RequirementsReader
from tfjob.errors import PreparationError
from tfjob.values import Pairs

if TYPE_CHECKING:
    from tfjob.spec.job import EnvironmentSpec

__all__ = ["Definition", "definition_of"]

_FORMAT = 2
_CONDA_KEYS = frozenset({"name", "channels", "dependencies", "variables", "prefix"})
_KEYS_TEXT = "name, channels, dependencies and variables"
_MATCH = re.compile(
    r"(?:(?P<channel>[^\s:=<>!~]+)::)?(?P<name>[A-Za-z0-9_][A-Za-z0-9._-]*)\s*(?P<version>.*)", re.DOTALL
)
_CLAUSE = re.compile(r"(?P<operator>==|>=|<=|!=|~=|=|<|>)?(?P<version>\d[A-Za-z0-9.!+]*?)(?P<star>\.?\*)?")


@dataclass(frozen=True)
class Definition:
    """The packages asked for: the same definition gives the same prefix.

    `python` is a PEP 440 version specifier (``==3.11.*``, ``>=3.10,<3.12``), None when any will do. `requirements` are
    the lines of the pip section in their order, the files it names read in: requirements, options, and lines of ``-c``
    files as ``--constraint name<2``. `has_pip` says that pip itself shall be in the prefix. `packages` are conda match
    specifications as written, but for python and pip in forms that need no channel; `channels` are where they come
    from, first choice first. `variables` are those of the environment, set in every task that uses it.
    """

    python: str | None = None
    requirements: tuple[str, ...] = ()
    has_pip: bool = False
    packages: tuple[str, ...] = ()
    channels: tuple[str, ...] = ()
    variables: Pairs = ()

    @property
    def needs_channel(self) -> bool:
        """Whether something is asked for that only a channel has. Without, a Python of the place will do."""
        return bool(self.packages)

    def digest(self) -> str:
        """Return the SHA-256 (hex) of what is asked for: no paths of the files it came from, no comments, no layout."""
        asked = [_FORMAT, self.python, self.requirements, self.has_pip, sorted(self.packages)]
        return digest_of([*asked, self.channels])


def definition_of(spec: EnvironmentSpec, *, base_dir: Path | None = None) -> Definition | None:
    """Return the packages a job's environment section asks for, or None when those are nobody's but the image's or machine's.

    Files that an inline specification names are relative to `base_dir`; those of a conda file to the file itself.
    Raises PreparationError naming everything that cannot be done, at once, and what to do instead.
    """
    if spec.conda is None:
        if spec.conda_file is not None:
            raise ValueError(f"conda_file {spec.conda_file} was not read: EnvironmentSpec.conda is None")
        return None
    folder = spec.conda_file.parent if spec.conda_file is not None else base_dir
    return _Reading(folder or Path.cwd()).definition(spec.conda, str(spec.conda_file or "the `conda:` section"))


class _Reading:
    """One conda specification being read; every problem found on the way is kept."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.pip = RequirementsReader(folder)
        self.python: list[str] = []
        self.has_pip = False
        self.packages: list[str] = []
        self.problems: list[str] = []

    def definition(self, conda: Mapping[str, Any], where: str) -> Definition:
        for key in sorted(set(conda) - _CONDA_KEYS, key=str):
            self.problems.append(f"`{key}:` means nothing in a conda specification; it has {_KEYS_TEXT}")
        dependencies = conda.get("dependencies") or []
        for entry in dependencies if isinstance(dependencies, list) else [dependencies]:
            self._entry(entry)
        channels = tuple(_channel(str(channel), self.folder) for channel in conda.get("channels") or [])
        if self.packages and not channels and not all("::" in package for package in self.packages):
            listed = ", ".join(f"`{package}`" for package in self.packages)
            self.problems.append(f"{listed}: no channel to take conda packages from; list one under `channels:`")
        problems = [*self.problems, *self.pip.problems]
        if problems:
            listed = "".join(f"\n  - {problem}" for problem in problems)
            raise PreparationError(
                f"the environment of {where} cannot be made.{listed}",
                "An environment is conda packages (`python` with a version among them) from `channels:`, and a list "
                "of packages under `pip:`.",
            )
        variables = conda.get("variables") or {}
        return Definition(
            python=",".join(self.python) or None,
            requirements=tuple(self.pip.requirements),
            has_pip=self.has_pip,
            packages=tuple(self.packages),
            channels=channels,
            variables=tuple((str(name), str(value)) for name, value in variables.items()),
        )

    def _entry(self, entry: Any) -> None:
        """Read one item of `dependencies`: a conda package or the pip section."""
        if isinstance(entry, Mapping):
            for key, lines in entry.items():
                if key != "pip":
                    self.problems.append(f"`{key}:` under `dependencies:` is not known; only `pip:` holds a list")
                elif not isinstance(lines, list):
                    self.problems.append(f"`pip:` must hold a list of requirements, not {lines!r}")
                else:
                    for line in lines:
                        self.pip.line(str(line))
            return
        match = _MATCH.fullmatch(entry.strip()) if isinstance(entry, str) else None
        if match is None:
            self.problems.append(f"`{entry}` under `dependencies:` is not a package")
        elif (name := match["name"].lower()) in {"python", "pip"} and not match["channel"]:
            self._own(name, match["version"], entry)
        else:
            self.packages.append(" ".join(entry.split()))

    def _own(self, name: str, version: str, entry: str) -> None:
        """Take `python` or `pip`, the two conda packages that need no channel where their version is a plain one."""
        clauses = _pep440(version)
        if clauses is None:  # a build string, alternatives: what only a channel can answer
            self.packages.append(" ".join(entry.split()))
        elif name == "python":
            self.python += [clause for clause in clauses if clause not in self.python]
        else:
            self.has_pip = True
            if clauses:
                self.pip.line("pip" + ",".join(clauses))


def _channel(text: str, folder: Path) -> str:
    """Return a channel as it is found from anywhere: a folder's path made absolute, names and addresses as they are."""
    is_folder = text.startswith((".", "/", "~"))
    return (folder / Path(text).expanduser()).resolve().as_uri() if is_folder else text.rstrip("/")


def _pep440(version: str) -> list[str] | None:
    """Return the PEP 440 clauses for the version part of a conda match specification; None where it has none."""
    text = re.sub(r"\s*([,=<>!~]+)\s*", r"\1", version.strip())
    if text in {"", "*", "=*", "==*"}:
        return []
    clauses = []
    for part in text.split(","):
        match = _CLAUSE.fullmatch(part)
        if match is None:
            return None
        operator, number, star = match["operator"] or "==", match["version"], bool(match["star"])
        if operator == "=":
            operator, star = "==", True
        clauses.append(f"{operator}{number}{'.*' if star and operator in {'==', '!='} else ''}")
    return clauses
