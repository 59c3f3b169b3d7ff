"""The program that fetches many small files, over a few connections in one loop. Standard library only: it starts quickly.

It does what is plain: a file that is not there yet comes whole, with its length, in one answer. Whatever else happens (another
status, a connection that breaks, a full disk, somebody else who fetches the file) it leaves to who started it, who has the
time and the words for it.

Its stdin has lines of JSON. First: ``root``, the directory of the cache; ``origins``, a list of [is it TLS, host, port, lines
of headers]; ``connections``; ``timeout_s``; ``time_ns``, the time of change of an object. Then, of two kinds: ``files``, a
list of [number, origin, target of the request, name below partial/, bytes or -1, tag or "", SHA-256 or ""], to be fetched;
and ``noted``, so many of the files that came are in the index: their locks are let go of. It ends when stdin does.

Its stdout has lines of JSON: ``had``, a list of [number, tag, bytes, SHA-256], in the order in which ``noted`` counts them, and
``left``, a list of [number, status of the answer or 0].
"""

from __future__ import annotations

import collections
import contextlib
import fcntl
import gc
import hashlib
import json
import os
import select
import signal
import threading
import time

from tfjob.datasets.connections import PATIENCE, Connection, Left, Origin

TYPE_CHECKING = False  # typing.TYPE_CHECKING, without importing typing
if TYPE_CHECKING:
    from typing import Any

SLOWEST = 1024  # bytes that must come within the time that an answer is waited for
MOST_LEFT = 20  # beside those that came: then all that wait are left too
TOLD_AT_ONCE = 50
TOLD_S = 0.1
FILE, OBJECT = 0o644, 0o444


