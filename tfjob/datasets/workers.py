"""Very many small files of the web, fetched by processes beside this one (`small_files.py`), as many as there are processors.

They do what is plain, and quickly. What they leave is fetched as few files are: it is those who fetch in threads that try
again, follow redirects, and tell what is wrong. Where a server asks for patience, or much is left, they are given no more.
"""

from __future__ import annotations

import contextlib
import marshal
import os
import queue
import re
import subprocess
import threading
import time
from collections import Counter, deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from operator import itemgetter
from typing import TYPE_CHECKING, Any, Final, NamedTuple
from urllib.parse import urlsplit

from tfjob.datasets.cache import OBJECT_TIME_NS
from tfjob.datasets.connections import LARGEST, PATIENCE
from tfjob.datasets.index import Known
from tfjob.datasets.partials import is_ours
from tfjob.datasets.small_files import PREFIX
from tfjob.datasets.standby import process_count
from tfjob.datasets.web import common_headers, is_direct, split_address
from tfjob.durable import digest_of
from tfjob.errors import PreparationError

if TYPE_CHECKING:
    from tfjob.datasets.cache import Cache
    from tfjob.datasets.small_files import File
    from tfjob.datasets.wanted import Settings, Transfer, Wanted

__all__ = ["Worker", "Workers", "alone", "plain_files"]

_DEALT_AT_ONCE: Final = 200
_IN_HAND: Final = 300
_MOST_LEFT: Final = 100
_PATIENCE_S: Final = 5.0
_LOOK_S: Final = 0.3
_ALONE: Final = "many-"
_SOURCE: Final = itemgetter(0)
_PLAIN_TARGET: Final = re.compile(r"/[A-Za-z0-9_./~-]*").fullmatch
"""A target that needs no quoting: `split_address` returns it as it stands."""


class Plain(NamedTuple):
    """A file that workers may fetch, the origin it comes from, and the target of the request."""

    wanted: Wanted
    origin: str
    target: str


def plain_files(wanted: Iterable[Wanted], settings: Settings) -> list[Plain]:
    """Those of files of the web, none of which is in the cache, that workers may fetch; none where they are few.

    All from one server come one after the other: its connections stay open, and what is noted of them lies side by side.
    """
    small = _placed([one for one in sorted(wanted, key=_SOURCE) if one[1] <= LARGEST])
    counts = Counter([origin for _, origin, _ in small])
    good = {origin for origin, count in counts.items() if count * 3 >= settings.many and is_direct(origin)}
    chosen = small if len(good) == len(counts) else [one for one in small if one.origin in good]
    return chosen if len(chosen) >= settings.many else []


def _placed(ordered: Iterable[Wanted]) -> list[Plain]:
    """Every file with its origin and target. What all of one server begin with is looked at once."""
    placed: list[Plain] = []
    origin, start = "", 0
    for one in ordered:
        source = one[0]
        if start and source.startswith(origin) and _PLAIN_TARGET(source, start):
            placed.append(Plain(one, origin, source[start:]))
            continue
        origin, target = split_address(source)
        start = len(origin) if source == origin + target else 0
        placed.append(Plain(one, origin, target))
    return placed


@contextmanager
def alone(cache: Cache, sources: Iterable[str], progress: Callable[[str], None]) -> Iterator[None]:
    """Let no other process fetch the very same files meanwhile. Waits for one that does; what `progress` raises ends that."""
    path = f"{cache.root}/partial/{_ALONE}{digest_of(list(sources))[:40]}"
    while True:
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
        try:
            while not is_ours(descriptor):
                progress("waiting for another run that fetches the same data")
                time.sleep(_LOOK_S)
            if os.fstat(descriptor).st_nlink:
                try:
                    yield
                finally:
                    with contextlib.suppress(OSError):
                        os.unlink(path)
                return
        finally:
            os.close(descriptor)


