"""The program beside the user's command inside a task. Standard library only; any Python from 3.8; imports nothing of tfjob.

    python -I -S entrypoint.py TASKS_DIRECTORY TASK      run that task
    python -I -S entrypoint.py TASKS_DIRECTORY rank      under mpirun: run task rank-N, N as the MPI library says

It reads TASKS_DIRECTORY/TASK/task.json (argv, env, cwd, log, port, grace_period_s, listening_s: so late it may be noted
that the port is listened on, and umask where the one it inherits is not the submitter's), runs the command in a session
of its own with both outputs in the log, and leaves beside task.json:

    started.json     pid, the process's start time (clock ticks since boot), time
    listening        made when the task's own port is being listened on: it has come to the rendezvous
    exit.json        exit_code or signal, time, stopped (true when tfjob asked for the end), and out_of_memory if the
                     kernel killed something of the task's control group for that

The log of a task that is tried again begins with a line that says so (TFJOB_RESTART_COUNT in `env`, not 0).

SIGTERM is passed on to the command's whole process group; after the grace period everything left is killed. When the
command has ended, whatever it started and left behind is killed too: nothing outlives a task. The result file's space
is taken at the start, so that a full disk can't lose how a task ended.
"""

from __future__ import annotations

import json
import os
import signal
import sys
import time

TYPE_CHECKING = False  # typing.TYPE_CHECKING, without importing typing
if TYPE_CHECKING:
    from collections.abc import Mapping
    from typing import Any

SIGNALS = {signal.SIGCHLD, signal.SIGTERM, signal.SIGINT, signal.SIGHUP}
RANK_VARIABLES = ("OMPI_COMM_WORLD_RANK", "PMIX_RANK", "PMI_RANK", "SLURM_PROCID")
RESULT_BYTES = 512
LINGER_S = 5.0
LISTENING_S = 10.0
DYING_S, FOREIGN_S = 4.0, 1.0
PR_SET_PDEATHSIG, PR_SET_CHILD_SUBREAPER = 1, 36  # prctl(2)


def main(tasks_directory: str, name: str) -> int:
    """Run one task to its end; returns the exit status to end with: the command's own, or 128 + its signal."""
    if name == "rank":
        name = "rank-" + rank_of(os.environ)
    directory = os.path.join(tasks_directory, name)
    with open(os.path.join(directory, "task.json"), encoding="utf-8") as file:
        task = json.load(file)
    os.umask(task.get("umask", os.umask(0o022)))
    log = os.open(task["log"], os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o644)
    nothing = os.open(os.devnull, os.O_RDONLY)
    os.dup2(nothing, 0)
    os.dup2(log, 1)
    os.dup2(log, 2)
    os.close(log)
    os.close(nothing)
    reserved = reserve(directory)
    signal.pthread_sigmask(signal.SIG_BLOCK, SIGNALS)
    prctl(PR_SET_CHILD_SUBREAPER, 1)
    kills = out_of_memory_kills()
    restarts = task["env"].get("TFJOB_RESTART_COUNT", "0")
    if restarts.isdigit() and int(restarts):
        complain("tfjob: this is attempt {}".format(int(restarts) + 1))
    # Before the command starts: who acts on what it prints must not find a task that has never started.
    write(directory, "started.json", {"pid": os.getpid(), "start_ticks": start_ticks(os.getpid()), "time": time.time()})
    status, stopped, ended = run(task, directory)
    kill_leftovers()
    code = os.WEXITSTATUS(status) if os.WIFEXITED(status) else None
    number = os.WTERMSIG(status) if os.WIFSIGNALED(status) else None
    killed = signal.SIGKILL in (number, (code or 0) - 128) and not stopped
    result = {"exit_code": code, "signal": number, "time": ended, "stopped": stopped}
    if killed and out_of_memory_kills() > kills:
        result["out_of_memory"] = True
    finish(reserved, directory, result)
    if task.get("launched") and (stopped or code != 0):
        linger(tasks_directory, task["grace_period_s"])
    return code if code is not None else 128 + (number or 0)


def run(task: dict[str, Any], directory: str) -> tuple[int, bool, float]:
    """Run the command to its end. Returns what `watch` does."""
    try:
        child = spawn(task)
    except OSError as error:  # fork(2): too many processes, no memory
        complain("tfjob: the task could not be started: {!r}".format(error))
        return 126 << 8, False, time.time()
    return watch(child, task, directory)


