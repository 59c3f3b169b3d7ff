"""How the run of a Slurm job is, in one file that is replaced as a whole. Standard library only; any Python from 3.8.

`slurm/state.json`:

    job, host        the Slurm job, and the node whose word this is
    phase            new (who submits writes it: nothing has begun), starting, running, ending, over (of the run);
                     lost (of an attempt that Slurm ended)
    attempt          which start of the gang this is, from 0
    nodes            name and address of each
    tasks            by name: state, started, listening, exit_code, signal, time, stopped, lost, out_of_memory
    message          what takes long while the nodes are made ready, or nothing
    end              outcome (completed, failed, canceled, slurm), message, task, kind, time; null while it goes on. While the
                     phase is ending it is known, and the nodes are not done yet
    attempts         those that failed and were followed by another: the same keys as they stood then
"""

from __future__ import annotations

import json
import os
import time

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import Any

LAST_WORD_TRIES, LAST_WORD_PAUSE_S = 60, 1.0
MOST_UNEXPLAINED = 3  # attempts in a row that Slurm ended without a word of why, and that use up no retry
QUIET_S = 0.1  # between two writes of what the tasks do


class State:
    """The state file of one run, which this program alone writes while it lives."""

    def __init__(self, run: str) -> None:
        self.run = run
        self.path = os.path.join(run, "slurm", "state.json")
        self.written = 0.0
        try:
            with open(self.path, encoding="utf-8") as file:
                self.value: dict[str, Any] = json.load(file)
        except FileNotFoundError:
            self.value = {"phase": "new", "attempts": [], "attempt": -1, "tasks": {}, "end": None}
        self.was_cut_off = self.value["phase"] not in ("new", "over", "failed")
        self.dirty = False

    @property
    def is_over(self) -> bool:
        """Whether the run has come to its end before."""
        return bool(self.value["phase"] == "over")

    def other_job(self) -> str:
        """The job that has the run, where that is not this one; what Slurm puts back in the queue keeps its id."""
        own = os.environ.get("SLURM_JOB_ID", "")
        job: str = self.value.get("job") or self.first_job(own)
        return job if job != own else ""

    def first_job(self, own: str) -> str:
        """Which job was the first to call this, of several that Slurm may start at the same moment; `own` where links can't be made."""
        claim = os.path.join(self.run, "slurm", "first_job")
        try:
            replace(claim + "-" + own, own)
            try:
                os.link(claim + "-" + own, claim)
            except FileExistsError:
                pass
            os.unlink(claim + "-" + own)
            with open(claim, encoding="utf-8") as file:
                return file.read()
        except OSError:
            return own

    @property
    def unexplained(self) -> int:
        """How many attempts in a row, up to the one before, Slurm ended, and killed this program before it knew why."""
        ends = [self.value["end"] if self.was_cut_off else None]
        ends += [attempt["end"] for attempt in reversed(self.value["attempts"])]
        known = (number for number, one in enumerate(ends) if one is None or one["kind"] != "")
        return next(known, len(ends))

    def explain(self, lost_nodes: Callable[[str], list[str]]) -> None:
        """Say why Slurm ended such an attempt, if there was one: it may know now that a node of it is lost.

        Else it was preempted, say, which uses up no retry; but a job that ends so each time comes to its end, too.
        """
        if not self.unexplained:
            return
        had = ",".join(node["name"] for node in self.value["nodes"])
        lost = lost_nodes(had) if had else []
        if lost:
            self.value["end"].update(message="a node was lost: {}".format(", ".join(lost)), kind="node_lost")
        elif self.unexplained > MOST_UNEXPLAINED:
            message = "Slurm ended it, as before, and left no time to find out why"
            self.value["end"].update(message=message, kind="node_lost")

    @property
    def was_lost(self) -> bool:
        """Whether the attempt before was lost with a node, and Slurm has started the job again."""
        end = self.value["end"]
        return self.was_cut_off and (end is None or end["kind"] == "node_lost")

    @property
    def verdict(self) -> dict[str, Any] | None:
        """What had come of the attempt before, by itself, when Slurm killed this program, which still waited for its nodes."""
        found: dict[str, Any] | None = self.value["end"]
        is_its_own = found is not None and found["outcome"] != "slurm"
        return found if is_its_own and self.value["phase"] == "ending" else None

    def begin_end(self, outcome: str, message: str, task: str | None, kind: str | None) -> None:
        """The attempt has come to this, and its nodes are told to end."""
        self.say(phase="ending", end=end(outcome, message, task, kind))

    def begin_attempt(self) -> int:
        """Put the attempt before away, if there was one, and begin another; returns its number."""
        if self.was_cut_off and self.value["end"] is None:
            self.value["end"] = {"outcome": "slurm", "message": "a node was lost", "task": None, "kind": "node_lost"}
        if self.value["phase"] != "new":
            kept = ("attempt", "job", "nodes", "tasks", "started", "end")
            self.value["attempts"].append({key: self.value[key] for key in kept if key in self.value})
        number: int = self.value["attempt"] + 1
        self.value.update(attempt=number, tasks={}, end=None, nodes=[], started=None, message="")
        job = os.environ.get("SLURM_JOB_ID", "")
        self.say(phase="starting", job=job, host=os.uname().nodename, begun=time.time())
        return number

    def put_away(self, number: int, tasks: list[str]) -> None:
        """Move the logs of the attempt before to a place of their own, and show its reports there."""
        self.was_cut_off = False
        if number == 0:
            return
        logs = os.path.join(self.run, "logs", f"attempt-{number}")
        part = os.path.join(self.run, "logs", f".attempt-{number}")
        if not os.path.isdir(logs):  # it is there whole or not at all: who follows the run goes by that
            os.makedirs(part, exist_ok=True)
            for task in tasks:
                log = os.path.join(self.run, "logs", task + ".log")
                if os.path.exists(log):
                    os.replace(log, os.path.join(part, task + ".log"))
            os.rename(part, logs)
        kept = os.path.join(self.run, "attempts", str(number))
        os.makedirs(kept, exist_ok=True)
        link = os.path.join(kept, "tasks")
        if not os.path.islink(link):
            os.symlink(os.path.join("..", "..", "slurm", "attempts", str(number - 1), "tasks"), link)

    def may_try_again(self, retries: dict[str, Any] | None, kind: str) -> bool:
        """Whether the job says that a run that ended for this reason starts again, and how often is not used up.

        Who was preempted, or put back in the queue by hand, has used up nothing.
        """
        used = sum(attempt["end"]["kind"] in ("failure", "node_lost") for attempt in self.value["attempts"])
        return retries is not None and kind in retries["on"] and used < retries["most"]

    def put(self, tasks: dict[str, dict[str, Any]]) -> None:
        """Bring the tasks up to date, if anything is new; not more often than anybody reads."""
        if tasks != self.value["tasks"]:
            self.value["tasks"] = {name: dict(status) for name, status in tasks.items()}
            self.dirty = True
        if self.dirty and time.monotonic() - self.written > QUIET_S:
            self.save()

    def say(self, **facts: Any) -> None:
        """Change something and write it at once."""
        self.value.update(facts)
        self.save()

    def fail_attempt(self, message: str, task: str | None, kind: str | None) -> None:
        """The attempt failed, and another begins."""
        self.say(phase="failed", end=end("failed", message, task, kind))

    def cut_off(self, message: str, kind: str | None) -> None:
        """Slurm ends the attempt: whether the run is over, its queue says."""
        self.say(phase="lost", end=end("slurm", message, None, kind))

    def finish(self, outcome: str, message: str, *, task: str | None = None, kind: str | None = None) -> None:
        """The run's last word. On a full disk it waits a little for space."""
        self.say(phase="over", end=end(outcome, message, task, kind))
        for _ in range(LAST_WORD_TRIES):
            if not self.dirty:
                return
            time.sleep(LAST_WORD_PAUSE_S)
            self.save()

    def save(self) -> None:
        """Write it. A disk that is full is tried again with the next news."""
        self.written = time.monotonic()
        self.dirty = False
        try:
            write_json(self.path, self.value)
        except OSError:
            self.dirty = True


def end(outcome: str, message: str, task: str | None, kind: str | None) -> dict[str, Any]:
    """An end as it is written."""
    return {"outcome": outcome, "message": message, "task": task, "kind": kind, "time": time.time()}


def write_json(path: str, value: Any) -> None:
    """Write a JSON file whole or not at all."""
    with open(path + ".new", "w", encoding="utf-8") as file:
        json.dump(value, file)
    os.replace(path + ".new", path)


def read_reason(run: str) -> str:
    """Why somebody wants the run to end."""
    try:
        with open(os.path.join(run, "cancel"), encoding="utf-8") as file:
            return file.read().strip("\0\n ") or "canceled"
    except OSError:
        return "canceled"


def replace(path: str, text: str) -> None:
    """Write a small file whole or not at all."""
    with open(path + ".new", "w", encoding="utf-8") as file:
        file.write(text)
    os.replace(path + ".new", path)
