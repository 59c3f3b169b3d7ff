"""Where fetched data is kept: by content, so that files are fetched once for all runs, jobs and datasets.

::

    objects/<aa>/<sha256>     a file's content, read-only; its time is always the same, so that a write to it shows
    trees/<key>/              the files of a dataset by their names: links to objects, and to files of this machine
    trees/<key>.json          what it holds; its time is when the tree was last asked for; made under trees/<key>.lock
    resolved/<asked>.json     what a large dataset came to when its addresses were last asked, and its tree
    users/<key>/<run>         a link to the directory of a run that uses the tree
    harmed/<sha256>           says when an object was found to have been written to, for all runs that had it mounted then
    partial/<address>         a file that is being fetched, locked by whoever does; what broke goes on from there
    index.db                  what each address held when it was last fetched, and digests of files of this machine

Who touches what: whoever fetches holds `.lock`, shared, until the run is among the users; whoever evicts holds it alone,
and passes over trees whose users' runs are not over. Objects and trees appear by a rename or a link, whole or not at all. The
index can be deleted: what it knew is fetched again.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import hashlib
import json
import os
import shutil
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from tfjob.datasets.index import Index
from tfjob.datasets.trees import READ_ONLY, remove_tree
from tfjob.durable import digest_of, replace_text
from tfjob.errors import PreparationError

if TYPE_CHECKING:
    from tfjob.datasets.growing import GrowingTree

__all__ = ["OBJECT_TIME_NS", "Cache"]

OBJECT_TIME_NS = 1_000_000_000 * 10**9
"""The time of change of every object: 2001-09-09T01:46:40Z. One with another time was written to."""


class Cache:
    """The cache under one directory, shared by all workspaces that have the same store. Several processes may use it at once."""

    def __init__(self, root: Path) -> None:
        """Use the directory `root`; it is made when something is put into it."""
        self.root = root
        self.index = Index(root / "index.db")
        self._objects = f"{root}/objects/"

    def object(self, sha256: str) -> str:
        """Name the file with this content, there or not."""
        return f"{self._objects}{sha256[:2]}/{sha256}"

    def has(self, sha256: str, size: int) -> bool:
        """Whether the content is there, whole and unharmed. An object that something has written to is removed."""
        path = self.object(sha256)
        try:
            status = os.stat(path)
        except OSError:
            return False
        if status.st_mtime_ns == OBJECT_TIME_NS and size in (status.st_size, -1):
            return True
        with contextlib.suppress(OSError):
            os.unlink(path)
            harmed = self.root / "harmed"
            harmed.mkdir(exist_ok=True)
            (harmed / sha256).touch()
        return False

    def harmed_since(self, time_s: float) -> frozenset[str]:
        """The objects that were found harmed since then, by whoever looked first."""
        try:
            with os.scandir(self.root / "harmed") as found:
                return frozenset(one.name for one in found if one.stat().st_mtime >= time_s)
        except OSError:
            return frozenset()

    def is_harmed(self, sha256: str, size: int) -> bool:
        """Whether something has written to an object; it is then removed. One that is gone is not harmed."""
        try:
            status = os.stat(self.object(sha256))
        except OSError:
            return False
        sound = status.st_mtime_ns == OBJECT_TIME_NS and size in (status.st_size, -1)
        return not sound and not self.has(sha256, size)

    def keep(self, partial: str, descriptor: int, sha256: str) -> None:
        """Make a finished file, open as `descriptor`, the object of its content, atomically. One that can't be is removed."""
        path = self.object(sha256)
        try:
            os.utime(descriptor, ns=(OBJECT_TIME_NS, OBJECT_TIME_NS))
            os.fchmod(descriptor, 0o444)
            try:
                os.rename(partial, path)
            except FileNotFoundError:
                os.makedirs(os.path.dirname(path), exist_ok=True)
                os.rename(partial, path)
        except OSError:
            with contextlib.suppress(OSError):
                os.unlink(partial)  # it may be read-only: nobody could go on with it
            raise

    def partial(self, source: str) -> str:
        """Name the file that an address is fetched into."""
        return f"{self.root}/partial/{hashlib.sha256(source.encode('utf-8', 'surrogateescape')).hexdigest()[:40]}"

    def tree(
        self, files: Sequence[tuple[str, str, int, str]], grown: GrowingTree | None = None, *, digest: str = ""
    ) -> Path:
        """A directory with the files by their names, made if it is not there: (name, source, bytes, SHA-256).

        A file with a SHA-256 is a hard link to its object, one without is a link to its source. Made once for the same
        files, so that a run needs one link to it; of what has `grown` of it while they came. `digest`, where it is known, is one
        over names and contents. Raises PreparationError when an object is missing or there is no space.
        """
        key = digest or digest_of([[name, sha256 or source] for name, source, _, sha256 in files])
        tree, facts = self.root / "trees" / key, self.root / "trees" / f"{key}.json"
        try:
            if self.known_tree(key) is not None and _is_sound(tree, files):
                return tree
            tree.parent.mkdir(parents=True, exist_ok=True)
            with _locked(self.root / "trees" / f"{key}.lock"):
                if self.known_tree(key) is None or not _is_sound(tree, files):
                    directories = self._make_tree(tree, files, grown)
                    held = {
                        "files": len(files),
                        "objects": {sha256: size for _, _, size, sha256 in files if sha256},
                        "directories": {name or ".": os.stat(tree / name).st_mtime_ns for name in directories},
                    }
                    replace_text(facts, json.dumps(held), force=False)  # in one line: indenting it takes long
        except OSError as error:
            raise PreparationError(
                f"a dataset can't be put together in {self.root}: {error.strerror}",
                "Free space there: tfjob dataset cache --prune; or name another store in config.yml.",
            ) from error
        return tree

    def known_tree(self, key: str) -> Path | None:
        """The tree with this key, if it is there and nobody has added a file to it or removed one. Files are not looked at.

        Its objects stay what they are as long as nobody writes through a mount; that is looked for after each run.
        """
        tree, facts = self.root / "trees" / key, self.root / "trees" / f"{key}.json"
        try:
            times: dict[str, int] = json.loads(facts.read_bytes())["directories"]
            if any(os.stat(os.path.join(tree, name)).st_mtime_ns != time_ns for name, time_ns in times.items()):
                return None
            os.utime(facts)
        except (OSError, ValueError, KeyError, TypeError):
            return None
        return tree

    def distrust(self) -> None:
        """Have every file of every tree looked at before its next use: something wrote to one."""
        for path in (self.root / "resolved").glob("*.json"):
            path.unlink(missing_ok=True)

    def resolved(self, key: str) -> Path:
        """Name the file that keeps what a large dataset came to when all its addresses were last asked, there or not."""
        return self.root / "resolved" / f"{key}.json"

    def use(self, tree: Path, run: Path) -> None:
        """Note that the run in the directory `run` uses the tree: it is not evicted before that run is over."""
        users = self.root / "users" / tree.name
        users.mkdir(parents=True, exist_ok=True)
        with contextlib.suppress(FileExistsError):
            (users / run.name).symlink_to(run)

    @contextmanager
    def filling(self) -> Iterator[None]:
        """Keep others from evicting while this process fetches and has no run noted yet; waits for who evicts."""
        try:
            self.root.mkdir(parents=True, exist_ok=True)
            for name in ("partial", "objects"):
                (self.root / name).mkdir(exist_ok=True)
            descriptor = os.open(self.root / ".lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
        except OSError as error:
            raise PreparationError(
                f"the cache of datasets {self.root} can't be written: {error.strerror}",
                "Name another `store` in the workspace's config.yml, or set TFJOB_STORE.",
            ) from error
        try:
            fcntl.flock(descriptor, fcntl.LOCK_SH)
            yield
        finally:
            os.close(descriptor)

    def _make_tree(self, tree: Path, files: Sequence[tuple[str, str, int, str]], grown: GrowingTree | None) -> set[str]:
        """Put a tree in its place, whole; returns its directories.

        One that is there and unsound may be mounted by a run: it stays beside till nobody uses it.
        """
        begun = grown.path if grown is not None else None
        fresh = begun or Path(tempfile.mkdtemp(dir=tree.parent, prefix=f".{tree.name[:12]}-"))
        try:
            directories = self._fill(fresh, files, grown)
            fresh.chmod(READ_ONLY)
            with contextlib.suppress(FileNotFoundError):
                tree.rename(tree.parent / f".{tree.name}-{fresh.name}")
            fresh.rename(tree)
        except BaseException:
            remove_tree(fresh)
            raise
        return directories

    def _fill(self, into: Path, files: Sequence[tuple[str, str, int, str]], grown: GrowingTree | None) -> set[str]:
        """Link the files; those that are linked already are looked at no more. Returns the directories there are then."""
        linked = grown.linked if grown is not None else {}
        made = set(grown.directories) if grown is not None else {""}
        with _directory(self._objects) as objects, _directory(into) as here:
            for name, source, _, sha256 in files:
                before = linked.get(name)
                if before is not None:
                    if before == sha256:
                        continue
                    os.unlink(name, dir_fd=here)
                directory = name.rpartition("/")[0]
                if directory not in made:
                    os.makedirs(into / directory, exist_ok=True)
                    made.add(directory)
                if not sha256:
                    os.symlink(source, name, dir_fd=here)
                    continue
                try:  # both names are short: there may be very many
                    os.link(f"{sha256[:2]}/{sha256}", name, src_dir_fd=objects, dst_dir_fd=here)
                except OSError as error:
                    _copy(error, self.object(sha256), f"{into}/{name}")
        for name in tuple(made):
            made.update(above for above in map(str, Path(name).parents) if above != ".")
        for directory in sorted(made - {""}, reverse=True):
            os.chmod(into / directory, READ_ONLY)
        return made


@contextmanager
def _locked(path: Path) -> Iterator[None]:
    """Let nobody else in meanwhile; waits for whoever is. The lock dies with its holder."""
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX)
        yield
    finally:
        os.close(descriptor)


