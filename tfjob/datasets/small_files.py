"""The program that fetches many small files, over a few connections in one loop. Standard library only: it starts quickly.

It does what is plain: a file that is not there yet comes whole, with its length, in one answer. Whatever else happens (another
status, a connection that breaks, a full disk) it leaves to who started it, who has the time and the words for it.

What it hears on stdin and says on stdout are values in the form of `marshal`, each after its bytes in four: both ends are the
same Python. It hears first a dictionary: ``root``, the directory of the cache; ``origins``, a list of (is it TLS, host, port,
lines of headers); ``connections``; ``timeout_s``; ``time_ns``, the time of change of an object. Then lists of files to fetch
(see `File`). It says pairs: a list of what came, (number, tag, bytes, SHA-256), and one of what is left, (number, status of the
answer or 0). It ends when stdin does.
"""

from __future__ import annotations

import _thread
import gc
import hashlib
import marshal
import os
import select
import time

from tfjob.datasets.connections import PATIENCE, Connection, Left, Origin
from tfjob.datasets.objects import Objects

TYPE_CHECKING = False  # typing.TYPE_CHECKING, without importing typing
if TYPE_CHECKING:
    from typing import Any

    File = tuple[int, int, bytes, int, str, str]
    """Its number, origin, target of the request, bytes or -1, tag or "", SHA-256 or ""."""

SLOWEST = 1024  # bytes that must come within the time that an answer is waited for
MOST_LEFT = 20  # beside those that came: then all that wait are left too
TOLD_AT_ONCE = 200
TOLD_S = 0.1
READY_AT_ONCE = 64
PREFIX = 4


class Loop:
    """All connections, the files that wait for one, and what is to be told of them."""

    def __init__(self, facts: dict[str, Any]) -> None:
        self.origins = [Origin(*row) for row in facts["origins"]]
        self.timeout_s = float(facts["timeout_s"])
        self.objects = Objects(int(facts["time_ns"]))
        self.poll = select.epoll()
        self.poll.register(0, select.EPOLLIN)
        self.watched: dict[int, Connection] = {}
        self.connections = [Connection(self) for _ in range(facts["connections"])]
        self.free = self.connections.copy()
        self.waiting: list[File] = []  # the next one is the last
        self.arrived: list[tuple[File, str, bytes]] = []
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
            for descriptor, _ in self.poll.poll(TOLD_S if self.had or self.left else 1.0, READY_AT_ONCE):
                connection = self.watched.get(descriptor)
                if connection is not None:
                    self.serve(connection)
                elif descriptor == 0 and not self.hear():
                    return
            if self.arrived:
                self.keep()
            now = time.monotonic()
            if now - looked > 1.0:
                looked = now
                self.look_at(now)
            count = len(self.had) + len(self.left)
            is_idle = len(self.free) == len(self.connections)
            if count and (count >= TOLD_AT_ONCE or now - self.told > TOLD_S or is_idle):
                self.tell(now)

    def hear(self) -> bool:
        """Take what stdin says; whether it goes on."""
        data = os.read(0, 1 << 20)
        self.take(data)
        return bool(data)

    def take(self, data: bytes) -> None:
        """Take orders, and what may be the beginning of the next."""
        self.orders += data
        while (order := first_of(self.orders)) is not None:
            files, self.orders = order
            self.waiting[:0] = reversed(files)

    def tell(self, now: float) -> None:
        """Say what came, and what is left."""
        data = marshal.dumps((self.had, self.left))
        data = len(data).to_bytes(PREFIX, "little") + data
        while data:
            data = data[os.write(1, data) :]
        self.had, self.left, self.told = [], [], now

    def start(self, connection: Connection) -> None:
        """Have a connection that is free fetch the next file, if there is one."""
        while self.waiting:
            try:
                connection.begin(self.waiting.pop())
            except (Left, OSError) as error:
                self.leave(connection, error)
                continue
            return
        self.free.append(connection)

    def serve(self, connection: Connection) -> None:
        """Let a connection go on that is ready."""
        if connection.file is None:  # it was closed while nothing was asked, or says what nobody asked for
            connection.close()
            return
        try:
            connection.step()
        except (Left, OSError) as error:
            self.leave(connection, error)
            if connection not in self.free:  # it is, when its file came and none waited: two files must not share it
                self.start(connection)

    def came(self, connection: Connection, body: bytes) -> None:
        """Take what came whole, and ask for the next file: the server works on it while this one becomes an object."""
        assert connection.file is not None  # noqa: S101  # something came
        self.arrived.append((connection.file, connection.tag, body))
        connection.file, connection.is_used = None, True
        if connection.closes:
            connection.close()
        self.start(connection)

    def keep(self) -> None:
        """Make objects of what came."""
        digest, had = hashlib.sha256, self.had.append
        for (number, _, _, _, _, expected), tag, body in self.arrived:
            sha256 = digest(body).hexdigest()
            if expected and expected != sha256:
                self.leave_file(number, 200)
                continue
            try:
                self.objects.keep(sha256, body)
            except OSError:
                self.leave_file(number, 0)
                continue
            self.more_left -= 1
            had((number, tag, len(body), sha256))
        self.arrived.clear()

    def leave(self, connection: Connection, error: Exception) -> None:
        """Leave a file, and the connection that it was to come over."""
        connection.close()
        if connection.file is not None:
            self.leave_file(connection.file[0], error.status if isinstance(error, Left) else 0)
            connection.file = None

    def leave_file(self, number: int, status: int) -> None:
        """Leave a file, and all that wait, when they are too many, or the server needs a pause."""
        self.left.append((number, status))
        self.more_left += 1
        if status in PATIENCE or self.more_left > MOST_LEFT:
            self.left.extend([(file[0], status) for file in self.waiting])
            self.waiting.clear()

    def look_at(self, now: float) -> None:
        """Leave what does not come."""
        for connection in self.connections:
            if connection.file is not None and now - connection.began > self.timeout_s:
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


def first_of(said: bytes) -> tuple[Any, bytes] | None:
    """The first value of what was said, and the rest; None where it is not there whole."""
    end = PREFIX + int.from_bytes(said[:PREFIX], "little")
    if len(said) < end or not said:
        return None
    return marshal.loads(said[PREFIX:end]), said[end:]  # noqa: S302  # it comes from who started this


def end_with_stdin() -> None:
    """End when nobody has the other end of stdin any more, whatever the loop waits for: a host's address, or a disk."""
    poll = select.poll()
    poll.register(0, 0)
    poll.poll()
    os._exit(1)


def main() -> None:
    """Do what stdin says."""
    gc.disable()  # nothing here goes in circles that does not stay
    _thread.start_new_thread(end_with_stdin, ())
    said = b""
    while (first := first_of(said)) is None:
        data = os.read(0, 1 << 20)
        if not data:
            return
        said += data
    facts, rest = first
    os.chdir(facts["root"])
    loop = Loop(facts)
    loop.take(rest)
    loop.go()
    os._exit(0)
