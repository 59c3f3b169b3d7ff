"""What becomes of a submission that failed: when sbatch gets no answer, its job is often in the queue all the same."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Final

from tfjob.engines.base import Waiting
from tfjob.engines.slurm.client import CommandError, NoCommandError
from tfjob.errors import TargetError

__all__ = ["is_taken"]

_ASK_S: Final = 60.0
"""How long Slurm is asked whether it has a job, while it can't answer, or may have it still before it."""
_AGAIN_S: Final = 1.0
_TIMED_OUT: Final = "timed out"
"""In the words of Slurm's commands where a question went out and no answer came: "Socket timed out on send/recv operation"."""
_SILENT: Final = "did not answer"
"""In the client's words where a command took too long."""


def is_taken(
    ask: Callable[[], bool], error: TargetError, *, tell: Waiting, is_canceled: Callable[[], bool]
) -> bool | None:
    """Whether Slurm has the job whose submission raised `error`; None where that is not to be known. `ask` asks its queue."""
    if isinstance(error, NoCommandError):
        return False
    is_refused = isinstance(error, CommandError) and _TIMED_OUT not in error.said
    deadline = time.monotonic() + _ASK_S
    while True:
        try:
            if ask():
                return True
            if is_refused:
                return False
            tell(f"{error.message}; Slurm is asked whether it has the job")
        except TargetError as other:
            if not isinstance(other, CommandError) and _SILENT not in other.message:
                return None
            tell(f"Slurm can't be asked whether it has the job: {other.message}")
        if time.monotonic() > deadline or is_canceled():
            return None
        time.sleep(_AGAIN_S)
