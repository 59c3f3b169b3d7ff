"""The program on a login node that sends a run's files to where it was submitted. Standard library only; any Python from 3.8.

    python -E -s -S sending.py make RUN_DIRECTORY     the tasks' working copies, from the code that was sent
    python -E -s -S sending.py serve RUN_DIRECTORY    speaks with tfjob over its stdin and stdout; see ../home.py

It is told lines of JSON: first what is there already (`logs` by their sizes, `files` by size and time, `attempts`), later
``"sync"``: send all there is. What it says is a line of JSON each, some with `length` bytes after it:

    hello     the first of all                          beat      nothing
    log       path, offset, length                      gone      path
    file      path, size, mode, mtime_ns, last, whole   link      path, target
    directory path                                      attempt   number, is_whole: its logs come, or have come
    state     length: slurm/state.json                  synced    everything was sent

It ends with its stdin, and when the run's directory is gone. Logs and outputs come before the state that tells of an end.
"""

from __future__ import annotations

import errno
import json
import os
import select
import signal
import stat
import sys
import time

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterator
    from typing import Any

    from tfjob.engines.run_files import empty_directories, is_same, walk
else:  # it lies beside this file
    from run_files import empty_directories, is_same, walk

CHUNK_BYTES = 1 << 18
LOOK_S = 0.2
OUTPUTS_S = 30.0
BEAT_S = 15.0
AWAY = "attempt-"
FILES_AWAY = frozenset(
    (errno.EIO, errno.ESTALE, errno.ETIMEDOUT, errno.ENOTCONN, errno.ESHUTDOWN, errno.EHOSTDOWN, errno.EREMOTEIO)
)
"""What file systems of the network say while their server is away. It says nothing of what is there."""


class Sender:
    """One run's directory, and what of it has been sent."""

    def __init__(self, run: str, have: dict[str, Any]) -> None:
        self.run = run
        self.logs: dict[str, tuple[int | None, int]] = {path: (None, size) for path, size in have["logs"].items()}
        self.files: dict[str, tuple[int, int]] = {path: (size, time) for path, (size, time) in have["files"].items()}
        self.attempts = set(have["attempts"])
        self.state = b""
        self.looked = self.said = 0.0

    def say(self, kind: str, data: bytes = b"", **facts: Any) -> None:
        """Say one thing, with the bytes that belong to it."""
        facts["kind"] = kind
        if data:
            facts["length"] = len(data)
        view = memoryview(json.dumps(facts).encode("ascii") + b"\n" + data)
        while view:
            view = view[os.write(1, view) :]
        self.said = time.monotonic()

    def look(self) -> None:
        """Tell what is new of state and logs."""
        state = read(os.path.join(self.run, "slurm", "state.json"))
        self.send_attempts()
        for path in self.log_paths():
            self.send_log(path)
        gone = [one for one in self.logs if not os.path.lexists(os.path.join(self.run, one))]
        if gone:
            os.listdir(self.run)  # raises where its file system went away, and all seems to be gone
        for path in gone:
            self.say("gone", path=path)
            del self.logs[path]
        if state and state != self.state:
            self.say("state", state)
            self.state = state
        self.beat()
        self.looked = time.monotonic()

    def beat(self) -> None:
        """Say something, if nothing was said for long."""
        if time.monotonic() - self.said > BEAT_S:
            self.say("beat")

    def attend(self) -> None:
        """In the middle of what takes long, tell what is new."""
        if time.monotonic() - self.looked > LOOK_S:
            self.look()

    def sync(self) -> None:
        """Send all there is, and also what scripts wrote in their working copies outside of what is kept."""
        self.look()
        self.send_outputs()
        self.send_work()
        self.look()
        os.listdir(self.run)  # see `look`
        self.say("synced")

    def send_attempts(self) -> None:
        """Logs of an attempt that was put away. Those of the next begin anew."""
        for name in sorted(names(os.path.join(self.run, "logs"))):
            if not name.startswith(AWAY) or name in self.attempts:
                continue
            number = int(name[len(AWAY) :])
            self.say("attempt", number=number, is_whole=False)
            for path, _ in walk(self.run, os.path.join("logs", name), self.beat, refuse):
                at = os.path.join("logs", "." + name, os.path.basename(path))
                self.send_log(path, at)
                self.logs.pop(at, None)
            self.say("attempt", number=number, is_whole=True)
            self.attempts.add(name)
            for path in [one for one in self.logs if one.startswith("logs/") and one.count("/") == 1]:
                self.say("gone", path=path)
                del self.logs[path]

    def log_paths(self) -> Iterator[str]:
        """Logs of tasks, of scripts, and of the job itself."""
        for path, _ in walk(self.run, "logs", self.beat, refuse):
            if not path.split("/")[1].lstrip(".").startswith(AWAY):
                yield path
        yield "slurm/job.log"
        for path, _ in walk(self.run, "slurm/attempts", self.beat, refuse):
            if path.endswith(".log"):
                yield path

    def send_log(self, path: str, name: str = "") -> None:
        """Send what was written to a log since the last look; `name` is what it is called at home."""
        name = name or path
        try:
            descriptor = os.open(os.path.join(self.run, path), os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK)
        except OSError as error:  # a link, or gone
            refuse(error)
            return
        with open(descriptor, "rb") as file:
            status = os.fstat(descriptor)
            if not stat.S_ISREG(status.st_mode):
                return
            inode, sent = self.logs.get(name, (None, 0))
            if (inode is not None and inode != status.st_ino) or status.st_size < sent:
                self.say("gone", path=name)  # it was begun anew
                sent = 0
            if name not in self.logs and not status.st_size:
                self.say("log", path=name, offset=0)
            file.seek(sent)
            while sent < status.st_size:
                data = file.read(min(CHUNK_BYTES, status.st_size - sent))
                if not data:
                    break
                self.say("log", data, path=name, offset=sent)
                sent += len(data)
            self.logs[name] = (status.st_ino, sent)

    def send_outputs(self) -> None:
        """Send outputs that are new or have changed, and tell which are gone."""
        files = walk(self.run, "outputs", self.attend, refuse)
        found = {path: (status.st_size, status.st_mtime_ns) for path, status in files}
        empty = set(empty_directories(self.run, "outputs", self.attend, refuse))
        os.listdir(self.run)  # see `look`
        for path in [one for one in self.files if one.startswith("outputs/") and one not in found.keys() | empty]:
            self.say("gone", path=path)
            del self.files[path]
        for path, stamp in found.items():
            if self.files.get(path) != stamp and self.send_file(path):
                self.files[path] = stamp
        for path in sorted(empty - self.files.keys()):
            self.say("directory", path=path)
            self.files[path] = (-1, 0)

    def send_work(self) -> None:
        """Send what scripts made or changed outside of what is kept: hours of training must not be lost to a wrong name."""
        tops = ["work", *(os.path.join("attempts", one, "work") for one in names(os.path.join(self.run, "attempts")))]
        for top in tops:
            for path, status in walk(self.run, top, self.attend, refuse):
                inside = os.path.relpath(path, top).partition("/")[2]
                if path.endswith(".pyc") or stat.S_ISLNK(status.st_mode):
                    continue
                if not is_same(os.path.join(self.run, "code", inside), status):
                    self.send_file(path)

    def send_file(self, path: str) -> bool:
        """Send one file in parts. Returns whether it stayed the same meanwhile; otherwise it is sent again later."""
        whole = os.path.join(self.run, path)
        try:
            if os.path.islink(whole):
                self.say("link", path=path, target=os.readlink(whole))
                return True
            descriptor = os.open(whole, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK)
        except OSError as error:  # it was removed meanwhile, or may not be read
            refuse(error)
            return False
        with open(descriptor, "rb") as file:
            before = os.fstat(descriptor)
            facts = {"path": path, "size": before.st_size, "mode": before.st_mode & 0o777}
            left = before.st_size
            while True:
                data = file.read(min(CHUNK_BYTES, left)) if left else b""
                left -= len(data)
                now = os.fstat(descriptor)
                changed = (now.st_size, now.st_mtime_ns) != (before.st_size, before.st_mtime_ns)
                last, is_whole = left == 0 or not data or changed, left == 0 and not changed
                self.say("file", data, mtime_ns=before.st_mtime_ns, last=last, whole=is_whole, **facts)
                if last:
                    return is_whole
                self.attend()