def out_of_memory_kills() -> int:
    """How often the kernel has killed in this process's control group for want of memory; 0 where it does not tell.

    Source: the kernel's cgroup-v2.rst (memory.events) and cgroup-v1/memory.rst (memory.oom_control). A container sees
    its own group at the root, and its path as the machine knows it.
    """
    try:
        with open("/proc/self/cgroup") as file:
            groups = [line.rstrip("\n").split(":", 2) for line in file]
        for number, controllers, path in groups:
            if "memory" in controllers.split(","):
                places = ("/sys/fs/cgroup/memory" + path, "/sys/fs/cgroup/memory"), "memory.oom_control"
            elif number == "0":
                places = ("/sys/fs/cgroup" + path, "/sys/fs/cgroup"), "memory.events"
            else:
                continue
            for directory in places[0]:
                try:
                    with open(os.path.join(directory, places[1])) as file:
                        counts = dict(line.split() for line in file)
                        return int(counts["oom_kill"])
                except (OSError, KeyError):
                    continue
    except (OSError, ValueError):
        pass
    return 0


def linger(tasks_directory: str, grace_period_s: float) -> None:
    """Stay until the other ranks have ended: mpirun would kill them at once, and they shall have their grace to save.

    Their end comes from tfjob, which has read how this rank ended; without tfjob, after the grace period.
    """
    deadline = time.monotonic() + grace_period_s + LINGER_S
    ranks = [name for name in os.listdir(tasks_directory) if name.startswith("rank-")]
    while time.monotonic() < deadline:
        if all(os.path.exists(os.path.join(tasks_directory, name, "exit.json")) for name in ranks):
            return
        signal.sigtimedwait({signal.SIGTERM}, 0.05)


def rank_of(environ: Mapping[str, str]) -> str:
    """This process's rank, from the variables MPI libraries and Slurm set."""
    for variable in RANK_VARIABLES:
        if environ.get(variable, "").isdigit():
            return environ[variable]
    sys.exit("tfjob: no MPI rank in the environment (looked for {})".format(", ".join(RANK_VARIABLES)))


def spawn(task: dict[str, Any]) -> int:
    """Start the command in a session of its own; it dies with this process. Failing to start is exit status 126 or 127."""
    parent = os.getpid()
    child = os.fork()
    if child:
        return child
    try:
        os.setsid()
        prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
        if os.getppid() != parent:  # it died before the line above
            os._exit(128 + signal.SIGKILL)
        for number in (signal.SIGPIPE, signal.SIGINT, signal.SIGHUP, signal.SIGTERM):
            signal.signal(number, signal.SIG_DFL)
        signal.pthread_sigmask(signal.SIG_UNBLOCK, SIGNALS)
        os.chdir(task["cwd"])
        environment = dict(os.environ)
        environment.update(task["env"])
        environment["PWD"] = task["cwd"]
        try:
            os.execvpe(task["argv"][0], task["argv"], environment)
        except FileNotFoundError:
            complain("tfjob: command not found: {} (PATH is {})".format(task["argv"][0], environment.get("PATH", "")))
            os._exit(127)
        except OSError as error:
            complain("tfjob: {} can't be run: {}".format(task["argv"][0], error.strerror))
            os._exit(126)
    except BaseException as error:  # the child must never return into the parent's code
        complain("tfjob: the task could not be started: {!r}".format(error))
    finally:
        os._exit(126)
    return 0


def watch(child: int, task: dict[str, Any], directory: str) -> tuple[int, bool, float]:
    """Wait for the command, passing signals on and noting when its port is listened on. Returns (wait status, stopped, time).

    The time is when the command ended, whatever of it is waited for then: whose failure was the first is told by it.
    """
    port, deadline, stopped = task.get("port"), None, False
    begun = time.monotonic()
    while True:
        if deadline is not None:
            wait_s = max(deadline - time.monotonic(), 0.01)
        else:
            wait_s = look_s(task, time.monotonic() - begun) if port else 3600.0
        received = signal.sigtimedwait(SIGNALS, wait_s)
        number = received.si_signo if received else 0
        if number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
            stopped = True
            signal_group(child, number)
            deadline = deadline or time.monotonic() + task["grace_period_s"]
        if deadline is not None and time.monotonic() >= deadline:
            signal_group(child, signal.SIGKILL)
            deadline = time.monotonic() + 1.0
        if port and has_noted_listening(port, directory):
            port = None
        while True:
            try:
                pid, status = os.waitpid(-1, os.WNOHANG)
            except ChildProcessError:
                return 0, stopped, time.time()
            if pid == child:
                ended = time.time()
                wait_for_group(child, deadline)
                return status, stopped, ended
            if pid == 0:
                break


def look_s(task: dict[str, Any], waited_s: float) -> float:
    """When the port is looked at next. The kernel's table of sockets takes long to read: who never listens shall not pay for it."""
    return min(0.25 + waited_s / 20, float(task.get("listening_s", LISTENING_S)))


