"""A run's datasets: fetched into the cache where they are behind addresses, put where tasks find them, and remembered."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from tfjob.datasets.cache import Cache
from tfjob.datasets.eviction import evict
from tfjob.datasets.fetch import fetch
from tfjob.datasets.files import SHA256, DatasetFiles, change_since, is_address, with_marks
from tfjob.datasets.placing import clear, place
from tfjob.datasets.registered import note_contents
from tfjob.datasets.wanted import Settings, Wanted
from tfjob.durable import replace_json
from tfjob.errors import PreparationError, TfjobError
from tfjob.planning.plan import DatasetPlan, Plan
from tfjob.rundir import RunDirectory
from tfjob.runs.record import DatasetRecord
from tfjob.values import decode, encode

__all__ = ["RunData", "dataset_records", "with_fetched"]

_MANY = 64
"""Files from which on a mount is one link to a tree in the cache, made once for all runs."""
_GIB = 1 << 30


@dataclass(frozen=True)
class RunData:
    """What it takes to prepare a run's datasets: the cache, how much it may hold, the registry, and how files are fetched.

    `here`: the run's tasks see its directory, so that datasets are placed in it.
    """

    plan: Plan
    run: RunDirectory
    cache: Cache
    limit_gib: float
    registry: Path
    settings: Settings
    here: bool = True

    def prepare(self, progress: Callable[[str], None]) -> tuple[Plan, tuple[str, ...]]:
        """Fetch what is missing and put everything in its place. Returns the plan as fetched, and what people should know.

        Can be done again after it was interrupted. Raises PreparationError when something can't be had, or has changed.
        """
        for dataset in self.plan.datasets:
            if change := change_since(dataset.digest, dataset.files, dataset.marks):
                raise PreparationError(
                    f"dataset {dataset.name} has changed since the job was planned: {change}", "Submit the job again."
                )
        remote = [dataset for dataset in self.plan.datasets if dataset.marks]
        if not remote and not any(_as_tree(dataset) for dataset in self.plan.datasets):
            self._place(self.plan.datasets)
            return self.plan, ()
        self._make_room(remote)
        notes: tuple[str, ...] = ()
        with self.cache.filling():
            datasets = self.plan.datasets
            if remote:
                wanted = [one for dataset in remote for one in _wanted(dataset)]
                known, notes = fetch(wanted, self.cache, self.settings, progress)
                held = {source: (one.size, one.sha256) for source, one in known.items()}
                datasets = tuple(_fetched(dataset, held) if dataset.marks else dataset for dataset in datasets)
                replace_json(self.run.fetched, [encode(dataset) for dataset in datasets], force=False)
            self._use(datasets)
            self._place(datasets)
        self._note_contents(datasets)
        return replace(self.plan, datasets=datasets), notes

    def changes(self, plan: Plan) -> tuple[str, ...]:
        """What has changed in mounted datasets, a sentence each: nothing but good manners keeps a process from writing there."""
        return tuple(
            f"dataset {dataset.name} was changed while the run went on: {change}"
            for dataset in plan.datasets
            if dataset.mode == "mount" and (change := self._change(dataset))
        )

    def _change(self, dataset: DatasetPlan) -> str | None:
        """What has changed in a dataset; a file of the cache that was written to is removed from it."""
        if change := change_since(dataset.digest, dataset.files, dataset.marks):
            return change
        harmed = [
            name
            for name, _, size, sha256 in _rows(dataset)
            if sha256 and os.path.exists(self.cache.object(sha256)) and not self.cache.has(sha256, size)
        ]
        return f"{harmed[0]} was written to; it was taken out of the cache" if harmed else None

    def _make_room(self, remote: Sequence[DatasetPlan]) -> None:
        needed = sum(max(size, 0) for dataset in remote for source, _, size in dataset.files if is_address(source))
        held = sum(
            size
            for dataset in remote
            for _, _, size, sha256 in _rows(dataset)
            if sha256 and os.path.exists(self.cache.object(sha256))
        )
        evict(self.cache, limit_bytes=int(self.limit_gib * _GIB), needed_bytes=max(needed - held, 0))

    def _use(self, datasets: Sequence[DatasetPlan]) -> None:
        """Have the trees of datasets in the cache, and this run among their users."""
        for dataset in datasets:
            if not _as_tree(dataset):
                continue
            tree = self.cache.tree(list(_rows(dataset)))
            self.cache.use(tree, self.run.path)
            if self.here and dataset.mode == "mount":
                link = self.run.datasets / dataset.name
                clear(link)
                link.parent.mkdir(exist_ok=True)
                link.symlink_to(tree)

    def _place(self, datasets: Sequence[DatasetPlan]) -> None:
        for dataset in datasets if self.here else ():
            sources = [
                (self.cache.object(sha256) if sha256 else source, name, size)
                for name, source, size, sha256 in _rows(dataset)
            ]
            if dataset.mode == "download":
                for task in self.plan.tasks:
                    place(sources, self.run.datasets / task.name / dataset.name, copy=True)
            elif not _as_tree(dataset):
                place(sources, self.run.datasets / dataset.name, copy=False)

    def _note_contents(self, datasets: Sequence[DatasetPlan]) -> None:
        """Pin what registered versions hold, at their first use."""
        for dataset in datasets:
            if dataset.registered is None or not dataset.marks:
                continue
            held = {
                source: (size, mark.removeprefix(SHA256))
                for (source, _, size), mark in zip(dataset.files, dataset.marks, strict=True)
                if is_address(source)
            }
            try:
                note_contents(dataset.registered, self.registry, held)
            except (OSError, TfjobError):  # removed meanwhile, or a full disk: the next use will
                continue


def with_fetched(plan: Plan, run: RunDirectory) -> Plan:
    """The plan with its datasets as the run has fetched them; as it was where it has fetched nothing (yet)."""
    try:
        rows = json.loads(run.fetched.read_bytes())
    except FileNotFoundError:
        return plan
    return replace(plan, datasets=tuple(decode(DatasetPlan, row) for row in rows))


def dataset_records(plan: Plan) -> tuple[DatasetRecord, ...]:
    """What a run's record says of its datasets."""
    return tuple(
        DatasetRecord(one.name, one.registered, one.digest, one.file_count, one.size_bytes) for one in plan.datasets
    )


def _as_tree(dataset: DatasetPlan) -> bool:
    """Whether the dataset's files are put together in the cache: those that are there, and many that would be linked one by one."""
    return bool(dataset.marks) or (dataset.mode == "mount" and dataset.file_count >= _MANY)


def _wanted(dataset: DatasetPlan) -> Iterator[Wanted]:
    of = dataset.registered or f"dataset {dataset.name}"
    for (source, _, size), mark in zip(dataset.files, dataset.marks, strict=True):
        if is_address(source):
            yield Wanted(source, size, mark, of)


def _rows(dataset: DatasetPlan) -> Iterator[tuple[str, str, int, str]]:
    """Name, source, bytes and SHA-256 (empty for a file of this machine) of every file."""
    marks = dataset.marks or ("",) * len(dataset.files)
    for (source, name, size), mark in zip(dataset.files, marks, strict=True):
        yield name, source, size, mark.removeprefix(SHA256) if mark.startswith(SHA256) else ""


def _fetched(dataset: DatasetPlan, known: dict[str, tuple[int, str]]) -> DatasetPlan:
    found = with_marks(DatasetFiles(dataset.files, dataset.digest, dataset.marks), known)
    return replace(
        dataset,
        files=found.files,
        marks=found.marks,
        digest=found.digest,
        size_bytes=sum(size for _, _, size in found.files),
    )