def refuse(error: OSError) -> None:
    """Raise what only says that the file system is away now: tfjob connects again, and this begins anew."""
    if error.errno in FILES_AWAY:
        raise error


def names(directory: str) -> list[str]:
    """What is in a directory; nothing where there is none."""
    try:
        return os.listdir(directory)
    except OSError:
        return []


def read(path: str) -> bytes:
    """A small file; nothing where there is none."""
    try:
        with open(path, "rb") as file:
            return file.read()
    except OSError:
        return b""


def serve(run: str) -> None:
    """Send until stdin ends."""
    signal.signal(signal.SIGPIPE, signal.SIG_DFL)
    unread = b""
    sender: Sender | None = None
    next_outputs = 0.0
    while os.path.isdir(run):
        if select.select([0], [], [], LOOK_S)[0]:
            more = os.read(0, 1 << 20)
            if not more:
                return
            *lines, unread = (unread + more).split(b"\n")
            for word in map(json.loads, lines):
                if sender is None:
                    sender = Sender(run, word)
                    sender.say("hello")
                    next_outputs = time.monotonic() + OUTPUTS_S
                elif word == "sync":
                    sender.sync()
        if sender is not None:
            sender.look()
            if time.monotonic() > next_outputs:
                sender.send_outputs()
                next_outputs = time.monotonic() + OUTPUTS_S


def make(run: str) -> None:
    """The working copies of the first attempt; later attempts make their own."""
    if TYPE_CHECKING:
        from tfjob.engines.slurm.program import work
    else:
        import work
    with open(os.path.join(run, "slurm", "gang.json"), encoding="utf-8") as file:
        gang = json.load(file)
    for task in gang["tasks"]:
        work.make_work(task["file"]["cwd"], None if task["launcher"] else gang["work"])


if __name__ == "__main__":
    {"make": make, "serve": serve}[sys.argv[1]](sys.argv[2])
