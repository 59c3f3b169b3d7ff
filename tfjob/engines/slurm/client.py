"""Slurm's own commands, with limits on how long they may take, and their complaints in words."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Final

from tfjob.errors import TargetError

__all__ = ["CommandError", "NoCommandError", "SlurmClient"]

_PATIENCE_S: Final = 30.0
_SUBMIT_PATIENCE_S: Final = 120.0
_FOR_SLURM: Final = ("SLURM_CONF", "PATH", "HOME", "USER", "LOGNAME", "LANG", "LD_LIBRARY_PATH", "TZ")
"""Variables that Slurm's commands get. Others (SBATCH_PARTITION, SQUEUE_FORMAT, SLURM_CLUSTERS) would change what they do."""


class NoCommandError(TargetError):
    """A command of Slurm's is not there, or can't be run: nobody was asked for anything."""


class CommandError(TargetError):
    """A command of Slurm's that failed; `said` is what it said."""

    def __init__(self, message: str, hint: str, said: str) -> None:
        super().__init__(message, hint)
        self.said = said


class SlurmClient:
    """Slurm as it is reached from this machine. `environ` is the environment of whoever submits."""

    def __init__(self, environ: Mapping[str, str] = os.environ) -> None:
        self._environ = {name: environ[name] for name in _FOR_SLURM if name in environ}

    def submit(self, script: Path, variables: Mapping[str, str]) -> str:
        """Submit a job script; returns the job's id. The job gets `variables`, and nothing else of this process's environment.

        Raises TargetError, in sbatch's words, when Slurm does not take it.
        """
        answer = self._run(
            ["sbatch", "--parsable", str(script)],
            patience_s=_SUBMIT_PATIENCE_S,
            environ={**self._environ, **variables},
            hint="`tfjob plan` shows the options that sbatch was given; `tfjob compute test` what the cluster has.",
        )
        said = answer.strip()
        job, _, cluster = said.rpartition("\n")[2].partition(";")
        if not re.fullmatch(r"[0-9]+", job):
            # Not a refusal: there may be a job.
            raise TargetError(
                f"sbatch did not say the number of the job, but {said!r}",
                "If `sbatch` is a script of the site's, it must hand on what sbatch says. `squeue --me` shows whether there is a job.",
            )
        if cluster:
            # All that is asked later is asked of this cluster, and its job of that number is another one.
            self._try(["scancel", f"--clusters={cluster}", job])
            message = f"sbatch gave the job to another cluster, {cluster}; it was canceled there"
            raise CommandError(message, "Make a target with a login node of that cluster as its `login`.", said)
        return job

    def cancel(self, job: str) -> None:
        """End a job, whatever state it is in. One that is over or unknown is no error."""
        self._try(["scancel", job])

    def cancel_named(self, name: str) -> None:
        """End whatever job of this user's has that name. None is no error."""
        self._try(["scancel", "--me", f"--name={name}"])

    def signal(self, job: str, name: str) -> bool:
        """Send a signal to the job's batch program. Returns whether Slurm could."""
        return self._try(["scancel", "--batch", f"--signal={name}", job])

    def queue(self, *arguments: str) -> str:
        """What squeue says. Raises TargetError when it can't be asked."""
        return self._run(["squeue", "--noheader", *arguments])

    def nodes(self, *arguments: str) -> str:
        """What sinfo says. Raises TargetError when it can't be asked."""
        return self._run(["sinfo", "--noheader", *arguments])

    def show(self, *arguments: str) -> str:
        """What `scontrol show` says. Raises CommandError when it does not know the thing, or can't be asked."""
        return self._run(["scontrol", "show", *arguments])

    def accounting(self, *arguments: str) -> str | None:
        """What sacct says, None where there is no accounting."""
        try:
            return self._run(["sacct", "--noheader", "--parsable2", *arguments])
        except TargetError:
            return None

    def _try(self, command: list[str]) -> bool:
        try:
            self._run(command)
        except TargetError:
            return False
        return True

    def _run(
        self,
        command: Sequence[str],
        *,
        patience_s: float = _PATIENCE_S,
        environ: Mapping[str, str] | None = None,
        hint: str = "`tfjob compute test` shows what is the matter.",
    ) -> str:
        name = command[0]
        try:
            done = self._done(command, self._environ if environ is None else environ, patience_s)
        except subprocess.TimeoutExpired:
            raise TargetError(
                f"{name} did not answer within {patience_s:g} s", "Is slurmctld well? Try `sinfo`."
            ) from None
        except OSError as error:
            raise NoCommandError(f"{name} can't be run: {error.strerror}") from error
        if done.returncode != 0:
            said = done.stderr.decode("utf-8", "replace").strip()
            words = said.splitlines()[-1].removeprefix(f"{name}: ").removeprefix("error: ") if said else ""
            raise CommandError(f"{name} failed: {words or f'exit code {done.returncode}'}", hint, said)
        return done.stdout.decode("utf-8", "replace")

    def _done(
        self, command: Sequence[str], environ: Mapping[str, str], patience_s: float
    ) -> subprocess.CompletedProcess[bytes]:
        """A command with this environment, when it has ended. Raises TargetError where there is none, and as subprocess.run does."""
        if shutil.which(command[0], path=environ.get("PATH")) is None:
            raise NoCommandError(
                f"{command[0]} is not on PATH: this machine can't submit to Slurm",
                "Run tfjob on a login node of the cluster, or set the target's `login`.",
            )
        return subprocess.run(
            command, env=dict(environ), stdin=subprocess.DEVNULL, capture_output=True, timeout=patience_s, check=False
        )
