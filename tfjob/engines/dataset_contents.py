"""What a dataset's files are, by content: for engines that send them to where the tasks run."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

from tfjob.datasets.cache import Cache
from tfjob.datasets.files import SHA256, is_address
from tfjob.durable import file_digest
from tfjob.errors import PreparationError
from tfjob.planning.plan import DatasetPlan

__all__ = ["Content", "contents", "is_remote"]


class Content(NamedTuple):
    """One file: where it is on this machine (absolute), its path in the dataset, its bytes and its SHA-256 (hex)."""

    source: str
    name: str
    size: int
    sha256: str


def contents(dataset: DatasetPlan, cache: Cache) -> Iterator[Content]:
    """Yield every file of a dataset that has been fetched, in order of names; what was behind an address is in the cache.

    Files of this machine are read for their digest, once until they change. Raises PreparationError for one that has
    gone or has another size than it was planned with.
    """
    marks = dataset.marks or ("",) * len(dataset.files)
    local = [source for source, _, _ in dataset.files if source.startswith("/")]
    known = cache.index.digests(local) if local else {}
    fresh: list[tuple[str, str, str]] = []
    try:
        for (source, name, size), mark in zip(dataset.files, marks, strict=True):
            if mark.startswith(SHA256):
                sha256 = mark.removeprefix(SHA256)
                yield Content(cache.object(sha256), name, size, sha256)
                continue
            sign = _sign(source, size)
            noted = known.get(source)
            sha256 = noted[1] if noted is not None and noted[0] == sign else file_digest(Path(source))
            if noted is None or noted[0] != sign:
                fresh.append((source, sign, sha256))
            yield Content(source, name, size, sha256)
    except OSError as error:
        raise PreparationError(f"dataset file {error.filename} can't be read: {error.strerror}") from error
    finally:
        if fresh:
            cache.index.remember_digests(fresh)


def is_remote(dataset: DatasetPlan) -> bool:
    """Whether all of a dataset's files are behind addresses, and what they hold is known: whoever fetches them can tell."""
    return bool(dataset.files) and all(
        is_address(source) and mark.startswith(SHA256)
        for (source, _, _), mark in zip(dataset.files, dataset.marks or ("",) * len(dataset.files), strict=True)
    )


def _sign(source: str, size: int) -> str:
    """What tells this content of a file from another without reading it."""
    status = os.stat(source)
    if status.st_size != size:
        raise PreparationError(
            f"dataset file {source} has changed since the job was submitted", "Submit the job again."
        )
    return f"{status.st_ino} {status.st_size} {status.st_mtime_ns} {status.st_ctime_ns}"
