"""The local files a dataset names: found, laid out side by side, and put where a task can read them.

Nothing is copied to find them. A directory keeps its tree; single files and the matches of a glob land side by side by
their names; two different files for one name are an error.
"""

from __future__ import annotations

import glob
import os
import re
import shutil
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

from tfjob.durable import digest_of
from tfjob.errors import PreparationError

__all__ = ["DatasetFiles", "change_since", "find_files", "place"]

_ESCAPED = re.compile(r"\[([*?[])\]")


@dataclass(frozen=True)
class DatasetFiles:
    """The files of a dataset as they are now: (absolute source, path in the dataset, bytes), in order of the second.

    `digest` is a SHA-256 over names, sizes and times of change: it says whether the files are still those of an
    earlier run without reading them.
    """

    files: tuple[tuple[str, str, int], ...]
    digest: str


def find_files(patterns: Iterable[str]) -> DatasetFiles:
    """The files that paths and globs name. `patterns` are absolute; `**` crosses directories.

    A file lies in the dataset by its name, a directory by what is in it; what a glob finds below its fixed part
    keeps its place there (``data/*`` finds ``sub/b`` as ``sub/b``).

    Raises PreparationError for a pattern that matches nothing, a file that can't be read, and a clash of names.
    A link that leads back to a directory it lies in is passed over: what is behind it is there already.
    """
    found: dict[str, tuple[str, int, int]] = {}
    for pattern in patterns:
        matches = sorted(glob.glob(pattern, recursive=True)) or ([pattern] if os.path.exists(pattern) else [])
        if not matches:
            raise PreparationError(
                f"no file matches {pattern}", "Check the path; it is taken from the job file's directory."
            )
        base = None if os.path.exists(pattern) else _fixed_part(pattern)
        for match in map(Path, matches):
            for source, name in _expand(match):
                _add(found, source, name if base is None else source.relative_to(base).as_posix())
    for name in found:
        for parent in PurePosixPath(name).parents:
            if str(parent) in found:
                raise PreparationError(
                    f"{parent} is a file of the dataset and also the directory of {name}",
                    "Name a directory that holds both, or make two datasets of them.",
                )
    ordered = sorted(found.items())
    return DatasetFiles(
        files=tuple((source, name, size) for name, (source, size, _) in ordered),
        digest=digest_of([[name, size, changed] for name, (_, size, changed) in ordered]),
    )


def change_since(digest: str, files: Iterable[tuple[str, str, int]]) -> str | None:
    """What has changed since the files had this digest, in words, or None: the name of a file that is gone or has another size.

    A change that leaves the size is noticed too, but not in which file.
    """
    rows = []
    for source, name, size in files:
        try:
            status = os.stat(source)
        except OSError:
            return f"{source} is gone"
        if status.st_size != size:
            return f"{source} has {status.st_size} bytes where it had {size}"
        rows.append([name, status.st_size, status.st_mtime_ns])
    return None if digest_of(rows) == digest else "one of its files was written to"


def place(files: Iterable[tuple[str, str, int]], into: Path, *, copy: bool) -> None:
    """Make the directory `into` hold the files: as links to where they are (a mount), or as writable copies (a download).

    Done anew if `into` exists, as it does when an earlier try was killed. Raises PreparationError when a file has gone.
    """
    if into.exists():
        shutil.rmtree(into)
    into.mkdir(parents=True)
    for source, name, size in files:
        target = into / name
        target.parent.mkdir(parents=True, exist_ok=True)
        try:
            if os.stat(source).st_size != size:
                raise PreparationError(f"dataset file {source} has changed since the job was submitted")
            if copy:
                shutil.copyfile(source, target)
            else:
                target.symlink_to(source)
        except OSError as error:
            raise PreparationError(f"dataset file {source} can't be used: {error.strerror}") from error


def _fixed_part(pattern: str) -> Path | None:
    """The directory above the first part of a glob that is one, or None where no part is (``[[]`` stands for ``[``)."""
    fixed: list[str] = []
    for part in Path(pattern).parts:
        if glob.has_magic(_ESCAPED.sub("", part)):
            return Path(*fixed)
        fixed.append(_ESCAPED.sub(r"\1", part))
    return None


def _expand(path: Path) -> Iterator[tuple[Path, str]]:
    if not path.is_dir():
        yield path, path.name
        return
    for file in _tree(path, ()):
        yield file, file.relative_to(path).as_posix()


def _tree(directory: Path, above: tuple[str, ...]) -> Iterator[Path]:
    real = os.path.realpath(directory)
    if real in above:
        return
    try:
        entries = sorted(directory.iterdir())
    except OSError as error:
        raise PreparationError(f"dataset directory {directory} can't be read: {error.strerror}") from error
    for entry in entries:
        if entry.is_dir():
            yield from _tree(entry, (*above, real))
        else:
            yield entry


def _add(found: dict[str, tuple[str, int, int]], source: Path, name: str) -> None:
    real = os.path.realpath(source)
    try:
        status = os.stat(real)
    except OSError as error:
        raise PreparationError(f"dataset file {source} can't be read: {error.strerror}") from error
    known = found.get(name)
    if known and known[0] != real:
        raise PreparationError(
            f"two files of the dataset have the name {name}: {known[0]} and {real}",
            "Name a directory that holds both, or make two datasets of them.",
        )
    found[name] = (real, status.st_size, status.st_mtime_ns)
