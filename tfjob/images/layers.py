"""A prefix cut into image layers, a layer for each big package, so that a change of one package changes few layers.

A layer's tar archive depends on nothing but paths, contents and whether a file is a program: owners, times and
permissions are made the same everywhere. Its digest is kept in the store under the identity of its files (inodes, sizes
and times, because prefixes share unchanged files as hard links), so that an unchanged package is not read again.
"""

from __future__ import annotations

import csv
import hashlib
import io
import json
import math
import os
import stat
import tarfile
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from tfjob.durable import digest_of, file_digest, replace_json
from tfjob.environments.prefix import read_json
from tfjob.errors import PreparationError

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

__all__ = ["Layer", "LayerDigest", "archive", "digest", "layers_of"]

# Part of every layer's identity: raise it when the same files make another archive.
_FORMAT = 2
# A package of this size has a layer of its own; the others share two, the larger of them before the smaller.
_OWN_LAYER_BYTES = 2 << 20
_SMALL_BYTES = 1 << 19
# A time for every file, 1 January 2020: bytecode in a prefix is never checked against its source's time.
_TIME_S = 1577836800
_CHUNK_BYTES = 1 << 20
_BLOCK_BYTES = 512
_MIDDLE, _SMALL, _REST = "packages below 2 MiB", "packages below 512 KiB", "the environment's own files"


@dataclass(frozen=True)
class Entry:
    """A file, link or empty folder of a layer: its path in the image, where it is read, or what it holds."""

    path: str
    source: Path | None
    content: bytes | None
    status: os.stat_result | None

    @property
    def size_bytes(self) -> int:
        """The bytes it holds; none for a link or folder."""
        if self.content is not None:
            return len(self.content)
        return self.status.st_size if self.status is not None and stat.S_ISREG(self.status.st_mode) else 0

    def identity(self) -> list[object]:
        """What changes when the file is another. A file that is shared with another prefix is not read for it.

        Installers write a few small files anew each time (RECORD, scripts); those are known by their content.
        """
        if self.content is not None:
            return [self.path, hashlib.sha256(self.content).hexdigest()]
        if self.status is None or self.source is None:
            return [self.path]
        mode = self.status.st_mode
        if stat.S_ISLNK(mode):
            return [self.path, os.readlink(self.source)]
        if stat.S_ISDIR(mode):
            return [self.path, "folder"]
        status = self.status
        if status.st_nlink == 1:
            return [self.path, _mode(mode), file_digest(self.source)]
        return [self.path, _mode(mode), status.st_dev, status.st_ino, status.st_size, status.st_mtime_ns]


@dataclass(frozen=True)
class Layer:
    """Some files of an environment: those of a package, of several small ones, or of none."""

    name: str
    entries: tuple[Entry, ...]

    @property
    def size_bytes(self) -> int:
        """The bytes of its files."""
        return sum(entry.size_bytes for entry in self.entries)


@dataclass(frozen=True)
class LayerDigest:
    """A layer's archive: its SHA-256 (``sha256:…``, an image's *diff id*) and its size."""

    diff_id: str
    size_bytes: int


def layers_of(prefix: Path, final: Path, added: Mapping[str, bytes], *, at_most: int) -> list[Layer]:
    """Cut the prefix, seen at `final` in the image, into at most `at_most` layers; `added` files go into the last.

    First come the packages, big ones before small ones: sizes are compared by their power of two, then names, so that
    the order stays when a package grows a little. Small packages share layers. Last comes what is nobody's.
    """
    root = str(final).strip("/")
    owners = _owners(prefix)
    by_owner: dict[str, list[Entry]] = {}
    for relative, path, status in _walk(prefix, ""):
        if relative not in added:
            owner = owners.get(relative) or owners.get(_source_of(relative), _REST)
            by_owner.setdefault(owner, []).append(Entry(f"{root}/{relative}", path, None, status))
    rest = by_owner.pop(_REST, [])
    rest += [Entry(f"{root}/{name}", None, content, None) for name, content in added.items()]
    packages = [Layer(name, tuple(entries)) for name, entries in by_owner.items()]
    packages.sort(key=lambda layer: (-int(math.log2(layer.size_bytes or 1)), layer.name))
    own = [layer for layer in packages if layer.size_bytes >= _OWN_LAYER_BYTES][: max(at_most - 3, 0)]
    middle = [one for layer in packages[len(own) :] if layer.size_bytes >= _SMALL_BYTES for one in layer.entries]
    small = [one for layer in packages[len(own) :] if layer.size_bytes < _SMALL_BYTES for one in layer.entries]
    found = [*own, Layer(_MIDDLE, tuple(middle)), Layer(_SMALL, tuple(small)), Layer(_REST, tuple(rest))]
    return [layer for layer in found if layer.entries]


