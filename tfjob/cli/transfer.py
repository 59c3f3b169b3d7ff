"""The command download: copying what a run made."""

from __future__ import annotations

import filecmp
import os
import shutil
import tempfile
from pathlib import Path
from typing import Annotated

import typer

from tfjob.cli.options import RunName
from tfjob.cli.output import plural, size
from tfjob.errors import NotFound, UsageError
from tfjob.rundir import RunDirectory
from tfjob.runs.find import find_run
from tfjob.workspace import open_workspace

__all__ = ["download"]


def download(
    run: RunName,
    prefix: Annotated[
        str, typer.Option(help="Only files whose path starts so: under outputs, or with logs/ in front under logs.")
    ] = "",
    to: Annotated[
        Path | None, typer.Option(help="Where to; made if it is not there. [default: ./RUN]", show_default=False)
    ] = None,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace files that are there and differ.")] = False,
) -> None:
    """Copy a run's outputs (or, with --prefix logs/, its logs) to a directory."""
    directory = find_run(open_workspace(), run)
    target = (to or Path(directory.id)).absolute()
    found = _artifacts(directory, prefix)
    if not found:
        raise NotFound(
            f"run {directory.id} has no file that starts with {prefix!r}", f"See what it has: tfjob show {directory.id}"
        )
    clashes = [name for source, name in found if _differs(source, target / name)]
    if clashes and not overwrite:
        raise UsageError(
            f"{plural(len(clashes), 'file')} with other contents already in {target}, such as {clashes[0]}; nothing was copied",
            "Name another directory with --to, or add --overwrite.",
        )
    try:
        for source, name in found:
            _copy(source, target / name)
    except OSError as error:
        raise UsageError(f"{target} can't be written: {error.strerror or error}") from error
    total = sum(source.stat().st_size for source, _ in found)
    print(f"{plural(len(found), 'file')} ({size(total)}) in {target}")


def _artifacts(directory: RunDirectory, prefix: str) -> list[tuple[Path, str]]:
    """(file, its path under the target directory) of everything that starts with the prefix."""
    root, rest = directory.outputs, prefix.removeprefix("outputs/")
    if prefix == "logs" or prefix.startswith("logs/"):
        root, rest = directory.logs.parent, prefix if "/" in prefix else "logs/"
    found = []
    for parent, _, names in os.walk(root):
        for name in names:
            file = Path(parent, name)
            relative = file.relative_to(root).as_posix()
            if relative.startswith(rest):
                found.append((file, relative))
    return sorted(found)


def _differs(source: Path, target: Path) -> bool:
    if target.is_dir():
        return True
    return target.exists() and not filecmp.cmp(source, target, shallow=False)


def _copy(source: Path, target: Path) -> None:
    """Copy a file so that the target is whole or not there."""
    target.parent.mkdir(parents=True, exist_ok=True)
    descriptor, temporary = tempfile.mkstemp(dir=target.parent, prefix=f".{target.name}.")
    os.close(descriptor)
    try:
        shutil.copy2(source, temporary)
        Path(temporary).replace(target)
    except BaseException:
        Path(temporary).unlink(missing_ok=True)
        raise
