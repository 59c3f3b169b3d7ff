"""Starting a run's supervisor, and another one when it has died."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
import time
from contextlib import suppress
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING

from tfjob.errors import TargetError

if TYPE_CHECKING:
    from tfjob.rundir import RunDirectory
    from tfjob.runs.record import Record

__all__ = ["DATA", "MANY_FILES", "SEVERAL_MACHINES", "StartingSupervisor", "nobody_follows", "recover"]

DATA = b"data\0"
"""Said to a supervisor that waits for its run: it will have data, so that it can load what fetches it."""
SEVERAL_MACHINES = b"several machines\0"
"""Said to it after that: its run will be one on several machines, so that it can log in to them.

After it come the directory where the workspace keeps its targets, and the target's name, with a NUL between the two.
"""

MANY_FILES = b"many files\0"
"""Said to it after that: so many files of the web are to be fetched, so that it can start the processes that do. Their number follows."""

_SILENT_S = 120.0
"""After so long nobody follows a job of Slurm's from another login node any more: who does says so every 30 seconds."""


class StartingSupervisor:
    """A supervisor process that loads what it needs while its run is still being made, and then waits to be given it.

    Given none, it ends by itself. It is in a session of its own from the start: no terminal's end can reach it.
    """

    def __init__(self) -> None:
        self._socket, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)  # messages stay apart
        with theirs:
            self._process = subprocess.Popen(
                [sys.executable, "-P", "-m", "tfjob.runs.supervisor"],
                env=_environment(),
                cwd="/",
                stdin=theirs.fileno(),
                stdout=subprocess.DEVNULL,
                start_new_session=True,
            )

    def expect_data(self) -> None:
        """Have it load what fetches data. A guess: if the run has none, nothing is wrong."""
        with suppress(OSError):  # it has ended, which `give` will tell
            self._socket.send(DATA)

    def expect_several_machines(self, targets: Path, name: str) -> None:
        """Have it log in there, and load what such a run needs. A guess: if the run is another, nothing is wrong."""
        with suppress(OSError):  # it has ended, which `give` will tell
            self._socket.send(SEVERAL_MACHINES + os.fsencode(targets) + b"\0" + name.encode())

    def expect_many_files(self, count: int) -> None:
        """Have it start what fetches very many small files of the web."""
        with suppress(OSError):  # it has ended, which `give` will tell
            self._socket.send(MANY_FILES + str(count).encode())

    def give(self, run: RunDirectory, lock: int) -> None:
        """Hand it the run and the run's lock, which this process lets go of: there is no moment in which nobody holds it.

        Raises TargetError if the process has ended.
        """
        try:
            with run.supervisor_log.open("ab") as log:
                socket.send_fds(self._socket, [os.fsencode(run.path)], [lock, log.fileno()])
        except OSError as error:
            raise TargetError(
                f"the supervisor of run {run.id} could not be started: {error.strerror}", "Run `tfjob doctor`."
            ) from error
        finally:
            os.close(lock)
            self.close()

    def close(self) -> None:
        """Let it go: with its run, or, if it was given none, to its end."""
        self._socket.close()


def _environment() -> dict[str, str]:
    """This process's environment for a process that works in another directory and must find this very tfjob."""
    store = os.environ.get("TFJOB_STORE")
    absolute = {"TFJOB_STORE": os.path.abspath(os.path.expanduser(store))} if store else {}
    own = [str(Path(__file__).resolve().parents[2]), *filter(None, [os.environ.get("PYTHONPATH")])]
    return {**os.environ, **absolute, "PYTHONPATH": os.pathsep.join(own)}


def recover(run: RunDirectory, record: Record) -> bool:
    """Give a run whose supervisor has died another one. Returns whether it did.

    Nothing is done for a run that is over, is watched over, belongs to another user (whose job must not run as this
    one), or was watched over from another host (whose processes can't be seen from here). A job of Slurm's is followed from
    any login node of its cluster.
    """
    if not _is_ours(run, record):
        return False
    from tfjob.durable import try_lock  # noqa: PLC0415  # a submit starts its supervisor before it loads anything else
    from tfjob.runs.record import read_record  # noqa: PLC0415

    lock = try_lock(run.supervisor_lock)
    if lock is None:
        return False
    if read_record(run).is_over:  # it ended between the look at it and the lock
        os.close(lock)
        return False
    StartingSupervisor().give(run, lock)
    return True


def _is_ours(run: RunDirectory, record: Record) -> bool:
    if record.is_over or run.path.stat().st_uid != os.geteuid():
        return False
    if record.supervisor is None or record.supervisor.host == os.uname().nodename:
        return True
    return _is_silent(run) and not _elsewhere(run)


def nobody_follows(run: RunDirectory, record: Record) -> str:
    """Where a run can be followed that nobody follows now, and that can't be from here; nothing where that is not so."""
    supervisor = record.supervisor
    if record.is_over or supervisor is None or supervisor.host == os.uname().nodename:
        return ""
    with suppress(OSError, ValueError):  # another's files, or damaged ones
        if _is_silent(run) and (words := _elsewhere(run)):
            return f"{words}, such as {supervisor.host}"
    return ""


def _is_silent(run: RunDirectory) -> bool:
    """Whether nobody follows a job of Slurm's. Locks of files may not reach from one login node to the other; the time does."""
    silent_s = time.time() - run.supervisor_lock.stat().st_mtime
    return (run.path / "slurm" / "job.json").exists() and silent_s > _SILENT_S


def _elsewhere(run: RunDirectory) -> str:
    """That a run's job is not of the cluster that is asked from here, in words; nothing where it is, or that is not known."""
    from tfjob.engines.slurm.noted import elsewhere_words, kept_cluster, kept_job  # noqa: PLC0415  # only for these

    cluster = kept_cluster(run)
    if not cluster:
        return ""
    environ = json.loads(run.inherited.read_bytes()) if run.inherited.exists() else dict(os.environ)
    try:
        own = _cluster_of(tuple(sorted(environ.items())))
    except TargetError:
        own = ""
    return "" if own == cluster else elsewhere_words(kept_job(run) or "", cluster, own)


@cache
def _cluster_of(environ: tuple[tuple[str, str], ...]) -> str:
    """The name of the cluster that Slurm's commands reach with these variables. Raises TargetError when it can't be asked."""
    from tfjob.engines.slurm.client import SlurmClient  # noqa: PLC0415  # only for silent runs
    from tfjob.engines.slurm.noted import ClusterName  # noqa: PLC0415  # the same

    return ClusterName(SlurmClient(dict(environ))).get()
