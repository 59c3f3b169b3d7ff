"""The files a dataset names: those of this machine found, and all laid out side by side by their names.

Nothing is copied to find them. A directory keeps its tree; single files and the matches of a glob land side by side by
their names; two different files for one name are an error.
"""

from __future__ import annotations

import glob
import os
import re
import stat
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import NamedTuple

from tfjob.durable import digest_of
from tfjob.errors import PreparationError
from tfjob.spec.addresses import LONGEST_NAME, ODD_PARTS, name_objection, shown_address

__all__ = [
    "SHA256",
    "DatasetFiles",
    "Remote",
    "change_since",
    "find_files",
    "is_address",
    "laid_out",
    "local_digest",
    "refuse_unsafe",
    "whole_directory",
    "with_marks",
]

SHA256 = "sha256:"
_ESCAPED = re.compile(r"\[([*?[])\]")
_KINDS = {
    stat.S_IFIFO: "a named pipe",
    stat.S_IFSOCK: "a socket",
    stat.S_IFCHR: "a character device",
    stat.S_IFBLK: "a block device",
}
_ANOTHER = "Name a directory that holds both, or make two datasets of them."


class Remote(NamedTuple):
    """A file behind an address: where, its path in the dataset, its bytes (-1: not known), and what its content must be.

    `mark` is one of ``sha256:HEX``; ``seen:HEX``, the SHA-256 that a registered version had at its first use;
    ``tag:TEXT``, what its server said of it (an ETag or the like); and empty where nothing is known.
    """

    source: str
    name: str
    size: int
    mark: str


@dataclass(frozen=True)
class DatasetFiles:
    """The files of a dataset as they are now: (source, path in the dataset, bytes), in order of the second.

    A source is an absolute path, or an address; bytes are -1 where only fetching tells. `marks` has an entry for each
    file if there is any address among them (see `Remote`; empty for files of this machine), or none at all.
    `digest` is a SHA-256 over names and sizes, and times of change or marks: it says whether the files are still those
    of an earlier run without reading them. `registered` is the ``name@version`` they came from.
    """

    files: tuple[tuple[str, str, int], ...]
    digest: str
    marks: tuple[str, ...] = field(default=())
    registered: str | None = None


def find_files(patterns: Iterable[str], remote: Iterable[Remote] = ()) -> DatasetFiles:
    """The files that paths and globs name, beside those behind addresses. `patterns` are absolute; `**` crosses directories.

    What is there by the very name of a pattern is what it names, and what else it would match as a glob is not.
    A file lies in the dataset by its name, a directory by what is in it; what a glob finds below its fixed part
    keeps its place there (``data/*`` finds ``sub/b`` as ``sub/b``).

    Raises PreparationError for a pattern that matches nothing, or only directories without files, a file that can't be
    read, and what `laid_out` refuses.
    A link that leads back to a directory it lies in is passed over: what is behind it is there already.
    """
    found: dict[str, tuple[str, int, int]] = {}
    finder = _Finder(found)
    for pattern in patterns:
        # An escaped pattern is one: `a[[]1]` is the file `a[1]` for whoever has escaped it, whatever else is there.
        is_literal = not _ESCAPED.search(pattern) and os.path.exists(pattern)
        matches = [pattern] if is_literal else sorted(glob.glob(pattern, recursive=True))
        if not matches:
            raise PreparationError(
                f"no file matches {pattern}", "Check the path; it is taken from the job file's directory."
            )
        base = None if is_literal else _fixed_part(pattern)
        before = finder.count
        for match in matches:
            finder.add(match, base)
        if finder.count == before:
            raise PreparationError(f"no file is in {pattern}", "Put files there, or name another path.")
    return _laid_out(dict(found), remote)


def laid_out(local: Iterable[tuple[str, int, int, str]], remote: Iterable[Remote]) -> DatasetFiles:
    """The files under their names: those of this machine (source, bytes, time of change in ns, name) and those behind addresses.

    Raises PreparationError for a clash of names, and for a name that leads out of the dataset or that no file can have.
    """
    return _laid_out({name: (source, size, ns) for source, size, ns, name in local}, remote)


def _laid_out(rows: dict[str, tuple[str, int, int | str]], remote: Iterable[Remote]) -> DatasetFiles:
    marks: dict[str, str] = {}
    for source, name, size, mark in remote:
        known = rows.get(name)
        if known is not None and (known[0] != source or (marks[name] and mark and marks[name] != mark)):
            raise PreparationError(f"two files of the dataset have the name {name}: {known[0]} and {source}", _ANOTHER)
        marks[name] = mark or marks.get(name, "")
        rows[name] = (source, size, marks[name] or source)
    ordered = sorted(rows.items())
    files = tuple([(source, name, size) for name, (source, size, _) in ordered])
    refuse_unsafe(files)
    _refuse_nesting(rows)
    return DatasetFiles(
        files=files,
        digest=digest_of([[name, size, sign] for name, (_, size, sign) in ordered]),
        marks=tuple([marks.get(name, "") for name, _ in ordered]) if marks else (),
    )


