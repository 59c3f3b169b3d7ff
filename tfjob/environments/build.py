"""Building a prefix from a lock, in a directory of its own, until nothing is left but to rename it into place.

Every file is a hard link to uv's cache, so a new prefix costs what is new in it. A write into such a file would change
every prefix that has it: files are made read-only. Directories stay writable, so that the person who owns a store
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
from tfjob.environments import bytecode
from tfjob.environments.lock import options_file
from tfjob.environments.prefix import MARKER, modified_ns, platform_name
from tfjob.environments.processes import run
from tfjob.errors import PreparationError

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from tfjob.environments.definition import Definition
    from tfjob.environments.interpreters import Interpreter
    from tfjob.environments.lock import Lock
    from tfjob.environments.uv import Uv

__all__ = ["BUILDER", "Recipe", "build"]

# Part of every prefix's key: raise it when the way prefixes are built changes what is in them.
BUILDER = 1
_EARLIER_MAX = 8
_FEW_FILES = 64


@dataclass(frozen=True)
class Recipe:
    """All a prefix is made from: `final` is where it will stand, `earlier` the metadata of prefixes to link from."""

    key: str
    definition: Definition
    lock: Lock
    interpreter: Interpreter
    final: Path
    earlier: Mapping[Path, Mapping[str, Any]]


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
    stage, interpreter, packages = work / "prefix", recipe.interpreter, recipe.lock.packages

    def call(*arguments: str | Path) -> None:
        uv(arguments, cwd=work, log=log, holds=holds, done="installed", lock=recipe.lock.path)

    # Relocatable: scripts find the Python beside them, so the prefix works where it is built and where it ends up.
    call("venv", "--quiet", "--relocatable", "--python", interpreter.path, stage)
    if packages:
        progress(f"downloading and installing {len(packages)} package{'s' * (len(packages) != 1)}")
        options = [*options_file(recipe.definition, work), recipe.lock.path]
        hashes = ["--require-hashes"] if recipe.lock.has_all_hashes else []
        place: list[str | Path] = ["--python", stage / "bin" / "python", "--link-mode", "hardlink"]
        call("pip", "sync", *place, *hashes, *uv.settings.arguments, *options)
    _compile(recipe, stage, uv, log=log, progress=progress, holds=holds)
    size_bytes = _make_read_only(stage)
    marker = {
        "key": recipe.key,
        "python": interpreter.version_text,
        "interpreter": str(interpreter.path),
        "bytecode": interpreter.cache_tag,
        "platform": platform_name(),
        "packages": packages,
        "created": datetime.now(UTC).isoformat(timespec="seconds"),
        "size_bytes": size_bytes,
        "builder": BUILDER,
        "modified_ns": modified_ns(stage, interpreter.version_text),
    }
    replace_json(stage / MARKER, marker)
    return stage


def _compile(
    recipe: Recipe,
    stage: Path,
    uv: Uv,
    *,
    log: Callable[[str], None],
    progress: Callable[[str], None],
    holds: int,
) -> None:
    """Give every source its bytecode: from the earlier prefixes that share most packages, the rest compiled."""
    interpreter = recipe.interpreter
    left = list(bytecode.sources(stage, "lib"))
    count = len(left)
    wanted = recipe.lock.packages.items()
    shared = {
        path: len(wanted & dict(marker["packages"]).items())
        for path, marker in recipe.earlier.items()
        if marker["bytecode"] == interpreter.cache_tag and marker["builder"] == BUILDER
    }
    for path in sorted(shared, key=lambda one: shared[one], reverse=True)[:_EARLIER_MAX]:
        if left and shared[path]:
            left = bytecode.link(stage, left, path, interpreter.cache_tag)
    if not left:
        return
    progress(f"compiling {len(left)} of {count} file{'s' * (count != 1)}")
    left.sort(key=lambda source: source.size_bytes, reverse=True)
    processes = 1 if len(left) < _FEW_FILES else len(os.sched_getaffinity(0))
    lines: list[str] = []

    def take(line: str) -> None:
        lines.append(line)
        log(line)

    script = Path(__file__).with_name("compiler.py")
    command = [str(part) for part in (interpreter.path, "-I", "-S", script, processes, stage, recipe.final)]
    listed = "".join(f"{source.relative}\n" for source in left)
    environment = uv.settings.environment
    if run(command, environment=environment, cwd=stage, on_line=take, holds=holds, stdin=listed):
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
