"""The program beside tfjob's tasks in a container on another machine. Standard library only; any Python from 3.8.

    python -I -S agent.py end RUN                    what becomes of the container's main process when it is told to end
    python -I -S agent.py serve RUN PORTS ADDRESS    speaks with tfjob over its stdin and stdout

RUN is the run's directory in the container, PORTS how many free ports are looked for, ADDRESS where peers reach this node.

What it is told comes as lines of JSON: ``have`` (what tfjob has already), ``prepare`` (task files, code, datasets),
``sshd``, ``start``, ``stop``, ``sync``. What it says is a line of JSON each, some with `length` bytes after it:

    hello     interface, subnet, ports, time            beat      time, looked: see below; once a second
    log       path, offset, length                      report    task, name, content
    file      path, size, mode, mtime_ns, last, length  link      path, target
    directory path                                      gone      path
    silent    task, words: it ended without a report    ready     what: it is as it was asked for
    leaving   since: the container was told to end from outside, when; 0 if it can't be said
    full      the disk has no room left                 done      number: of the order; time, when it was begun
    synced    everything was sent                   walking   nothing: it looks at very many files
    problem   message

`looked` is the time of the last look at the tasks of which nothing is left to tell: what ended before has been told.

Beside it lie the modules that it is made of: `agent_tasks.py` (the tasks), `agent_files.py` (what goes home),
`agent_prepare.py` (what tasks find) and `agent_system.py` (what is asked of the system); and ../run_files.py.

When its stdin ends so does this program; tasks go on, and another one can be started that goes on from there.
"""

from __future__ import annotations

import json
import os
import select
import signal
import sys
import threading
import time

TYPE_CHECKING = False  # typing.TYPE_CHECKING, without importing typing
if TYPE_CHECKING:
    from typing import Any

if TYPE_CHECKING or __package__:
    from tfjob.engines.cluster.agent_files import Files
    from tfjob.engines.cluster.agent_prepare import (
        make_directories,
        make_work,
        place_dataset,
        start_sshd,
        write_files,
        write_task,
    )
    from tfjob.engines.cluster.agent_system import free_bytes, free_ports, interface_of
    from tfjob.engines.cluster.agent_tasks import Tasks, is_own_end, load, note_end, read_text, told_at
else:  # in a container: they lie beside this file
    sys.path.insert(0, os.path.dirname(os.path.abspath(__file__)))
    from agent_files import Files
    from agent_prepare import make_directories, make_work, place_dataset, start_sshd, write_files, write_task
    from agent_system import free_bytes, free_ports, interface_of
    from agent_tasks import Tasks, is_own_end, load, note_end, read_text, told_at

BEAT_S = 1.0
LOOK_S = 0.1
QUICK_LOOK_S = 0.01
QUICK_S = 3.0  # after the start: the first words are waited for
LONG_LOOK_S = 0.25
NEW_S = 10.0  # after that a training goes on for long, and shall not be disturbed
FULL_BYTES = 1 << 20
TOLD_TO_END = "told-to-end"
URGENT = ("stop", "kill")
EXIT = "exit.json"


def end(run: str) -> None:
    """Tell every task to end, once, and stay until the last of them has ended: then the container ends."""
    tasks = Tasks(run, lambda *_, **__: None)
    note_end(os.path.join(run, TOLD_TO_END))
    try:
        tasks.names = os.listdir(os.path.join(run, "tasks"))
    except OSError:
        return
    for task in tasks.names:
        tasks.signal(task, signal.SIGTERM)
    while any(tasks.lives(task) for task in tasks.names):
        time.sleep(0.1)


