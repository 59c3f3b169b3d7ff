"""What tests share: the real command line in a directory of its own, patience, and a look at what still runs."""

from __future__ import annotations

import contextlib
import errno
import fcntl
import glob
import json
import os
import random
import re
import signal
import socket
import subprocess
import sys
import textwrap
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

REPOSITORY = Path(__file__).resolve().parent.parent
PROGRAM = [sys.executable, "-P", "-m", "tfjob.cli.main"]


def environ_of_users() -> dict[str, str]:
    """The variables of somebody who has set nothing for tfjob, but for the store that all tests share."""
    environ = {name: value for name, value in os.environ.items() if not name.startswith(("TFJOB_", "NO_COLOR"))}
    environ["TFJOB_STORE"] = os.environ.get("TFJOB_TEST_STORE", str(REPOSITORY / ".cache" / "store"))
    return environ


@dataclass(frozen=True)
class Tfjob:
    """The tfjob command in a directory: `tfjob("submit", "job.yml")` runs it, `tfjob.start(...)` leaves it running."""

    directory: Path
    environ: dict[str, str]

    def __call__(
        self, *arguments: str, exit_code: int | None = 0, timeout_s: float = 180
    ) -> subprocess.CompletedProcess[str]:
        done = subprocess.run(
            [*PROGRAM, *arguments],
            cwd=self.directory,
            env=self.environ,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=timeout_s,
            check=False,
        )
        if exit_code is not None:
            assert done.returncode == exit_code, f"exit {done.returncode}\n{done.stdout}\n{done.stderr}"
        assert not re.search(r"^Traceback", done.stderr, re.MULTILINE), done.stderr  # a task's own is indented
        return done

    def start(self, *arguments: str) -> subprocess.Popen[str]:
        return subprocess.Popen(
            [*PROGRAM, *arguments],
            cwd=self.directory,
            env=self.environ,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            start_new_session=True,
        )

    def write(self, name: str, text: str) -> Path:
        file = self.directory / name
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(textwrap.dedent(text), encoding="utf-8")
        return file

    def submit(self, name: str, *arguments: str) -> str:
        """Submit, detached; returns the run's id."""
        return self("submit", "--detach", name, *arguments).stdout.strip()

    def show(self, run: str = "latest") -> dict[str, Any]:
        found: dict[str, Any] = json.loads(self("show", run, "-o", "json").stdout)
        return found

    def run_directory(self, run: str) -> Path:
        return self.directory / ".tfjob" / "runs" / run

    def record(self, run: str) -> dict[str, Any]:
        """The record as it lies there, without any tfjob command looking at the run."""
        found: dict[str, Any] = json.loads((self.run_directory(run) / "record.json").read_bytes())
        return found


def eventually(condition: Callable[[], Any], what: str, timeout_s: float = 120) -> Any:
    """Poll until the condition is true; fail with `what` after the time."""
    deadline = time.monotonic() + timeout_s
    while time.monotonic() < deadline:
        if found := condition():
            return found
        time.sleep(0.02)
    pytest.fail(f"did not happen within {timeout_s} s: {what}")


def has_file_of(directory: Path, size_bytes: int) -> bool:
    """Whether a directory, in which others are at work, has a file of that size."""
    for path in directory.glob("*"):
        with contextlib.suppress(FileNotFoundError):  # it has just got another name
            if path.stat().st_size == size_bytes:
                return True
    return False


def kill(*pids: int) -> None:
    """SIGKILL to each that is still there, and see them end: what they held is free then. Some end with others of them."""
    for pid in pids:
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)
    eventually(lambda: all(map(has_ended, pids)), f"the end of {pids}")


def has_ended(pid: int) -> bool:
    """Whether a process is gone, or has nothing left but its exit status. Its first thread may end before the others."""
    try:
        state = Path(f"/proc/{pid}/stat").read_bytes().rpartition(b")")[2].split()[0]
        return state in {b"Z", b"X"} and len(os.listdir(f"/proc/{pid}/task")) <= 1
    except (FileNotFoundError, ProcessLookupError):
        return True


def processes_of(run: str) -> list[int]:
    """The processes that bear the run's id in their environment."""
    marker = f"TFJOB_RUN_ID={run}".encode()
    found = []
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            try:
                if marker in (entry / "environ").read_bytes().split(b"\0"):
                    found.append(int(entry.name))
            except OSError:
                continue
    return found


def openers(path: str) -> int:
    """How many descriptors, of all processes, lead to a file."""
    count = 0
    for descriptor in glob.iglob("/proc/[0-9]*/fd/*"):
        with contextlib.suppress(OSError):  # it has been closed meanwhile
            count += os.readlink(descriptor) == path
    return count


def free_ports(count: int) -> list[int]:
    """Ports of this machine for servers that bind them by themselves, which may be a while later.

    They are below the range that the kernel takes for outgoing connections and for whoever asks for any port (ip(7),
    ip_local_port_range): nobody is given one of them meanwhile.
    """
    found: set[int] = set()
    while len(found) < count:
        port = random.randrange(10_000, 20_000)  # noqa: S311 (no secret)
        with socket.socket() as one, contextlib.suppress(OSError):
            one.bind(("127.0.0.1", port))
            found.add(port)
    return list(found)


def without_locks(monkeypatch: pytest.MonkeyPatch) -> None:
    """Make every file system of this process one that has no locks, as Lustre is without its option flock."""

    def flock(*_: Any) -> None:
        raise OSError(errno.ENOSYS, os.strerror(errno.ENOSYS))

    monkeypatch.setattr(fcntl, "flock", flock)