def digest(layer: Layer, kept: Path) -> LayerDigest:
    """Return a layer's digest: from the folder `kept` when its files were seen before, else by reading them."""
    identity = digest_of([_FORMAT, sorted((entry.identity() for entry in layer.entries), key=str)])
    file = kept / f"{identity[:40]}.json"
    known = read_json(file)
    if known is not None and "diff_id" in known:
        return LayerDigest(known["diff_id"], known["size_bytes"])
    sha256, size_bytes = hashlib.sha256(), 0
    for chunk in archive(layer):
        sha256.update(chunk)
        size_bytes += len(chunk)
    found = LayerDigest(f"sha256:{sha256.hexdigest()}", size_bytes)
    kept.mkdir(parents=True, exist_ok=True)
    replace_json(file, {"layer": layer.name, "diff_id": found.diff_id, "size_bytes": size_bytes}, force=False)
    return found


def archive(layer: Layer) -> Iterator[bytes]:
    """Give a layer's tar archive in pieces, the same for the same files on any machine.

    Raises OSError when a file cannot be read, PreparationError when one changes meanwhile.
    """
    buffer = bytearray()
    folders: set[str] = set()
    for entry in sorted(layer.entries, key=lambda one: one.path):
        for folder in _parents(entry.path):
            if folder not in folders:
                folders.add(folder)
                buffer += _header(folder, tarfile.DIRTYPE, 0o755)
        mode = entry.status.st_mode if entry.status is not None else 0o444
        if entry.source is not None and stat.S_ISLNK(mode):
            buffer += _header(entry.path, tarfile.SYMTYPE, 0o777, link=os.readlink(entry.source))
        elif entry.source is not None and stat.S_ISDIR(mode):
            if entry.path not in folders:
                folders.add(entry.path)
                buffer += _header(entry.path, tarfile.DIRTYPE, 0o755)
        else:
            buffer += _header(entry.path, tarfile.REGTYPE, _mode(mode), size_bytes=entry.size_bytes)
            left = entry.size_bytes
            with entry.source.open("rb") if entry.source is not None else io.BytesIO(entry.content or b"") as file:
                while left:
                    data = file.read(min(_CHUNK_BYTES, left))
                    if not data:
                        raise PreparationError(f"{entry.source} became shorter while it was read", "Submit again.")
                    left -= len(data)
                    buffer += data
                    if len(buffer) >= _CHUNK_BYTES:
                        yield bytes(buffer)
                        buffer.clear()
            buffer += bytes(-entry.size_bytes % _BLOCK_BYTES)
    yield bytes(buffer) + bytes(2 * _BLOCK_BYTES)


def _header(path: str, kind: bytes, mode: int, *, size_bytes: int = 0, link: str = "") -> bytes:
    info = tarfile.TarInfo(path)
    info.type, info.mode, info.size, info.linkname, info.mtime = kind, mode, size_bytes, link, _TIME_S
    return info.tobuf(tarfile.PAX_FORMAT, "utf-8", "surrogateescape")


def _mode(mode: int) -> int:
    """The permissions in an image: everybody may read, and start what somebody may start."""
    return 0o755 if mode & 0o111 else 0o644


def _parents(path: str) -> Iterator[str]:
    parts = path.split("/")[:-1]
    for count in range(1, len(parts) + 1):
        yield "/".join(parts[:count])


def _walk(folder: Path, relative: str) -> Iterator[tuple[str, Path, os.stat_result]]:
    """List files, links and empty folders below `folder`, by their path relative to where it began."""
    with os.scandir(folder) as entries:
        for entry in sorted(entries, key=lambda one: one.name):
            path, below = Path(entry.path), f"{relative}{entry.name}"
            if entry.is_dir(follow_symlinks=False):
                within = list(_walk(path, f"{below}/"))
                yield from within or [(below, path, entry.stat(follow_symlinks=False))]
            elif entry.is_file(follow_symlinks=False) or entry.is_symlink():
                yield below, path, entry.stat(follow_symlinks=False)


def _owners(prefix: Path) -> dict[str, str]:
    """Return whose each file of a prefix is, by its path relative to it: conda's packages first, then pip's."""
    owners: dict[str, str] = {}
    for record in sorted((prefix / "conda-meta").glob("*.json")):
        meta = json.loads(record.read_text(encoding="utf-8"))
        name = f"{meta.get('name', record.stem)} (conda)"
        owners[f"conda-meta/{record.name}"] = name
        owners |= {str(file): name for file in meta.get("files") or []}
    for record in sorted(prefix.glob("lib/python3*/site-packages/*.dist-info/RECORD")):
        site = record.parent.parent.relative_to(prefix)
        name = record.parent.name.partition("-")[0].replace("_", "-").lower()
        for path in _listed(record):
            owners.setdefault(os.path.normpath(site / path), name)
    return owners


def _listed(record: Path) -> Sequence[str]:
    try:
        with record.open(encoding="utf-8", newline="") as file:
            return [row[0] for row in csv.reader(file) if row]
    except (OSError, UnicodeDecodeError, csv.Error):
        return ()


def _source_of(relative: str) -> str:
    """Name the source of a file of bytecode: ``a/__pycache__/b.cpython-311.pyc`` was made from ``a/b.py``."""
    folder, _, name = relative.rpartition("/")
    if not folder.endswith("__pycache__") or not name.endswith(".pyc"):
        return ""
    return f"{folder.removesuffix('__pycache__')}{name.split('.')[0]}.py"
