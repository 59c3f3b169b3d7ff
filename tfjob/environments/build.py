"""Building a prefix from a lock, in a directory of its own, until nothing is left but to rename it into place.

A prefix is a virtual environment of a Python of its place, or has a Python of its own from a conda channel. Every file
is a hard link to uv's cache or that of the conda packages, so a new prefix costs what is new in it (a file that says
where it is, is a copy). A write into a shared file would change every prefix that has it: files are made read-only.
Directories stay writable, so that the person who owns a store
can delete it; a prefix that something was installed into is noticed by its directories (`prefix.modified_ns`) and made
anew.
"""

from __future__ import annotations

import os
import stat
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tfjob.durable import replace_json
from tfjob.environments import bytecode, conda, relocation, wheels
from tfjob.environments.credentials import credentials_of, with_credentials
from tfjob.environments.prefix import BUILDER, MARKER, modified_ns
from tfjob.environments.solving import options_file
from tfjob.errors import PreparationError

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from tfjob.environments.definition import Definition
    from tfjob.environments.interpreters import Interpreter
    from tfjob.environments.lock import Lock
    from tfjob.environments.place import Place
    from tfjob.environments.uv import Uv

__all__ = ["Recipe", "build"]

_EARLIER_MAX = 8
_FEW_FILES = 64


@dataclass(frozen=True)
class Recipe:
    """All a prefix is made from.

    `interpreter` is the Python of the place it is made for, None when it has its own from conda. `kept` is the lock's
    file, for hints, `final` where tasks will see the prefix, `earlier` the metadata of prefixes to link from, `root`
    the store's directory.
    """

    key: str
    definition: Definition
    lock: Lock
    kept: Path
    place: Place
    interpreter: Interpreter | None
    final: Path
    root: Path
    earlier: Mapping[Path, Mapping[str, Any]]

    @property
    def cache_tag(self) -> str:
        """The tag of the bytecode that the prefix's Python reads (PEP 3147)."""
        if self.interpreter is not None:
            return self.interpreter.cache_tag
        return "cpython-" + "".join(self.lock.python_version.split(".")[:2])

    @property
    def site_packages(self) -> str:
        """Where packages are, relative to the prefix."""
        return f"lib/python{'.'.join(self.lock.python_version.split('.')[:2])}/site-packages"


@dataclass(frozen=True)
class _Work:
    """A prefix being built: what it is made from, where (`stage` in the folder `work`), by what, and who is told."""

    recipe: Recipe
    work: Path
    stage: Path
    uv: Uv
    log: Callable[[str], None]
    progress: Callable[[str], None]
    holds: int

    @property
    def variables(self) -> dict[str, str]:
        """What the stage's Python needs to start where it is now."""
        return conda.variables(self.stage) if self.recipe.interpreter is None else {}

    def call(self, *arguments: str | Path) -> None:
        """Run uv in the place."""
        self.uv(
            arguments,
            cwd=self.work,
            log=self.log,
            holds=self.holds,
            done="installed",
            lock=self.recipe.kept,
            variables=self.variables,
        )


def build(
    recipe: Recipe,
    work: Path,
    *,
    uv: Uv,
    log: Callable[[str], None],
    progress: Callable[[str], None],
    holds: int,
) -> Path:
    """Make the prefix in the empty folder `work` and return it, its marker written last.

    Raises PreparationError when a package cannot be had or is not the locked one, OSError when the disk is full.
    """
    stage, lock = work / "prefix", recipe.lock
    doing = _Work(recipe, work, stage, uv, log, progress, holds)
    count = len(lock.packages)
    if count:
        progress(f"downloading and installing {count} package{'s' * (count != 1)}")
    if recipe.interpreter is None:
        conda.install(lock, recipe.definition, stage, recipe.final, cache=recipe.root / "conda", progress=progress)
        (stage / recipe.site_packages).mkdir(exist_ok=True)
        if left := conda.scripts_not_run(stage):
            progress(f"scripts of packages that tfjob does not run: {', '.join(left)}")
    else:
        # Relocatable: scripts find the Python beside them, so the prefix works where it is built and where it ends up.
        doing.call("venv", "--quiet", "--relocatable", "--python", recipe.interpreter.path, stage)
    built = _install_pip(doing) if lock.pip_packages else {}
    if recipe.interpreter is None:
        relocation.rewrite(stage, recipe.final)
    _compile(doing)
    recipe.place.settle(stage, recipe.interpreter)
    size_bytes = _make_read_only(stage)
    marker = {
        "key": recipe.key,
        "python": recipe.interpreter.version_text if recipe.interpreter else lock.python_version,
        "interpreter": str(recipe.interpreter.path) if recipe.interpreter else None,
        "bytecode": recipe.cache_tag,
        "platform": lock.platform,
        "place": recipe.place.identity,
        "final": str(recipe.final),
        "packages": lock.packages,
        "wheels": {name: str(path) for name, path in built.items()},
        "created": datetime.now(UTC).isoformat(timespec="seconds"),
        "size_bytes": size_bytes,
        "builder": BUILDER,
        "modified_ns": modified_ns(stage, lock.python_version),
    }
    replace_json(stage / MARKER, marker)
    return stage


