"""The folder of a store for work in progress: each piece of work under a lock and in a folder of its own.

So several preparations at once share the work, and a killed one leaves nothing that looks finished.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import tempfile
import time
from pathlib import Path
from typing import TYPE_CHECKING

from tfjob.durable import NoLocksError, is_locked, take_lock, try_lock
from tfjob.errors import PreparationError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

__all__ = ["Building"]

_POLL_S = 0.05
_WRITERS_S = 10.0


class Building:
    """The folder ``building`` of a store: NAME.lock is held by whoever works in NAME-RANDOM. A name has no hyphen."""

    def __init__(self, folder: Path) -> None:
        """Use a folder that is there."""
        self.folder = folder

    @contextlib.contextmanager
    def holding(self, name: str, progress: Callable[[str], None]) -> Iterator[tuple[Path, int]]:
        """Hold the lock `name` and give an empty folder to work in, removed at the end, and the lock's descriptor.

        Waits for whoever has the lock, and says so. Raises PreparationError as `try_hold` does.
        """
        waits = False
        while (holds := self.try_hold(name)) is None:
            if not waits:
                progress("waiting for another tfjob that builds this environment")
                waits = True
            time.sleep(_POLL_S)
        try:
            for left in self.folder.glob(f"{name}-*"):
                shutil.rmtree(left, ignore_errors=True)
            work = Path(tempfile.mkdtemp(prefix=f"{name}-", dir=self.folder))
            try:
                yield work, holds
            except BaseException:
                _remove(work)
                raise
            shutil.rmtree(work, ignore_errors=True)
        finally:
            self.let_go(name, holds)

    def try_hold(self, name: str) -> int | None:
        """Take the lock `name` if nobody holds it: a descriptor for `let_go`, or None.

        The lock's file is removed while it is held; so a lock counts only if its file is still the one under its name.
        Raises PreparationError where the file system has no locks: two would remove each other's work.
        """
        path = self.folder / f"{name}.lock"
        try:
            while (holds := take_lock(path)) is not None:
                if _is_same_file(path, holds):
                    return holds
                os.close(holds)
        except NoLocksError as error:
            raise PreparationError(
                f"{self.folder} is on a file system that can't lock files: {error.strerror}",
                "Mount it so that it can (Lustre: `-o flock`), or put `store`, in the workspace's config.yml, on another.",
            ) from error
        return None

    def let_go(self, name: str, holds: int) -> None:
        """Give up the lock `name`."""
        (self.folder / f"{name}.lock").unlink(missing_ok=True)
        os.close(holds)

    def sweep(self) -> None:
        """Remove what killed work left: folders nobody works in, locks nobody holds."""
        for path in self.folder.iterdir():
            lock = path if path.suffix == ".lock" else path.with_name(f"{path.name.partition('-')[0]}.lock")
            if path != lock and not is_locked(lock):
                shutil.rmtree(path, ignore_errors=True)
            elif path == lock and (holds := try_lock(lock)) is not None:
                if _is_same_file(lock, holds):
                    lock.unlink(missing_ok=True)
                os.close(holds)


def _remove(folder: Path) -> None:
    """Remove a folder into which threads of a library whose work was given up may write for a moment longer."""
    until = time.monotonic() + _WRITERS_S
    while folder.exists():
        shutil.rmtree(folder, ignore_errors=True)
        if time.monotonic() > until:
            break  # it is not ours to remove; who has the lock next tries again
        if folder.exists():
            time.sleep(_POLL_S)


def _is_same_file(path: Path, descriptor: int) -> bool:
    try:
        return os.path.samestat(path.stat(), os.fstat(descriptor))
    except FileNotFoundError:
        return False
