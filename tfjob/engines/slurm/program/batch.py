"""The program of a Slurm job's first node. Standard library only; any Python from 3.8; imports nothing of tfjob.

    python -E -s -S start.py batch RUN_DIRECTORY      what the job script ends with; see ../script.py

It reads `slurm/gang.json`, has node.py on every node by one step of srun (step.py), binds the tasks to the nodes' names, ports and
GPUs, and takes the gang to its end: one failure ends all, a peer that never comes is a failure, a time limit is one. How
things are stands in `slurm/state.json`, replaced as a whole; tfjob only reads it. Nothing here needs a tfjob that lives.

Signals: SIGUSR1 is Slurm's early warning of the time limit; SIGUSR2 tfjob's request to end; SIGTERM Slurm's or somebody's.
"""

from __future__ import annotations

import json
import os
import select
import signal
import sys
import threading
import time

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

    from tfjob.engines.slurm.program import closing, slurm
    from tfjob.engines.slurm.program.binding import adapt, bind, host, values_of
    from tfjob.engines.slurm.program.clock import Clock
    from tfjob.engines.slurm.program.judging import Ended, judge_gang
    from tfjob.engines.slurm.program.state import State, read_reason, replace, write_json
    from tfjob.engines.slurm.program.step import Step, attempt_directory, word_of
else:  # they lie beside this file
    import closing
    import slurm
    from binding import adapt, bind, host, values_of
    from clock import Clock
    from judging import Ended, judge_gang
    from state import State, read_reason, replace, write_json
    from step import Step, attempt_directory, word_of

BEAT_S = 2.0
START_S = 300.0  # for every node's program to say what it has
PREPARE_S = 12 * 3600.0  # longer than all that container.py waits for, each with its limit
FENCE_S = 4.0  # what a lost node's programs take to see that another attempt has begun, and to kill what they run
CANCEL_LOOK_S = 2.0
DUE_LOOK_S = 3.0  # after the start, whose time is the tasks', for a warning that came before anybody listened
END_MARGIN_S = 10.0  # before a time limit: to end in order, and to say so
STAY_S = 900.0
UNSURE_STAY_S = (
    330.0  # for a node that only this program misses: Slurm does after five minutes (slurm.conf(5), SlurmdTimeout)
)
RETRIED = ("failure", "node_lost")
SIGNALS = (signal.SIGUSR1, signal.SIGUSR2, signal.SIGTERM, signal.SIGINT, signal.SIGHUP)


