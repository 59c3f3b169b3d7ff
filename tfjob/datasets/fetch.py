"""Many files fetched at once into the cache: by several threads, resumed where they broke, tried again, and verified.

Where there are hundreds of the web, processes beside this one fetch what is small and makes no trouble (`workers.py`).

A file that is being fetched lies under `partial` and is locked; others who want it wait and then find it. It becomes an
object only when it is whole and has the content it must have. Of what the cache holds already, servers are asked
whether it has changed, where nothing was promised that makes asking needless.
"""

from __future__ import annotations

import contextlib
import os
import threading
import time
from collections import deque
from typing import TYPE_CHECKING, Final, NamedTuple

from tfjob.datasets.at_hand import at_hand, refuse_full_disk
from tfjob.datasets.index import Known, Stamp
from tfjob.datasets.partials import locked
from tfjob.datasets.standby import Standby
from tfjob.datasets.wanted import Fetcher, Partial, Settings, Transfer, Wanted, unwritable
from tfjob.datasets.web import Session, Transient
from tfjob.errors import PreparationError
from tfjob.spec import addresses
from tfjob.spec.addresses import WEB, is_web, scheme_of, shown_address

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Sequence

    from tfjob.datasets.cache import Cache
    from tfjob.datasets.workers import Workers

    Note = Callable[[Iterable[tuple[str, Known]]], Stamp | None]
    Came = Callable[[Sequence[tuple[str, Known]]], None]
    Look = Callable[[str], Known | None]

__all__ = ["Fetched", "fetch"]

_BATCH: Final = 1000
_BATCH_S: Final = 0.3
_PROGRESS_S: Final = 0.5
_WAIT_S: Final = 0.1
_PATIENCE_S: Final = 10.0
_MB: Final = 1_000_000


class Fetched(NamedTuple):
    """What each address holds, what people should know about that, in sentences, and how many bytes came."""

    known: dict[str, Known]
    notes: tuple[str, ...] = ()
    received_bytes: int = 0


def fetch(
    wanted: Sequence[Wanted],
    cache: Cache,
    settings: Settings,
    progress: Callable[[str], None],
    *,
    standby: Standby | None = None,
    came: Came = lambda _: None,
) -> Fetched:
    """Have all files in the cache. `came` is told what addresses that had to be fetched hold, once it is noted.

    `standby` may have started the processes that fetch small files.
    To be called with the cache kept from eviction (`Cache.filling`). Raises PreparationError for the first file that
    can't be had, once the others have stopped; what came of large files is kept for the next try.
    """
    unique = {one.source: one for one in wanted}
    transfer = Transfer(cache, settings, standby or Standby())
    if len(unique) < settings.many:
        return _fetch(unique, transfer, progress, came)
    from tfjob.datasets.workers import alone  # noqa: PLC0415  # few files have no use for it

    try:
        with alone(cache, unique, progress):
            return _fetch(unique, transfer, progress, came)
    except OSError as error:
        raise unwritable(cache, error) from error


def _fetch(unique: dict[str, Wanted], transfer: Transfer, progress: Callable[[str], None], came: Came) -> Fetched:
    cache = transfer.cache
    stamp = cache.index.stamp()  # first: what is noted from now on shows
    known = cache.index.known(list(unique))
    many = sum(map(is_web, unique)) > addresses.MANY
    found: dict[str, Known] = {}
    missing: deque[Wanted] = deque()
    for one in unique.values():
        if not known and one.mark[:7] != "sha256:":
            missing.append(one)  # as most are that are fetched
            continue
        before = at_hand(one, known.get(one.source), cache, trust_recent=many)
        if before is not None:
            found[one.source] = before
        else:
            missing.append(one)
    if not missing:
        return Fetched(found)
    transfer.total_bytes = sum(max(one.size, 0) for one in missing)
    refuse_full_disk(cache, missing, known)
    crew = _Crew(missing, known, stamp, transfer)
    try:
        crew.begin()
        with cache.index.noting() as note:
            if (now := cache.index.stamp()) != stamp:  # it has just been made, or written to
                crew.know(cache.index.known(list(unique)), now)
            for held in crew.results(note, progress):
                found |= held
                came(held)
    finally:
        crew.end()
    return Fetched(found, tuple(transfer.notes), transfer.done_bytes)


_Result = tuple[str, Known, int | None]
"""What an address holds, and the descriptor that holds the lock of the file it was fetched into; None where a worker did that."""