class Agent:
    """Watches one run's directory in this container and tells what happens there."""

    def __init__(self, run: str) -> None:
        self.run = run
        self.tasks = Tasks(run, self.say)
        self.files = Files(run, self.say, self.attend, self.heed)
        self.keep: list[str] = []
        self.quick_until = 0.0
        self.merge_interval_s = 30.0
        self.next_merge = float("inf")  # until it is told what is there already, and how often
        self.orders: list[dict[str, Any]] = []
        self.buffer = b""
        self.next_look = 0.0
        self.told_at: float | None = None
        self.looked = 0.0
        self.behind: set[str] = set()
        self.saying = threading.Lock()
        self.leaving = threading.Lock()

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
            self.is_leaving()  # the other thread may be busy, and peers fail of it meanwhile
            self.say("beat", time=time.time(), looked=self.looked)

    def is_leaving(self) -> bool:
        """Whether the container was told to end from outside, which is said once."""
        with self.leaving:
            if self.told_at is None:
                self.told_at = told_at(os.path.join(self.run, TOLD_TO_END))
                if self.told_at is not None:
                    self.say("leaving", since=self.told_at)
            return self.told_at is not None

    # The loop.

    def serve(self) -> None:
        """Do what is told and tell what happens, until stdin ends."""
        threading.Thread(target=self.beat, daemon=True).start()
        while True:
            self.hear(self.pause_s())
            while self.orders:
                self.obey(self.orders.pop(0))
            if time.monotonic() >= self.next_look:
                self.look()
            if time.monotonic() >= self.next_merge:
                self.files.send_outputs()
                self.next_merge = time.monotonic() + self.merge_interval_s

    def pause_s(self) -> float:
        """How long nothing is looked at."""
        if self.behind:
            return 0.0
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
        if time.monotonic() >= self.next_look:
            self.heed()
            self.look()

    def heed(self) -> None:
        """Do what can't wait, if it is told."""
        self.hear(0.0)
        if not any(order["do"] == "start" for order in self.orders):
            urgent = [order for order in self.orders if order["do"] in URGENT]
            self.orders = [order for order in self.orders if order["do"] not in URGENT]
            for order in urgent:
                self.obey(order)

    def obey(self, order: dict[str, Any]) -> None:
        """Do one thing; what can't be done is a problem that is told. What was told twice, as its answer was lost, does no harm."""
        number, begun = order.pop("number", 0), time.time()
        try:
            getattr(self, "do_" + order.pop("do"))(**order)
        except OSError as error:  # shutil.Error is one
            self.say("problem", message=str(error))
        self.say("done", number=number, time=begun)

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
        self.files.know(logs, files, tasks, code)
        self.tasks.sent_reports = {(task, name) for task, name in reports}
        self.tasks.names = tasks
        self.merge_interval_s, self.keep = merge_interval_s, keep
        self.next_merge = time.monotonic() + merge_interval_s

    def do_prepare(
        self,
        tasks: dict[str, Any],
        datasets: list[dict[str, Any]],
        named: list[str],
        files: dict[str, list[Any]],
    ) -> None:
        """Write the tasks' files, and give each its working copy of the code, with outputs, logs and datasets in place."""
        make_directories(self.run, named)
        self.files.note_left()
        write_files(self.run, files)
        for dataset in datasets:
            place_dataset(self.run, dataset)
        for task, content in tasks.items():
            write_task(self.run, task, content)
            make_work(self.run, task, self.files.code, self.keep)
        self.say("ready", what="prepare")

    def do_sshd(self, port: int, config: str) -> None:
        """Start the SSH server by which mpirun starts ranks here."""
        trouble = start_sshd(self.run, port, config)
        if trouble:
            self.say("problem", what="sshd", message=trouble)
        else:
            self.say("ready", what="sshd")

    def do_start(self, tasks: list[str]) -> None:
        """Start tasks."""
        self.tasks.start(tasks)
        self.quick_until = time.monotonic() + QUICK_S
        self.next_look = 0.0  # not when it was to be while nothing went on
        self.say("ready", what="start")

    def do_stop(self, launcher: bool) -> None:
        """Tell tasks to end: the launcher, or all others. Their entrypoints kill what remains after the grace period."""
        for task in self.tasks.names:
            if (task == "launcher") == launcher and not os.path.exists(self.tasks.file(task, "exit.json")):
                self.tasks.signal(task, signal.SIGTERM)

    def do_kill(self) -> None:
        """Kill tasks that are still there when their grace is over."""
        for task in self.tasks.names:
            self.tasks.signal(task, signal.SIGKILL)

    def do_sync(self) -> None:
        """Send all there is: logs, reports, outputs, and what the script wrote elsewhere in its working directory."""
        self.look(whole=True)
        self.files.send_outputs()
        self.files.send_work()
        if self.behind:  # what a task wrote while all that was sent
            self.look(whole=True)
        if free_bytes(self.run) < FULL_BYTES:
            self.say("full")
        self.say("synced")

    # What is seen.

    def look(self, *, whole: bool = False) -> None:
        """Tell what is new: reports of a task after its log, so that who hears of an end has the whole log.

        Of a long log it is a part only, unless all is to be told: the other tasks have their turn.
        """
        looked = time.time()
        self.tasks.reap()
        reports = self.tasks.new_reports()
        self.is_leaving()
        self.behind = self.files.send_logs(whole=whole)
        self.next_look = time.monotonic() + self.pause_s()
        held = [task for task, name in reports if name == EXIT and self.is_behind(task)]
        due = [(task, name) for task, name in reports if name != EXIT or task not in held]
        if self.is_leaving():  # tasks end because they were told to, and not by tfjob
            due = [(task, name) for task, name in due if name != EXIT or self.is_own_end(task)]
        self.tasks.send_reports(due)
        for task in self.tasks.names if self.told_at is None else ():
            if not self.is_behind(task):
                self.tasks.look_for_silence(task)
        if self.tasks.names and not held and not self.tasks.are_silent:
            self.looked = looked

    def is_own_end(self, task: str) -> bool:
        """Whether a task had ended before it was told to."""
        return self.told_at is None or is_own_end(read_text(self.tasks.file(task, EXIT)), self.told_at)

    def is_behind(self, task: str) -> bool:
        """Whether more of a task's log is there than was sent."""
        return f"logs/{task}.log" in self.behind


def main(arguments: list[str]) -> None:
    """End the tasks, or serve."""
    if arguments[0] == "end":
        end(arguments[1])
        return
    _, run, ports, address = arguments
    signal.signal(signal.SIGPIPE, signal.SIG_DFL)
    agent = Agent(run)
    interface, subnet = interface_of(address)
    agent.say("hello", interface=interface, subnet=subnet, ports=free_ports(int(ports)), time=time.time())
    load()
    agent.serve()


if __name__ == "__main__":
    main(sys.argv[1:])