class Attempt:
    """One start of the gang, from its step of srun to the end of all its tasks."""

    def __init__(self, run: str, gang: dict[str, Any], state: State, step: Step | None) -> None:
        self.run, self.gang, self.state = run, gang, state
        self.number = state.begin_attempt()
        self.directory = attempt_directory(run, self.number)
        self.word = word_of(self.number)
        # It takes its time; its programs wait for `go`.
        program = "container" if gang["container"] else "node"
        self.step = step or Step(run, self.number, str(gang["node_count"]), program)
        self.asked = slurm.Asked("show", "node", "-o", slurm.node_list()) if gang["needs_addresses"] else None
        self.hellos: dict[int, dict[str, str]] = {}
        self.ports: dict[str, int] = {}
        self.ready: set[int] = set()
        self.statuses: dict[str, dict[str, Any]] = {task["name"]: {"state": "pending"} for task in gang["tasks"]}
        self.parts: dict[int, str] = {}  # of a node's word that is longer than a line
        self.has_begun = False
        self.clock = Clock()
        self.waiting_since: float | None = None
        self.failed_since: float | None = None
        self.doubted_since: float | None = None
        self.is_stopping = False  # while the nodes that have not looked are waited for
        self.looked: set[int] = set()  # the nodes that have told all they know since then
        self.deadline: float | None = None  # of limits.timeout_s, by the clock
        self.slurm_deadline: float | None = None  # of Slurm's own time limit, monotonic
        self.due_look: float | None = None  # when to ask for that limit, monotonic
        self.unread = b""
        self.is_ending = False
        self.signaled = False  # a node's program was told by Slurm to end
        self.broken = ""  # why a node's container could not be started
        self.is_hurried = False  # Slurm ends the job soon, whatever its nodes still do
        self.prepared = 0.0  # when a node last said that it prepares its container, by the clock
        self.cleared = 0.0  # when one last said that it clears up after it, monotonic
        self.lock = threading.Lock()
        self.wakeup, self.wake = os.pipe()
        os.set_blocking(self.wake, False)
        os.set_blocking(self.wakeup, False)

    def go(self) -> Ended:
        """Take the gang to its end, whatever it is."""
        os.makedirs(os.path.join(self.directory, "tasks"), exist_ok=True)
        replace(os.path.join(self.run, "slurm", "attempt"), self.word + "\n")
        signal.set_wakeup_fd(self.wake, warn_on_full_buffer=False)
        threading.Thread(target=self.beat, daemon=True).start()
        try:
            self.take_over()
            self.watch()
        except Ended as end:
            found = end
        # Slurm may kill this program before the nodes are done; what had come of the attempt is known all the same.
        self.state.begin_end(found.outcome, found.message, found.task, found.kind)
        self.is_hurried = found.outcome == "slurm" or found.kind == "time_limit"
        closing.end_gang(self)
        self.state.put(self.statuses)
        return found

    def take_over(self) -> None:
        """Make this the attempt whose reports count. What an earlier one on a lost node still runs is given time to kill itself."""
        if self.state.was_cut_off:
            time.sleep(FENCE_S)
        self.state.put_away(self.number, [task["name"] for task in self.gang["tasks"]])
        if self.number:
            if TYPE_CHECKING:
                from tfjob.engines.slurm.program import work
            else:
                import work
            try:
                work.renew_work(self.run, self.gang, self.number)
            except OSError as error:
                raise Ended("failed", f"attempt {self.number} can't have its copies of the code: {error}") from None
        link = os.path.join(self.run, "tasks")
        if os.path.isdir(link) and not os.path.islink(link):
            os.rmdir(link)
        os.symlink(os.path.join("slurm", "attempts", str(self.number), "tasks"), link + ".new")
        os.replace(link + ".new", link)

    def watch(self) -> None:
        """Listen to the nodes until it is over; raises Ended."""
        began, looked = self.clock.now(), 0.0
        while True:
            self.take(0.1)
            now = self.clock.now()
            if not self.has_begun and len(self.ready & self.hellos.keys()) == self.gang["node_count"]:
                self.begin()
            if not self.has_begun and now - max(began, min(self.prepared, began + PREPARE_S)) > START_S:
                message = f"not every node's program started within {now - began:.0f} s: {self.step.last_words()}"
                raise Ended("failed", message)
            self.state.put(self.statuses)
            if self.has_begun:
                judge_gang(self, now)
            if self.step.poll() is not None:
                self.drain()
                if self.broken:
                    raise Ended("failed", self.broken, kind="preparation")
                raise self.step_end()
            if now - looked > CANCEL_LOOK_S:
                looked = now
                if os.path.exists(os.path.join(self.run, "cancel")):
                    raise Ended("canceled", read_reason(self.run))
            self.look_at_limits()

    def look_at_limits(self) -> None:
        """Raise Ended if the run's own time or Slurm's is over."""
        if self.deadline is not None and self.clock.now() > self.deadline:
            limit = self.gang["limits"]["timeout_s"]
            raise Ended("failed", f"the run took longer than limits.timeout_s = {limit:g} s")
        now = time.monotonic()
        if self.due_look is not None and now > self.due_look:
            self.due_look = None
            self.is_due()
        if self.slurm_deadline is not None and now > self.slurm_deadline and self.is_due():
            raise Ended("failed", "it reached the time limit that Slurm gave it", kind="time_limit")

    def take(self, wait_s: float) -> None:
        """What the nodes said within `wait_s`, and signals."""
        output = self.step.output
        readable = select.select([output.fileno(), self.wakeup], [], [], wait_s)[0]
        if self.wakeup in readable:
            for number in os.read(self.wakeup, 4096):
                self.on_signal(number)
        if output.fileno() in readable:
            data = os.read(output.fileno(), 1 << 16)
            if not data:
                time.sleep(0.05)  # srun is about to end
            *lines, self.unread = (self.unread + data).split(b"\n")
            for line in lines:
                self.hear(line)
        if self.broken and not self.is_ending:
            raise Ended("failed", self.broken, kind="preparation")
        if self.signaled and not self.is_ending:  # all that was said with it has been heard
            self.signaled = False
            raise self.ending()

    def drain(self) -> None:
        """Read what was said before the step ended."""
        output = self.step.output
        while select.select([output], [], [], 0)[0]:
            data = os.read(output.fileno(), 1 << 16)
            if not data:
                break
            *lines, self.unread = (self.unread + data).split(b"\n")
            for line in lines:
                self.hear(line)

    def hear(self, line: bytes) -> None:
        """One line of a node's program."""
        try:
            word = json.loads(line)
            node = word.pop("node")
        except (ValueError, KeyError, AttributeError):
            return  # something else that the site's srun prints
        if word.get("part"):
            self.parts[node] = self.parts.get(node, "") + word["part"]
        elif "part" in word:
            self.hear(self.parts.pop(node, "").encode())
        elif "hello" in word:
            self.hellos[node] = word["hello"]
        elif "port" in word:
            self.ports[word["port"]] = word["number"]
        elif "ready" in word:
            self.ready.add(node)
        else:
            self.hear_of_tasks(word, node)

    def hear_of_tasks(self, word: dict[str, Any], node: int) -> None:
        """How tasks are, as far as a node knows, and what Slurm does with them."""
        if "looked" in word:
            self.looked.add(node)
        elif "task" in word:
            if self.is_ending and word.get("lost"):
                word["stopped"] = True  # it was told to end before it could say anything
            self.statuses[word.pop("task")] = word
        elif word.get("signal") in (signal.SIGTERM, signal.SIGINT):
            self.signaled = True
        else:
            self.hear_of_container(word, node)

    def hear_of_container(self, word: dict[str, Any], node: int) -> None:
        """A word of container.py, or one about what mpirun in a container wants on another node."""
        if "launch" in word:
            self.launch(word, node)
        elif "launched" in word:
            self.tell(word)
        elif "preparing" in word or "clearing" in word:
            self.prepared = self.clock.now()
            if "clearing" in word:
                self.cleared = time.monotonic()
            if not self.is_ending:
                self.state.say(message=word.get("preparing") or word["clearing"])
        elif "broken" in word:
            self.broken = word["broken"]

    def on_signal(self, number: int) -> None:
        """Slurm's warning, tfjob's request, or an end that comes from outside."""
        if self.is_ending:
            self.is_hurried = self.is_hurried or number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP)
        elif number == signal.SIGUSR1:
            self.is_due()
        elif number == signal.SIGUSR2:
            raise Ended("canceled", read_reason(self.run))
        elif number in SIGNALS:
            raise self.ending()

    def ending(self, found: dict[str, str] | None = None) -> Ended:
        """Why Slurm ends the job. Tasks hear that it does before Slurm is asked: the answer may take longer than what it leaves them.

        So may this program be killed before the answer.
        """
        self.stop()
        self.state.begin_end("slurm", "Slurm ended it", None, "")
        end: Ended = slurm.why_ending(Ended, found)
        return end

    def stop(self) -> None:
        """Let tasks end meanwhile: closing.py sees to it that they do."""
        self.tell("stop launched")
        if self.gang["launcher"] is None:  # else it waits for its ranks; see closing.py
            self.tell("stop")

    def is_due(self) -> bool:
        """Ask Slurm for its time limit, which may have been changed. Returns whether it is time to end for it.

        Slurm's warning may come a minute early (sbatch(1), --signal), or late: the tasks get all the time there is. At some sites
        it comes when the job is preempted, in the place of SIGTERM (slurm.conf(5), send_user_signal); raises Ended then.
        """
        found = slurm.job()
        if slurm.is_preempted(found):
            raise self.ending(found)
        left_s = slurm.time_left_s(found)
        if left_s is None:
            self.slurm_deadline = None
            return False
        left_s -= self.gang["limits"]["grace_period_s"] + END_MARGIN_S
        self.slurm_deadline = time.monotonic() + left_s
        return bool(left_s <= 0)

    def begin(self) -> None:
        """Every node has said what it has: bind the tasks and let them start."""
        names = [self.hellos[node]["name"] for node in range(self.gang["node_count"])]
        addresses = slurm.addresses(self.asked.answer()) if self.asked else {}
        nodes = [{"name": name, "address": addresses.get(name, name)} for name in names]
        values = values_of(self.gang, self.number, nodes, self.hellos, self.ports)
        for task in self.gang["tasks"]:
            directory = os.path.join(self.directory, "tasks", task["name"])
            os.makedirs(directory, exist_ok=True)
            bound = dict(bind(task, values), port=self.ports.get(task["port"]))
            if self.gang["container"]:
                adapt(task, bound, self.directory)
            write_json(os.path.join(directory, "task.json"), bound)
        self.tell("go")
        self.has_begun = True
        if self.gang["limits"]["timeout_s"] is not None:
            self.deadline = self.clock.now() + self.gang["limits"]["timeout_s"]
        self.state.say(phase="running", nodes=nodes, started=time.time(), message="")
        self.due_look = time.monotonic() + DUE_LOOK_S

    def launch(self, word: dict[str, Any], node: int) -> None:
        """Mpirun wants a program on another node: its container's node.py starts it, and `node` hears how it ended."""
        hosts = [host(self.hellos[index]) for index in range(self.gang["node_count"])]
        if word["on"] in hosts:
            self.tell({"launch": word["launch"], "at": hosts.index(word["on"]), "for": node})
        else:
            self.tell({"launched": word["launch"], "code": 255, "for": node})

    def step_end(self) -> Ended:
        """What it means that the step is over before the gang was: Slurm ended it, or it never came to be."""
        found = slurm.job()
        end: Ended = slurm.why_ending(Ended, found)
        if end.kind or self.signaled or slurm.is_ending(found):
            return end
        what = "the step of srun ended" if self.has_begun else "the step of srun could not be started"
        words = self.step.last_words()
        kind = "failure" if slurm.OUT_OF_MEMORY.search(words) else "node_lost"
        return Ended("failed", "{} ({})".format(what, words or "srun said nothing"), kind=kind)

    def tell(self, word: Any) -> None:
        """One line to every node's program."""
        with self.lock:
            try:
                if self.step.input is not None:
                    self.step.input.write(json.dumps(word).encode() + b"\n")
            except OSError:
                pass  # the step is over; `watch` sees it

    def beat(self) -> None:
        """Let the nodes know that somebody is there, whatever the file system does to the rest of this program."""
        while self.step.poll() is None and self.step.input is not None:
            self.tell("beat")
            self.clock.now()  # while the rest waits for Slurm, that is no standstill
            time.sleep(BEAT_S)