class Loop:
    """All connections, the files that wait for one, and what is to be told of them."""

    def __init__(self, facts: dict[str, Any]) -> None:
        self.origins = [Origin(*row) for row in facts["origins"]]
        self.timeout_s = float(facts["timeout_s"])
        self.time_ns = int(facts["time_ns"])
        self.poll = select.epoll()
        self.poll.register(0, select.EPOLLIN)
        self.watched: dict[int, Connection] = {}
        self.free = [Connection(self) for _ in range(facts["connections"])]
        self.busy: set[Connection] = set()
        self.waiting: collections.deque[list[Any]] = collections.deque()
        self.held: collections.deque[int] = collections.deque()  # descriptors of files that came, and are not noted
        self.more_left = 0  # than came
        self.had: list[tuple[int, str, int, str]] = []
        self.left: list[tuple[int, int]] = []
        self.told = 0.0
        self.orders = b""

    def go(self) -> None:
        """Fetch until stdin ends."""
        looked = time.monotonic()
        while True:
            while self.waiting and self.free:
                self.start(self.free.pop())
            for descriptor, _ in self.poll.poll(TOLD_S if self.had or self.left else 1.0):
                if descriptor == 0:
                    if not self.hear():
                        return
                elif descriptor in self.watched:
                    self.serve(self.watched[descriptor])
            now = time.monotonic()
            if now - looked > 1.0:
                looked = now
                self.look_at(now)
            count = len(self.had) + len(self.left)
            if count and (count >= TOLD_AT_ONCE or now - self.told > TOLD_S or not self.busy):
                self.tell(now)

    def hear(self) -> bool:
        """Take what stdin says; whether it goes on."""
        data = os.read(0, 1 << 20)
        self.take(data)
        return bool(data)

    def take(self, data: bytes) -> None:
        """Take orders, and what may be the beginning of the next."""
        *lines, self.orders = (self.orders + data).split(b"\n")
        for line in lines:
            order = json.loads(line)
            self.waiting.extend(order.get("files", ()))
            for _ in range(order.get("noted", 0)):
                os.close(self.held.popleft())

    def tell(self, now: float) -> None:
        """Say what came, and what is left."""
        data = json.dumps({"had": self.had, "left": self.left}).encode("ascii") + b"\n"
        while data:
            data = data[os.write(1, data) :]
        self.had, self.left, self.told = [], [], now

    def start(self, connection: Connection) -> None:
        """Have a connection that is free fetch the next file, if there is one."""
        while self.waiting:
            file = self.waiting.popleft()
            partial = self.claim(file)
            if partial < 0:
                continue
            self.busy.add(connection)
            try:
                connection.begin(file, partial)
            except (Left, OSError) as error:
                self.leave(connection, error)
                continue
            return
        self.free.append(connection)

    def claim(self, file: list[Any]) -> int:
        """Open the file that is fetched into, and lock it; less than 0 when somebody else has, or something is there of it."""
        try:
            partial = os.open(f"partial/{file[3]}", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, FILE)
        except OSError:
            self.left.append((file[0], 0))
            return -1
        try:
            fcntl.flock(partial, fcntl.LOCK_EX | fcntl.LOCK_NB)
            status = os.fstat(partial)
            if status.st_nlink and not status.st_size and status.st_mode & 0o222:
                return partial
        except OSError:
            pass
        os.close(partial)
        self.left.append((file[0], 0))
        return -1

    def serve(self, connection: Connection) -> None:
        """Let a connection go on that is ready."""
        if connection.file is None:  # it was closed while nothing was asked, or says what nobody asked for
            connection.close()
            return
        try:
            connection.step()
        except (Left, OSError) as error:
            self.leave(connection, error)
            self.start(connection)

    def came(self, connection: Connection) -> None:
        """Make an object of what came, and go on with the next file."""
        file = connection.file
        assert file is not None  # noqa: S101  # something came
        body = connection.body[0] if len(connection.body) == 1 else b"".join(connection.body)
        sha256 = hashlib.sha256(body).hexdigest()
        if file[6] not in {"", sha256}:
            raise Left(200)
        try:
            self.keep(connection.partial, file[3], sha256, body)
        except OSError:
            with contextlib.suppress(OSError):
                os.unlink(f"partial/{file[3]}")  # it may be read-only: nobody could go on with it
            raise
        self.held.append(connection.partial)
        self.more_left -= 1
        self.had.append((file[0], connection.tag, len(body), sha256))
        connection.file, connection.partial, connection.body, connection.is_used = None, -1, [], True
        if connection.closes:
            connection.close()
        self.busy.discard(connection)
        self.start(connection)

    def keep(self, partial: int, name: str, sha256: str, body: bytes) -> None:
        """Have the content among the objects, as `Cache.keep` does. Raises OSError."""
        if os.write(partial, body) != len(body):
            raise OSError(28, "No space left on device")
        os.utime(partial, ns=(self.time_ns, self.time_ns))
        os.fchmod(partial, OBJECT)
        path = f"objects/{sha256[:2]}/{sha256}"
        try:
            os.rename(f"partial/{name}", path)
        except FileNotFoundError:
            os.makedirs(f"objects/{sha256[:2]}", exist_ok=True)
            os.rename(f"partial/{name}", path)

    def leave(self, connection: Connection, error: Exception) -> None:
        """Leave a file, and the connection that it was to come over."""
        connection.close()
        self.busy.discard(connection)
        if connection.file is not None:
            status = error.status if isinstance(error, Left) else 0
            self.left.append((connection.file[0], status))
            os.close(connection.partial)
            connection.file, connection.partial = None, -1
            self.more_left += 1
            if status in PATIENCE or self.more_left > MOST_LEFT:
                self.left.extend((file[0], status) for file in self.waiting)
                self.waiting.clear()

    def look_at(self, now: float) -> None:
        """Leave what does not come."""
        for connection in list(self.busy):
            if now - connection.began > self.timeout_s:
                if connection.received < SLOWEST:
                    self.leave(connection, Left())
                    self.start(connection)
                else:
                    connection.began, connection.received = now, 0

    def watch(self, connection: Connection, events: int) -> None:
        """Wait for a connection's socket."""
        self.watched[connection.socket.fileno()] = connection
        self.poll.register(connection.socket.fileno(), events)

    def expect(self, connection: Connection, events: int) -> None:
        """Wait for something else of it."""
        self.poll.modify(connection.socket.fileno(), events)

    def forget(self, connection: Connection) -> None:
        """Wait for it no longer."""
        descriptor = connection.socket.fileno()
        if self.watched.pop(descriptor, None) is not None:
            self.poll.unregister(descriptor)


def end_with_stdin() -> None:
    """End when nobody has the other end of stdin any more, whatever the loop waits for: a host's address, or a disk."""
    poll = select.poll()
    poll.register(0, 0)
    poll.poll()
    os._exit(1)


def main() -> None:
    """Do what stdin says."""
    gc.disable()  # nothing here goes in circles that does not stay
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # who started it ends it
    threading.Thread(target=end_with_stdin, daemon=True).start()
    said = b""
    while b"\n" not in said:
        data = os.read(0, 1 << 20)
        if not data:
            return
        said += data
    first, _, rest = said.partition(b"\n")
    facts = json.loads(first)
    os.chdir(facts["root"])
    loop = Loop(facts)
    loop.take(rest)
    loop.go()
    os._exit(0)
