"""A tree of the cache that is put together while its objects come: when the last is there, so is the tree."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING

from tfjob.datasets.trees import remove_tree

if TYPE_CHECKING:
    from tfjob.datasets.cache import Cache
    from tfjob.datasets.index import Known

__all__ = ["GrowingTree"]


class GrowingTree:
    """A directory beside the trees, with links to the objects that are there. `Cache.tree` adds what it lacks and names it.

    Nothing is lost with it: who can't link an object leaves that to `Cache.tree`, which has the words for it.
    """

    def __init__(self, cache: Cache, files: Iterable[tuple[str, str, int]]) -> None:
        """A tree for files by their (address, name, bytes); it begins to be with the first that comes."""
        self._cache = cache
        self._files = files
        self._names: dict[str, str] = {}
        self._more: dict[str, list[str]] = {}
        self.directories = {""}
        self._objects = self._here = -1
        self._is_given_up = False
        self.path: Path | None = None
        self.linked: dict[str, str] = {}

    def add(self, held: Iterable[tuple[str, Known]]) -> None:
        """Link the objects that addresses hold by their names. An address that is not of this tree is passed over."""
        if self._is_given_up:
            return
        try:
            if self.path is None:
                self._begin()
            for source, known in held:
                name = self._names.get(source)
                if name is None:
                    continue
                self._link(name, known.sha256)
                for another in self._more.get(source, ()) if self._more else ():
                    self._link(another, known.sha256)
        except OSError:
            self._is_given_up = True  # what is linked by now is of use

    def _link(self, name: str, sha256: str) -> None:
        if "/" in name:
            directory = name.rpartition("/")[0]
            if directory not in self.directories:
                os.makedirs(f"{self.path}/{directory}", exist_ok=True)
                self.directories.add(directory)
        os.link(f"{sha256[:2]}/{sha256}", name, src_dir_fd=self._objects, dst_dir_fd=self._here)
        self.linked[name] = sha256

    def end(self) -> None:
        """Remove the directory, unless it has become a tree."""
        for descriptor in (self._objects, self._here):
            if descriptor >= 0:
                os.close(descriptor)
        self._objects = self._here = -1
        if self.path is not None and self.path.exists():
            remove_tree(self.path)
        self.path = None

    def _begin(self) -> None:
        for source, name, _ in self._files:
            if self._names.setdefault(source, name) != name:  # one file under several names, which is seldom
                self._more.setdefault(source, []).append(name)
        trees = self._cache.root / "trees"
        trees.mkdir(exist_ok=True)
        self._objects = os.open(self._cache.root / "objects", os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        self.path = Path(tempfile.mkdtemp(dir=trees, prefix=".growing-"))
        self._here = os.open(self.path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
