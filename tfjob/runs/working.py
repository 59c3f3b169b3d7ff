"""A run's working directories: made before its tasks start, cleared after they have ended."""

from __future__ import annotations

import os
import shutil
import stat
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path, PurePosixPath

from tfjob.errors import PreparationError
from tfjob.planning.plan import Plan
from tfjob.rundir import RunDirectory
from tfjob.runs.record import Output
from tfjob.snapshot import copy_tree

__all__ = ["OUTPUT_LIMIT", "clear_copies", "clear_work", "list_outputs", "make_kept", "make_work"]

OUTPUT_LIMIT = 1000
"""Files listed in a record by name; all are counted."""


def make_work(plan: Plan, run: RunDirectory, snapshots: Path) -> None:
    """Give every task a working copy of the code with ./outputs, ./logs and what else is kept in it.

    Can be done again after it was interrupted. Raises PreparationError when a directory to keep can't be one.
    """
    keep = make_kept(plan, run, snapshots)
    for task in plan.tasks:
        work = run.work(task.name)
        if plan.code:
            copy_tree(snapshots / plan.code.digest, work)
        else:
            work.mkdir(parents=True, exist_ok=True)
        _link(work / "logs", run.user_logs)
        for kept in keep:
            target = run.outputs if kept == "outputs" else run.outputs / kept
            _link(work / kept, target)
    if plan.launcher:
        run.work(plan.launcher.name).mkdir(parents=True, exist_ok=True)


def make_kept(plan: Plan, run: RunDirectory, snapshots: Path) -> tuple[str, ...]:
    """Make what stays of a run in its directory. Returns the directories of a working copy that are kept.

    Raises PreparationError when a directory to keep can't be one.
    """
    keep = _to_keep(plan, snapshots)
    for directory in (run.outputs, run.user_logs, *(run.outputs / name for name in plan.output_directories)):
        directory.mkdir(parents=True, exist_ok=True)
    if plan.code:
        _link(run.code, snapshots / plan.code.digest)
    return keep


def clear_work(plan: Plan, run: RunDirectory, snapshots: Path) -> tuple[str, ...]:
    """Remove datasets and working copies, but for files the script made or changed outside of what is kept.

    Returns those files' paths under the run directory: hours of training must not be lost to a wrong directory name.
    """
    _open_up(run.datasets)
    shutil.rmtree(run.datasets, ignore_errors=True)
    return clear_copies(plan, run, snapshots, run.path / "work")


def clear_copies(plan: Plan, run: RunDirectory, snapshots: Path, work: Path) -> tuple[str, ...]:
    """Remove the working copies in `work`, and return what is left of them, as `clear_work` does."""
    _open_up(work)
    snapshot = snapshots / plan.code.digest if plan.code else None
    for task in plan.all_tasks:
        _clear(work / task.name, snapshot)
    left = tuple(sorted(file.relative_to(run.path).as_posix() for file in _files(work)))
    if not left:
        shutil.rmtree(work, ignore_errors=True)
    return left


def list_outputs(run: RunDirectory) -> tuple[tuple[Output, ...], int, int]:
    """The files under outputs, in order: the first of them by name, how many there are, and their bytes."""
    found = [(file.relative_to(run.outputs).as_posix(), file.lstat().st_size) for file in _files(run.outputs)]
    found.sort()
    return tuple(Output(*one) for one in found[:OUTPUT_LIMIT]), len(found), sum(size for _, size in found)


def _to_keep(plan: Plan, snapshots: Path) -> tuple[str, ...]:
    for path in map(PurePosixPath, plan.kept):
        if path.parts[0] == "logs":
            raise PreparationError(
                f"outputs.keep names {path}, and ./logs is kept already, as the run's logs/user",
                "Remove it from outputs.keep.",
            )
        for part in (path, *path.parents):
            at = snapshots / (plan.code.digest if plan.code else "none") / part
            if os.path.lexists(at) and (not at.is_dir() or (part == path and at.is_symlink())):
                raise PreparationError(
                    f"outputs.keep names {path}, and the code has {part}, which is no directory",
                    "Name another directory in outputs.keep, and write there.",
                )
    return plan.kept


def _link(at: Path, to: Path) -> None:
    """Make `at` a link to the directory `to`; what is in its way moves there."""
    to.mkdir(parents=True, exist_ok=True)
    if at.is_symlink() or at.exists():
        if at.is_dir() and not at.is_symlink():
            _move_into(at, to)  # a kept directory that the snapshot brings files in
        else:
            at.unlink()
    at.parent.mkdir(parents=True, exist_ok=True)
    at.symlink_to(to)


def _move_into(source: Path, target: Path) -> None:
    shutil.copytree(source, target, symlinks=True, dirs_exist_ok=True)
    shutil.rmtree(source)


def _clear(work: Path, snapshot: Path | None) -> None:
    for directory, directories, names in os.walk(work, topdown=False):
        for name in (*names, *directories):
            path = Path(directory, name)
            with suppress(OSError):  # it stays, and is told of; the rest goes
                if path.is_symlink() or path.suffix == ".pyc" or _is_unchanged(path, work, snapshot):
                    path.unlink(missing_ok=True)
                elif path.is_dir() and not any(path.iterdir()):
                    path.rmdir()


def _open_up(tree: Path) -> None:
    """Let this user look into every directory and remove what is there, whatever a script made of their modes."""
    _allow(tree)
    for parent, directories, _ in os.walk(tree):
        for name in directories:  # before it is walked into
            _allow(Path(parent, name))


def _allow(directory: Path) -> None:
    with suppress(OSError):
        mode = directory.lstat().st_mode
        if stat.S_ISDIR(mode) and mode & stat.S_IRWXU != stat.S_IRWXU:
            directory.chmod(stat.S_IMODE(mode) | stat.S_IRWXU)


def _is_unchanged(path: Path, work: Path, snapshot: Path | None) -> bool:
    if snapshot is None or path.is_dir():
        return False
    try:
        before, now = (snapshot / path.relative_to(work)).lstat(), path.lstat()
    except OSError:
        return False
    return before.st_size == now.st_size and before.st_mtime_ns == now.st_mtime_ns


def _files(directory: Path) -> Iterator[Path]:
    for parent, directories, names in os.walk(directory):
        for name in (*names, *(d for d in directories if Path(parent, d).is_symlink())):
            yield Path(parent, name)
