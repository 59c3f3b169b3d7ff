"""What is sent to be kept on the file system of Slurm's nodes, as it comes: whole, or not at all. See keeping.py."""

from __future__ import annotations

import errno
import hashlib
import json
import os
import select
import subprocess
import tempfile
import time

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

    from tfjob.engines.slurm.program import kept
else:
    import kept

CHUNK_BYTES = 1 << 18
IDLE_S = 900.0
"""How long who sends may say nothing: a machine that went away keeps no other waiting for longer."""
LOOK_S = 0.5
TOUCH_S = 60.0


class Cut(Exception):
    """Who sends is gone."""


class Told:
    """What comes over stdin: pieces with their length before them (4 bytes, big-endian); an empty one ends what belongs together."""

    def __init__(self, touched: str = "") -> None:
        self.left = 0
        self.touched = touched
        self.next_touch = 0.0

    def read(self, most: int = CHUNK_BYTES) -> bytes:
        """Some of what belongs together; nothing at its end. Raises Cut."""
        if not self.left:
            self.left = int.from_bytes(self.exactly(4), "big")
        if not self.left:
            return b""
        data = self.some(min(most, self.left))
        self.left -= len(data)
        return data

    def all(self) -> Any:
        """A JSON value."""
        return json.loads(b"".join(iter(self.read, b"")))

    def exactly(self, size: int) -> bytes:
        """So many bytes."""
        data = b""
        while len(data) < size:
            data += self.some(size - len(data))
        return data

    def some(self, most: int) -> bytes:
        """At least one byte."""
        if time.monotonic() > self.next_touch and self.touched:
            self.next_touch = time.monotonic() + TOUCH_S
            kept.touch(self.touched)
        if not select.select([0], [], [], IDLE_S)[0]:
            raise Cut
        data = os.read(0, most)
        if not data:
            raise Cut
        return data


def take(store: str, run: str, kind: str, key: str, form: str) -> None:
    """Take one thing, whole or not at all, while no other takes it."""
    above = os.path.join(store, kind)
    os.makedirs(above, exist_ok=True)
    place, part = os.path.join(above, key), os.path.join(above, f".{key}.part-{os.getpid()}")
    lock = locked(os.path.join(above, "." + key + ".lock"), kept.use_of(store, run))
    try:
        if kept.is_there(place):
            kept.note_use(place)
            say(there=True)
            return
        for name in kept.names(above) if lock >= 0 else ():
            if name.startswith("." + key + ".part-"):  # of a connection that broke
                kept.remove(os.path.join(above, name))
        os.mkdir(part)
        say(ready=True)
        told = Told(kept.use_of(store, run))
        try:
            if form == "tree":
                os.chmod(above, 0o700)
                take_tree(store, place, part, told)
            elif form == "tar":
                unpack(part, told)
            else:
                take_file(os.path.join(part, form.partition("=")[2]), told)
            sync(part)
            kept.write_json(place + ".json", {"size_bytes": kept.size_of(part)})
            settle(part, place)
        except BaseException:
            kept.remove(part)
            raise
        say(done=True)
    finally:
        if lock >= 0:
            os.close(lock)


def settle(part: str, place: str) -> None:
    """Put in its place what has come. Of what was written to there, whoever uses it sees what it should be."""
    harmed = place + ".harmed"
    if os.path.exists(harmed):
        gone = os.path.join(os.path.dirname(place), f".{os.path.basename(place)}.gone-{os.getpid()}")
        os.rename(place, gone)
        os.rename(part, place)
        os.unlink(harmed)
        kept.remove(gone)
        return
    try:
        os.rename(part, place)
    except OSError:
        if not os.path.isdir(place):  # without a lock, another may have been quicker
            raise
        kept.remove(part)


def take_tree(store: str, place: str, part: str, told: Told) -> None:
    """Take the contents that are lacking, and make the tree of them. Contents that have come whole stay when the rest does not."""
    wanted = told.all()
    lacking: dict[str, list[str]] = {}
    for name, kind, size, content in wanted:
        target = os.path.join(part, name)
        if os.path.isabs(name) or ".." in name.split("/"):
            raise ValueError("a file may not be named " + name)
        os.makedirs(target if kind == "d" else os.path.dirname(target), exist_ok=True)
        if kind == "l":
            os.symlink(content, target)
        elif kind != "d" and not kept.link_object(kept.object_of(store, content, kind), target, size):
            lacking.setdefault(content + kind, []).append(target)
    say(lacking=list(lacking))
    for named, targets in lacking.items():
        take_object(kept.object_of(store, named[:64], named[64:]), targets, told)
    kept.write_json(place + ".files", wanted)
    for parent, _, _ in os.walk(part, topdown=False):
        os.chmod(parent, 0o555)  # noqa: S103  # read-only; what is above them is the user's alone


def take_object(place: str, targets: list[str], told: Told) -> None:
    """Take one content. It is in the tree before it has its name: one that no tree has may be removed."""
    os.makedirs(os.path.dirname(place), mode=0o700, exist_ok=True)
    part = f"{place}.part-{os.getpid()}"
    digest = hashlib.sha256()
    try:
        with open(part, "wb") as file:
            for data in iter(told.read, b""):
                file.write(data)
                digest.update(data)
        named = os.path.basename(place)
        if digest.hexdigest() != named[:64]:
            raise ValueError("a file changed while it was sent")
        os.chmod(part, 0o555 if named[64:] else 0o444)
        os.utime(part, ns=(kept.OBJECT_TIME_NS, kept.OBJECT_TIME_NS))
        for target in targets:
            kept.link_or_copy(part, target)
        os.rename(part, place)
    finally:
        if os.path.lexists(part):
            os.unlink(part)


def take_file(target: str, told: Told) -> None:
    """Take a file as it is."""
    with open(target, "wb") as file:
        file.writelines(iter(told.read, b""))


def unpack(into: str, told: Told) -> None:
    """Unpack a tar."""
    with tempfile.TemporaryFile() as said:
        command = ["tar", "-x", "-o", "-p", "-f", "-", "-C", into]
        process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=said, stderr=said)
        assert process.stdin is not None  # noqa: S101  # a pipe
        try:
            for data in iter(told.read, b""):
                process.stdin.write(data)
            process.communicate()
        except BrokenPipeError:
            pass  # it has ended, and says why
        finally:
            process.kill()
            process.wait()
        if process.returncode:
            said.seek(0)
            raise OSError(errno.EIO, (said.read().decode("utf-8", "replace").splitlines() or ["tar failed"])[-1])


def locked(path: str, use: str) -> int:
    """A descriptor that holds a lock, when no other does any more; -1 where there are no locks: all send it, and one is used.

    Who waits goes on using what it waits for.
    """
    while True:
        lock = kept.try_lock(path)
        if lock is not None:
            return lock
        kept.touch(use)
        say(waits=True)  # or end by it: who waits may be gone
        time.sleep(LOOK_S)


def sync(path: str) -> None:
    """Have all that was written to a file system on its disk (syncfs(2)); a call that Python lacks."""
    import ctypes

    descriptor = os.open(path, os.O_RDONLY)
    try:
        ctypes.CDLL(None).syncfs(descriptor)
    except (OSError, AttributeError):
        os.sync()
    finally:
        os.close(descriptor)


def say(**facts: Any) -> None:
    """Say one thing."""
    data = json.dumps(facts).encode("ascii") + b"\n"
    while data:
        data = data[os.write(1, data) :]
