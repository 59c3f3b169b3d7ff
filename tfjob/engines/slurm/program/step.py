"""The step of srun by which a job's first node reaches all. Standard library only; any Python from 3.8; imports nothing of tfjob.

It is started before anything else is loaded or looked at: srun takes longer than all of that.
"""

from __future__ import annotations

import _thread  # of threading, this is all that is needed, and there already
import os
import sys

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import BinaryIO

# All the job has is for this step, whatever it was asked for per task; a program that dies takes the others along.
OPTIONS = ["--ntasks-per-node=1", "--cpu-bind=none", "--mpi=none", "--kill-on-bad-exit=1", "--export=ALL"]
OPTIONS += ["--job-name=tfjob", "--overlap"]


def first_step(run: str, program: str) -> Step | None:
    """The step of a run's first attempt; None where there was one before, which has to be looked at first."""
    count = os.environ.get("SLURM_JOB_NUM_NODES")
    if count is None or not is_new(os.path.join(run, "slurm", "state.json")):
        return None
    return Step(run, 0, count, program)


def is_new(state: str) -> bool:
    """Whether nothing has begun yet, by a run's state file, whose first key is the phase: JSON need not be loaded for it."""
    try:
        with open(state, encoding="utf-8") as file:
            return '"phase": "new"' in file.read(40)
    except FileNotFoundError:
        return True


def word_of(number: int) -> str:
    """What tells an attempt at a run, by its number, from any other."""
    return "{}.{}".format(os.environ.get("SLURM_JOB_ID", "0"), number)


def attempt_directory(run: str, number: int) -> str:
    """Where an attempt's reports lie."""
    return os.path.join(run, "slurm", "attempts", str(number))


class Step:
    """One program, node or container, on each node. `input` goes to all of them, `output` comes from all."""

    def __init__(self, run: str, number: int, node_count: str, program: str) -> None:
        directory = attempt_directory(run, number)
        os.makedirs(directory, exist_ok=True)
        self.log = os.path.join(directory, "srun.log")
        programs = os.path.dirname(os.path.abspath(__file__))
        argv = ["srun", "--nodes=" + node_count, "--ntasks=" + node_count, *OPTIONS, *this_python()]
        argv += [os.path.join(programs, "start.py"), program, run, directory, word_of(number)]
        theirs, ours = os.pipe()
        output, end = os.pipe()
        log = os.open(self.log, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o666)
        self.status: int | None = None
        self.lock = _thread.allocate_lock()  # the beat and the rest of batch.py both look whether it has ended
        self.pid = os.fork()
        if not self.pid:
            become(argv, theirs, end, log)
        for descriptor in (theirs, end, log):
            os.close(descriptor)
        self.input: BinaryIO | None = open(ours, "wb", buffering=0)
        self.output: BinaryIO = open(output, "rb", buffering=0)

    def poll(self) -> int | None:
        """The wait status of srun (wait(2)), None while it runs."""
        with self.lock:
            return self.reap()

    def reap(self) -> int | None:
        """The same, for who has the lock."""
        if self.status is None:
            pid, status = os.waitpid(self.pid, os.WNOHANG)
            if pid:
                self.status = status
        return self.status

    def last_words(self) -> str:
        """The last thing srun said."""
        try:
            with open(self.log, encoding="utf-8", errors="replace") as file:
                lines = [line.strip() for line in file if line.strip()]
        except OSError:
            return ""
        return "; ".join(lines[-3:])

    def send(self, number: int) -> None:
        """Signal srun, if it still runs."""
        with self.lock:
            if self.reap() is None:
                os.kill(self.pid, number)


def become(argv: list[str], stdin: int, stdout: int, stderr: int) -> None:
    """Make this process, a fork, the program `argv`, in a session of its own; never returns."""
    try:
        os.setsid()
        for number, descriptor in enumerate((stdin, stdout, stderr)):
            os.dup2(descriptor, number)
        os.execvp(argv[0], argv)
    except OSError as error:
        os.write(2, f"tfjob: {argv[0]} can't be run: {error.strerror}\n".encode())
    finally:
        os._exit(127)


def this_python() -> list[str]:
    """How this very Python was started (proc(5), cmdline), for the other nodes: its name and its options."""
    with open("/proc/self/cmdline", "rb") as file:
        words = [os.fsdecode(word) for word in file.read().split(b"\0")]
    return words[: words.index(sys.argv[0])]