def wait_for_group(child: int, deadline: float | None) -> None:
    """Leave what is left of the command's group the rest of its grace: a shell ends at once, the training below it saves."""
    while deadline is not None and time.monotonic() < deadline:
        try:
            while os.waitpid(-1, os.WNOHANG)[0]:
                pass
            os.killpg(child, 0)
        except OSError:
            return
        time.sleep(0.02)


def kill_leftovers() -> None:
    """Kill what the command started and left behind: as their subreaper this process has inherited them.

    What was killed may have to wait for a processor to die on. How the task ended must be written all the same, also where
    what is left is another user's (sudo).
    """
    begun, limit_s = time.monotonic(), DYING_S
    while time.monotonic() - begun < limit_s:
        limit_s = FOREIGN_S
        for pid in children():
            try:
                os.kill(pid, signal.SIGKILL)
                limit_s = DYING_S
            except OSError:
                pass
        try:
            while os.waitpid(-1, os.WNOHANG)[0]:
                pass
        except ChildProcessError:
            return
        time.sleep(0.01)


def children() -> list[int]:
    """The pids whose parent is this process (proc(5), /proc/pid/stat field 4)."""
    me = os.getpid()
    found = [int(entry) for entry in os.listdir("/proc") if entry.isdigit()]
    return [pid for pid in found if parent_of(pid) == me]


def parent_of(pid: int) -> int:
    """A process's parent, or 0 if it is gone."""
    fields = stat_fields(pid)
    return int(fields[1]) if fields else 0


def start_ticks(pid: int) -> int:
    """When a process started, in clock ticks since boot (proc(5), field 22): with the pid it names one process for good."""
    fields = stat_fields(pid)
    return int(fields[19]) if fields else 0


def stat_fields(pid: int) -> list[bytes]:
    """The fields of /proc/pid/stat from the third on; the second may hold spaces and brackets."""
    try:
        with open("/proc/{}/stat".format(pid), "rb") as file:
            return file.read().rpartition(b")")[2].split()
    except OSError:
        return []


def has_noted_listening(port: int, directory: str) -> bool:
    """Note it if the task listens on its port; returns whether that is done."""
    if not is_listening(port):
        return False
    try:
        open(os.path.join(directory, "listening"), "w").close()
    except OSError:
        return False  # a full disk does not end a training; it is tried again
    return True


def is_listening(port: int) -> bool:
    """Whether this machine listens on a TCP port, without touching it (proc(5), /proc/net/tcp: state 0A is LISTEN)."""
    wanted = "{:04X}".format(port)
    for table in ("/proc/net/tcp", "/proc/net/tcp6"):
        try:
            with open(table) as file:
                for line in file:
                    fields = line.split()
                    if fields[3] == "0A" and fields[1].rpartition(":")[2] == wanted:
                        return True
        except OSError:
            continue
    return False


def signal_group(child: int, number: int) -> None:
    """Signal the command and its group; the command alone while it has not made its group yet."""
    try:
        os.killpg(child, number)
    except ProcessLookupError:
        os.kill(child, number)  # not reaped yet, so the pid is still its own
    except PermissionError:
        pass  # another user's (sudo)


def prctl(option: int, argument: int) -> None:
    """Change how the kernel treats this process. Where the C library can't be loaded the task does without."""
    try:
        import ctypes

        ctypes.CDLL(None, use_errno=True).prctl(option, argument, 0, 0, 0)
    except (ImportError, OSError, AttributeError):
        pass


def complain(message: str) -> None:
    """Say it in the task's log, if the log can still be written."""
    try:
        os.write(2, (message + "\n").encode("utf-8", "replace"))
    except OSError:
        pass


def reserve(directory: str) -> int:
    """Take the disk space of the result now, so that it can be written when the disk is full."""
    descriptor = os.open(os.path.join(directory, ".exit.json"), os.O_RDWR | os.O_CREAT | os.O_TRUNC, 0o644)
    os.write(descriptor, b" " * RESULT_BYTES)
    return descriptor


def finish(descriptor: int, directory: str, result: dict[str, Any]) -> None:
    """Write the result into its reserved space and give it its name: whole or not at all."""
    os.pwrite(descriptor, json.dumps(result).encode().ljust(RESULT_BYTES), 0)
    os.close(descriptor)
    os.replace(os.path.join(directory, ".exit.json"), os.path.join(directory, "exit.json"))


def write(directory: str, name: str, value: dict[str, Any]) -> None:
    """Write a small JSON file whole or not at all."""
    temporary = os.path.join(directory, "." + name)
    with open(temporary, "w", encoding="utf-8") as file:
        json.dump(value, file)
    os.replace(temporary, os.path.join(directory, name))


if __name__ == "__main__":
    if len(sys.argv) != 3:
        sys.exit("usage: entrypoint.py TASKS_DIRECTORY TASK")
    sys.exit(main(sys.argv[1], sys.argv[2]))
