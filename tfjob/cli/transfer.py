"""The command download: copying what a run made."""

from __future__ import annotations

import filecmp
import os
import shutil
import stat
import sys
import tempfile
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Annotated, NoReturn

import typer

from tfjob.cli.escaping import in_line
from tfjob.cli.options import RunName
from tfjob.cli.output import plural, shown_path, size
from tfjob.errors import NotFound, UsageError
from tfjob.rundir import RunDirectory
from tfjob.runs.find import find_run
from tfjob.workspace import open_workspace

__all__ = ["download"]

_PIECE_BYTES = 1 << 20


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
    found = [one for one in _artifacts(directory, prefix) if _can_be_kept(*one)]
    if not found and prefix in ("", "outputs", "outputs/"):
        raise NotFound(
            f"run {directory.id} has no outputs",
            f"What its tasks printed: tfjob logs {directory.id}; its logs as files: "
            f"tfjob download {directory.id} --prefix logs/",
        )
    if not found:
        raise NotFound(
            f"run {directory.id} has no file that starts with {prefix!r}", f"See what it has: tfjob show {directory.id}"
        )
    clashes = [name for source, name in found if _differs(source, target / name)]
    if clashes and not overwrite:
        raise UsageError(
            f"{plural(len(clashes), 'file')} with other contents already in {shown_path(target)}, such as {clashes[0]}; "
            "nothing was copied",
            "Name another directory with --to, or add --overwrite.",
        )
    total = links = 0
    for source, name in found:
        if source.is_symlink():
            _put(target / name, partial(os.symlink, os.readlink(source)))
            links += 1
        else:
            total += _copy(source, target / name)
    files = plural(len(found) - links, "file") + (f" and {plural(links, 'link')}" if links else "")
    print(f"{files} ({size(total)}) in {shown_path(target)}")


def _artifacts(directory: RunDirectory, prefix: str) -> list[tuple[Path, str]]:
    """(file or link, its path under the target directory) of everything that starts with the prefix."""
    root, rest = directory.outputs, prefix.removeprefix("outputs/")
    if prefix == "logs" or prefix.startswith("logs/"):
        root, rest = directory.logs.parent, prefix if "/" in prefix else "logs/"
        top = directory.logs
    else:
        top = root
    found = []
    for parent, directories, names in os.walk(top, onerror=_raise_unreadable):
        links = [name for name in directories if os.path.islink(os.path.join(parent, name))]  # not walked into
        for name in (*names, *links):
            file = Path(parent, name)
            relative = file.relative_to(root).as_posix()
            if relative.startswith(rest):
                found.append((file, relative))
    return sorted(found)


def _can_be_kept(source: Path, name: str) -> bool:
    """Whether it is a file or a link. Anything else is told: to open a pipe could take forever."""
    try:
        mode = source.lstat().st_mode
    except OSError as error:
        raise _unreadable(source, error) from error
    if stat.S_ISREG(mode) or stat.S_ISLNK(mode):
        return True
    kind = "pipe" if stat.S_ISFIFO(mode) else "socket" if stat.S_ISSOCK(mode) else "device"
    print(f"tfjob: {in_line(name)} is left out: it is a {kind}", file=sys.stderr)
    return False


def _differs(source: Path, target: Path) -> bool:
    """Whether the target is there and is something else than the source."""
    if source.is_symlink() or target.is_symlink():
        both = source.is_symlink() and target.is_symlink()
        return os.path.lexists(target) and not (both and os.readlink(source) == os.readlink(target))
    if target.exists() and not target.is_file():
        return True
    try:
        return target.exists() and not filecmp.cmp(source, target, shallow=False)
    except OSError as error:
        raise _unreadable(Path(os.fsdecode(error.filename or source)), error) from error


def _copy(source: Path, target: Path) -> int:
    """Copy a file, and return its bytes."""
    try:
        reader = source.open("rb")
    except OSError as error:
        raise _unreadable(source, error) from error

    def fill(temporary: Path) -> None:
        with temporary.open("xb") as writer:
            while True:
                try:
                    data = reader.read(_PIECE_BYTES)
                except OSError as error:
                    raise _unreadable(source, error) from error
                if not data:
                    break
                writer.write(data)
        shutil.copystat(source, temporary)

    with reader:
        _put(target, fill)
        return reader.tell()


def _put(target: Path, make: Callable[[Path], None]) -> None:
    """Have something made under another name, and give it its own when it is whole."""
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
    except FileExistsError as error:
        raise UsageError(f"{shown_path(error.filename)} is there, and is no directory") from error
    except OSError as error:
        raise UsageError(f"{shown_path(error.filename)} can't be made: {error.strerror}") from error
    try:
        with tempfile.TemporaryDirectory(dir=target.parent, prefix=f".{target.name[:100]}.") as directory:
            temporary = Path(directory, "new")
            make(temporary)
            temporary.replace(target)
    except OSError as error:
        raise UsageError(f"{shown_path(target)} can't be written: {error.strerror or error}") from error


def _raise_unreadable(error: OSError) -> NoReturn:
    raise _unreadable(Path(os.fsdecode(error.filename)), error) from error


def _unreadable(path: Path, error: OSError) -> UsageError:
    return UsageError(f"{shown_path(path)} can't be read: {error.strerror or error}")