class _Crew:
    """The threads that fetch, and workers where there is enough for them; and what they bring."""

    def __init__(self, missing: deque[Wanted], known: dict[str, Known], stamp: Stamp, transfer: Transfer) -> None:
        self._missing = missing
        self._count = len(missing)
        self._known = known
        self._stamp = stamp  # of the index, in which nobody else has noted more than that
        self._transfer = transfer
        self._results: deque[_Result | BaseException] = deque()
        self._wake = threading.Event()
        self._most = transfer.settings.connections
        self._working = 0
        self._fetchers: list[Fetcher] = []
        self._threads: list[threading.Thread] = []
        self._workers: Workers | None = None

    def begin(self) -> None:
        """Start to fetch."""
        if self._count >= self._transfer.settings.many:
            new = [one for one in self._missing if is_web(one.source) and not (self._known and self._is_held(one))]
            if len(new) >= self._transfer.settings.many and self._most > 1:
                self._begin_workers(new)
        self._engage()

    def know(self, known: dict[str, Known], stamp: Stamp) -> None:
        """Hear what the index holds by now."""
        self._known = known
        self._stamp = stamp  # last: who sees it sees what is known too

    def _begin_workers(self, new: list[Wanted]) -> None:
        """Have processes fetch those files that they can."""
        from tfjob.datasets.workers import Workers, plain_files  # noqa: PLC0415  # few files have no use for it

        self._workers = Workers(len(new), self._transfer, self._came, self._left, self._all_left)
        plain = plain_files(new, self._transfer.settings)  # they load meanwhile
        if not plain:
            self._workers.end()
            return
        if len(plain) < len(self._missing):
            chosen = {one.wanted.source for one in plain}
            self._missing = deque(one for one in self._missing if one.source not in chosen)
        else:
            self._missing = deque()
        self._most = 1  # all other connections are those of the workers
        self._workers.begin(plain)

    def _engage(self) -> None:
        """Start as many threads as there is work for; those that find none end by themselves."""
        with self._transfer.lock:
            if self._transfer.stop.is_set():
                return
            more = min(self._most - self._working, len(self._missing))
            threads = [threading.Thread(target=self._work, daemon=True) for _ in range(more)]
            self._working += len(threads)
            self._threads += threads
        for thread in threads:
            thread.start()

    def _is_held(self, wanted: Wanted) -> bool:
        known = self._known.get(wanted.source)
        return known is not None and self._transfer.cache.has(known.sha256, known.size)

    def _came(self, results: Iterable[_Result]) -> None:
        """Hear from a worker what came."""
        self._results.extend(results)
        self._wake.set()

    def _left(self, files: Iterable[Wanted]) -> None:
        """Hear what workers do not fetch."""
        self._missing.extend(files)
        self._engage()

    def _all_left(self) -> None:
        """Hear that the workers have nothing to do any more: their connections are free."""
        self._most = self._transfer.settings.connections
        self._engage()

    def results(self, note: Note, progress: Callable[[str], None]) -> Iterator[list[tuple[str, Known]]]:
        """Yield what addresses hold, once that is noted in the cache by `note`. Raises what kept a file from being had."""
        began = reported = time.monotonic()
        batch: list[_Result] = []
        noted = began
        done = 0
        while done < self._count:
            self._wake.wait(_WAIT_S)
            self._wake.clear()
            while self._results:
                result = self._results.popleft()
                if isinstance(result, BaseException):
                    self._note(batch, note)
                    raise result
                batch.append(result)
                done += 1
            now = time.monotonic()
            if batch and (len(batch) >= _BATCH or now - noted > _BATCH_S or done == self._count):
                yield self._note(batch, note)
                noted = now
            if now - reported > _PROGRESS_S:
                reported = now
                progress(_progress(done, self._count, self._transfer, now - began))
        if self._transfer.done_bytes:
            progress(_progress(done, self._count, self._transfer, time.monotonic() - began))

    def end(self) -> None:
        """Stop the threads; those that wait for a server are made to fail, or left to themselves if that can't be."""
        self._transfer.stop.set()
        if self._workers is not None:
            self._workers.end()
        last = time.monotonic() + _PATIENCE_S
        for thread in self._threads:
            while thread.is_alive() and time.monotonic() < last:
                for fetcher in self._fetchers:
                    fetcher.abort()
                thread.join(0.2)
        while self._results:
            left = self._results.popleft()
            if not isinstance(left, BaseException) and left[2] is not None:
                os.close(left[2])

    def _note(self, batch: list[_Result], note: Note) -> list[tuple[str, Known]]:
        """Note what was fetched, and only then let others see that nobody fetches it any more."""
        rows = [(source, known) for source, known, _ in batch]
        try:
            if rows and (stamp := note(rows)) is not None:
                self._stamp = stamp
        finally:
            for _, _, descriptor in batch:
                if descriptor is not None:
                    os.close(descriptor)
            batch.clear()
        return rows

    def _work(self) -> None:
        """Fetch one file after another. Who waits for the results is woken for many, for a failure, and by the last thread."""
        try:
            self._fetch_on()
        except BaseException as error:  # noqa: BLE001  # it is raised again by who waits for the results
            self._results.append(error)
            self._wake.set()
            return
        with self._transfer.lock:
            self._working -= 1
            is_last = not self._working
        if is_last:
            self._wake.set()
        self._engage()  # for what was added since this one found nothing

    def _fetch_on(self) -> None:
        fetchers: dict[str, Fetcher] = {}
        with self._transfer.cache.index.looking() as look:
            while not self._transfer.stop.is_set():
                try:
                    wanted = self._missing.popleft()
                except IndexError:
                    return
                scheme = scheme_of(wanted.source) or ""
                if scheme not in fetchers:
                    fetchers[scheme] = self._fetcher(scheme)
                self._results.append(self._one(wanted, fetchers[scheme], look))
                if len(self._results) >= _BATCH:
                    self._wake.set()

    def _fetcher(self, scheme: str) -> Fetcher:
        if scheme in WEB:
            from tfjob.datasets.web_fetch import WebFetcher  # noqa: PLC0415  # only where it is needed

            made: Fetcher = WebFetcher(Session(self._transfer.settings.timeout_s))
        else:
            from tfjob.datasets.stores import StoreFetcher  # noqa: PLC0415  # the same

            made = StoreFetcher()
        self._fetchers.append(made)
        return made

    def _one(self, wanted: Wanted, fetcher: Fetcher, look: Look) -> tuple[str, Known, int]:
        """Fetch one file under its lock, which is held until the descriptor that comes with the result is closed."""
        path = self._transfer.cache.partial(wanted.source)
        try:
            partial, has_waited = locked(path, self._pause)
        except OSError as error:
            raise unwritable(self._transfer.cache, error) from error
        try:
            is_known = not has_waited and self._transfer.cache.index.stamp() == self._stamp
            known = self._known.get(wanted.source)
            if not is_known:  # who had the lock before may have noted what came
                known = look(wanted.source) or known
            value = self._try(wanted, known, fetcher, partial)
        except BaseException:
            os.close(partial.descriptor)
            raise
        if not partial.is_kept:
            with contextlib.suppress(OSError):
                os.unlink(path)  # nothing came of it: the file was there already
        return wanted.source, value, partial.descriptor

    def _try(self, wanted: Wanted, known: Known | None, fetcher: Fetcher, partial: Partial) -> Known:
        """Fetch, again where that may help. What brings a file further does not count as a failure."""
        settings, transfer = self._transfer.settings, self._transfer
        failures, furthest = 0, partial.size
        while True:
            try:
                return fetcher.fetch(wanted, known, transfer, partial)
            except Transient as error:
                reached = partial.size = os.fstat(partial.descriptor).st_size
                failures = 1 if reached > furthest else failures + 1
                furthest = max(reached, furthest)
                if transfer.stop.is_set():
                    raise
                if failures >= settings.tries:
                    kept = self._kept(wanted, known, error)
                    if kept is not None:
                        return kept
                    raise _given_up(wanted, error, failures, reached) from error
                pause_s = max(error.wait_s, settings.pause_s * 2 ** (failures - 1))
            self._pause(pause_s)

    def _pause(self, time_s: float) -> None:
        if self._transfer.stop.wait(time_s):
            raise Transient("stopped")

    def _kept(self, wanted: Wanted, known: Known | None, error: Transient) -> Known | None:
        """What the cache holds of a registered version whose server does not answer: that is what the version is."""
        kind, _, expected = wanted.mark.partition(":")
        if kind == "seen" and self._transfer.cache.has(expected, wanted.size):
            self._transfer.notes.append(
                f"{shown_address(wanted.source)} could not be asked whether it has changed ({error.message}); "
                f"the file of {wanted.of} in the cache was used"
            )
            size = os.stat(self._transfer.cache.object(expected)).st_size
            return Known(known.tag if known else "", size, expected, known.checked if known else 0)
        return None


def _given_up(wanted: Wanted, error: Transient, tries: int, reached: int) -> PreparationError:
    kept = f" The {reached // _MB} MB that came are kept: the next try goes on from there." if reached >= _MB else ""
    times = f"{tries} times" if tries > 1 else "once"
    return PreparationError(
        f"{shown_address(wanted.source)} can't be fetched: {error.message} (tried {times})",
        f"Check the address and the network, and try again.{kept}",
    )


def _progress(done: int, count: int, transfer: Transfer, elapsed_s: float) -> str:
    files = f"{done} of {count} files" if count > 1 else "1 file"
    received, total = transfer.done_bytes, max(transfer.total_bytes, transfer.done_bytes)
    rate = received / _MB / max(elapsed_s, 0.001)
    total_mb = -(-total // _MB)
    received_mb = received // _MB if received < total else total_mb
    return f"fetching data: {files}, {received_mb} of {total_mb} MB, {rate:.1f} MB/s"
