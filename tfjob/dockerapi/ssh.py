"""A Docker Engine behind ssh: one login per engine, whose connection carries every call to the socket there.

The user's own ssh is used, so agent, configuration, jump hosts and known hosts are honoured, and an unknown or changed
host key is refused. The login's stdin is a lifeline: when this process ends, however it ends, so does the ssh.
"""

from __future__ import annotations

import functools
import os
import re
import shutil
import socket
import stat
import subprocess
import tempfile
import threading
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Final
from urllib.parse import urlsplit

from tfjob.errors import TargetError, TargetRefused

__all__ = ["REMOTE_SOCKET", "SshHost", "SshTransport"]

REMOTE_SOCKET: Final = "/var/run/docker.sock"
_READY: Final = b"tfjob: connected\n"
_END_S: Final = 2.0
_PREFIX: Final = "tfjob-ssh-"
_ABANDONED_S: Final = 300.0  # longer than any login takes
_ASK_S: Final = 10.0
_REASONS: Final = (
    (
        r"No user exists for uid",
        "ssh refuses to work for a user without a name, so {host} can't be reached",
        "Run tfjob as a user that /etc/passwd knows.",
        TargetRefused,
    ),
    (
        r"REMOTE HOST IDENTIFICATION HAS CHANGED",
        "the host key of {host} has changed",
        "If the machine was installed anew: ssh-keygen -R {host}, then log in once by hand. Otherwise somebody is in between.",
        TargetRefused,
    ),
    (
        r"Host key verification failed|No \S+ host key is known",
        "the host key of {host} is not known",
        "Log in once by hand and compare the fingerprint: ssh {host}",
        TargetRefused,
    ),
    (
        r"Permission denied",
        "{host} refuses the login",
        "`ssh {host}` must work without a question: put your public key there (ssh-copy-id), or load it in an agent.",
        TargetRefused,
    ),
    (
        r"Temporary failure in name resolution",
        "the name {host} can't be looked up now",
        "Check the node's `engine`, and this machine's network.",
        TargetError,
    ),
    (
        r"Could not resolve hostname",
        "there is no host {host}",
        "Check the node's `engine`, or your ssh configuration.",
        TargetRefused,
    ),
    (r"Connection refused", "{host} takes no ssh connections", "Is sshd running there?", TargetError),
    (
        r"timed out|No route to host|Network is unreachable|Host is down",
        "{host} can't be reached",
        "Is the machine up, and its network?",
        TargetError,
    ),
)
_NOISE: Final = re.compile(r"^(Warning: Permanently added|\*\*|debug\d)|^\s*$")


@dataclass(frozen=True)
class SshHost:
    """Where to log in: ``ssh://user@host:port``, with the path of the engine's socket there if it is not the usual one."""

    address: str
    host: str
    user: str | None = None
    port: int | None = None
    socket: str = REMOTE_SOCKET

    @classmethod
    def of(cls, address: str) -> SshHost:
        """Take an address apart. Raises ValueError for what is none."""
        parts = urlsplit(address)
        if parts.scheme != "ssh" or not parts.hostname or parts.hostname.startswith("-") or parts.password:
            raise ValueError(f"{address} is no address of the form ssh://user@host:port")
        if parts.username and parts.username.startswith("-"):
            raise ValueError(f"{address} names no user that can be")
        path = parts.path if len(parts.path) > 1 else REMOTE_SOCKET
        name = parts.netloc.rpartition("@")[2]
        host = (
            name[1 : name.index("]")] if name.startswith("[") else name.partition(":")[0]
        )  # as written: ssh_config knows case
        return cls(address, host, parts.username, parts.port, path)

    def arguments(self) -> list[str]:
        """The end of an ssh command line that says whom to call."""
        user = ["-l", self.user] if self.user else []
        port = ["-p", str(self.port)] if self.port else []
        return [*user, *port, "--", self.host]


