"""What of a run is kept as trees on the file system of a cluster elsewhere: its code, its datasets, and the programs of its job."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

from tfjob.datasets.cache import Cache
from tfjob.durable import digest_of, file_digest
from tfjob.engines.dataset_contents import Content, contents
from tfjob.engines.slurm.gang import program_directory
from tfjob.engines.slurm.kept_there import Kept, KeptFile, Placed
from tfjob.errors import PreparationError
from tfjob.planning.plan import DatasetPlan, Plan
from tfjob.rundir import RunDirectory

__all__ = ["KeptTree", "trees_of"]


class KeptTree(NamedTuple):
    """One tree: what it is, in words, its files, which are read when it has to be sent, and where it goes in the run's directory."""

    kept: Kept
    what: str
    files: Callable[[], Sequence[KeptFile]]
    placed: tuple[Placed, ...]

    @property
    def is_mounted(self) -> bool:
        """Whether tasks see the tree itself, not only copies of it."""
        return self.placed[0].name.startswith("datasets/") and self.placed[0].how == "link"


def trees_of(plan: Plan, run: RunDirectory, cache: Cache) -> Iterator[KeptTree]:
    """The trees of a run whose programs, code and datasets are here. Raises PreparationError when a file has gone or changed."""
    program = _files(Path(program_directory(run)))
    kept = _tree([(one.name, one.content + one.kind) for one in program])
    yield KeptTree(kept, "the job's programs", lambda: program, (Placed("slurm/program", kept, "copy"),))
    if plan.code:
        code, kept = run.code.resolve(), Kept("trees", plan.code.digest)
        yield KeptTree(kept, "the code", lambda: _files(code), (Placed("code", kept, "link"),))
    for dataset in plan.datasets:
        yield _dataset(dataset, plan, list(contents(dataset, cache)))


def _dataset(dataset: DatasetPlan, plan: Plan, found: list[Content]) -> KeptTree:
    kept = _tree([(one.name, one.sha256) for one in found])
    name = f"datasets/{dataset.name}"
    placed: tuple[Placed, ...] = (Placed(name, kept, "link"),)
    if dataset.mode == "download":
        placed = tuple(Placed(f"datasets/{task.name}/{dataset.name}", kept, "copy") for task in plan.tasks)
    files = [KeptFile(one.source, one.name, "", one.size, one.sha256) for one in found]
    return KeptTree(kept, f"dataset {dataset.name}", lambda: files, placed)


def _tree(made_of: list[tuple[str, str]]) -> Kept:
    return Kept("trees", digest_of([list(one) for one in sorted(made_of)]))


def _files(directory: Path) -> list[KeptFile]:
    """All below a directory: a file is executable for all, or for none."""
    try:
        return sorted(_found(directory), key=lambda one: one.name)
    except OSError as error:
        raise PreparationError(f"{error.filename} can't be read: {error.strerror}") from error


def _found(directory: Path) -> Iterator[KeptFile]:
    for parent, directories, names in os.walk(directory):
        if not directories and not names and Path(parent) != directory:
            yield KeptFile(parent, os.path.relpath(parent, directory), "d", 0, "")
        for name in [*names, *(one for one in directories if Path(parent, one).is_symlink())]:
            path = Path(parent, name)
            relative, status = os.path.relpath(path, directory), path.lstat()
            if path.is_symlink():
                yield KeptFile(str(path), relative, "l", 0, os.readlink(path))
            else:
                kind = "x" if status.st_mode & 0o100 else ""
                yield KeptFile(str(path), relative, kind, status.st_size, file_digest(path))
