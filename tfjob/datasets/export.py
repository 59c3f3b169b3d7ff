"""A dataset's files copied to a directory outside of any run."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Callable
from pathlib import Path

from tfjob.datasets.cache import Cache
from tfjob.datasets.copying import copy_file
from tfjob.datasets.fetch import fetch
from tfjob.datasets.files import SHA256, DatasetFiles, is_address, with_marks
from tfjob.datasets.registered import note_contents
from tfjob.datasets.wanted import Settings, Wanted
from tfjob.errors import UsageError

__all__ = ["export"]


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
        total = 0
        for (source, name, _), mark in zip(whole.files, marks, strict=True):
            at = cache.object(mark.removeprefix(SHA256)) if mark.startswith(SHA256) else source
            total += _copy(at, target / name)
    return total


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


def _copy(source: str, target: Path) -> int:
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=target.parent, prefix=f".{target.name[:100]}.") as directory:
            fresh = os.path.join(directory, "new")
            copied = copy_file(source, fresh)
            os.replace(fresh, target)
    except OSError as error:
        raise UsageError(f"{error.filename or target} can't be written: {error.strerror or error}") from error
    return copied
