"""The program on each node of a Slurm job. Standard library only; any Python from 3.8; imports nothing of tfjob.

    python -E -s -S start.py node RUN_DIRECTORY ATTEMPT_DIRECTORY WORD      started by step.py, one per node, as one step of srun
    ... WORD UMASK                                                          by container.py in a container: the job's umask, octal

It talks with batch.py in lines of JSON over srun's own pipes: no port is opened, and Slurm says who is who. It says what
this node has (name, GPUs, free ports), waits for `go`, starts the entrypoints of the node's tasks, tells how they are, and
ends them when it is told to, when Slurm ends the step, and when batch.py is no longer heard. If `slurm/attempt` no longer
holds WORD, another attempt at this run has begun elsewhere: everything here is then killed at once, and nothing written.
"""

from __future__ import annotations

import _thread
import json
import os
import select
import signal
import sys
import time

TYPE_CHECKING = False
if TYPE_CHECKING:
    import socket
    from typing import Any

    from tfjob.engines.slurm.program.clock import Clock
    from tfjob.engines.slurm.program.launching import Launching
else:  # they lie beside this file
    from clock import Clock
    from launching import Launching

PORTS = range(20000, 32000)  # unprivileged, and below the range the kernel takes for outgoing connections (ip(7))
TICK_S = 0.1
BEAT_S = 2.0
SILENCE_S = 120.0  # without a word of batch.py: its node is lost, or this one
FENCE_S = 1.0
LINE_BYTES = 900  # slurmstepd passes on whole lines up to 1024 bytes; longer ones may be cut and mixed
PART_BYTES = 400  # of a longer word in one line, where quotes and backslashes have another before them
STEP_VARIABLES = (
    # What would make MPI libraries and srun think that a task is a task of this step.
    *("SLURM_STEP", "SLURM_SRUN_", "SLURM_PROCID", "SLURM_LOCALID", "SLURM_GTIDS", "SLURM_TASK_PID", "SLURM_LAUNCH_"),
    *("SLURM_EXPORT_ENV", "SLURM_CPU_BIND", "SLURM_DISTRIBUTION", "SLURM_MPI_TYPE", "SLURM_KILL_BAD_EXIT"),
    *("SLURM_NTASKS_PER_NODE", "SLURM_UNBUFFEREDIO", "PMI_", "PMI2_", "PMIX_"),
)


