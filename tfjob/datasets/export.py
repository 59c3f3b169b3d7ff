"""A dataset's files copied to a directory outside of any run."""

from __future__ import annotations

import errno
import os
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path

from tfjob.datasets.beside import beside
from tfjob.datasets.cache import Cache
from tfjob.datasets.copying import File, NotCopied
from tfjob.datasets.fetch import fetch
from tfjob.datasets.files import SHA256, DatasetFiles, is_address, with_marks
from tfjob.datasets.placing import copy_files
from tfjob.datasets.registered import note_contents
from tfjob.datasets.wanted import Settings, Wanted
from tfjob.errors import PreparationError, UsageError

__all__ = ["export"]

_AT_ONCE_BYTES = 4 << 30


def export(
    found: DatasetFiles,
    target: Path,
    cache: Cache,
    settings: Settings,
    *,
    registry: Path,
    progress: Callable[[str], None],
) -> int:
    """Copy the files of a registered dataset to the directory `target`, and return their bytes.

    Each file appears whole. Raises PreparationError when one can't be had, and UsageError when one can't be written.
    """
    with cache.filling():
        whole = _fetched(found, cache, settings, registry, progress) if found.marks else found
        marks = whole.marks or ("",) * len(whole.files)
        files = [
            (cache.object(mark.removeprefix(SHA256)) if mark.startswith(SHA256) else source, name, size)
            for (source, name, size), mark in zip(whole.files, marks, strict=True)
        ]
        try:
            target.mkdir(parents=True, exist_ok=True)
            for some in _portions(files):
                _copy(some, target)
        except OSError as error:
            raise UsageError(
                f"{error.filename2 or error.filename or target} can't be written: {error.strerror or error}"
            ) from error
    return sum(size for _, _, size in files)


def _fetched(
    found: DatasetFiles, cache: Cache, settings: Settings, registry: Path, progress: Callable[[str], None]
) -> DatasetFiles:
    of = found.registered or "the dataset"
    wanted = [
        Wanted(source, size, mark, of)
        for (source, _, size), mark in zip(found.files, found.marks, strict=True)
        if is_address(source)
    ]
    fetched = fetch(wanted, cache, settings, progress)
    for note in fetched.notes:
        progress(note)
    held = {source: (one.size, one.sha256) for source, one in fetched.known.items()}
    if found.registered:
        note_contents(found.registered, registry, held)
    return with_marks(found, held)


def _portions(files: Iterable[File]) -> Iterator[list[File]]:
    """The files in portions that a disk has room for beside what they replace."""
    portion: list[File] = []
    held = 0
    for file in files:
        if portion and held + file[2] > _AT_ONCE_BYTES:
            yield portion
            portion, held = [], 0
        portion.append(file)
        held += file[2]
    if portion:
        yield portion


def _copy(files: Sequence[File], target: Path, *, is_beside: bool = False) -> None:
    """Copy files to a directory beside their place, and move them there when they are whole.

    `is_beside`: they are such copies, but on another file system.
    """
    with beside(target) as fresh:
        try:
            copy_files(files, fresh)
        except NotCopied as failure:
            if not failure.reason:
                raise PreparationError(f"{failure.source} has changed while it was copied", "Try again.") from failure
            if not os.access(failure.source, os.R_OK):
                raise PreparationError(f"{failure.source} can't be read: {failure.reason}") from failure
            raise UsageError(f"{target} can't be written: {failure.reason}") from failure
        _move(str(fresh), str(target), is_beside=is_beside)


def _move(directory: str, to: str, *, is_beside: bool) -> None:
    """Move what is in a directory to another, where it may replace files: what is not there yet as a whole.

    The other may be on another file system (a mount, or a link): what is to go there is copied there first. Unless it was,
    as `is_beside` says.
    """
    elsewhere: list[str] = []
    with os.scandir(directory) as entries:
        for entry in entries:
            target = os.path.join(to, entry.name)
            if entry.is_dir() and os.path.isdir(target):
                _move(entry.path, target, is_beside=is_beside)
                continue
            try:
                os.replace(entry.path, target)
            except OSError as error:
                if error.errno == errno.EXDEV and not is_beside:
                    elsewhere.append(entry.name)
                elif error.errno in {errno.ENOTEMPTY, errno.EEXIST}:  # another download has just made the directory
                    _move(entry.path, target, is_beside=is_beside)
                else:
                    raise
    if elsewhere:
        _copy(tuple(_files(directory, elsewhere)), Path(to), is_beside=True)


def _files(directory: str, names: Iterable[str]) -> Iterator[File]:
    """The files that are, or lie below, what has these names in a directory."""
    for name in names:
        path = f"{directory}/{name}"
        if os.path.isdir(path):
            yield from _files(directory, [f"{name}/{below}" for below in os.listdir(path)])
        else:
            yield path, name, os.stat(path).st_size