class SshTransport:
    """Calls to the engine on `host`, through one ssh of this process. `environ` may name a configuration, TFJOB_SSH_CONFIG.

    The ssh is started with the first call, and again when it has ended: a node that was away can come back.
    """

    def __init__(self, host: SshHost, environ: Mapping[str, str] | None = None) -> None:
        self._host = host
        self._environ = dict(os.environ if environ is None else environ)
        self._lock = threading.Lock()
        self._process: subprocess.Popen[bytes] | None = None
        self._directory: Path | None = None

    @property
    def address(self) -> str:
        """The address, as the user wrote it."""
        return self._host.address

    @property
    def is_local(self) -> bool:
        """It is not."""
        return False

    def connect(self, timeout_s: float) -> socket.socket:
        """A connection to the engine's socket there, logging in first where that is to be done."""
        path = self._ensure(timeout_s)
        connection = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        connection.settimeout(timeout_s)
        try:
            connection.connect(str(path))
        except BaseException:
            connection.close()
            raise
        return connection

    def run(self, command: str, timeout_s: float) -> subprocess.CompletedProcess[bytes]:
        """Run a line of the shell there, over the same login. Raises TargetError, and subprocess.TimeoutExpired."""
        return subprocess.run(
            self.program(command, timeout_s),
            env=self._environ,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            timeout=timeout_s,
            check=False,
        )

    def program(self, command: str, timeout_s: float) -> list[str]:
        """What runs a line of the shell there, over the same login, for who speaks with it. Exit code 255 is ssh's own word.

        To be run with `environ`. Raises TargetError when the login does not work.
        """
        self._ensure(timeout_s)
        assert self._directory is not None  # noqa: S101  # made by the login
        return [*self._program(), "-S", str(self._directory / "c"), *self._host.arguments(), command]

    @property
    def environ(self) -> dict[str, str]:
        """What ssh is run with."""
        return dict(self._environ)

    def variables(self) -> dict[str, str]:
        """The socket here that leads there. Logs in where that is to be done."""
        return {"DOCKER_HOST": f"unix://{self._ensure(_ASK_S)}"}

    def unanswered(self, error: Exception) -> TargetError:  # noqa: ARG002  # ssh itself knows more
        """Say whether the login or the engine behind it is at fault."""
        process = self._process
        if process is not None and process.poll() is not None:
            return self._refused(self._said())
        said = self._said()
        forbidden = "administratively prohibited" in said
        return TargetError(
            f"no Docker Engine answers at {self.address}: its socket {self._host.socket} "
            + ("may not be reached by ssh" if forbidden else "can't be opened there"),
            "sshd there must allow AllowStreamLocalForwarding."
            if forbidden
            else "Is Docker running there, and is the user a member of the group docker? `docker info` must answer there.",
        )

    def hostname(self) -> str:
        """The host's name or address as ssh's configuration has it (ssh(1), -G), for those who reach it otherwise."""
        with _needs_ssh():
            asked = subprocess.run(
                [*self._program(), "-G", *self._host.arguments()],
                env=self._environ,
                stdin=subprocess.DEVNULL,
                capture_output=True,
                timeout=_ASK_S,
                check=False,
            )
        for line in asked.stdout.decode(errors="replace").splitlines():
            key, _, value = line.partition(" ")
            if key == "hostname":
                return value
        return self._host.host

    def close(self) -> None:
        """Log out. Later calls log in again."""
        with self._lock:
            self._end()

    def _ensure(self, timeout_s: float) -> Path:
        with self._lock:
            if self._process is None or self._process.poll() is not None:
                self._end()
                self._begin(timeout_s)
            assert self._directory is not None  # noqa: S101  # `_begin` made it
            return self._directory / "s"

    def _begin(self, timeout_s: float) -> None:
        try:
            _remove_abandoned()
            self._directory = Path(tempfile.mkdtemp(prefix=_PREFIX))  # mode 0700; short, as paths of sockets must be
            with (self._directory / "e").open("wb") as said, _needs_ssh():
                self._process = self._start(self._directory, said, timeout_s)
        except OSError as error:  # a full disk, or too many open files
            self._end()
            raise TargetError(
                f"no login to {self._host.host} can be begun from this machine: {error.strerror or error}",
                f"ssh needs some room in {tempfile.gettempdir()}, and files that may still be opened (ulimit -n).",
            ) from error
        if not self._came_up(time.monotonic() + timeout_s):
            refused = self._refused(self._said())
            self._end()
            raise refused

    def _start(self, directory: Path, said: IO[bytes], timeout_s: float) -> subprocess.Popen[bytes]:
        """Start an ssh that keeps its sockets in a directory."""
        forward = f"{directory / 's'}:{self._host.socket}"
        limit_s = str(max(int(timeout_s), 1))
        return subprocess.Popen(
            [
                *(*self._program(), "-M", "-S", str(directory / "c"), "-L", forward),
                *("-o", "ExitOnForwardFailure=yes", "-o", "StreamLocalBindMask=0177"),
                *("-o", "ServerAliveInterval=5", "-o", "ServerAliveCountMax=3", "-o", f"ConnectTimeout={limit_s}"),
                *("-o", "ControlPersist=no", "-o", "ForwardAgent=no", "-o", "ForwardX11=no"),
                *("-o", "PermitLocalCommand=no"),
                *self._host.arguments(),
                f"echo '{_READY.decode().strip()}' && exec cat",
            ],
            env=self._environ,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=said,
            start_new_session=True,  # a Ctrl-C is for tfjob, which ends it when it is done
        )

    def _came_up(self, deadline: float) -> bool:
        """Whether the login's own word comes before the deadline; a shell may say other things first."""
        assert self._process is not None  # noqa: S101  # just started
        assert self._process.stdout is not None  # noqa: S101  # a pipe
        timer = threading.Timer(max(deadline - time.monotonic(), 0.0), self._process.kill)
        timer.start()
        try:
            return any(line.endswith(_READY) for line in self._process.stdout)
        finally:
            timer.cancel()

    def _program(self) -> list[str]:
        config = self._environ.get("TFJOB_SSH_CONFIG")
        return ["ssh", *(["-F", config] if config else []), "-T", "-o", "BatchMode=yes"]

    def _said(self) -> str:
        if self._directory is None:
            return ""
        with suppress(OSError):
            text = (self._directory / "e").read_text(encoding="utf-8", errors="replace")
            return "\n".join(line.strip() for line in text.splitlines() if not _NOISE.search(line))
        return ""

    def _refused(self, said: str) -> TargetError:
        for pattern, message, hint, kind in _REASONS:
            if re.search(pattern, said):
                last = said.splitlines()[-1].removeprefix("ssh: ")
                return kind(f"{message.format(host=self._host.host)} (ssh: {last})", hint.format(host=self._host.host))
        last = said.splitlines()[-1] if said else "it did not answer in time"
        return TargetError(
            f"{self._host.host} can't be reached by ssh: {last}", f"Try it by hand: ssh {self._host.host}"
        )

    def _end(self) -> None:
        process, directory = self._process, self._directory
        self._process = self._directory = None
        if process is not None:
            for pipe in (process.stdin, process.stdout):
                if pipe is not None:
                    with suppress(OSError):
                        pipe.close()
            process.terminate()
            try:
                process.wait(_END_S)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()
        if directory is not None:
            shutil.rmtree(directory, ignore_errors=True)


