"""The source directory of a job, kept by content: what is in it now is what will run, whatever is edited later.

What it leaves out is in `tfjob.ignored`.

A kept snapshot is read-only, on the disk before it has its name, and open to nobody whom the source was closed to.
"""

from __future__ import annotations

import os
import shutil
import stat
import tempfile
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

from tfjob.durable import digest_of, file_digest
from tfjob.errors import UsageError
from tfjob.ignored import Ignored, ignored
from tfjob.workspace import SNAPSHOT_LIMIT_MIB

__all__ = ["Snapshot", "copy_tree", "scan", "take"]


@dataclass(frozen=True)
class Snapshot:
    """A source directory by content. Each file is (path, "x" if executable | "l" for a link | "", bytes, SHA-256 or link target)."""

    directory: Path
    files: tuple[tuple[str, str, int, str], ...]
    left_out: tuple[str, ...]
    digest: str

    @property
    def size_bytes(self) -> int:
        """The bytes of all files."""
        return sum(size for _, _, size, _ in self.files)


def scan(directory: Path, limit_mib: int = SNAPSHOT_LIMIT_MIB, *, everything: bool = False) -> Snapshot:
    """Read the source directory and name it by what it holds. Copies nothing. `everything`: obey no ignore file.

    `left_out` lists the top-level entries that the run provides itself or the ignore file names.
    Raises UsageError when the directory is larger than `limit_mib`, or a file in it can't be read or links outside.
    """
    rules = ignored(directory, everything=everything)
    left_out: list[str] = []
    found: list[tuple[str, Path, os.stat_result]] = []
    total = 0
    for name, path, status in _walk(directory, directory, rules, left_out):
        found.append((name, path, status))
        total += status.st_size
        if total > 4 * limit_mib * 2**20:  # enough to tell what is largest; the rest need not be looked at
            break
    _check_size(directory, found, limit_mib)
    files = tuple(_entry(directory, name, path, status) for name, path, status in sorted(found))
    return Snapshot(directory, files, tuple(sorted(left_out)), digest_of([list(file) for file in files]))


def take(snapshot: Snapshot, store: Path) -> Path:
    """Keep the snapshot in `store` under its digest, if it is not there yet; returns its directory.

    Raises UsageError if a file changed or went between `scan` and now.
    """
    kept = store / snapshot.digest
    if kept.is_dir():
        return kept
    store.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=store, prefix=".taking-") as temporary:
        tree = Path(temporary, "tree")
        directories = _make_directories(snapshot, tree)
        for name, kind, _, digest in snapshot.files:
            target = tree / name
            if kind == "l":
                target.symlink_to(digest)
            elif not _copied(snapshot.directory / name, target, kind, digest):
                raise UsageError(f"{snapshot.directory / name} changed while it was being read", "Submit again.")
        # A power loss must leave it whole or not at all: its name alone says that it is complete.
        for path in (*(tree / name for name, kind, *_ in snapshot.files if kind != "l"), *directories):
            _force(path)
        try:
            tree.rename(kept)
        except OSError:
            if not kept.is_dir():  # another submit kept the same content first
                raise
    return kept


def _make_directories(snapshot: Snapshot, tree: Path) -> list[Path]:
    """Make the snapshot's directories below `tree`, each as open as its source is; all of them, the deepest last."""
    parents = {parent for name, *_ in snapshot.files for parent in PurePosixPath(name).parents} | {PurePosixPath()}
    made = []
    for parent in sorted(parents):
        (tree / parent).mkdir(mode=0o700)
        with suppress(OSError):  # it is gone: so are its files, and that is noticed
            (tree / parent).chmod(0o700 | ((snapshot.directory / parent).stat().st_mode & 0o055))
        made.append(tree / parent)
    return made


def _copied(source: Path, target: Path, kind: str, digest: str) -> bool:
    """Copy a file, to be read only, by those who may read the source; whether its content is what it was."""
    try:
        shutil.copyfile(source, target)
        others = source.stat().st_mode & (0o055 if kind == "x" else 0o044)
    except (FileNotFoundError, IsADirectoryError, NotADirectoryError):
        return False
    target.chmod((0o500 if kind == "x" else 0o400) | others)
    return file_digest(target) == digest


def _force(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def copy_tree(snapshot_dir: Path, into: Path) -> None:
    """A working copy of a kept snapshot, its owner's to write. Done anew if `into` exists, as it does when an earlier try was killed.

    Files have the times of the snapshot's.
    """
    if into.exists():
        shutil.rmtree(into)
    shutil.copytree(snapshot_dir, into, symlinks=True, copy_function=_copy_writable)


def _copy_writable(source: str, target: str) -> None:
    shutil.copyfile(source, target)
    status = os.stat(source)
    os.chmod(target, stat.S_IMODE(status.st_mode) | stat.S_IWUSR)
    os.utime(target, ns=(status.st_atime_ns, status.st_mtime_ns))


def _walk(
    root: Path, directory: Path, rules: Ignored, left_out: list[str]
) -> Iterator[tuple[str, Path, os.stat_result]]:
    try:
        entries = sorted(os.scandir(directory), key=lambda entry: entry.name)
    except OSError as error:
        raise UsageError(f"the code directory {directory} can't be read: {error.strerror}") from error
    for entry in entries:
        path = Path(entry.path)
        name = path.relative_to(root).as_posix()
        is_directory = entry.is_dir(follow_symlinks=False)
        if rules.leaves_out(name, is_directory=is_directory):
            if directory == root:
                left_out.append(f"{name}/" if is_directory else name)
        elif is_directory:
            yield from _walk(root, path, rules, left_out)
        elif entry.is_symlink() or entry.is_file(follow_symlinks=False):
            yield name, path, entry.stat(follow_symlinks=False)


def _check_size(directory: Path, found: list[tuple[str, Path, os.stat_result]], limit_mib: int) -> None:
    total = sum(status.st_size for _, _, status in found)
    if total <= limit_mib * 2**20:
        return
    first, *others = sorted(found, key=lambda item: -item[2].st_size)[:3]
    largest = [first, *(one for one in others if one[2].st_size >= 2**20)]
    names = ", ".join(f"{name} ({status.st_size / 2**20:.0f} MiB)" for name, _, status in largest)
    raise UsageError(
        f"the code directory {directory} holds {total / 2**20:.0f} MiB or more; a snapshot may hold {limit_mib} MiB. Largest: {names}",
        "Name what is not code in .tfjobignore, and give data to the job as a dataset.",
    )


def _entry(root: Path, name: str, path: Path, status: os.stat_result) -> tuple[str, str, int, str]:
    try:
        if stat.S_ISLNK(status.st_mode):
            target = os.readlink(path)
            if os.path.isabs(target) or not _stays_inside(root, path, target):
                raise UsageError(
                    f"{path} is a link to {target}, outside of the code directory",
                    "Name it in .tfjobignore, put the file itself there, or give it to the job as a dataset.",
                )
            return name, "l", 0, target
        kind = "x" if status.st_mode & stat.S_IXUSR else ""
        return name, kind, status.st_size, file_digest(path)
    except OSError as error:
        raise UsageError(
            f"{path} can't be read: {error.strerror}", "Name it in .tfjobignore if it is not code."
        ) from error


def _stays_inside(root: Path, link: Path, target: str) -> bool:
    """Whether the link leads to a place in `root`, and not by way of a place outside, which a copy of it would not have."""
    real = os.path.realpath(link)
    written = os.path.normpath(os.path.relpath(link.parent, root) + "/" + target)
    return Path(real).is_relative_to(os.path.realpath(root)) and written.split("/")[0] != ".."
