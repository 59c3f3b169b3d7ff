"""What is to be fetched, by what rules, and what threads that fetch share."""

from __future__ import annotations

import errno
import threading
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, NamedTuple, Protocol

from tfjob.errors import PreparationError
from tfjob.spec.addresses import shown_address

if TYPE_CHECKING:
    from tfjob.datasets.cache import Cache
    from tfjob.datasets.index import Known
    from tfjob.datasets.standby import Standby

__all__ = ["Fetcher", "Partial", "Settings", "Transfer", "Wanted", "changed", "check_content", "lost", "unwritable"]


@dataclass(frozen=True)
class Settings:
    """How files are fetched: connections at once, how long to wait for an answer (s), tries, and the first pause (s).

    `many` is the number of files of the web that are worth the time in which processes start that fetch them.
    """

    connections: int = 16
    timeout_s: float = 60.0
    tries: int = 5
    pause_s: float = 1.0
    many: int = 300


class Wanted(NamedTuple):
    """A file to fetch: its address, its bytes (-1: not known) and what its content must be (see `Remote`).

    `of` is what it belongs to, in words, for messages: ``dataset digits`` or ``digits@2``; `rerun_of` is the run whose
    content it must be, where one is run again.
    """

    source: str
    size: int
    mark: str
    of: str
    rerun_of: str = ""


@dataclass(slots=True)
class Partial:
    """The file that one is fetched into: where it is, the descriptor that holds its lock, and what is there of it.

    `is_kept` once it has become an object. Both spare asking the system again, which for ten thousand files takes time.
    """

    path: str
    descriptor: int
    size: int = 0
    is_kept: bool = False


class Fetcher(Protocol):
    """One way to fetch a file; used by one thread."""

    def fetch(self, wanted: Wanted, known: Known | None, transfer: Transfer, partial: Partial) -> Known:
        """Have the file among the cache's objects. Raises PreparationError, and Transient for what may get better."""
        ...

    def abort(self) -> None:
        """Make a `fetch` in another thread fail at once."""
        ...


@dataclass
class Transfer:
    """What all threads share: the cache, whether to stop, how much is done. `notes` say what people should know.

    `standby` has the processes that were started for small files.
    """

    cache: Cache
    settings: Settings
    standby: Standby
    stop: threading.Event = field(default_factory=threading.Event)
    done_bytes: int = 0
    total_bytes: int = 0
    notes: list[str] = field(default_factory=list)
    lock: threading.Lock = field(default_factory=threading.Lock)

    def count(self, received: int, expected: int = 0) -> None:
        """Note bytes that came, and bytes that are expected from now on."""
        with self.lock:
            self.done_bytes += received
            self.total_bytes += expected


def check_content(wanted: Wanted, sha256: str) -> None:
    """Refuse a content that is not the one it must be. Raises PreparationError."""
    kind, _, expected = wanted.mark.partition(":")
    if kind == "sha256" and sha256 != expected:
        if wanted.rerun_of:
            raise lost(wanted)
        raise PreparationError(
            f"{shown_address(wanted.source)} has the SHA-256 {sha256}, and {expected} is asked for",
            "Either the file was changed, or the sum in the file that names it is wrong. What came was thrown away.",
        )
    if kind == "seen" and sha256 != expected:
        raise changed(wanted, f"its SHA-256 was {expected[:12]}… and is {sha256[:12]}…")


def changed(wanted: Wanted, how: str) -> PreparationError:
    """The error for an address that no longer holds what was registered, or what it held when the job was submitted."""
    if "@" not in wanted.of:
        message = f"{shown_address(wanted.source)} has changed since it was looked at for {wanted.of}: {how}"
        return PreparationError(message, "Submit the job again.")
    return PreparationError(
        f"{shown_address(wanted.source)} has changed since {wanted.of} was registered: {how}",
        f"A version never changes. Make a new one of what is there now: tfjob dataset create --name {wanted.of} --refresh",
    )


def lost(wanted: Wanted) -> PreparationError:
    """The error for an address that no longer holds what a run read there."""
    return PreparationError(
        f"what run {wanted.rerun_of} read as {wanted.of} is neither in the cache nor at its address any more: "
        f"{shown_address(wanted.source)} has another content than the SHA-256 {wanted.mark.rpartition(':')[2]}",
        "Put that file back there, or submit the job again with what is there now.",
    )


def unwritable(cache: Cache, error: OSError) -> PreparationError:
    """The error for a file of the cache that can't be written."""
    if error.errno in {errno.ENOSPC, errno.EDQUOT}:
        return PreparationError(
            f"the disk that holds the cache of datasets {cache.root} is full",
            "Free space there: tfjob dataset cache --prune; or name another `store` in the workspace's config.yml.",
        )
    return PreparationError(
        f"the cache of datasets {cache.root} can't be written: {error.strerror or error}",
        "Name another `store` in the workspace's config.yml, or set TFJOB_STORE.",
    )
