"""Programs that tfjob waits for and that never outlive the waiting: each runs in a process group of its own.

Whatever ends the wait (Ctrl-C, SIGTERM, an error in the code that shows the output) ends the whole group first.
"""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import threading
import time
from typing import TYPE_CHECKING, NoReturn

from tfjob.errors import Interrupted

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping, Sequence
    from pathlib import Path
    from types import FrameType

__all__ = ["interruptible", "run"]

_GRACE_S = 2.0
_DYING_S = 10.0
_LOOK_S = 0.02


def run(
    command: Sequence[str],
    *,
    environment: Mapping[str, str],
    cwd: Path,
    on_line: Callable[[str], None],
    holds: int,
    stdin: str = "",
) -> int:
    """Run a program to its end and return its exit code (negative: the signal); `on_line` gets its stderr line by line.

    Its stdout is dropped. `holds` is a lock's descriptor: the program inherits it, so that the lock is still held when
    only this process is killed. Raises OSError when the program cannot be started.
    """
    process = subprocess.Popen(
        command,
        env=environment,
        cwd=cwd,
        stdin=subprocess.PIPE if stdin else subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
        encoding="utf-8",
        errors="replace",
        pass_fds=(holds,),
        process_group=0,
    )
    try:
        if process.stdin is not None:
            with contextlib.suppress(BrokenPipeError), process.stdin as pipe:
                pipe.write(stdin)
        if process.stderr is not None:
            for line in process.stderr:
                on_line(line.rstrip())
        return process.wait()
    finally:
        _end(process)


@contextlib.contextmanager
def interruptible() -> Iterator[None]:
    """Make SIGTERM and SIGHUP end what is under way as an error does, where nobody has decided otherwise.

    Raises Interrupted from wherever the main thread is. Outside the main thread, where Python cannot set handlers,
    and for signals that already have one, nothing changes.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    taken = [one for one in (signal.SIGTERM, signal.SIGHUP) if signal.getsignal(one) is signal.SIG_DFL]
    for one in taken:
        signal.signal(one, _raise)
    try:
        yield
    finally:
        for one in taken:
            signal.signal(one, signal.SIG_DFL)


def _raise(number: int, _frame: FrameType | None) -> NoReturn:
    raise Interrupted(f"preparing the environment was ended by {signal.Signals(number).name}")


def _end(process: subprocess.Popen[str]) -> None:
    """End the process and all of its group; at once where the process already ended by itself."""
    waiting = process.poll() is None
    with contextlib.suppress(ProcessLookupError, PermissionError):
        os.killpg(process.pid, signal.SIGTERM if waiting else signal.SIGKILL)
        if waiting:
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.wait(_GRACE_S)
            os.killpg(process.pid, signal.SIGKILL)
            _wait_for_group(process)
    process.wait()
    if process.stderr is not None:
        process.stderr.close()


def _wait_for_group(process: subprocess.Popen[str]) -> None:
    """Wait until nothing is left of a killed group: what was killed may have to wait for a processor to die on.

    Those that have ended count for as long as nobody has waited for them. A supervisor inherits orphans and waits for them
    here (prctl(2), PR_SET_CHILD_SUBREAPER); others may wait for an init that does not.
    """
    process.wait()
    until = time.monotonic() + _DYING_S
    with contextlib.suppress(ProcessLookupError, PermissionError):
        while time.monotonic() < until:
            with contextlib.suppress(ChildProcessError):
                while os.waitpid(-process.pid, os.WNOHANG)[0]:
                    pass
            os.killpg(process.pid, 0)
            time.sleep(_LOOK_S)
