"""What a dataset's paths stand for: files of this machine, of the web and of stores, all under their names."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from tfjob.datasets.files import SHA256, DatasetFiles, Remote, find_files
from tfjob.durable import file_digest
from tfjob.errors import PreparationError
from tfjob.spec.addresses import STORES, WEB, file_name, scheme_of, shown_address
from tfjob.values import Pairs

__all__ = ["find"]


def find(paths: Sequence[str], sums: Pairs = ()) -> DatasetFiles:
    """The files that `paths` name: absolute paths and globs, and addresses. `sums` are the SHA-256 that some must have.

    Stores are asked what they have; web addresses are not asked anything, each names one file. Raises PreparationError
    for what names nothing, what can't be read, a clash of names, and a file of this machine with another sum.
    """
    expected = dict(sums)
    local: list[str] = []
    remote: list[Remote] = []
    for path in paths:
        scheme = scheme_of(path)
        if scheme is None:
            local.append(path)
        elif scheme in WEB:
            remote.append(Remote(path, file_name(path), -1, _mark(expected.get(path))))
        elif scheme in STORES:
            remote += _in_store(path, expected.get(path))
    found = find_files(local, remote)
    for path in local:
        if path in expected:
            _check(path, expected[path])
    return found


def _in_store(address: str, sha256: str | None) -> list[Remote]:
    from tfjob.datasets.stores import list_store  # noqa: PLC0415  # only where it is needed

    files = list_store(address)
    if sha256 is None:
        return files
    if len(files) != 1:
        raise PreparationError(
            f"{shown_address(address)} has a sha256 and names {len(files)} files; a sum is that of one file",
            "Leave it out, or name the file.",
        )
    return [files[0]._replace(mark=_mark(sha256))]


def _mark(sha256: str | None) -> str:
    return f"{SHA256}{sha256}" if sha256 else ""


def _check(pattern: str, sha256: str) -> None:
    """Compare a file of this machine with its sum."""
    found = find_files([pattern]).files
    if len(found) != 1:
        raise PreparationError(
            f"{pattern} has a sha256 and names {len(found)} files; a sum is that of one file",
            "Leave it out, or name the file.",
        )
    if (actual := file_digest(Path(found[0][0]))) != sha256:
        raise PreparationError(
            f"{found[0][0]} has the SHA-256 {actual}, and {sha256} is asked for",
            "Either the file was changed, or the sum is wrong.",
        )