class Node:
    """What runs on this node for one attempt."""

    def __init__(self, run: str, attempt: str, word: str) -> None:
        self.run, self.attempt, self.word = run, attempt, word
        with open(os.path.join(run, "slurm", "gang.json"), encoding="utf-8") as file:
            self.gang: dict[str, Any] = json.load(file)
        self.index = int(os.environ["SLURM_NODEID"])
        self.tasks = [task for task in self.gang["tasks"] if task["node"] == self.index]
        self.children: dict[str, Child] = {}
        self.told: dict[str, dict[str, Any]] = {}
        self.stopped: set[str] = set()
        self.held: list[socket.socket] = []
        self.clock = Clock()
        self.heard = self.clock.now()
        self.has_begun = False
        self.launching: Launching | None = None
        self.unread = b""
        self.wakeup, wake = os.pipe()
        for end in (self.wakeup, wake):
            os.set_blocking(end, False)
        signal.set_wakeup_fd(wake, warn_on_full_buffer=False)
        for number in (signal.SIGCHLD, signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
            signal.signal(number, lambda *_: None)
        signal.pthread_sigmask(signal.SIG_SETMASK, [])

    def go(self) -> int:
        """Take this node's tasks to their end."""
        if not self.word.endswith(".0"):
            self.end_earlier_attempts()
        self.say(hello=self.hello())
        ports = {task["port"]: self.hold_port() for task in self.tasks if task["port"]}
        for name, port in ports.items():
            self.say(port=name, number=port)
        self.say(ready=True)
        load_entrypoint()  # while the word goes to batch.py and back
        beaten = time.monotonic()
        while True:
            ready = select.select([0, self.wakeup], [], [], TICK_S)[0]
            if self.wakeup in ready:
                self.note_signals()
            if 0 in ready and not self.listen():
                break
            self.look()
            now = time.monotonic()
            if now - beaten > BEAT_S:
                beaten = now
                self.say(beat=True)
            if self.clock.now() - self.heard > SILENCE_S:
                break
        self.kill()
        return 0

    def listen(self) -> bool:
        """Do what batch.py says. Returns whether to go on: not when it says so, and not when it is gone."""
        data = os.read(0, 65536)
        if not data:
            return False
        self.heard = self.clock.now()
        *lines, self.unread = (self.unread + data).split(b"\n")
        for line in filter(None, lines):
            word = json.loads(line)
            if isinstance(word, dict):
                if self.launching is not None:
                    self.launching.hear(word)
            elif word == "go":
                self.start()
            elif word == "look":
                self.look()
                self.say(looked=True)
            elif word == "stop launched":
                self.stop(launched=True)
            elif word == "stop":
                self.stop(launched=False)
            elif word == "end":
                return False
        return True

    def start(self) -> None:
        """Start the entrypoints of the tasks that are started here; a launcher starts the others."""
        import threading

        entrypoint = load_entrypoint()
        for one in self.held:
            one.close()
        environ = {name: value for name, value in os.environ.items() if not name.startswith(STEP_VARIABLES)}
        environ["TFJOB_RUN_ID"] = self.gang["run"]
        environ["TFJOB_ATTEMPT"] = self.word
        tasks = os.path.join(self.attempt, "tasks")
        for task in self.tasks:
            if task["launched"]:
                continue
            if task["launcher"]:
                environ["SLURM_OVERLAP"] = "1"  # mpirun's own step shares what this one holds
            if task["launcher"] and self.gang["container"]:
                environ = without_slurm(environ)
            self.children[task["name"]] = Child(lambda name=task["name"]: entrypoint.main(tasks, name), environ)
        if self.gang["container"] and self.gang["launcher"] and self.gang["node_count"] > 1:
            self.launching = Launching(
                self.index, self.attempt, without_slurm(environ), self.gang["launcher"], self.say
            )
        self.has_begun = True
        threading.Thread(target=self.watch_fence, daemon=True).start()  # after the forks: they take no thread along

    def hello(self) -> dict[str, str]:
        """What this node has. In a container, also what mpirun calls it, and the programs of the image."""
        found = {"name": os.environ.get("SLURMD_NODENAME", ""), "gpus": os.environ.get("CUDA_VISIBLE_DEVICES", "")}
        if self.gang["container"]:
            found.update(host=os.uname().nodename, path=os.environ.get("PATH", ""))
            open(os.path.join(self.attempt, f"container-{self.index}.started"), "w").close()  # see container.py
        return found

    def look(self) -> None:
        """Tell what is new of this node's tasks."""
        if not self.has_begun:
            return
        if self.launching is not None:
            self.launching.look()
        while True:
            news = []
            for task in self.tasks:
                name = task["name"]
                told = self.told.setdefault(name, {"state": "pending"})
                if told["state"] == "ended":
                    continue
                child = self.children.get(name)
                gone = child is not None and child.has_ended()
                now = self.status(task, gone=gone)
                if now != told:
                    self.told[name] = now
                    news.append(dict(now, task=name))
            # What came meanwhile is told first: it may be why a task has ended. Another may have ended, too.
            again = self.note_signals() if news else False
            for one in news:
                self.say(**one)
            if not again:
                return

    def status(self, task: dict[str, Any], *, gone: bool) -> dict[str, Any]:
        """How a task is, by its reports, which are written on this very node."""
        directory = os.path.join(self.attempt, "tasks", task["name"])
        report = read(os.path.join(directory, "started.json"))
        # The result is read after the process was looked at: it may just have ended.
        result = read(os.path.join(directory, "exit.json"))
        found: dict[str, Any] = {"state": "pending"}
        if report:
            found = {"state": "running", "started": report["time"]}
        if task["port"] and os.path.exists(os.path.join(directory, "listening")):
            found["listening"] = True
        if result:
            found.update(result, state="ended")
        elif gone or (report and task["launched"] and start_ticks(report["pid"]) != report["start_ticks"]):
            found.update(state="ended", time=time.time(), lost=True, exit_code=None, stopped=False)
            found["signal"] = self.children[task["name"]].signal if gone else None
        return found

    def stop(self, *, launched: bool) -> None:
        """Ask tasks to end, once each: SIGTERM to their entrypoints, which give them their grace."""
        for task in self.tasks:
            name = task["name"]
            if task["launched"] != launched or name in self.stopped:
                continue
            child = self.children.get(name)
            if child is not None and not child.has_ended():
                self.stopped.add(name)
                send(child.pid, signal.SIGTERM)
            elif launched:
                report = read(os.path.join(self.attempt, "tasks", name, "started.json"))
                if report and start_ticks(report["pid"]) == report["start_ticks"]:
                    self.stopped.add(name)
                    send(report["pid"], signal.SIGTERM)

    def note_signals(self) -> bool:
        """SIGTERM and the like come from Slurm, which is ending the step: batch.py finds out why. Returns whether a child has ended."""
        try:
            numbers = set(os.read(self.wakeup, 4096))
        except BlockingIOError:
            return False
        for number in numbers - {signal.SIGCHLD}:
            self.say(signal=number)
        return signal.SIGCHLD in numbers

    def watch_fence(self) -> None:
        """Kill everything of this attempt when another has begun. Opening the file asks the file server (nfs(5), close-to-open)."""
        path = os.path.join(self.run, "slurm", "attempt")
        while True:
            time.sleep(FENCE_S)
            try:
                with open(path, encoding="utf-8") as file:
                    word = file.read().strip()
            except OSError:
                continue
            if word and word != self.word:
                for child in self.children.values():
                    child.kill()
                self.kill()
                os._exit(1)

    def kill(self) -> None:
        """SIGKILL whatever bears the marks of this attempt, until nothing is found: one may just have forked."""
        marks = (("TFJOB_RUN_ID=" + self.gang["run"]).encode(), ("TFJOB_ATTEMPT=" + self.word).encode())
        kill_marked(lambda environ: all(mark in environ for mark in marks))

    def end_earlier_attempts(self) -> None:
        """Kill what another attempt at this run left on this node."""
        run, mine = ("TFJOB_RUN_ID=" + self.gang["run"]).encode(), ("TFJOB_ATTEMPT=" + self.word).encode()
        kill_marked(lambda environ: run in environ and mine not in environ and any(map(is_attempt, environ)))

    def hold_port(self) -> int:
        """A port that is free on this node, kept until the tasks start."""
        import socket  # only for tasks that listen: it takes milliseconds

        for _ in range(1000):
            one = socket.socket(socket.AF_INET, socket.SOCK_STREAM)
            port = PORTS.start + int.from_bytes(os.urandom(4), "big") % len(PORTS)  # seldom what another run tries
            try:
                one.bind(("", port))  # held, never listened on
            except OSError:
                one.close()
                continue
            self.held.append(one)
            return port
        sys.exit(f"tfjob: no free port between {PORTS.start} and {PORTS.stop - 1}")

    def say(self, **word: Any) -> None:
        """One word to batch.py, in several lines if need be. If it is gone there is nobody to tell; `listen` sees it."""
        text = json.dumps(dict(word, node=self.index))
        lines = [text]
        if len(text) > LINE_BYTES:
            parts = [text[begin : begin + PART_BYTES] for begin in range(0, len(text), PART_BYTES)]
            lines = [json.dumps({"part": part, "node": self.index}) for part in parts]
            lines.append(json.dumps({"part": "", "node": self.index}))  # that was all of it
        try:
            for line in lines:
                os.write(1, line.encode() + b"\n")
        except OSError:
            pass


class Child:
    """A process that runs `main` and nothing else of this program: the entrypoint of a task, without the start of a Python."""

    def __init__(self, main: Any, environ: dict[str, str]) -> None:
        self.status: int | None = None
        self.lock = _thread.allocate_lock()  # who watches the fence kills it
        self.pid = os.fork()
        if self.pid:
            return
        code = 70
        try:
            signal.set_wakeup_fd(-1)
            for number in (signal.SIGCHLD, signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
                signal.signal(number, signal.SIG_DFL)
            os.setsid()
            nothing = os.open(os.devnull, os.O_RDONLY)
            os.dup2(nothing, 0)
            os.dup2(2, 1)  # what it says of itself is not for batch.py
            os.environ.clear()
            os.environ.update(environ)
            code = main()
        except BaseException:
            sys.excepthook(*sys.exc_info())
        finally:
            sys.stderr.flush()
            os._exit(code)

    def has_ended(self) -> bool:
        """Whether it is over; it is then reaped."""
        with self.lock:
            if self.status is None:
                pid, status = os.waitpid(self.pid, os.WNOHANG)
                if pid:
                    self.status = status
            return self.status is not None

    def kill(self) -> None:
        """SIGKILL, unless it was reaped: its number may be another process's by now."""
        with self.lock:
            if self.status is None:
                send(self.pid, signal.SIGKILL)

    @property
    def signal(self) -> int | None:
        """The signal that ended it, if one did."""
        return os.WTERMSIG(self.status) if self.status is not None and os.WIFSIGNALED(self.status) else None


def load_entrypoint() -> Any:
    """The module that runs a task, with what it loads itself: every task of this node is a fork of this process."""
    try:
        import ctypes  # noqa: F401
    except ImportError:
        pass  # it does without
    if TYPE_CHECKING:
        from tfjob import entrypoint
    else:  # it lies beside this file
        import entrypoint
    return entrypoint


def without_slurm(environ: dict[str, str]) -> dict[str, str]:
    """The variables for mpirun and its daemons in containers: by those of Slurm's it would look for srun, which is not there."""
    return {name: value for name, value in environ.items() if not name.startswith("SLURM")}


def is_attempt(variable: bytes) -> bool:
    """Whether an entry of /proc/pid/environ says which attempt a process belongs to."""
    return variable.startswith(b"TFJOB_ATTEMPT=")


def kill_marked(is_meant: Any) -> None:
    """SIGKILL every process of this user whose environment `is_meant`, until none is found."""
    for _ in range(50):
        found = [pid for pid in pids() if is_meant(environment(pid))]
        if not found:
            return
        for pid in found:
            send(pid, signal.SIGKILL)
        time.sleep(0.02)


def pids() -> list[int]:
    """The processes of this node but this one."""
    me = os.getpid()
    return [int(name) for name in os.listdir("/proc") if name.isdigit() and int(name) != me]


def environment(pid: int) -> list[bytes]:
    """The environment a process was started with; empty for other users' and those that have just gone."""
    try:
        with open(f"/proc/{pid}/environ", "rb") as file:
            return file.read().split(b"\0")
    except OSError:
        return []


def start_ticks(pid: int) -> int:
    """When a process started, in clock ticks since boot (proc(5)); 0 for one that is gone or a zombie."""
    try:
        with open(f"/proc/{pid}/stat", "rb") as file:
            fields = file.read().rpartition(b")")[2].split()
    except OSError:
        return 0
    return 0 if fields[0] in (b"Z", b"X") else int(fields[19])


def send(pid: int, number: int) -> None:
    """Signal a process that may be gone by now."""
    try:
        os.kill(pid, number)
    except OSError:
        pass


def read(path: str) -> Any:
    """A JSON file, or None if it is not there or not whole yet."""
    try:
        with open(path, encoding="utf-8") as file:
            return json.load(file)
    except (OSError, ValueError):
        return None


def main(run: str, attempt: str, word: str, umask: str | None = None) -> int:
    """Take this node's tasks to their end; `umask`, in octal, where what is inherited is not the job's."""
    if umask is not None:
        os.umask(int(umask, 8))
    return Node(run, attempt, word).go()