@contextmanager
def _directory(path: str | Path) -> Iterator[int]:
    """A descriptor of a directory; files are named from there."""
    descriptor = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        yield descriptor
    finally:
        os.close(descriptor)


def _copy(why: OSError, at: str, target: str) -> None:
    """Copy an object where it has as many links as can be, or the file system has none; another error is raised."""
    if why.errno not in {errno.EMLINK, errno.EPERM, errno.EOPNOTSUPP}:
        raise why
    shutil.copyfile(at, target)
    os.utime(target, ns=(OBJECT_TIME_NS, OBJECT_TIME_NS))
    os.chmod(target, 0o444)


def _is_sound(tree: Path, files: Sequence[tuple[str, str, int, str]]) -> bool:
    """Whether the tree has exactly the files, and no object in it was written to."""
    wanted = {name: (source, size, sha256) for name, source, size, sha256 in files}
    stack = [("", str(tree))]
    seen = 0
    while stack:
        below, directory = stack.pop()
        try:
            with os.scandir(directory) as scan:
                for entry in scan:
                    name = below + entry.name
                    if entry.is_dir(follow_symlinks=False):
                        stack.append((f"{name}/", entry.path))
                        continue
                    asked = wanted.get(name)
                    if asked is None or entry.is_symlink() == bool(asked[2]):
                        return False
                    if asked[2]:
                        status = entry.stat(follow_symlinks=False)
                        if status.st_mtime_ns != OBJECT_TIME_NS or status.st_size != asked[1]:
                            return False
                    seen += 1
        except OSError:
            return False
    return seen == len(wanted)
