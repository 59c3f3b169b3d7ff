"""What addresses held when they were last fetched, and digests of files of this machine: an index beside the cached files.

It can be deleted, and is where it is found damaged: what it knew is found again.
"""

from __future__ import annotations

import os
from contextlib import ExitStack, contextmanager, suppress
from typing import TYPE_CHECKING, Final, NamedTuple, TypeAlias

from tfjob.errors import PreparationError

if TYPE_CHECKING:
    import sqlite3
    from collections.abc import Callable, Iterable, Iterator, Sequence
    from pathlib import Path

__all__ = ["Index", "Known", "Stamp"]

_ASKED_AT_ONCE: Final = 500
_COLUMNS: Final = 5
_NOTED_AT_ONCE: Final = 150
"""Rows in one statement: SQLite before 3.32 takes 999 values. One by one, each would wait for Python's lock."""
_LOOK: Final = "select tag, size, sha256, checked from addresses where source = ?"
_TABLES: Final = (
    (
        "create table if not exists addresses "
        "(source text primary key, tag text, size integer, sha256 text, checked real) without rowid"
    ),
    "create table if not exists digests (path text primary key, sign text, sha256 text) without rowid",
)


Stamp: TypeAlias = tuple[int, int]
"""When the index was last written to, and which file it is."""


class Known(NamedTuple):
    """What an address held: what its server said of it (empty: nothing), bytes, SHA-256, and when it was last asked."""

    tag: str
    size: int
    sha256: str
    checked: float


class _DamagedError(PreparationError):
    """The index was damaged; it is removed now."""


class Index:
    """The index in the file `path`, made when something is noted. Several processes may use it at once."""

    def __init__(self, path: Path) -> None:
        """Use the file `path`, there or not."""
        self._path = path

    def known(self, sources: Sequence[str]) -> dict[str, Known]:
        """What the addresses held when they were last fetched; without those that never were."""
        found: dict[str, Known] = {}
        if not sources or not self._path.exists():
            return found
        with suppress(_DamagedError), self._open() as index:
            for start in range(0, len(sources), _ASKED_AT_ONCE):
                some = sources[start : start + _ASKED_AT_ONCE]
                marks = ",".join("?" * len(some))
                rows = index.execute(
                    f"select source, tag, size, sha256, checked from addresses where source in ({marks})",  # noqa: S608  # marks alone
                    some,
                )
                found |= {row[0]: Known(*row[1:]) for row in rows}
        return found

    def stamp(self) -> Stamp:
        """What is another one once anybody has noted something."""
        try:
            status = os.stat(self._path)
        except OSError:
            return 0, 0
        return status.st_mtime_ns, status.st_ino

    @contextmanager
    def looking(self) -> Iterator[Callable[[str], Known | None]]:
        """Look up one address and then another, in one thread: the index is opened for the first, and stays open."""
        with ExitStack() as stack:
            opened: list[sqlite3.Connection] = []

            def look(source: str) -> Known | None:
                if not opened:
                    opened.append(stack.enter_context(self._open()))
                rows = opened[0].execute(_LOOK, (source,)).fetchall()  # all of them: it lets go of SQLite's lock
                return Known(*rows[0]) if rows else None

            yield look

    def remember(self, rows: Iterable[tuple[str, Known]]) -> None:
        """Note what addresses hold."""
        with self.noting() as note:
            note(rows)

    @contextmanager
    def noting(self) -> Iterator[Callable[[Iterable[tuple[str, Known]]], Stamp | None]]:
        """Note what addresses hold, again and again: opening the index takes as long as a hundred rows. Each time is kept for itself.

        Gives the stamp after that, as long as nobody else has noted anything since the index was opened.
        """
        with self._open() as index:
            before = _version(index)

            def note(rows: Iterable[tuple[str, Known]]) -> Stamp | None:
                flat = [value for source, known in rows for value in (source, *known)]
                with index:
                    for start in range(0, len(flat), _NOTED_AT_ONCE * _COLUMNS):
                        some = flat[start : start + _NOTED_AT_ONCE * _COLUMNS]
                        marks = ", ".join(["(?, ?, ?, ?, ?)"] * (len(some) // _COLUMNS))
                        index.execute(f"insert or replace into addresses values {marks}", some)  # noqa: S608  # marks alone
                stamp = self.stamp()
                return stamp if _version(index) == before else None  # asked last: nobody has noted before the stamp

            yield note

    def digests(self, paths: Sequence[str]) -> dict[str, tuple[str, str]]:
        """The (sign, SHA-256) noted for files of this machine; `sign` says of which size and time."""
        found = {}
        with suppress(_DamagedError), self._open() as index:
            for path in paths:
                row = index.execute("select sign, sha256 from digests where path = ?", (path,)).fetchone()
                if row is not None:
                    found[path] = (str(row[0]), str(row[1]))
        return found

    def remember_digests(self, rows: Iterable[tuple[str, str, str]]) -> None:
        """Note digests: (path, sign, SHA-256)."""
        with self._open() as index:
            index.executemany("insert or replace into digests values (?, ?, ?)", list(rows))

    @contextmanager
    def _open(self) -> Iterator[sqlite3.Connection]:
        """A connection; an error in its use is one of PreparationError."""
        import sqlite3  # noqa: PLC0415  # 8 ms that only fetching pays

        self._path.parent.mkdir(parents=True, exist_ok=True)
        try:
            connection = _opened(self._path)
        except sqlite3.OperationalError as error:
            raise self._unusable(error) from error
        except sqlite3.DatabaseError:
            self._remove()
            connection = _opened(self._path)
        try:
            with connection:
                yield connection
        except sqlite3.OperationalError as error:
            raise self._unusable(error) from error
        except sqlite3.IntegrityError:
            raise  # a statement of ours is wrong
        except sqlite3.DatabaseError as error:
            self._remove()
            raise _DamagedError(
                f"{self._path} was damaged ({error}) and has been removed: what it knew is found again",
                "Do the same again.",
            ) from error
        finally:
            connection.close()

    def _remove(self) -> None:
        """Remove it, first what would be taken for the end of a change of the next one."""
        for name in (f"{self._path.name}-journal", self._path.name):
            self._path.with_name(name).unlink(missing_ok=True)

    def _unusable(self, error: Exception) -> PreparationError:
        return PreparationError(
            f"{self._path} can't be used: {error}", "Free space there, or let whoever locks it end."
        )


def _version(index: sqlite3.Connection) -> int:
    """What is another one once somebody else, over another connection, has changed the index."""
    [(version,)] = index.execute("pragma data_version").fetchall()
    return int(version)


def _opened(path: Path) -> sqlite3.Connection:
    import sqlite3  # noqa: PLC0415  # see above

    connection = sqlite3.connect(path, timeout=60)
    try:
        connection.execute("pragma synchronous = off")  # a power loss may take it: it can be found again
        for table in _TABLES:
            connection.execute(table)
    except BaseException:
        connection.close()
        raise
    return connection
