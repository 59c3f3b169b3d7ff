"""What the job asks Slurm about itself. Standard library only; any Python from 3.8; imports nothing of tfjob."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import time
from datetime import datetime

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

PATIENCE_S = 20.0
WORDS = {
    "CANCELLED": ("canceled from outside of tfjob", "canceled"),
    "TIMEOUT": ("it reached the time limit that Slurm gave it", "time_limit"),
    "DEADLINE": ("it reached the deadline that Slurm gave it", "time_limit"),
    "PREEMPTED": ("Slurm preempted it", "preempted"),
    "PENDING": ("Slurm put it back in the queue", "requeued"),
    "REQUEUED": ("Slurm put it back in the queue", "requeued"),
}
OVER = (
    *("BOOT_FAIL", "CANCELLED", "COMPLETED", "DEADLINE", "FAILED", "NODE_FAIL", "OUT_OF_MEMORY", "PREEMPTED"),
    *("REVOKED", "TIMEOUT"),
)
ASKED_AGAIN, ASKED_PAUSE_S = 10, 6.0
OUT_OF_MEMORY = re.compile(r"oom.?kill|out.of.memory", re.IGNORECASE)
DOWN = re.compile(r"DOWN|NOT_RESPONDING|FAIL|\*")
POWERED = re.compile(r"POWER(ED|ING)_")  # switched off when no job needs it, or on for another
FIELD = re.compile(r"(?:^|\s)([A-Za-z][A-Za-z:]*)=(\S*)")


class Asked:
    """A question to scontrol, put at once; the answer is waited for when it is needed."""

    def __init__(self, *arguments: str) -> None:
        try:
            self.process: subprocess.Popen[bytes] | None = subprocess.Popen(
                ["scontrol", *arguments],
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=subprocess.DEVNULL,
                start_new_session=True,
            )
        except OSError:
            self.process = None

    def answer(self, patience_s: float = PATIENCE_S) -> str:
        """What scontrol says; nothing when it says nothing in time."""
        if self.process is None:
            return ""
        try:
            return self.process.communicate(timeout=patience_s)[0].decode("utf-8", "replace")
        except subprocess.TimeoutExpired:
            os.killpg(self.process.pid, signal.SIGKILL)  # a site's scontrol may be a script that has started another
            self.process.wait()
            if self.process.stdout is not None:
                self.process.stdout.close()
            return ""


def ask(*arguments: str) -> str:
    """What scontrol says; nothing when it says nothing in time."""
    return Asked(*arguments).answer()


def node_list() -> str:
    """This job's nodes, as Slurm writes them."""
    return os.environ.get("SLURM_JOB_NODELIST", "")


def job(patience_s: float = PATIENCE_S) -> dict[str, str]:
    """The fields of this job that hold no spaces; none when Slurm does not say them in time."""
    said = Asked("show", "job", "-o", os.environ.get("SLURM_JOB_ID", "")).answer(patience_s)
    return dict(FIELD.findall(said))


def is_living(number: str) -> bool:
    """Whether another job is not over; also where Slurm does not say in a minute, because two jobs must not do the same work."""
    for _ in range(ASKED_AGAIN):
        said = squeue("--noheader", "--states=all", "--format=%T", "--jobs=" + number)
        if said is not None:
            return any(state not in OVER for state in said.split())
        time.sleep(ASKED_PAUSE_S)
    return True


def squeue(*arguments: str) -> str | None:
    """What squeue says, nothing of a job that it does not know any more; None when it can't be asked."""
    try:
        done = subprocess.run(
            ["squeue", *arguments], stdin=subprocess.DEVNULL, capture_output=True, timeout=PATIENCE_S, check=False
        )
    except (OSError, subprocess.TimeoutExpired):
        return None
    if done.returncode and b"Invalid job id" in done.stderr:
        return ""
    return None if done.returncode else done.stdout.decode("utf-8", "replace")


def time_left_s(found: dict[str, str] | None = None) -> float | None:
    """Seconds until Slurm ends this job, by its fields, for its time limit; None when it has none, or does not say."""
    said = (job() if found is None else found).get("EndTime", "")
    try:
        # Slurm's are local times. One of the hour that comes twice is taken for the first, unless that is over.
        ends = [datetime.fromisoformat(said).replace(fold=fold).timestamp() for fold in (0, 1)]
    except (ValueError, OverflowError):
        return None
    now = time.time()
    return (ends[0] if ends[0] > now else ends[1]) - now


def is_preempted(found: dict[str, str]) -> bool:
    """Whether Slurm preempts the job with these fields. Its EndTime is then the end of its grace, no time limit."""
    preempted, suspended = (found.get(name, "None").replace("None", "") for name in ("PreemptTime", "SuspendTime"))
    # A job that goes on after it was suspended for another has a PreemptTime, too; its SuspendTime is when it went on.
    return preempted > suspended and found.get("JobState") not in ("CANCELLED", "TIMEOUT")


def end_of(found: dict[str, str]) -> tuple[str, str] | None:
    """What Slurm ends the job with these fields for, and the kind of that, as retries name it; None when it does not say."""
    return WORDS.get("PREEMPTED" if is_preempted(found) else found.get("JobState", ""))


def is_ending(found: dict[str, str]) -> bool:
    """Whether Slurm ends the job with these fields, whatever for: of most ends it says no more than that, as long as it waits for nodes."""
    return end_of(found) is not None or found.get("JobState") == "COMPLETING"


def addresses(said: str) -> dict[str, str]:
    """Where each node is reached by the others (slurm.conf(5), NodeAddr), which is what Slurm itself uses; by its name."""
    nodes = [dict(FIELD.findall(line)) for line in said.splitlines()]
    return {node["NodeName"]: node["NodeAddr"] for node in nodes if node.get("NodeAddr") and "NodeName" in node}


def lost_nodes(had: str | None = None) -> list[str]:
    """Those of this job's nodes that Slurm does not hear from; or of those that it `had` before, which may be switched off now."""
    lines = ask("show", "node", "-o", had or node_list()).splitlines()
    nodes = [dict(FIELD.findall(line)) for line in lines]
    lost = [node for node in nodes if DOWN.search(node.get("State", ""))]
    return [node.get("NodeName", "") for node in lost if had is None or not POWERED.search(node["State"])]


def why_ending(make: Any, found: dict[str, str] | None = None) -> Any:
    """Why Slurm ends this job, by its fields, asked for if need be. Its last word stands in the queue, where tfjob reads it."""
    found = job() if found is None else found
    words = end_of(found)
    if words is not None:
        message, kind = words
        return make("slurm", message, kind=kind)
    lost = lost_nodes()
    if lost:
        return make("slurm", "a node was lost: {}".format(", ".join(lost)), kind="node_lost")
    return make("slurm", "Slurm ended it", kind="")