def _install_pip(doing: _Work) -> dict[str, Path]:
    """Install the pip part into the stage, beside what conda put there; return the wheels that tfjob built for it."""
    recipe = doing.recipe
    listed = doing.work / "requirements.txt"
    options = options_file(recipe.definition, doing.work)
    built = wheels.prepare(
        recipe.lock,
        recipe.place,
        recipe.interpreter.path if recipe.interpreter else doing.stage / "bin" / "python",
        store_root=recipe.root,
        uv=doing.uv,
        work=doing.work,
        log=doing.log,
        progress=doing.progress,
        holds=doing.holds,
        options=options,
        variables=doing.variables,
        pip_text=with_credentials(recipe.lock.pip_text, credentials_of(recipe.definition.requirements)),
    )
    text = wheels.replace(recipe.lock.pip_text, built) if built else recipe.lock.pip_text
    listed.write_text(with_credentials(text, credentials_of(recipe.definition.requirements)), encoding="utf-8")
    settings: list[str | Path] = ["--python", doing.stage / "bin" / "python", "--link-mode", "hardlink"]
    settings += ["--require-hashes"] if recipe.lock.has_all_hashes else []
    settings += doing.uv.settings.arguments
    files = [*options, listed]
    if recipe.interpreter is None:  # `sync` would remove what conda installed
        both = (part for file in files for part in ("-r", file))
        doing.call("pip", "install", "--no-deps", "--break-system-packages", *settings, *both)
    else:
        doing.call("pip", "sync", *settings, *files)
    return built


def _compile(doing: _Work) -> None:
    """Give every source its bytecode: the package's own, from the earlier prefixes that share most packages, or compiled."""
    recipe, stage = doing.recipe, doing.stage
    found = list(bytecode.sources(stage, "lib"))
    count = len(found)
    left = [source for source in found if recipe.interpreter or not bytecode.is_fresh(stage, source, recipe.cache_tag)]
    wanted = recipe.lock.packages.items()
    shared = {
        path: len(wanted & dict(marker["packages"]).items())
        for path, marker in recipe.earlier.items()
        if marker["bytecode"] == recipe.cache_tag and marker["builder"] == BUILDER
    }
    for path in sorted(shared, key=lambda one: shared[one], reverse=True)[:_EARLIER_MAX]:
        if left and shared[path]:
            left = bytecode.link(stage, left, path, recipe.cache_tag)
    if not left:
        return
    if recipe.interpreter is not None and not recipe.place.starts(recipe.interpreter):
        minor = ".".join(recipe.lock.python_version.split(".")[:2])
        doing.progress(
            f"imports will take longer: what they read first is compiled by a Python {minor}, which is not here"
        )
        return
    doing.progress(f"compiling {len(left)} of {count} file{'s' * (count != 1)}")
    left.sort(key=lambda source: source.size_bytes, reverse=True)
    processes = 1 if len(left) < _FEW_FILES else len(os.sched_getaffinity(0))
    lines: list[str] = []

    def take(line: str) -> None:
        lines.append(line)
        doing.log(line)

    script = Path(__file__).with_name("compiler.py")
    python = recipe.interpreter.path if recipe.interpreter else stage / "bin" / "python"
    command = [str(part) for part in (python, "-I", "-S", script, processes, stage, recipe.final)]
    listed = "".join(f"{source.relative}\n" for source in left)
    environment = {**doing.uv.settings.environment, **doing.variables}
    place = recipe.place
    if place.run(command, environment=environment, cwd=stage, on_line=take, holds=doing.holds, stdin=listed):
        raise PreparationError(
            f"the environment's packages could not be compiled: {lines[-1] if lines else 'the compiler was ended'}",
            "Free space on that disk and submit again; nothing half-made was left behind.",
        )


def _make_read_only(prefix: Path) -> int:
    """Take the write permission off every file of the prefix; return the bytes they hold.

    A file that belongs to somebody else (the cache of a shared store) is theirs to protect.
    """
    size_bytes = 0
    folders = [str(prefix)]
    while folders:
        with os.scandir(folders.pop()) as entries:
            for entry in entries:
                if entry.is_dir(follow_symlinks=False):
                    folders.append(entry.path)
                elif entry.is_file(follow_symlinks=False):
                    status = entry.stat(follow_symlinks=False)
                    size_bytes += status.st_size
                    if status.st_mode & 0o222 and status.st_uid == os.geteuid():
                        Path(entry.path).chmod(stat.S_IMODE(status.st_mode) & ~0o222)
    return size_bytes
