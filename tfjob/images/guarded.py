"""A program that ends with whoever started it, however that one ended. Standard library only; imports nothing of tfjob.

    python -I -S guarded.py PARENT PROGRAM ARGUMENT…

PARENT is the pid of the process that starts this. Run it in a process group of its own: when PARENT has died, the
whole group is killed, with what the program itself has started. What the program prints goes to stderr. The exit status
is the program's own, 128 and the signal's number when it was killed, 127 when it cannot be started.
"""

from __future__ import annotations

import contextlib
import os
import signal
import sys

TYPE_CHECKING = False  # typing.TYPE_CHECKING, without importing typing
if TYPE_CHECKING:
    from types import FrameType

PR_SET_PDEATHSIG = 1  # prctl(2)


def main(parent: int, command: list[str]) -> int:
    """Run the program to its end."""
    signal.signal(signal.SIGUSR1, end_all)
    signal.signal(signal.SIGTERM, leave_it)
    die_with_parent(signal.SIGUSR1)
    if os.getppid() != parent:  # it died before the line above
        return 128 + signal.SIGKILL
    guard = os.getpid()
    child = os.fork()
    if child == 0:
        run(command, guard)
    code = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    return 128 - code if code < 0 else code


def run(command: list[str], guard: int) -> None:
    """Become the program; it dies with this one."""
    try:
        signal.signal(signal.SIGUSR1, signal.SIG_DFL)
        signal.signal(signal.SIGTERM, signal.SIG_DFL)
        die_with_parent(signal.SIGKILL)
        if os.getppid() == guard:
            os.dup2(2, 1)
            os.execvp(command[0], command)  # noqa: S606  # what this is for
    except OSError as error:
        os.write(2, f"{command[0]}: {error.strerror}\n".encode())
    finally:  # a child must never return into its parent's code
        os._exit(127)


def end_all(_number: int, _frame: FrameType | None) -> None:
    """Kill the process group, this process included."""
    os.killpg(0, signal.SIGKILL)


def leave_it(_number: int, _frame: FrameType | None) -> None:
    """Wait on: the program has the signal too, and ends in its own way."""


def die_with_parent(number: int) -> None:
    """Have the kernel send a signal when the parent dies. Where the C library can't be loaded it goes without."""
    with contextlib.suppress(ImportError, OSError, AttributeError):
        import ctypes  # noqa: PLC0415  # it may be missing

        ctypes.CDLL(None, use_errno=True).prctl(PR_SET_PDEATHSIG, number, 0, 0, 0)


if __name__ == "__main__":
    sys.exit(main(int(sys.argv[1]), sys.argv[2:]))
