"""Datasets that are not what was planned any more: refused before a run begins, and told when it has ended."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

from tfjob.datasets.files import change_since, local_digest, whole_directory
from tfjob.datasets.placing import place
from tfjob.errors import PreparationError
from tfjob.runs.planned_data import rows_of

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence
    from pathlib import Path

    from tfjob.datasets.cache import Cache
    from tfjob.planning.plan import DatasetPlan, Plan
    from tfjob.rundir import RunDirectory

__all__ = ["changes_of_mounts", "copy_for_tasks", "refuse_changed"]


def refuse_changed(dataset: DatasetPlan) -> None:
    """Raise PreparationError if files of this machine are not those that were planned."""
    if change := change_since(dataset.digest, dataset.files, dataset.marks):
        raise _changed(dataset, change)


def copy_for_tasks(dataset: DatasetPlan, run: RunDirectory, tasks: Iterable[str]) -> None:
    """Copy files of this machine for each task, and refuse what is not what was planned: also a change that leaves the size."""
    same: Sequence[int] = ()
    for task in tasks:
        try:
            times = place(dataset.files, run.datasets / task / dataset.name, copy=True)
        except PreparationError:
            refuse_changed(dataset)  # says more of it
            raise
        if times != same and local_digest(dataset.files, times) != dataset.digest:
            refuse_changed(dataset)
            raise _changed(dataset, "one of its files was written to")
        same = times


def changes_of_mounts(plan: Plan, run: RunDirectory, cache: Cache) -> tuple[str, ...]:
    """What has changed in mounted datasets, a sentence each: nothing but good manners keeps a process from writing there."""
    return tuple(
        f"dataset {dataset.name} was changed while the run went on: {change}"
        for dataset in plan.datasets
        if dataset.mode == "mount" and (change := _change(dataset, run, cache))
    )


def _change(dataset: DatasetPlan, run: RunDirectory, cache: Cache) -> str | None:
    """What has changed in a dataset; a file of the cache that was written to is removed from it."""
    if change := change_since(dataset.digest, dataset.files, dataset.marks):
        return change
    link = run.datasets / dataset.name
    if _leads_to_directory(link, cache) and whole_directory(dataset.files) is None:
        return f"files were added to {os.readlink(link)}"
    earlier = cache.harmed_since(_since(run))
    harmed = [
        name
        for name, _, size, sha256 in rows_of(dataset)
        if sha256 and (sha256 in earlier or cache.is_harmed(sha256, size))
    ]
    if not harmed:
        return None
    cache.distrust()
    return f"{harmed[0]} was written to; it was taken out of the cache"


def _since(run: RunDirectory) -> float:
    """When the run's data had been looked at; what was found harmed later may have been read by it."""
    try:
        return os.stat(run.fetched).st_mtime
    except OSError:
        return 0.0


def _changed(dataset: DatasetPlan, change: str) -> PreparationError:
    return PreparationError(
        f"dataset {dataset.name} has changed since the job was planned: {change}", "Submit the job again."
    )


def _leads_to_directory(link: Path, cache: Cache) -> bool:
    """Whether a dataset is a link, and not to a tree of the cache but to a directory of the user's."""
    return link.is_symlink() and not os.readlink(link).startswith(f"{cache.root}/")
