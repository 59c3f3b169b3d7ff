"""The bytecode of a prefix: linked from an earlier prefix that has the same file, compiled otherwise.

Compiling is most of the time a new environment takes, and most of a new environment is an earlier one. Files come as
hard links from uv's cache, so a source that is the same inode is the same file, and its bytecode can be linked too.
"""

from __future__ import annotations

import os
import struct
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator
    from pathlib import Path

__all__ = ["Source", "is_fresh", "link", "sources"]


@dataclass(frozen=True)
class Source:
    """A Python file of a prefix: its folder and name (without ``.py``) relative to the prefix, its inode, size and time."""

    folder: str
    stem: str
    inode: int
    size_bytes: int
    modified_s: int

    @property
    def relative(self) -> str:
        """The file relative to the prefix."""
        return f"{self.folder}/{self.stem}.py"

    def bytecode(self, cache_tag: str) -> str:
        """Name the file its bytecode belongs in, relative to the prefix (PEP 3147)."""
        return f"{self.folder}/__pycache__/{self.stem}.{cache_tag}.pyc"


def sources(prefix: Path, folder: str) -> Iterator[Source]:
    """List every Python file under `folder` of a prefix."""
    with os.scandir(prefix / folder) as entries:
        for entry in entries:
            if entry.is_dir(follow_symlinks=False):
                if entry.name != "__pycache__":
                    yield from sources(prefix, f"{folder}/{entry.name}")
            elif entry.name.endswith(".py") and entry.is_file(follow_symlinks=False):
                status = entry.stat(follow_symlinks=False)
                yield Source(folder, entry.name[:-3], status.st_ino, status.st_size, int(status.st_mtime))


def is_fresh(prefix: Path, source: Source, cache_tag: str) -> bool:
    """Whether a package came with bytecode for this source that Python would use (PEP 552: by time and size)."""
    try:
        with (prefix / source.bytecode(cache_tag)).open("rb") as file:
            flags, modified_s, size_bytes = struct.unpack("<4xIII", file.read(16))
    except (OSError, struct.error):
        return False
    return bool(flags == 0 and modified_s == source.modified_s & 0xFFFFFFFF and size_bytes == source.size_bytes)


def link(prefix: Path, wanted: Iterable[Source], earlier: Path, cache_tag: str) -> list[Source]:
    """Link the bytecode of `wanted` from an `earlier` prefix where it has the same file; the sources left over.

    What cannot be linked (the earlier prefix goes away meanwhile, too many links) is left over.
    """
    left = []
    made: set[str] = set()
    for source in wanted:
        bytecode = source.bytecode(cache_tag)
        try:
            if (earlier / source.relative).lstat().st_ino != source.inode:
                left.append(source)
                continue
            if source.folder not in made:
                (prefix / source.folder / "__pycache__").mkdir(exist_ok=True)
                made.add(source.folder)
            try:
                os.link(earlier / bytecode, prefix / bytecode)
            except FileExistsError:  # the package brought one that is stale; the earlier prefix has it compiled
                (prefix / bytecode).unlink()
                os.link(earlier / bytecode, prefix / bytecode)
        except OSError:
            left.append(source)
    return left
