"""The program beside tfjob's tasks in a container on another machine. Standard library only; any Python from 3.8.

    python -I -S agent.py end RUN                    what becomes of the container's main process when it is told to end
    python -I -S agent.py serve RUN PORTS ADDRESS    speaks with tfjob over its stdin and stdout

RUN is the run's directory in the container, PORTS how many free ports are looked for, ADDRESS where peers reach this node.

What it is told comes as lines of JSON: ``have`` (what tfjob has already), ``prepare`` (task files, code, datasets),
``sshd``, ``start``, ``stop``, ``sync``. What it says is a line of JSON each, some with `length` bytes after it:

    hello     interface, subnet, ports                  beat      nothing, once a second
    log       path, offset, length                      report    task, name, content
    file      path, size, mode, mtime_ns, last, length  link      path, target
    directory path                                      gone      path
    silent    task, words: it ended without a report    ready     what: it is as it was asked for
    leaving   the container was told to end from outside
    synced    everything was sent                       done      number: of the order
    problem   message

`agent_system.py` belongs to it.

When its stdin ends so does this program; tasks go on, and another one can be started that goes on from there.
"""

from __future__ import annotations

import json
import os
import select
import signal
import stat
import sys
import threading
import time

# shutil and subprocess are imported where they are used: neither is on the way to the first line of a script.

TYPE_CHECKING = False  # typing.TYPE_CHECKING, without importing typing
if TYPE_CHECKING:
    from collections.abc import Iterator
    from typing import Any

if TYPE_CHECKING or __package__:
    from tfjob.engines.cluster.agent_system import (
        copy_tree,
        directories,
        free_ports,
        interface_of,
        is_listening,
        is_same,
        link,
        place_files,
        spawn,
        start_ticks,
        walk,
    )
else:  # in a container: it lies beside this file
    sys.path.insert(0, os.path.dirname(os.path.abspath(__file__)))
    from agent_system import (
        copy_tree,
        directories,
        free_ports,
        interface_of,
        is_listening,
        is_same,
        link,
        place_files,
        spawn,
        start_ticks,
        walk,
    )

BEAT_S = 1.0
LOOK_S = 0.1
QUICK_LOOK_S = 0.01
QUICK_S = 3.0  # after the start: the first words are waited for
LONG_LOOK_S = 0.25
NEW_S = 10.0  # after that a training goes on for long, and shall not be disturbed
CHUNK_BYTES = 1 << 18
SILENT_S = 1.0
BEGUN_S = 30.0
SSHD_S = 20.0
REPORTS = ("started.json", "listening", "exit.json")
TOLD_TO_END = "told-to-end"
URGENT = ("stop", "kill")
ENTRYPOINT = os.path.join(os.path.dirname(os.path.abspath(__file__)), "entrypoint.py")


def end(run: str) -> None:
    """Tell every task to end, once, and stay until the last of them has ended: then the container ends."""
    agent = Agent(run)
    try:  # so that nobody takes the end of the tasks for their own
        open(os.path.join(run, TOLD_TO_END), "w").close()
    except OSError:
        pass
    try:
        agent.tasks = os.listdir(os.path.join(run, "tasks"))
    except OSError:
        return
    for task in agent.tasks:
        agent.signal(task, signal.SIGTERM)
    while any(agent.lives(task) for task in agent.tasks):
        time.sleep(0.1)


