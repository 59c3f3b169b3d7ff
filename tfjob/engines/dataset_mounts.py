"""What a container has to see of this machine so that the links to a run's datasets lead somewhere in it."""

from __future__ import annotations

import os
from collections.abc import Iterable
from heapq import heapify, heappop, heappush
from pathlib import Path
from typing import Final

from tfjob.datasets.files import is_address
from tfjob.engines.base import Mount
from tfjob.planning.plan import DatasetPlan

__all__ = ["dataset_mounts"]

_MOST: Final = 256
"""Mounts for datasets. A container with that many starts a tenth of a second later than one with none."""


def dataset_mounts(datasets: Iterable[DatasetPlan], placed: Path | None = None) -> tuple[Mount, ...]:
    """The fewest read-only mounts, each at its own path, that hold the files of the datasets that are not copied.

    `placed` is where the run has its datasets: one that is a link there leads to a tree of links, which is mounted too.

    A directory is mounted where all of it is in a dataset; otherwise its files are, one by one, so that the task sees
    nothing beside them. Past a limit directories are mounted as they are: a long list of mounts takes long.
    """
    wanted: dict[str, set[str]] = {}
    trees: set[str] = set()
    for dataset in datasets:
        if dataset.mode != "mount":
            continue
        if placed is not None and os.path.islink(placed / dataset.name):
            trees.add(os.readlink(placed / dataset.name))
        for source, _, _ in dataset.files:
            if not is_address(source):
                directory, name = os.path.split(source)
                wanted.setdefault(directory, set()).add(name)
    whole = _whole(wanted)
    places = {directory for directory in whole if os.path.dirname(directory) not in whole}
    parts = {directory: names for directory, names in wanted.items() if directory not in whole}
    if len(places) + sum(map(len, parts.values())) <= _MOST:
        places |= {os.path.join(directory, name) for directory, names in parts.items() for name in names}
    else:
        places |= set(parts)
    return tuple(Mount(place, place) for place in sorted(_fewer(places) | trees))


def _whole(wanted: dict[str, set[str]]) -> set[str]:
    """The directories that hold nothing but wanted files, and directories that do."""
    whole: set[str] = set()
    seen = set(wanted)
    queue = [(-directory.count("/"), directory) for directory in wanted]  # the deepest first
    heapify(queue)
    while queue:
        directory = heappop(queue)[1]
        if directory == "/" or not _is_whole(directory, wanted.get(directory, set()), whole):
            continue
        whole.add(directory)
        parent = os.path.dirname(directory)
        if parent not in seen:
            seen.add(parent)
            heappush(queue, (-parent.count("/"), parent))
    return whole


def _is_whole(directory: str, names: set[str], whole: set[str]) -> bool:
    try:
        with os.scandir(directory) as entries:
            return all(
                # A link shows nothing of what it leads to.
                entry.name in names or entry.path in whole or entry.is_symlink()
                for entry in entries
            )
    except OSError:
        return False


def _fewer(places: set[str]) -> set[str]:
    """The places without those that lie in others; while they are too many, the deepest give way to their parents."""
    while True:
        places = {place for place in places if not any(parent in places for parent in _parents(place))}
        if len(places) <= _MOST:
            return places
        deepest = max(place.count("/") for place in places)
        if deepest <= 2:  # never /: it could not be mounted
            return places
        places = {os.path.dirname(place) if place.count("/") == deepest else place for place in places}


def _parents(place: str) -> Iterable[str]:
    while (parent := os.path.dirname(place)) != place:
        yield parent
        place = parent
