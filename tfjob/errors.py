"""Every error tfjob raises for its reader, and the exit code each one ends the program with.

::

    TfjobError                 anything tfjob can explain
    ├── UsageError             2   the command line asks for something that cannot be
    │   └── InvalidFile        2   a file has problems; carries all of them, with their places
    ├── NotFound               3   a run, workspace or registered name that is not there
    ├── PreparationError       4   an environment, image or dataset could not be made
    ├── TargetError            5   the compute target could not be reached, or had no room in time
    │   ├── NodeLost           5   a node that the run had can't be reached any more
    │   └── TargetRefused      5   it said no, or does not exist: waiting for it does not help
    ├── RunFailed              1   the run itself ended in Failed or Canceled
    └── TimedOut             124   `tfjob wait --timeout` ran out (the code of coreutils' timeout)

    Interrupted              130   the person (or the CI system) stopped the command

An error carries a message (what was found) and a hint (what to do). Errors of libraries are translated
to these only in the module that imports the library. Anything else is a bug and shows its traceback.
"""

from __future__ import annotations

from collections.abc import Iterable
from enum import IntEnum
from typing import NamedTuple

__all__ = [
    "ExitCode",
    "Interrupted",
    "InvalidFile",
    "NodeLost",
    "NotFound",
    "PreparationError",
    "Problem",
    "RunFailed",
    "TargetError",
    "TargetRefused",
    "TfjobError",
    "TimedOut",
    "UsageError",
]


class ExitCode(IntEnum):
    """How the program ends; documented, so scripts may rely on it."""

    DONE = 0
    RUN_FAILED = 1
    BAD_INPUT = 2
    NOT_FOUND = 3
    PREPARATION_FAILED = 4
    TARGET_FAILED = 5
    TIMED_OUT = 124
    INTERRUPTED = 130


class Problem(NamedTuple):
    """One thing wrong in one place of a file.

    `line` and `column` count from 1. `path` says where in the file's structure, such as ``arguments[3]``
    (empty for the file as a whole). `message` says what was found and what is allowed; `hint` what to do.
    """

    file: str
    line: int
    column: int
    path: str
    message: str
    hint: str = ""

    def __str__(self) -> str:
        where = f"{self.path}: " if self.path else ""
        hint = f" {self.hint}" if self.hint else ""
        return f"{self.file}:{self.line}:{self.column}: {where}{self.message}.{hint}"


class TfjobError(Exception):
    """An error tfjob can explain: printed as its message and hint, never as a traceback."""

    exit_code: ExitCode = ExitCode.RUN_FAILED

    def __init__(self, message: str, hint: str = "") -> None:
        super().__init__(message)
        self.message = message
        self.hint = hint


class UsageError(TfjobError):
    """The command line, or a call of the library, asks for something that cannot be."""

    exit_code = ExitCode.BAD_INPUT


class InvalidFile(UsageError):
    """One or more files have problems. All of them are in `problems`, in file order."""

    def __init__(self, problems: Iterable[Problem]) -> None:
        self.problems = tuple(problems)
        super().__init__("\n".join(str(problem) for problem in self.problems))


class NotFound(TfjobError):
    """A run, a workspace or a registered name does not exist."""

    exit_code = ExitCode.NOT_FOUND


class PreparationError(TfjobError):
    """An environment, an image or a dataset could not be made."""

    exit_code = ExitCode.PREPARATION_FAILED


class TargetError(TfjobError):
    """A compute target could not be reached, or had no room in time."""

    exit_code = ExitCode.TARGET_FAILED


class NodeLost(TargetError):
    """A node that a run had can't be reached any more. The run may start again on others."""


class TargetRefused(TargetError):
    """A login, a host key or a certificate was refused, or a name leads nowhere: waiting does not change the answer."""


class RunFailed(TfjobError):
    """A run that somebody waited for ended in Failed or Canceled."""

    exit_code = ExitCode.RUN_FAILED


class TimedOut(TfjobError):
    """The time given to wait was over before the run was. The run goes on."""

    exit_code = ExitCode.TIMED_OUT


class Interrupted(BaseException):
    """The person or the CI system interrupted the command.

    It is raised wherever the command is just then, and is no error of what that does: who goes on after one must not go on
    after this.
    """

    exit_code = ExitCode.INTERRUPTED

    def __init__(self, message: str, hint: str = "") -> None:
        super().__init__(message)
        self.message = message
        self.hint = hint