def main(run: str, first: Step | None) -> int:
    """Take the run to its end, with as many attempts as it has. `first` is the step of the first, if it was started already."""
    for number in SIGNALS:
        signal.signal(number, lambda *_: None)
    with open(os.path.join(run, "slurm", "gang.json"), encoding="utf-8") as file:
        gang = json.load(file)
    state = State(run)
    if state.is_over:
        return 0  # Slurm started it once more, and there is nothing more to do
    other = state.other_job()
    if other and slurm.is_living(other):
        # The script was submitted by hand, or twice because sbatch did not answer: the run and its files are the other's.
        sys.stderr.write(f"tfjob: job {other} runs this run already; this one leaves it alone\n")
        return 1
    retries = gang["retries"]
    state.explain(slurm.lost_nodes)
    if state.was_lost and not state.may_try_again(retries, "node_lost"):
        state.finish("failed", "a node was lost, and no retry is left", kind="node_lost")
        return 1
    verdict = state.verdict
    if verdict and not (verdict["kind"] in RETRIED and state.may_try_again(retries, verdict["kind"])):
        replace(os.path.join(run, "slurm", "attempt"), "over\n")
        time.sleep(FENCE_S)
        state.finish(verdict["outcome"], verdict["message"], task=verdict["task"], kind=verdict["kind"])
        return 0 if verdict["outcome"] == "completed" else 1
    while True:
        attempt = Attempt(run, gang, state, first)
        end = attempt.go()
        first = None
        if end.outcome == "slurm":
            state.cut_off(end.message, end.kind)
            replace(os.path.join(run, "slurm", "attempt"), "over\n")  # for nodes that can't be told otherwise
            if gang["requeues"]:
                time.sleep(
                    STAY_S if attempt.doubted_since is None else UNSURE_STAY_S
                )  # who ends by himself is not put back in the queue
            return 1
        if end.outcome == "failed" and end.kind == "failure" and state.may_try_again(retries, "failure"):
            state.fail_attempt(end.message, end.task, end.kind)
            continue
        state.finish(end.outcome, end.message, task=end.task, kind=end.kind)
        replace(os.path.join(run, "slurm", "attempt"), "over\n")
        return 0 if end.outcome == "completed" else 1
