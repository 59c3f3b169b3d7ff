"""A run in the hands of a Python program."""

from __future__ import annotations

import errno
from dataclasses import dataclass
from pathlib import Path

from tfjob.durable import replace_text
from tfjob.errors import RunFailed
from tfjob.rundir import RunDirectory
from tfjob.runs.follow import wait_for_end
from tfjob.runs.record import Record, read_record

__all__ = ["Run", "request_cancel"]


@dataclass(frozen=True)
class Run:
    """One execution of a job. It goes on whether or not anybody holds this object.

    >>> run = tfjob.submit("specs/digits.yml")      # doctest: +SKIP (trains a model)
    >>> run.wait().state                            # doctest: +SKIP
    'Completed'
    """

    directory: RunDirectory

    @property
    def id(self) -> str:
        """The run's id, as `tfjob show` takes it."""
        return self.directory.id

    @property
    def outputs(self) -> Path:
        """The directory with what the job wrote to ./outputs."""
        return self.directory.outputs

    @property
    def record(self) -> Record:
        """The run as it stands now."""
        return read_record(self.directory)

    def wait(self, timeout_s: float | None = None, *, check: bool = True) -> Record:
        """Wait for the end and return the record.

        Raises RunFailed if `check` and the run did not complete, and TimeoutError after `timeout_s`.
        """
        record = wait_for_end(self.directory, timeout_s)
        if check and record.state != "Completed":
            reason = record.failure.message if record.failure else record.state
            task = f"{record.failure.task} " if record.failure and record.failure.task else ""
            raise RunFailed(
                f"run {record.id} {record.state.lower()}: {task}{reason}", f"Logs are in {self.directory.logs}."
            )
        return record

    def log(self, task: str = "main") -> str:
        """A task's output so far."""
        return self.directory.log(task).read_text(encoding="utf-8", errors="replace")

    def cancel(self) -> None:
        """Ask for the run's end; returns at once."""
        request_cancel(self.directory, "canceled by the program that submitted it")


def request_cancel(run: RunDirectory, reason: str) -> None:
    """Ask the run's supervisor to end it. Asking again changes nothing. Can be done on a full disk, which may be why.

    The file is there with the reason in it or not at all: others look for it many times a second.
    """
    if run.cancel_request.exists():
        return
    try:
        replace_text(run.cancel_request, f"{reason}\n", force=False)
    except OSError as error:
        if error.errno not in (errno.ENOSPC, errno.EDQUOT) or not run.reserve.exists():
            raise
        with run.reserve.open("r+b") as file:  # takes no space, and gives some back
            file.write(f"{reason}\n".encode())
            file.truncate()
        run.reserve.replace(run.cancel_request)