@functools.cache
def _remove_abandoned() -> None:
    """Remove the directories of logins whose tfjob was killed, once in the life of this process.

    Their ssh ended with it, so nobody answers at the control socket any more.
    """
    for directory in Path(tempfile.gettempdir()).glob(f"{_PREFIX}*"):
        with suppress(OSError):
            status = directory.lstat()
            is_old = time.time() - status.st_mtime > _ABANDONED_S
            if (
                is_old
                and status.st_uid == os.geteuid()
                and stat.S_ISDIR(status.st_mode)
                and not _is_answered(directory / "c")
            ):
                shutil.rmtree(directory)


def _is_answered(path: Path) -> bool:
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as connection:
        connection.settimeout(1.0)
        try:
            connection.connect(str(path))
        except (ConnectionRefusedError, FileNotFoundError):
            return False
        except OSError:
            return True
        return True


@contextmanager
def _needs_ssh() -> Iterator[None]:
    """Say it in words when this machine has no ssh, or one that hangs."""
    try:
        yield
    except FileNotFoundError as error:
        raise TargetRefused("this machine has no ssh", "Install the OpenSSH client.") from error
    except subprocess.TimeoutExpired as error:
        raise TargetError(
            f"ssh did not answer within {_ASK_S:g} s", "Look at its configuration: ssh -G HOST."
        ) from error