def refuse_unsafe(files: Collection[tuple[str, str, int]]) -> None:
    """Refuse a name by which a file would be written outside of the dataset's directory, or not at all: a store may say anything.

    Raises PreparationError.
    """
    names = [name for _, name, _ in files]
    enclosed = f"/{'/ /'.join(names)}/"
    fits = LONGEST_NAME if enclosed.isascii() else LONGEST_NAME // 4
    if (
        not any(odd in enclosed for odd in ODD_PARTS)
        and enclosed.isprintable()
        and max(map(len, names), default=0) <= fits
    ):
        return  # as nearly all are: very many are looked at in no time
    for source, name, _ in files:
        is_remote = is_address(source)
        if objection := name_objection(name, is_remote=is_remote):
            raise PreparationError(
                f"{shown_address(source)!r} can't be a file of a dataset: its name there, {name!r}, {objection}",
                "Rename it there, or name what is wanted by addresses or a glob that leave it out."
                if is_remote
                else "Name the file itself, or the directory that it is in.",
            )


def change_since(digest: str, files: Collection[Sequence[str | int]], marks: Sequence[str] = ()) -> str | None:
    """What has changed since the files had this digest, in words, or None: the name of a file that is gone or has another size.

    A change that leaves the size is noticed too, but not in which file. Files behind addresses are not looked at.
    """
    now, change = _looked_at(files, marks)
    return change or (None if now == digest else "one of its files was written to")


def with_marks(files: DatasetFiles, known: Mapping[str, tuple[int, str]]) -> DatasetFiles:
    """The same files, with the bytes and the SHA-256 that are known of addresses.

    Raises PreparationError when a file of this machine has changed meanwhile.
    """
    rows: list[tuple[str, str, int]] = []
    marks: list[str] = []
    for row, mark in zip(files.files, files.marks, strict=True):  # once over what may be very many
        found = known.get(row[0])
        rows.append((row[0], row[1], found[0]) if found else row)
        marks.append(SHA256 + found[1] if found else mark)
    digest, change = _looked_at(rows, marks)
    if change:
        raise PreparationError(f"the dataset has changed while it was fetched: {change}", "Submit the job again.")
    return replace(files, files=tuple(rows), marks=tuple(marks), digest=digest)


def _looked_at(files: Collection[Sequence[str | int]], marks: Sequence[str]) -> tuple[str, str | None]:
    """The digest of the files as they are now, and what is seen to have changed, in words."""
    if marks and all(source[0] != "/" for source, _, _ in files):  # type: ignore[index]  # each is text
        return digest_of(
            [(name, size, mark or source) for (source, name, size), mark in zip(files, marks, strict=True)]
        ), None
    rows: list[list[str | int]] = []
    stat = os.stat
    for index, (source, name, size) in enumerate(files):
        if marks and is_address(str(source)):
            rows.append([name, size, marks[index] or source])
            continue
        try:
            status = stat(source)
        except OSError:
            return "", f"{source} is gone"
        if status.st_size != size:
            return "", f"{source} has {status.st_size} bytes where it had {size}"
        rows.append([name, size, status.st_mtime_ns])
    return digest_of(rows), None


def local_digest(files: Sequence[tuple[str, str, int]], times: Iterable[int]) -> str:
    """The digest of files of this machine alone, with their times of change (ns)."""
    return digest_of([(name, size, ns) for (_, name, size), ns in zip(files, times, strict=True)])


def whole_directory(files: Sequence[tuple[str, str, int]]) -> str | None:
    """The directory of this machine that holds these files under these names, and nothing else; None if there is none."""
    if not files or is_address(files[0][0]):
        return None
    source, name, _ = files[0]
    root = source[: -len(name) - 1]
    if not root or any(one != f"{root}/{below}" for one, below, _ in files):
        return None
    count, directories = 0, [root]
    while directories:
        try:
            with os.scandir(directories.pop()) as entries:
                for entry in entries:
                    if entry.is_dir(follow_symlinks=False):
                        directories.append(entry.path)
                    else:
                        count += 1
        except OSError:
            return None
    return root if count == len(files) else None


def is_address(source: str) -> bool:
    """Whether a file of a dataset is behind an address; those of this machine are absolute paths."""
    return not source.startswith("/")


