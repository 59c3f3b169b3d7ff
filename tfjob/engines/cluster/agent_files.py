"""What goes home from a run's directory in this container: logs, outputs, what scripts left elsewhere. As plain as the agent.

It remembers what has been sent, so that only what is new or has changed is sent.
"""

from __future__ import annotations

import json
import os
import stat
import time

TYPE_CHECKING = False  # typing.TYPE_CHECKING, without importing typing
if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

if TYPE_CHECKING or __package__:
    from tfjob.engines.run_files import empty_directories, is_same, walk
else:  # in a container: it lies beside this file
    from run_files import empty_directories, is_same, walk

CHUNK_BYTES = 1 << 18
TURN_BYTES = 1 << 22
WORD_S = 3.0  # well within the time for which nothing is waited for
LEFT = "left.json"


class Files:
    """The files of one run in this container. `say` tells of one; between its parts `attend` does what can't wait.

    While logs are sent `heed` does: it only obeys, as `attend` would send logs.
    """

    def __init__(
        self, run: str, say: Callable[..., None], attend: Callable[[], None], heed: Callable[[], None]
    ) -> None:
        self.run = run
        self.say = say
        self.attend = attend
        self.heed = heed
        self.next_word = 0.0
        self.tasks: list[str] = []
        self.code = ""
        self.sent_logs: dict[str, int] = {}
        self.sent: dict[str, tuple[int, int]] = {}

    def know(self, logs: dict[str, int], files: dict[str, list[int]], tasks: list[str], code: str) -> None:
        """Learn what tfjob has already, which tasks are here, and where their code is."""
        self.sent_logs = logs
        self.sent = {path: (size, mtime) for path, (size, mtime) in {**self.read_left(), **files}.items()}
        self.tasks, self.code = tasks, code

    def note_left(self) -> None:
        """Write down what an earlier attempt left in outputs: it is at home already."""
        file = os.path.join(self.run, LEFT)
        if not os.path.exists(file):
            left = {path: [status.st_size, status.st_mtime_ns] for path, status in walk(self.run, "outputs")}
            with open(file + ".unfinished", "w", encoding="utf-8") as written:
                json.dump(left, written)
            os.replace(file + ".unfinished", file)
        self.sent = {
            **{path: (size, mtime) for path, (size, mtime) in self.read_left().items()},
            **self.sent,
        }

    def read_left(self) -> dict[str, list[int]]:
        """What an earlier attempt left in outputs."""
        try:
            with open(os.path.join(self.run, LEFT), encoding="utf-8") as file:
                found: dict[str, list[int]] = json.load(file)
                return found
        except (OSError, ValueError):
            return {}

    def send_logs(self, *, whole: bool = False) -> set[str]:
        """Send what was written since the last look, of each log in turn. Returns those of which more is there.

        With `whole` it ends when all is sent that was there at its beginning.
        """
        ends: dict[str, int] = {}
        for path in self.logs():
            try:
                ends[path] = os.stat(os.path.join(self.run, path)).st_size
            except OSError:
                continue
            if ends[path] < self.sent_logs.get(path, 0):  # it was begun anew
                self.sent_logs[path] = 0
                self.say("gone", path=path)
        behind = {path for path in ends if self.send_turn(path, ends[path])}
        while whole and behind:
            behind = {path for path in sorted(behind) if self.send_turn(path, ends[path])}
        return behind

    def send_turn(self, path: str, end: int) -> bool:
        """Send of a log what is due, but no more than a turn. Returns whether more of it is there."""
        sent = self.sent_logs.get(path, 0)
        if path in self.sent_logs and sent >= end:
            return False
        upto = min(end, sent + TURN_BYTES)
        try:
            self.send_log(path, sent, upto)
        except OSError:  # it may not be read, or is gone
            self.sent_logs[path] = end
        return self.sent_logs[path] == upto < end

    def send_log(self, path: str, sent: int, upto: int) -> None:
        """Send a log from one place to another."""
        with open(os.path.join(self.run, path), "rb") as file:
            file.seek(sent)
            while sent < upto:
                data = file.read(min(CHUNK_BYTES, upto - sent))
                if not data:
                    break
                self.say("log", data, path=path, offset=sent)
                sent += len(data)
                self.heed()
        self.sent_logs[path] = sent

    def logs(self) -> Iterator[str]:
        """The logs of this node's tasks, and what scripts write to ./logs."""
        for task in self.tasks:
            if os.path.exists(os.path.join(self.run, "logs", task + ".log")):
                yield "logs/" + task + ".log"
        for path, status in walk(self.run, "logs/user"):
            if stat.S_ISREG(status.st_mode):
                yield path

    def outputs(self) -> Iterator[tuple[str, os.stat_result]]:
        """What scripts wrote to what is kept."""
        return walk(self.run, "outputs", self.go_on)

    def go_on(self) -> None:
        """In the middle of a look at very many files, of which none may have to be sent: say that it goes on."""
        if time.monotonic() >= self.next_word:
            self.next_word = time.monotonic() + WORD_S
            self.say("walking")
        self.attend()

    def send_outputs(self) -> None:
        """Send what is new or has changed since it was sent, and tell what is gone."""
        files = {path: (status.st_size, status.st_mtime_ns) for path, status in self.outputs()}
        empty = set(empty_directories(self.run, "outputs", self.go_on))
        for path in [one for one in self.sent if one.startswith("outputs/") and one not in files.keys() | empty]:
            self.say("gone", path=path)  # before what may now stand in its place
            del self.sent[path]
        for path, stamp in files.items():
            if self.sent.get(path) != stamp and self.send_file(path):
                self.sent[path] = stamp
        for directory in empty - self.sent.keys():
            self.say("directory", path=directory)
            self.sent[directory] = (-1, 0)

    def send_work(self) -> None:
        """Send what the script made or changed outside of what is kept: hours of training must not be lost to a wrong name."""
        for task in self.tasks:
            for path, status in walk(self.run, "work/" + task, self.go_on):
                inside = path.partition("/")[2].partition("/")[2]
                if path.endswith(".pyc") or os.path.islink(os.path.join(self.run, path)):
                    continue
                if self.code and is_same(os.path.join(self.code, inside), status):
                    continue
                self.send_file(path)

    def send_file(self, path: str) -> bool:
        """Send one file in parts. Returns whether it stayed the same meanwhile; otherwise it is sent again later."""
        whole = os.path.join(self.run, path)
        try:
            if os.path.islink(whole):
                self.say("link", path=path, target=os.readlink(whole))
                return True
            with open(
                os.open(whole, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK), "rb"
            ) as file:  # whatever it is by now
                before = os.fstat(file.fileno())
                left = before.st_size
                while True:
                    data = file.read(min(CHUNK_BYTES, left)) if left else b""
                    left -= len(data)
                    now = os.fstat(file.fileno())
                    changed = (now.st_size, now.st_mtime_ns) != (before.st_size, before.st_mtime_ns)
                    last = left == 0 or not data or changed
                    self.say(
                        "file",
                        data,
                        path=path,
                        size=before.st_size,
                        mode=before.st_mode & 0o777,
                        mtime_ns=before.st_mtime_ns,
                        last=last,
                        whole=left == 0 and not changed,
                    )
                    if last:
                        return left == 0 and not changed
                    self.attend()
        except OSError:  # it was removed meanwhile, or may not be read
            return False
