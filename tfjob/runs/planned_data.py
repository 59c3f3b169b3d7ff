"""What a planned dataset says of itself, before anything of it is looked at: where its files are, and how they are used."""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator
from dataclasses import replace
from functools import lru_cache
from typing import TYPE_CHECKING, Final

from tfjob.datasets.files import SHA256, DatasetFiles, is_address, with_marks
from tfjob.durable import digest_of
from tfjob.planning.plan import DatasetPlan
from tfjob.spec import addresses
from tfjob.spec.addresses import is_web

if TYPE_CHECKING:
    from tfjob.datasets.cache import Cache
    from tfjob.datasets.wanted import Wanted

__all__ = ["as_tree", "asked_for", "files_to_come", "has_local", "is_large", "rows_of", "wanted_of", "with_contents"]

_PLAINLY_WEB: Final = ("https://", "http://")
_MANY: Final = 256
"""Files from which on a mount is one link: to their directory, or to a tree of links in the cache, made once for all runs."""


def has_local(dataset: DatasetPlan) -> bool:
    """Whether any file of a dataset is one of this machine."""
    return not dataset.marks or any(not is_address(source) for source, _, _ in dataset.files)


def is_large(dataset: DatasetPlan) -> bool:
    """Whether all of a dataset are web addresses, too many to be asked at each use, and the tasks share its tree."""
    return (
        dataset.mode == "mount"
        and bool(dataset.marks)
        and dataset.file_count > addresses.MANY
        and all([source.startswith(_PLAINLY_WEB) or is_web(source) for source, _, _ in dataset.files])  # noqa: C419  # very many
    )


def files_to_come(datasets: Iterable[DatasetPlan], cache: Cache) -> int:
    """How many files the large ones have that no run has had yet. A guess: what one had may have been asked for long ago."""
    return sum(
        one.file_count for one in datasets if is_large(one) and not os.path.exists(cache.resolved(asked_for(one)))
    )


@lru_cache(4)
def asked_for(dataset: DatasetPlan) -> str:
    """What tells this dataset, as it is asked for, from any other."""
    return digest_of([dataset.digest, [source for source, _, _ in dataset.files]])


def as_tree(dataset: DatasetPlan) -> bool:
    """Whether the dataset's files are put together in the cache: those that are there, and many that would be linked one by one."""
    return bool(dataset.marks) or (dataset.mode == "mount" and dataset.file_count >= _MANY)


def wanted_of(dataset: DatasetPlan, rerun_of: str) -> Iterator[Wanted]:
    """Yield what is to be fetched of a dataset; `rerun_of` is the run whose content it must be, or empty."""
    from tfjob.datasets.wanted import Wanted  # noqa: PLC0415  # only where something is fetched

    of = dataset.registered or f"dataset {dataset.name}"
    for (source, _, size), mark in zip(dataset.files, dataset.marks, strict=True):
        if source[0] != "/":
            yield Wanted(source, size, mark, of, rerun_of)


def rows_of(dataset: DatasetPlan) -> Iterator[tuple[str, str, int, str]]:
    """Name, source, bytes and SHA-256 (empty for a file of this machine) of every file."""
    marks = dataset.marks or ("",) * len(dataset.files)
    for (source, name, size), mark in zip(dataset.files, marks, strict=True):
        yield name, source, size, mark.removeprefix(SHA256) if mark.startswith(SHA256) else ""


def with_contents(dataset: DatasetPlan, known: dict[str, tuple[int, str]]) -> DatasetPlan:
    """The dataset, with the bytes and the SHA-256 that are known of addresses. Raises PreparationError as `with_marks` does."""
    found = with_marks(DatasetFiles(dataset.files, dataset.digest, dataset.marks), known)
    return replace(
        dataset,
        files=found.files,
        marks=found.marks,
        digest=found.digest,
        size_bytes=sum(size for _, _, size in found.files),
    )