class Agent:
    """Watches one run's directory in this container and tells what happens there."""

    def __init__(self, run: str) -> None:
        self.run = run
        self.sent_logs: dict[str, int] = {}
        self.sent_reports: set[tuple[str, str]] = set()
        self.sent_files: dict[str, tuple[int, int]] = {}
        self.tasks: list[str] = []
        self.children: dict[int, str] = {}
        self.silent: dict[str, float] = {}
        self.keep: list[str] = []
        self.code = ""
        self.quick_until = 0.0
        self.merge_interval_s = 30.0
        self.orders: list[dict[str, Any]] = []
        self.buffer = b""
        self.next_look = 0.0
        self.leaving = False
        self.saying = threading.Lock()

    # What is said.

    def say(self, kind: str, data: bytes = b"", **facts: Any) -> None:
        """Say one thing, with the bytes that belong to it."""
        facts["kind"] = kind
        if data:
            facts["length"] = len(data)
        view = memoryview(json.dumps(facts).encode("ascii") + b"\n" + data)
        with self.saying:
            while view:
                view = view[os.write(1, view) :]

    def beat(self) -> None:
        """Say once a second that this program lives, whatever it does meanwhile."""
        while True:
            time.sleep(BEAT_S)
            self.say("beat")

    # The loop.

    def serve(self) -> None:
        """Do what is told and tell what happens, until stdin ends."""
        threading.Thread(target=self.beat, daemon=True).start()
        next_merge = 0.0
        while True:
            self.hear(self.pause_s())
            while self.orders:
                self.obey(self.orders.pop(0))
            if time.monotonic() >= self.next_look:
                self.look()
            if time.monotonic() >= next_merge:
                if next_merge:
                    self.look_at_outputs()
                next_merge = time.monotonic() + self.merge_interval_s

    def pause_s(self) -> float:
        """How long nothing is looked at."""
        now = time.monotonic()
        if now < self.quick_until:
            return QUICK_LOOK_S
        return LOOK_S if now < self.quick_until + NEW_S else LONG_LOOK_S

    def hear(self, wait_s: float) -> None:
        """Take what is told within a time. The end of it ends this program."""
        while select.select([0], [], [], wait_s)[0]:
            more = os.read(0, 1 << 20)
            if not more:
                raise SystemExit
            *lines, self.buffer = (self.buffer + more).split(b"\n")
            self.orders += [json.loads(line) for line in lines]
            wait_s = 0.0

    def attend(self) -> None:
        """In the middle of what takes long: do what can't wait, and tell what is new."""
        if time.monotonic() < self.next_look:
            return
        self.hear(0.0)
        if not any(order["do"] == "start" for order in self.orders):
            urgent = [order for order in self.orders if order["do"] in URGENT]
            self.orders = [order for order in self.orders if order["do"] not in URGENT]
            for order in urgent:
                self.obey(order)
        self.look()

    def obey(self, order: dict[str, Any]) -> None:
        """Do one thing; what can't be done is a problem that is told. What was told twice, as its answer was lost, does no harm."""
        number = order.pop("number", 0)
        try:
            getattr(self, "do_" + order.pop("do"))(**order)
        except OSError as error:  # shutil.Error is one
            self.say("problem", message=str(error))
        self.say("done", number=number)

    # What is done.

    def do_have(
        self,
        *,
        logs: dict[str, int],
        reports: list[list[str]],
        files: dict[str, list[int]],
        tasks: list[str],
        merge_interval_s: float,
        keep: list[str],
        code: str,
    ) -> None:
        """Learn what tfjob has, and which tasks are here."""
        self.sent_logs = logs
        self.sent_reports = {(task, name) for task, name in reports}
        self.sent_files = {path: (size, mtime) for path, (size, mtime) in {**self.read_left(), **files}.items()}
        self.tasks, self.merge_interval_s = tasks, merge_interval_s
        self.keep, self.code = keep, code

    def do_prepare(
        self,
        tasks: dict[str, Any],
        datasets: list[dict[str, Any]],
        named: list[str],
        files: dict[str, list[Any]],
    ) -> None:
        """Write the tasks' files, and give each its working copy of the code, with outputs, logs and datasets in place."""
        for name in ("outputs", "logs", "logs/user", "datasets", *("outputs/" + one for one in named)):
            os.makedirs(os.path.join(self.run, name), exist_ok=True)
        self.note_left()
        for path, (text, mode) in files.items():
            descriptor = os.open(os.path.join(self.run, path), os.O_WRONLY | os.O_CREAT | os.O_TRUNC, mode)
            with open(descriptor, "w", encoding="utf-8") as file:
                file.write(text)
        for dataset in datasets:
            self.place(dataset)
        for task, content in tasks.items():
            directory = os.path.join(self.run, "tasks", task)
            os.makedirs(directory, exist_ok=True)
            with open(os.path.join(directory, "task.json"), "w", encoding="utf-8") as file:
                json.dump(content, file)
            self.make_work(task)
        self.say("ready", what="prepare")

    def note_left(self) -> None:
        """Write down what an earlier attempt left in outputs: it is at home already."""
        file = os.path.join(self.run, "left.json")
        if not os.path.exists(file):
            left = {path: [status.st_size, status.st_mtime_ns] for path, status in self.outputs()}
            with open(file + ".unfinished", "w", encoding="utf-8") as written:
                json.dump(left, written)
            os.replace(file + ".unfinished", file)
        self.sent_files = {
            **{path: (size, mtime) for path, (size, mtime) in self.read_left().items()},
            **self.sent_files,
        }

    def read_left(self) -> dict[str, list[int]]:
        """What an earlier attempt left in outputs."""
        try:
            with open(os.path.join(self.run, "left.json"), encoding="utf-8") as file:
                found: dict[str, list[int]] = json.load(file)
                return found
        except (OSError, ValueError):
            return {}

    def place(self, dataset: dict[str, Any]) -> None:
        """Put a dataset where its tasks look for it: a link to it, or a copy of their own."""
        at = os.path.join(self.run, "datasets", dataset["at"])
        os.makedirs(os.path.dirname(at), exist_ok=True)
        if not os.path.lexists(at):
            if "links" in dataset:
                place_files(at, dataset["links"], copy=dataset["mode"] == "download")
            elif dataset["mode"] == "download":
                copy_tree(dataset["tree"], at)
            else:
                os.symlink(dataset["tree"], at)

    def make_work(self, task: str) -> None:
        """A task's working copy of the code, its directories to keep links into the run's."""
        work = os.path.join(self.run, "work", task)
        if self.code and not os.path.isdir(work):
            copy_tree(self.code, work)
        os.makedirs(work, exist_ok=True)
        link(os.path.join(work, "logs"), os.path.join(self.run, "logs", "user"))
        for kept in self.keep:
            outputs = os.path.join(self.run, "outputs")
            link(os.path.join(work, kept), outputs if kept == "outputs" else os.path.join(outputs, kept))

    def do_sshd(self, port: int, config: str) -> None:
        """Start the SSH server by which mpirun starts ranks here, and wait until it listens."""
        if is_listening(port):
            self.say("ready", what="sshd")
            return
        import shutil
        import subprocess

        program = shutil.which("sshd", path="/usr/sbin:/usr/local/sbin:/sbin:" + os.environ.get("PATH", ""))
        if program is None:
            self.say("problem", what="sshd", message="the image has no sshd")
            return
        if os.geteuid() == 0:
            os.makedirs("/run/sshd", exist_ok=True)
        said = os.path.join(self.run, "ssh", "sshd.log")
        with open(said, "wb") as log:
            child = subprocess.Popen(
                [program, "-D", "-e", "-f", config], stdin=subprocess.DEVNULL, stdout=log, stderr=log
            )
        deadline = time.monotonic() + SSHD_S
        while not is_listening(port):
            if child.poll() is not None or time.monotonic() > deadline:
                with open(said, encoding="utf-8", errors="replace") as log_text:
                    self.say("problem", what="sshd", message="sshd did not start: " + log_text.read()[-500:].strip())
                return
            time.sleep(0.01)
        self.say("ready", what="sshd")

    def do_start(self, tasks: list[str], python: str) -> None:
        """Start the entrypoints of tasks. They are in sessions of their own and stay when this program ends."""
        for task in tasks:
            try:  # told twice, because the answer was lost with its connection: once is enough
                os.close(os.open(self.task_file(task, ".begun"), os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o644))
            except FileExistsError:
                continue
            argv = [python, "-I", "-S", "-X", "utf8", ENTRYPOINT, os.path.join(self.run, "tasks"), task]
            self.children[spawn(argv, os.path.join(self.run, "agent.log"))] = task
        self.quick_until = time.monotonic() + QUICK_S
        self.say("ready", what="start")

    def do_stop(self, launcher: bool) -> None:
        """Tell tasks to end: the launcher, or all others. Their entrypoints kill what remains after the grace period."""
        for task in self.tasks:
            if (task == "launcher") == launcher and not os.path.exists(self.task_file(task, "exit.json")):
                self.signal(task, signal.SIGTERM)

    def do_kill(self) -> None:
        """Kill tasks that are still there when their grace is over."""
        for task in self.tasks:
            self.signal(task, signal.SIGKILL)

    def do_sync(self) -> None:
        """Send all there is: logs, reports, outputs, and what the script wrote elsewhere in its working directory."""
        self.look()
        self.look_at_outputs()
        self.look_at_work()
        self.say("synced")

    def signal(self, task: str, number: int) -> None:
        """Signal the entrypoint of a task, if it still runs."""
        report = self.read_report(task, "started.json")
        pid = report["pid"] if report else next((pid for pid, name in self.children.items() if name == task), 0)
        if pid and (report is None or start_ticks(pid) == report["start_ticks"]):
            try:
                os.kill(pid, number)
            except OSError:
                pass

    def lives(self, task: str) -> bool:
        """Whether a task's entrypoint runs."""
        report = self.read_report(task, "started.json")
        return report is not None and start_ticks(report["pid"]) == report["start_ticks"]

    # What is seen.

    def look(self) -> None:
        """Tell what is new: reports after the logs, so that who hears of an end has the whole log."""
        self.reap()
        found = [(task, name) for task in self.tasks for name in REPORTS if (task, name) not in self.sent_reports]
        there = [(task, name) for task, name in found if os.path.exists(self.task_file(task, name))]
        if not self.leaving and os.path.exists(os.path.join(self.run, TOLD_TO_END)):
            self.leaving = True
            self.say("leaving")
        self.look_at_logs()
        self.next_look = time.monotonic() + self.pause_s()
        if self.leaving:
            return  # tasks end because they were told to, and not by tfjob
        for task, name in there:
            content = "" if name == "listening" else self.read_text(self.task_file(task, name))
            self.say("report", task=task, name=name, content=content)
            self.sent_reports.add((task, name))
        for task in self.tasks:
            self.look_for_silence(task)

    def reap(self) -> None:
        """Wait for entrypoints that have ended, so that none stays as a zombie; note those that said nothing."""
        while True:
            try:
                pid, _ = os.waitpid(-1, os.WNOHANG)
            except ChildProcessError:
                return
            if pid == 0:
                return
            task = self.children.pop(pid, None)
            if task is not None and (task, "started.json") not in self.sent_reports:
                self.silent.setdefault(task, time.monotonic())

    def look_for_silence(self, task: str) -> None:
        """Tell of a task whose entrypoint is gone and has not said how it ended."""
        if (task, "exit.json") in self.sent_reports:
            return
        report = self.read_report(task, "started.json")
        if report is not None and start_ticks(report["pid"]) != report["start_ticks"]:
            self.silent.setdefault(task, time.monotonic())
        if report is None and task not in self.children.values() and self.begun_s(task) > BEGUN_S:
            self.silent.setdefault(task, time.monotonic())  # another one's child, which is gone
        since = self.silent.get(task)
        if since is not None and since > 0 and time.monotonic() - since > SILENT_S:
            if not os.path.exists(self.task_file(task, "exit.json")):
                self.say(
                    "silent",
                    task=task,
                    started=report is not None,
                    words=self.read_text(os.path.join(self.run, "agent.log"))[-500:],
                )
            self.silent[task] = -1.0  # told

    def begun_s(self, task: str) -> float:
        """How long ago a task was started, whether or not it has said so."""
        try:
            return time.time() - os.stat(self.task_file(task, ".begun")).st_mtime
        except OSError:
            return 0.0

    def look_at_logs(self) -> None:
        """Send what was written since the last look."""
        for path in self.logs():
            whole = os.path.join(self.run, path)
            try:
                size = os.stat(whole).st_size
            except OSError:
                continue
            sent = self.sent_logs.get(path, 0)
            if size < sent:  # it was begun anew
                sent = 0
                self.say("gone", path=path)
            if size > sent or path not in self.sent_logs:
                try:
                    self.send_log(path, whole, sent, size)
                except OSError:  # it may not be read, or is gone
                    self.sent_logs[path] = size

    def send_log(self, path: str, whole: str, sent: int, size: int) -> None:
        """Send a log from `sent` to `size`."""
        with open(whole, "rb") as file:
            file.seek(sent)
            while sent < size:
                data = file.read(min(CHUNK_BYTES, size - sent))
                if not data:
                    break
                self.say("log", data, path=path, offset=sent)
                sent += len(data)
        self.sent_logs[path] = sent

    def logs(self) -> Iterator[str]:
        """The logs of this node's tasks, and what scripts write to ./logs."""
        for task in self.tasks:
            if os.path.exists(os.path.join(self.run, "logs", task + ".log")):
                yield "logs/" + task + ".log"
        for path, status in walk(self.run, "logs/user"):
            if stat.S_ISREG(status.st_mode):
                yield path

    def outputs(self) -> Iterator[tuple[str, os.stat_result]]:
        """What scripts wrote to what is kept."""
        return walk(self.run, "outputs")

    def look_at_outputs(self) -> None:
        """Send what is new or has changed since it was sent, and tell what is gone."""
        files = {path: (status.st_size, status.st_mtime_ns) for path, status in self.outputs()}
        empty = set(directories(self.run, "outputs"))
        for path in [one for one in self.sent_files if one.startswith("outputs/") and one not in files.keys() | empty]:
            self.say("gone", path=path)  # before what may now stand in its place
            del self.sent_files[path]
        for path, stamp in files.items():
            if self.sent_files.get(path) != stamp and self.send_file(path):
                self.sent_files[path] = stamp
        for directory in empty - self.sent_files.keys():
            self.say("directory", path=directory)
            self.sent_files[directory] = (-1, 0)

    def look_at_work(self) -> None:
        """Send what the script made or changed outside of what is kept: hours of training must not be lost to a wrong name."""
        for task in self.tasks:
            for path, status in walk(self.run, "work/" + task):
                inside = path.partition("/")[2].partition("/")[2]
                if path.endswith(".pyc") or os.path.islink(os.path.join(self.run, path)):
                    continue
                if self.code and is_same(os.path.join(self.code, inside), status):
                    continue
                self.send_file(path)

    def send_file(self, path: str) -> bool:
        """Send one file in parts. Returns whether it stayed the same meanwhile; otherwise it is sent again later."""
        whole = os.path.join(self.run, path)
        try:
            if os.path.islink(whole):
                self.say("link", path=path, target=os.readlink(whole))
                return True
            with open(
                os.open(whole, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK), "rb"
            ) as file:  # whatever it is by now
                before = os.fstat(file.fileno())
                left = before.st_size
                while True:
                    data = file.read(min(CHUNK_BYTES, left)) if left else b""
                    left -= len(data)
                    now = os.fstat(file.fileno())
                    changed = (now.st_size, now.st_mtime_ns) != (before.st_size, before.st_mtime_ns)
                    last = left == 0 or not data or changed
                    self.say(
                        "file",
                        data,
                        path=path,
                        size=before.st_size,
                        mode=before.st_mode & 0o777,
                        mtime_ns=before.st_mtime_ns,
                        last=last,
                        whole=left == 0 and not changed,
                    )
                    if last:
                        return left == 0 and not changed
                    self.attend()
        except OSError:  # it was removed meanwhile, or may not be read
            return False

    def task_file(self, task: str, name: str) -> str:
        """The path of a task's report."""
        return os.path.join(self.run, "tasks", task, name)

    def read_report(self, task: str, name: str) -> dict[str, Any] | None:
        """A task's report, or None if it is not there."""
        try:
            with open(self.task_file(task, name), encoding="utf-8") as file:
                found: dict[str, Any] = json.load(file)
                return found
        except (OSError, ValueError):
            return None

    def read_text(self, path: str) -> str:
        """A file's text; nothing where there is none."""
        try:
            with open(path, encoding="utf-8", errors="replace") as file:
                return file.read()
        except OSError:
            return ""


def main(arguments: list[str]) -> None:
    """End the tasks, or serve."""
    if arguments[0] == "end":
        end(arguments[1])
        return
    _, run, ports, address = arguments
    signal.signal(signal.SIGPIPE, signal.SIG_DFL)
    agent = Agent(run)
    interface, subnet = interface_of(address)
    agent.say("hello", interface=interface, subnet=subnet, ports=free_ports(int(ports)))
    agent.serve()


if __name__ == "__main__":
    main(sys.argv[1:])