class Workers:
    """The processes, and what they have not fetched yet.

    `came` is told what came; `left`, what is not fetched by workers; `ended`, when the last of them has nothing in hand.
    All three are called by other threads.
    """

    def __init__(
        self,
        most: int,
        transfer: Transfer,
        came: Callable[[list[tuple[str, Known, None]]], None],
        left: Callable[[Iterable[Wanted]], None],
        ended: Callable[[], None],
    ) -> None:
        """Start them, for so many files; they use all connections that may be open at once, but for one.

        They load what they need until `begin` says what to fetch.
        """
        self.transfer = transfer
        self.came = came
        self._left = left
        self._ended = ended
        self._waiting: deque[Plain] = deque()
        self._lock = threading.Lock()
        self._left_count = 0
        self.origins: dict[str, int] = {}
        connections = transfer.settings.connections - 1
        count = process_count(most, transfer.settings)
        shares = [connections // count + (number < connections % count) for number in range(count)]
        self._workers = [Worker(self, share) for share in shares]
        self._talking = count

    def begin(self, files: Sequence[Plain]) -> None:
        """Have them fetch. What somebody else has begun to fetch is left: it is those who fetch in threads that go on with it."""
        begun = set(os.listdir(f"{self.transfer.cache.root}/partial"))
        if not all(name.startswith(_ALONE) for name in begun):
            of = self.transfer.cache.partial
            others = [one.wanted for one in files if os.path.basename(of(one.wanted.source)) in begun]
            taken = {one.source for one in others}
            files = [one for one in files if one.wanted.source not in taken]
            self._left(others)
        self._waiting.extend(files)
        self.origins = {origin: number for number, origin in enumerate({one.origin for one in files})}
        for worker in self._workers:
            worker.thread.start()

    def next_files(self) -> list[Plain]:
        """Take the next files to fetch."""
        taken: list[Plain] = []
        with contextlib.suppress(IndexError):
            while len(taken) < _DEALT_AT_ONCE:
                taken.append(self._waiting.popleft())
        return taken

    def leave(self, files: Sequence[Wanted], statuses: Iterable[int] = ()) -> None:
        """Have files fetched by others; and all that wait, when they are too many, or the server needs a pause."""
        self._left_count += len(files)
        self._left(files)
        if self._left_count > _MOST_LEFT or any(status in PATIENCE for status in statuses):
            self.give_up()

    def give_up(self) -> None:
        """Have all that wait fetched by others."""
        rest: list[Wanted] = []
        with contextlib.suppress(IndexError):
            while True:
                rest.append(self._waiting.popleft().wanted)
        self._left(rest)

    def is_over(self) -> None:
        """Hear that a worker has nothing to do any more."""
        with self._lock:
            self._talking -= 1
            if self._talking:
                return
        self.give_up()  # what there is when none of them lives any more
        self._ended()

    def end(self) -> None:
        """End the processes, whatever they do."""
        for worker in self._workers:
            worker.hang_up()
        for worker in self._workers:
            worker.end()


class Worker:
    """One process, and the thread that talks with it."""

    def __init__(self, workers: Workers, connections: int) -> None:
        """Start the process."""
        self._workers = workers
        self._connections = connections
        self._lock = threading.Lock()
        self._in_hand: dict[int, Wanted] = {}
        self._number = 0
        self._is_over = False
        self.thread = threading.Thread(target=self._talk, daemon=True)
        self._unsaid: queue.SimpleQueue[bytes | None] = queue.SimpleQueue()
        self._sender = threading.Thread(target=self._send, daemon=True)
        self._process: subprocess.Popen[bytes] | None = None
        with contextlib.suppress(OSError):  # others fetch, then
            self._process = workers.transfer.standby.take()
            self._sender.start()

    def hang_up(self) -> None:
        """Have it end: nothing more is said to it."""
        self._unsaid.put(None)

    def end(self) -> None:
        """See that it has ended."""
        if self._process is None:
            return
        try:
            self._process.wait(_PATIENCE_S)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        self._sender.join()
        if self.thread.ident is not None:  # it was started
            self.thread.join()
        if self._process.stdout is not None:
            self._process.stdout.close()

    def _talk(self) -> None:
        """Give it files and hear what comes of them, until there are none; what it does not fetch, others do."""
        try:
            if self._process is not None and self._process.stdout is not None:
                self._begin()
                while self._deal():
                    said = self._process.stdout.read(PREFIX)
                    said = self._process.stdout.read(int.from_bytes(said, "little"))
                    if not said:
                        break
                    self._hear(*marshal.loads(said))  # noqa: S302  # it comes from a program of ours
        except (OSError, EOFError, ValueError, TypeError, PreparationError):  # who fetches tells of the last
            self._workers.give_up()
        finally:
            with self._lock:
                self._is_over = True
                rest = list(self._in_hand.values())
                self._in_hand.clear()
            if rest:
                self._workers.leave(rest)
            self._workers.is_over()

    def _begin(self) -> None:
        """Say what all files have in common."""
        transfer, rows = self._workers.transfer, []
        for origin in self._workers.origins:
            parts = urlsplit(origin)
            is_tls = parts.scheme == "https"
            headers = "".join(f"{name}: {value}\r\n" for name, value in common_headers(origin).items())
            rows.append((is_tls, parts.hostname or "", parts.port or (443 if is_tls else 80), headers))
        self._say(
            {
                "root": str(transfer.cache.root),
                "origins": rows,
                "connections": self._connections,
                "timeout_s": transfer.settings.timeout_s,
                "time_ns": OBJECT_TIME_NS,
            }
        )

    def _deal(self) -> bool:
        """Give it files, if it has few in hand; whether it has any to tell of."""
        while not self._workers.transfer.stop.is_set():
            with self._lock:
                if self._is_over:  # and nobody would hear what comes of them
                    return False
                if len(self._in_hand) > _IN_HAND:
                    return True
                files = self._workers.next_files()
                if not files:
                    return bool(self._in_hand)
                first = self._number + 1
                self._number += len(files)
                self._in_hand.update(enumerate([one.wanted for one in files], first))
            # What fails from here on has them in hand: who fetches others then gets all of them.
            self._say([self._row(number, one) for number, one in enumerate(files, first)])
        return bool(self._in_hand)

    def _row(self, number: int, plain: Plain) -> File:
        """A file, as it hears of it."""
        wanted = plain.wanted
        kind, _, expected = wanted.mark.partition(":")
        tag, sha256 = (expected, "") if kind == "tag" else ("", expected)
        target = plain.target.encode("latin-1")
        return number, self._workers.origins[plain.origin], target, wanted.size, tag, sha256

    def _hear(self, had: list[tuple[int, str, int, str]], left: list[tuple[int, int]]) -> None:
        """Tell others what came, and what is left."""
        now, take = time.time(), self._in_hand.pop
        came: list[tuple[str, Known, None]] = []
        received = expected = 0
        with self._lock:
            for number, tag, size, sha256 in had:
                wanted = take(number)
                came.append((wanted.source, Known(tag, size, sha256, now), None))
                received += size
                if wanted.size < 0:
                    expected += size
            others = [take(number) for number, _ in left]
        if came:
            self._workers.transfer.count(received, expected)
            self._workers.came(came)
        if others:
            self._workers.leave(others, [status for _, status in left])

    def _say(self, said: dict[str, Any] | list[File]) -> None:
        data = marshal.dumps(said)
        self._unsaid.put(len(data).to_bytes(PREFIX, "little") + data)

    def _send(self) -> None:
        """Write what is to be said. Nobody else waits for the process to hear it: it may wait for a disk, or be stopped."""
        if self._process is None or self._process.stdin is None:
            return
        with contextlib.suppress(OSError):  # it has ended: who hears it sees that
            while (data := self._unsaid.get()) is not None:
                self._process.stdin.write(data)
                self._process.stdin.flush()
        with contextlib.suppress(OSError):
            self._process.stdin.close()
