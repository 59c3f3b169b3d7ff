"""The files of a run's directory, as programs look for them that send them home from other machines.

It goes with those programs, and lies beside them: standard library only; any Python from 3.8; imports nothing of tfjob.
"""

from __future__ import annotations

import os
import stat

TYPE_CHECKING = False  # typing.TYPE_CHECKING, without importing typing
if TYPE_CHECKING:
    from collections.abc import Callable, Iterator


def attend_to_nothing() -> None:
    """Who walks has nothing else to do."""


def walk(
    run: str,
    below: str,
    attend: Callable[[], None] = attend_to_nothing,
    troubled: Callable[[OSError], None] | None = None,
) -> Iterator[tuple[str, os.stat_result]]:
    """Files and links below a directory of the run, by their paths in it. Pipes and sockets are no files.

    `attend` is called for each, and for each directory: there may be very many. `troubled` hears of what can't be read, and may
    raise; it is left out otherwise.
    """
    for parent, directories, files in os.walk(os.path.join(run, below), onerror=troubled):
        attend()
        links = [name for name in directories if os.path.islink(os.path.join(parent, name))]
        for name in sorted(files + links):
            attend()
            path = os.path.join(parent, name)
            try:
                status = os.lstat(path)
            except OSError as error:
                if troubled is not None:
                    troubled(error)
                continue
            if stat.S_ISREG(status.st_mode) or stat.S_ISLNK(status.st_mode):
                yield os.path.relpath(path, run), status


def empty_directories(
    run: str,
    below: str,
    attend: Callable[[], None] = attend_to_nothing,
    troubled: Callable[[OSError], None] | None = None,
) -> Iterator[str]:
    """Directories without anything in them: some formats have such. See `walk`."""
    top = os.path.join(run, below)
    for parent, directories, files in os.walk(top, onerror=troubled):
        attend()
        if not directories and not files and parent != top:
            yield os.path.relpath(parent, run)


def is_same(original: str, status: os.stat_result) -> bool:
    """Whether a file is as it was when it was copied: of the same size and time."""
    try:
        before = os.lstat(original)
    except OSError:
        return False
    return (before.st_size, int(before.st_mtime)) == (status.st_size, int(status.st_mtime))
