"""A login node of a Slurm cluster, used from elsewhere: its commands, and files for it, over one login by ssh."""

from __future__ import annotations

import shlex
import subprocess
from collections.abc import Mapping, Sequence
from typing import Final

from tfjob.dockerapi.ssh import SshHost, SshTransport
from tfjob.engines.slurm.client import NoCommandError, SlurmClient
from tfjob.engines.submitter import Submitter
from tfjob.errors import TargetError, TargetRefused

__all__ = ["BEGINS", "Login", "LoginClient", "LoginLost"]

_CONNECT_S: Final = 20.0
_PATIENCE_S: Final = 60.0
_SSH_FAILED: Final = 255  # ssh(1), EXIT STATUS
_NOT_FOUND: Final = 127  # of sh, for a program that is not there
BEGINS: Final = b"tfjob begins\n"
"""Said before an answer: the user's shell there may say other things first."""
# The user's own variables of Slurm's commands (SBATCH_PARTITION, SLURM_CLUSTERS) would change what they do; secrets come by stdin.
_AS_NEW: Final = (
    'exec env -i PATH="$PATH" HOME="$HOME" USER="${USER:-$(id -un)}" LOGNAME="${LOGNAME:-$(id -un)}" '
    'LANG="${LANG:-C.UTF-8}" ${SLURM_CONF:+SLURM_CONF="$SLURM_CONF"} '
)


class LoginLost(TargetError):
    """The connection broke: whether a command was carried out is not known."""


class Login:
    """The user's login on a host. It is made with the first call, and again when it was lost; `environ` is what ssh runs with."""

    def __init__(self, address: str, environ: Mapping[str, str]) -> None:
        self._ssh = SshTransport(SshHost.of(address), environ)
        self.address = address

    def run(
        self, line: str, *, told: bytes = b"", patience_s: float = _PATIENCE_S
    ) -> subprocess.CompletedProcess[bytes]:
        """Run a line of sh there, which reads `told`. Raises LoginLost, TargetError, and subprocess.TimeoutExpired."""
        done = subprocess.run(
            self._program(f"echo {BEGINS.decode().strip()}; {line}"),
            env=self._ssh.environ,
            input=told,
            capture_output=True,
            timeout=patience_s,
            check=False,
        )
        if done.returncode == _SSH_FAILED:
            raise LoginLost(
                f"the connection to {self.address} was lost", "`tfjob compute test` shows what is the matter."
            )
        done.stdout = done.stdout.rpartition(BEGINS)[2]
        return done

    def ask(self, line: str) -> str:
        """What a line of sh says there. Raises TargetError, with the last line of its complaint, when it fails."""
        try:
            done = self.run(line)
        except subprocess.TimeoutExpired:
            raise TargetError(
                f"{self.address} did not answer within {_PATIENCE_S:g} s", "Log in by hand and look."
            ) from None
        if done.returncode:
            raise TargetError(f"{self.address}: {_last_line(done.stderr) or f'exit code {done.returncode}'}")
        return done.stdout.decode("utf-8", "replace")

    def start(self, line: str) -> subprocess.Popen[bytes]:
        """Start a line of sh there, to speak with it. Raises TargetError when the login does not work."""
        return subprocess.Popen(
            self._program(line),
            env=self._ssh.environ,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            start_new_session=True,
        )

    def user(self) -> Submitter:
        """The user there, as containers know them. Raises TargetError."""
        lines = self.ask("id -u; id -g; id -G; id -un").splitlines()
        try:
            uid, gid, groups, name = lines
            others = tuple((int(one), f"group{one}") for one in groups.split() if one != gid)
            return Submitter(int(uid), int(gid), name, others)
        except ValueError:
            raise TargetError(f"{self.address} does not say who its user is: {lines}") from None

    def close(self) -> None:
        """Log out."""
        self._ssh.close()

    def _program(self, line: str) -> list[str]:
        """What runs a line of sh there. Raises LoginLost where another time it may work, TargetRefused where it will not."""
        try:
            return self._ssh.program(_for_any_shell(line), _CONNECT_S)
        except TargetRefused:
            raise
        except TargetError as error:
            raise LoginLost(error.message, error.hint) from error


class LoginClient(SlurmClient):
    """Slurm's commands on a login node. Of this process's environment they get nothing but what `submit` is given."""

    def __init__(self, login: Login) -> None:
        super().__init__({})
        self._login = login

    def _done(
        self, command: Sequence[str], environ: Mapping[str, str], patience_s: float
    ) -> subprocess.CompletedProcess[bytes]:
        told = "".join(f"export {name}={shlex.quote(value)}\n" for name, value in environ.items())
        line = f"""{_AS_NEW} sh -c 'eval "$(cat)"; exec "$@" </dev/null' sh {shlex.join(command)}"""
        done = self._login.run(line, told=told.encode(), patience_s=patience_s)
        if done.returncode == _NOT_FOUND:
            raise NoCommandError(
                f"{self._login.address} has no {command[0]} on its PATH: it is no login node",
                "Set the target's `login` to one, or have Slurm on the PATH there for ssh, too: `ssh HOST sinfo` must work.",
            )
        return done


def _for_any_shell(line: str) -> str:
    """A line of sh as a word of any shell that users may have there.

    Between single quotes csh reads ! and the end of a line otherwise than sh, and fish the backslash: none of them is written.
    """
    coded = line.translate({ord(char): f"\\0{ord(char):03o}" for char in "'!\n\\"})
    return f"""sh -c 'eval "$(printf %b "$0")"' '{coded}'"""


def _last_line(said: bytes) -> str:
    lines = said.decode("utf-8", "replace").strip().splitlines()
    return lines[-1].strip() if lines else ""
