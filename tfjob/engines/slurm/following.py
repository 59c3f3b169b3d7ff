"""Brings home what a run on a cluster elsewhere writes, while it runs: one thread, which connects again as often as it must."""

from __future__ import annotations

import json
import shlex
import subprocess
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from typing import IO, Final

from tfjob.engines.slurm.gang import FLAGS, program_directory
from tfjob.engines.slurm.home import Home
from tfjob.engines.slurm.login import Login
from tfjob.errors import TargetError
from tfjob.rundir import RunDirectory

__all__ = ["Following"]

_AGAIN_S: Final = 1.0
_LOOK_S: Final = 0.1
_MOST_TROUBLES: Final = 5
_HELLO: Final = b'{"kind": "hello"}\n'
_SILENT_S: Final = 25.0
"""How long nothing may be heard over a connection: the program there says something every 15 s."""
_BREAK_S: Final = 3.0
"""How long a connection may take to be made again before that is worth a word."""
_MISSING: Final = 44  # exit codes that neither sh nor ssh has
_AWAY: Final = 45


class Following:
    """What comes home of the run that is in the directory `there` of a login node. It begins at once, and ends with `close`."""

    def __init__(self, login: Login, there: RunDirectory, run: RunDirectory) -> None:
        self._login = login
        self._there = there
        self._run = run
        self._process: subprocess.Popen[bytes] | None = None
        self._lock = threading.Lock()
        self._is_ended = threading.Event()
        self._is_synced = threading.Event()
        self._is_to_sync = False
        self._is_speaking = False
        self._troubles = 0
        self._heard = time.time()
        self.trouble = ""
        """Why the last connection ended, or what could not be written here."""
        self.is_missing = False
        """Whether the run has no directory there, where other runs have theirs."""
        self.lacking = ""
        """The directory of all runs, while the login node does not see even that: its file system may not be there now."""
        self._thread = threading.Thread(target=self._follow, daemon=True)
        self._thread.start()

    @property
    def away_since(self) -> float | None:
        """Since when nothing was heard of the login node (seconds since the epoch); None where it is there, or was a moment ago."""
        heard = self._heard
        is_away = time.time() - heard > (_SILENT_S if self._is_speaking else _BREAK_S)
        return heard if is_away and not self.is_missing and not self._is_ended.is_set() else None

    @property
    def silent_s(self) -> float:
        """How long nothing was heard of the login node."""
        return time.time() - self._heard

    def sync(self, is_given_up: Callable[[], bool]) -> bool:
        """Bring all there is, however often the connection breaks. Returns whether that was done before it was given up."""
        self._is_synced.clear()
        self._troubles = 0
        with self._lock:
            self._is_to_sync = True
            if self._is_speaking:
                self._tell("sync")
        while not self._is_synced.wait(_LOOK_S):
            if self.is_missing or self._troubles > _MOST_TROUBLES or is_given_up():
                return False
        return True

    def close(self) -> None:
        """Follow no more."""
        self._is_ended.set()
        with self._lock:
            if self._process is not None:
                self._process.kill()
        self._thread.join()

    def _follow(self) -> None:
        while not self._is_ended.is_set() and not self.is_missing:
            try:
                self._connect()
            except (OSError, ValueError, KeyError, TypeError) as error:  # no room here, or what can't be read
                self._troubles += 1
                self.trouble = str(error)
            except TargetError as error:
                self.trouble = error.message
            self._is_ended.wait(_AGAIN_S)

    def _connect(self) -> None:
        directory, runs = str(self._there.path), str(self._there.path.parent.parent)
        program = f"{program_directory(self._there)}/sending.py"
        own = f"test -d {shlex.quote(directory)}"  # asked again: the file system may have come back meanwhile
        line = f"{own} || {{ test -d {shlex.quote(runs)} && ! {own} && exit {_MISSING}; exit {_AWAY}; }}; "
        line += f"exec python3 {shlex.join([*FLAGS, program, 'serve', directory])}"
        process = self._login.start(line)
        with self._lock:
            self._process = process
            if self._is_ended.is_set():
                process.kill()
        try:
            self._hear(process)
        finally:
            with self._lock:
                self._is_speaking = False
                self._process = None
            process.kill()
            code = process.wait()
            for pipe in (process.stdin, process.stdout):
                if pipe is not None:
                    with suppress(OSError):
                        pipe.close()
        self.is_missing = code == _MISSING
        self.lacking = runs if code == _AWAY else ""
        self.trouble = f"the connection to {self._login.address} was lost"
        if self.lacking:
            self.trouble = f"{self._login.address} does not see {runs}; if it is gone for good, make it anew, empty"

    def _hear(self, process: subprocess.Popen[bytes]) -> None:
        assert process.stdout is not None  # noqa: S101  # a pipe
        home = Home(self._run)
        with self._lock:
            self._tell(home.have())
            if self._is_to_sync:
                self._tell("sync")
            self._is_speaking = True
        while (line := process.stdout.readline()) and not line.endswith(_HELLO):
            pass  # the user's shell there may say other things first
        for line in process.stdout:
            if not line.endswith(b"\n"):
                return
            self._heard = time.time()
            word = json.loads(line)
            data = _exactly(process.stdout, word.get("length", 0))
            if data is None:
                return
            if home.take(word, data):
                self._is_synced.set()
            if self._is_ended.is_set():
                return

    def _tell(self, word: object) -> None:
        assert self._process is not None  # noqa: S101  # the caller's
        assert self._process.stdin is not None  # noqa: S101  # a pipe
        with suppress(OSError):  # the connection broke, which the reader sees
            self._process.stdin.write(json.dumps(word).encode() + b"\n")
            self._process.stdin.flush()


def _exactly(stream: IO[bytes], length: int) -> bytes | None:
    """So many bytes; None where it ends before."""
    data = stream.read(length) if length else b""
    return data if len(data) == length else None