class _Finder:
    """Adds files to what was found, by their names in the dataset. Paths are text here: there may be many thousands."""

    def __init__(self, found: dict[str, tuple[str, int, int]]) -> None:
        self._found = found
        self._real: dict[str, str] = {}
        self.count = 0

    def add(self, match: str, base: str | None) -> None:
        """Add a file, or the files in a directory, by their place below `base` (None: below what was matched)."""
        if not os.path.isdir(match):
            name = os.path.basename(match) if base is None else os.path.relpath(match, base)
            self._file(self._real_file(match), name, match)
            return
        below = "" if base is None else os.path.relpath(match, base)
        self._tree(match, "" if below in {"", "."} else f"{below}/", ())

    def _tree(self, directory: str, below: str, above: tuple[str, ...], real: str = "") -> None:
        real = real or os.path.realpath(directory)
        if real in above:
            return
        try:
            opened = os.open(directory, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
            try:
                with os.scandir(opened) as entries:
                    others = self._plain_files(entries, directory, below, real)
            finally:
                os.close(opened)
        except OSError as error:
            raise PreparationError(f"dataset directory {directory} can't be read: {error.strerror}") from error
        for name, is_link, is_directory in others:
            path = os.path.join(directory, name)
            if is_directory:
                inside = "" if is_link else os.path.join(real, name)
                self._tree(path, f"{below}{name}/", (*above, real), inside)
            else:
                self._file(os.path.realpath(path) if is_link else os.path.join(real, name), below + name, path)

    def _plain_files(
        self, entries: Iterable[os.DirEntry[str]], directory: str, below: str, real: str
    ) -> list[tuple[str, bool, bool]]:
        """Add the files of a directory that nothing of their name was found before; the rest: name, is it a link, a directory."""
        found, others, start = self._found, [], real.rstrip("/")
        before = len(found)
        for entry in entries:
            own = entry.name
            name = below + own
            if not entry.is_file(follow_symlinks=False) or name in found:
                others.append((own, entry.is_symlink(), entry.is_dir()))
                continue
            try:
                status = entry.stat(follow_symlinks=False)
            except OSError as error:
                raise PreparationError(
                    f"dataset file {os.path.join(directory, own)} can't be read: {error.strerror}"
                ) from error
            found[name] = (f"{start}/{own}", status.st_size, status.st_mtime_ns)
        self.count += len(found) - before
        return others

    def _real_file(self, path: str) -> str:
        """The file behind a path; the directories above it are looked at once for all files in them."""
        if os.path.islink(path):
            return os.path.realpath(path)
        directory, name = os.path.split(path)
        if directory not in self._real:
            self._real[directory] = os.path.realpath(directory)
        return os.path.join(self._real[directory], name)

    def _file(self, real: str, name: str, shown: str | None = None) -> None:
        self.count += 1
        try:
            status = os.stat(real)
        except OSError as error:
            if shown and os.path.islink(shown) and not os.path.lexists(real):
                raise PreparationError(
                    f"dataset file {shown} is a link to {os.readlink(shown)}, which is not there",
                    "Put the file there, or remove the link.",
                ) from error
            raise PreparationError(f"dataset file {shown or real} can't be read: {error.strerror}") from error
        if not stat.S_ISREG(status.st_mode):  # who opens a pipe that nobody writes to waits for ever
            kind = _KINDS.get(stat.S_IFMT(status.st_mode), "no file")
            raise PreparationError(
                f"{shown or real} is {kind}; a dataset is made of files and directories",
                "Remove it from there, or name what is wanted by paths or a glob that leave it out.",
            )
        known = self._found.get(name)
        if known and known[0] != real:
            raise PreparationError(f"two files of the dataset have the name {name}: {known[0]} and {real}", _ANOTHER)
        self._found[name] = (real, status.st_size, status.st_mtime_ns)


def _refuse_nesting(names: Mapping[str, object]) -> None:
    """Refuse a file whose name is also that of a directory."""
    directories: set[str] = {""}
    above: Iterable[str] = names
    while above := {name.rpartition("/")[0] for name in above} - directories:
        directories |= above
    for directory in directories:
        if directory in names:
            name = next(name for name in names if name.startswith(f"{directory}/"))
            raise PreparationError(f"{directory} is a file of the dataset and also the directory of {name}", _ANOTHER)


def _fixed_part(pattern: str) -> str | None:
    """The directory above the first part of a glob that is one, or None where no part is (``[[]`` stands for ``[``)."""
    fixed: list[str] = []
    for part in Path(pattern).parts:
        if glob.has_magic(_ESCAPED.sub("", part)):
            return str(Path(*fixed))
        fixed.append(_ESCAPED.sub(r"\1", part))
    return None
