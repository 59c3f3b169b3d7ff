"""The program of a job's first node before its tasks run and after, with a srun that is a script."""

from __future__ import annotations

import json
import os
import signal
import threading
import time
from collections.abc import Callable, Iterator
from datetime import datetime
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from engines_slurm.slurm_commands import commands
from engines_slurm.slurm_plans import slurm_plan, workers
from engines_slurm.test_slurm_runtimes import module, programs_on_the_path
from support import eventually

from tfjob.engines.base import Prepared
from tfjob.engines.slurm.gang import gang_of
from tfjob.rundir import RunDirectory

__all__ = ["programs_on_the_path"]

BERLIN = "CET-1CEST,M3.5.0,M10.5.0/3"
"""A time zone as a machine knows it that has no names of them."""

Attempts = Callable[[dict[str, Any]], Any]


@pytest.fixture
def attempt(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Attempts]:
    """Make an attempt at a run whose srun writes to `told` what its programs are told; its state file holds `state`."""
    commands(tmp_path / "bin", srun=f"exec cat >{tmp_path}/told", scontrol="true", squeue="true")
    monkeypatch.setenv("PATH", f"{tmp_path}/bin:{os.environ['PATH']}")
    monkeypatch.setattr(module("step"), "this_python", lambda: ["python3"])
    run = RunDirectory(tmp_path / "run")
    (run.path / "slurm").mkdir(parents=True)
    run.logs.mkdir()

    def make(state: dict[str, Any]) -> Any:
        if state:
            (run.path / "slurm" / "state.json").write_text(json.dumps(state))
        gang = json.loads(json.dumps(gang_of(slurm_plan(*workers("true")), run, Prepared(None, {}))))
        gang["work"]["code"] = str(tmp_path / "gone")
        return module("batch").Attempt(str(run.path), gang, module("state").State(str(run.path)), None)

    yield make
    signal.set_wakeup_fd(-1)


FAILED = {"phase": "failed", "attempts": [], "attempt": 0, "tasks": {}, "end": {"kind": "failure"}}


def test_nodes_hear_of_it_while_it_takes_over(
    attempt: Attempts, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    made = attempt({})

    def take_over() -> None:
        told = tmp_path / "told"
        eventually(lambda: told.exists() and '"beat"' in told.read_text(), "a beat")
        raise module("batch").Ended("canceled", "enough")

    monkeypatch.setattr(made, "take_over", take_over)
    assert made.go().outcome == "canceled"


def test_two_that_look_at_once_both_see_that_srun_has_ended(attempt: Attempts, monkeypatch: pytest.MonkeyPatch) -> None:
    step = attempt({}).step
    step.input.close()
    waitpid, seen = os.waitpid, []
    other = threading.Thread(target=lambda: seen.append(step.poll()))

    def reaping(pid: int, _options: int) -> tuple[int, int]:
        found = waitpid(pid, 0)
        if not seen and not other.ident:
            other.start()
            other.join(0.5)  # it looks before the first has told what it saw
        return found

    monkeypatch.setattr(module("step").os, "waitpid", reaping)
    assert step.poll() == 0
    other.join()
    assert seen == [0]


def test_copies_of_the_code_that_can_not_be_made_end_the_run(attempt: Attempts) -> None:
    end = attempt(FAILED).go()
    assert (end.outcome, end.kind) == ("failed", None)
    assert "attempt 1 can't have its copies of the code" in end.message


def test_a_container_that_broke_as_the_step_ended_is_the_reason(
    attempt: Attempts, monkeypatch: pytest.MonkeyPatch
) -> None:
    made = attempt({})
    reading, writing = os.pipe()
    os.write(writing, b'{"broken": "node1: no room", "node": 0}\n')
    made.step.input.close()
    eventually(lambda: made.step.poll() is not None, "the end of srun")
    made.step.output = open(reading, "rb", buffering=0)  # noqa: SIM115  # the attempt's, as its own was
    monkeypatch.setattr(made, "take", lambda _wait_s: None)  # it came after that
    with pytest.raises(module("batch").Ended, match="node1: no room") as found:
        made.watch()
    assert found.value.kind == "preparation"
    os.close(writing)


def test_preparing_has_an_end(attempt: Attempts, monkeypatch: pytest.MonkeyPatch) -> None:
    batch = module("batch")
    monkeypatch.setattr(batch, "START_S", 0.0)
    monkeypatch.setattr(batch, "PREPARE_S", 0.0)
    made = attempt({})

    def take(_wait_s: float) -> None:
        made.prepared = batch.time.monotonic() + 60
        batch.time.sleep(0.01)

    monkeypatch.setattr(made, "take", take)
    with pytest.raises(batch.Ended, match="not every node's program started"):
        made.watch()
    module("closing").close_step(made)


def test_what_had_come_of_it_is_written_before_the_nodes_are_waited_for(
    attempt: Attempts, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    made = attempt({})
    kept = {}

    def close_step(made: Any) -> None:
        made.step.input.close()
        kept.update(json.loads((tmp_path / "run" / "slurm" / "state.json").read_text()))

    monkeypatch.setattr(module("closing"), "close_step", close_step)
    (tmp_path / "run" / "cancel").write_text("enough")
    made.go()
    assert (kept["phase"], kept["end"]["outcome"], kept["end"]["message"]) == ("ending", "canceled", "enough")


@pytest.mark.parametrize("launcher", [None, "launcher"])
def test_tasks_hear_that_slurm_ends_the_job_before_slurm_says_why(
    attempt: Attempts, tmp_path: Path, launcher: str | None
) -> None:
    first = "stop launched" if launcher else "stop"
    commands(
        tmp_path / "bin",
        scontrol=f"until grep -q '\"{first}\"' {tmp_path}/told; do sleep 0.05; done; echo JobState=TIMEOUT",
    )
    made = attempt({})
    made.gang["launcher"] = launcher
    with pytest.raises(module("batch").Ended, match="reached the time limit"):
        made.on_signal(signal.SIGTERM)
    assert ('"stop"\n' in (tmp_path / "told").read_text()) == (launcher is None)


@pytest.mark.parametrize("notices", [lambda made: made.on_signal(signal.SIGUSR1), lambda made: made.look_at_limits()])
def test_a_warning_of_preemption_is_none_of_the_time_limit(
    attempt: Attempts, tmp_path: Path, notices: Callable[[Any], None]
) -> None:
    end = time.strftime("%Y-%m-%dT%H:%M:%S", time.localtime(time.time() + 5))
    fields = f"JobState=RUNNING PreemptTime=2026-11-29T00:00:00 EndTime={end}"
    commands(tmp_path / "bin", scontrol=f"echo {fields}")
    made = attempt({})
    made.due_look = 0.0
    with pytest.raises(module("batch").Ended, match="Slurm preempted it") as found:
        notices(made)
    assert (found.value.outcome, found.value.kind) == ("slurm", "preempted")


@pytest.mark.parametrize(
    ("fields", "is_preempted"),
    [
        ({"PreemptTime": "2026-11-29T10:00:00", "SuspendTime": "None"}, True),
        ({"PreemptTime": "2026-11-29T10:00:00", "SuspendTime": "2026-11-29T10:30:00"}, False),
        ({"PreemptTime": "2026-11-29T10:00:00", "SuspendTime": "2026-11-29T09:00:00"}, True),
        ({"PreemptTime": "2026-11-29T10:00:00", "JobState": "CANCELLED"}, False),
        ({"PreemptTime": "None", "SuspendTime": "2026-11-29T10:30:00"}, False),
        ({}, False),
    ],
)
def test_a_job_that_was_suspended_for_another_is_not_preempted_for_good(
    fields: dict[str, str], *, is_preempted: bool
) -> None:
    assert module("slurm").is_preempted(fields) == is_preempted


@pytest.mark.parametrize(
    ("zone", "end", "now", "left_s"),
    [
        (BERLIN, "2026-10-25T02:30:00", "2026-10-25T00:10:00+00:00", 20 * 60),  # 2:10, in summer time
        (BERLIN, "2026-10-25T02:30:00", "2026-10-25T01:10:00+00:00", 20 * 60),  # 2:10 again
        (BERLIN, "2026-10-25T03:30:00", "2026-10-25T00:30:00+00:00", 2 * 3600),
        (BERLIN, "2026-07-01T12:00:00", "2026-07-01T10:00:30+00:00", -30),
        ("UTC", "2026-10-25T02:30:00", "2026-10-25T02:10:00+00:00", 20 * 60),
        ("UTC", "Unknown", "2026-10-25T02:10:00+00:00", None),
    ],
)
def test_the_hour_that_comes_twice_hides_no_time_limit(
    monkeypatch: pytest.MonkeyPatch, zone: str, end: str, now: str, left_s: float | None
) -> None:
    monkeypatch.setenv("TZ", zone)
    time.tzset()
    moment = datetime.fromisoformat(now).timestamp()
    monkeypatch.setattr(module("slurm"), "time", SimpleNamespace(time=lambda: moment))
    try:
        assert module("slurm").time_left_s({"EndTime": end}) == left_s
    finally:
        monkeypatch.undo()
        time.tzset()


class TestClearingUp:
    """A node says that it clears up, and does not end for that long."""

    @pytest.fixture
    def clearing(self, attempt: Attempts, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
        """An attempt whose srun ends by a signal alone; `looks` counts how often it was waited for before it had one."""
        commands(tmp_path / "bin", srun="exec sleep 1000")
        monkeypatch.setattr(module("closing"), "CLOSING", ((None, 0.0), (signal.SIGTERM, 60.0)))
        made = attempt({})
        made.is_ending, made.looks, made.then = True, 0, lambda: None
        made.says = b'{"clearing": "n1: clears up", "node": 0}'
        signaled: list[int] = []
        send = made.step.send

        def take(_wait_s: float) -> None:
            made.hear(made.says)
            made.looks += not signaled  # then it ends as soon as it has a processor
            if made.looks == 20:
                made.then()
            if made.looks > 500:
                pytest.fail("it is waited for")
            module("batch").time.sleep(0.001)

        def sending(number: int) -> None:
            signaled.append(number)
            send(number)

        monkeypatch.setattr(made.step, "send", sending)
        monkeypatch.setattr(made, "take", take)
        made.cleared = module("batch").time.monotonic()
        yield made
        made.step.send(signal.SIGKILL)

    def closes(self, made: Any) -> None:
        module("closing").close_step(made)
        assert os.WTERMSIG(made.step.poll()) == signal.SIGTERM

    @pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGHUP])
    def test_it_is_waited_for_until_slurm_ends_the_job(self, clearing: Any, number: int) -> None:
        clearing.then = lambda: clearing.on_signal(number)
        self.closes(clearing)
        assert clearing.looks >= 20

    def test_or_until_a_node_has_that_signal(self, clearing: Any) -> None:
        clearing.then = lambda: clearing.hear(b'{"signal": 15, "node": 0}')
        self.closes(clearing)
        assert clearing.looks >= 20

    def test_a_request_to_end_that_comes_then_changes_nothing(self, clearing: Any) -> None:
        clearing.then = lambda: clearing.on_signal(signal.SIGUSR2)
        with pytest.raises(pytest.fail.Exception, match="it is waited for"):
            self.closes(clearing)

    def test_and_never_past_the_time_limit(self, clearing: Any, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(module("slurm"), "time_left_s", lambda: module("closing").LIMIT_MARGIN_S)
        self.closes(clearing)

    @pytest.mark.parametrize(
        ("outcome", "kind", "is_hurried"),
        [("slurm", "preempted", True), ("failed", "time_limit", True), ("failed", "failure", False)],
    )
    def test_not_where_slurm_ends_the_job_anyway(
        self, attempt: Attempts, monkeypatch: pytest.MonkeyPatch, outcome: str, kind: str, *, is_hurried: bool
    ) -> None:
        made = attempt({})

        def watch() -> None:
            raise module("batch").Ended(outcome, "over", kind=kind)

        monkeypatch.setattr(made, "watch", watch)
        made.go()
        assert made.is_hurried == is_hurried

    def test_who_only_prepares_is_not_waited_for(self, clearing: Any) -> None:
        clearing.cleared, clearing.says = 0.0, b'{"preparing": "n1: unpacks", "node": 0}'
        clearing.take(0.0)  # it may end before it is looked at again
        assert clearing.prepared > 0
        self.closes(clearing)


class TestStartedAgain:
    """Slurm killed the program while it waited for its nodes, and starts the job again."""

    def main(self, attempt: Attempts, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, end: dict[str, Any]) -> Any:
        """What it makes of it: what is left in the state file."""
        batch = module("batch")
        monkeypatch.setattr(batch, "FENCE_S", 0.0)
        monkeypatch.setattr(signal, "signal", lambda *_: None)
        made = attempt({})
        made.step.input.close()
        run = tmp_path / "run"
        gang = {**made.gang, "retries": {"on": ["failure", "node_lost"], "most": 1}}
        (run / "slurm" / "gang.json").write_text(json.dumps(gang))
        state = module("state").State(str(run))
        state.begin_end(end["outcome"], "as it was", None, end["kind"])
        batch.main(str(run), None)
        return json.loads((run / "slurm" / "state.json").read_text())

    @pytest.mark.parametrize(
        ("outcome", "kind"),
        [("completed", None), ("failed", "preparation"), ("failed", "time_limit"), ("canceled", None)],
    )
    def test_what_had_come_of_it_stands(
        self, attempt: Attempts, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, outcome: str, kind: str | None
    ) -> None:
        left = self.main(attempt, tmp_path, monkeypatch, {"outcome": outcome, "kind": kind})
        assert (left["phase"], left["attempt"], left["attempts"]) == ("over", 0, [])
        assert (left["end"]["outcome"], left["end"]["kind"], left["end"]["message"]) == (outcome, kind, "as it was")

    @pytest.mark.parametrize(
        ("outcome", "kind"), [("failed", "failure"), ("slurm", "preempted"), ("slurm", "requeued")]
    )
    def test_or_is_tried_again_and_counted_as_what_it_was(
        self, attempt: Attempts, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, outcome: str, kind: str
    ) -> None:
        left = self.main(attempt, tmp_path, monkeypatch, {"outcome": outcome, "kind": kind})
        assert left["attempt"] == 1
        assert [one["end"]["kind"] for one in left["attempts"]] == [kind]

    @pytest.mark.parametrize(("states", "kind"), [("DOWN+NOT_RESPONDING", "node_lost"), ("ALLOCATED", "")])
    def test_and_where_it_was_killed_before_it_knew_why_slurm_tells_of_its_nodes(
        self, attempt: Attempts, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, states: str, kind: str
    ) -> None:
        says = f"echo NodeName=n1 State=IDLE+CLOUD+POWERED_DOWN; echo NodeName=n2 State={states}"
        commands(tmp_path / "bin", scontrol=f'[ "$*" != "show node -o n1,n2" ] || {{ {says}; }}')
        monkeypatch.setattr(module("state").State, "begin_end", _with_nodes(module("state").State.begin_end))
        left = self.main(attempt, tmp_path, monkeypatch, {"outcome": "slurm", "kind": ""})
        assert [one["end"]["kind"] for one in left["attempts"]] == [kind]
        assert ("n2" in left["attempts"][0]["end"]["message"]) == (kind == "node_lost")

    def test_a_job_that_always_ends_so_comes_to_its_end(self, tmp_path: Path) -> None:
        (tmp_path / "slurm").mkdir()
        retries = {"on": ["node_lost"], "most": 1}
        kinds = []
        for kind in ("", "", "preempted", *[""] * 20):
            state = module("state").State(str(tmp_path))
            state.explain(lambda _had: [])
            if state.was_lost and not state.may_try_again(retries, "node_lost"):
                break
            state.begin_attempt()
            state.begin_end("slurm", "Slurm ended it", None, kind)
            kinds = [one["end"]["kind"] for one in state.value["attempts"]]
        # The last, which is not among them, is the second that counts.
        assert kinds == ["", "", "preempted", "", "", "", "node_lost", "", "", ""]


def _with_nodes(begin_end: Callable[..., None]) -> Callable[..., None]:
    """The attempt before had the nodes n1 and n2."""

    def begin(state: Any, *end: Any) -> None:
        state.value.setdefault("nodes", [])
        if not state.value["attempts"]:
            state.value["nodes"] = [{"name": "n1"}, {"name": "n2"}]
        begin_end(state, *end)

    return begin


def test_the_time_that_a_job_was_suspended_is_not_the_run_s(attempt: Attempts, monkeypatch: pytest.MonkeyPatch) -> None:
    made = attempt({})
    made.gang["limits"]["timeout_s"] = 60
    made.deadline = made.clock.now() + 60
    suspended_s = 3600
    monkeypatch.setattr(module("clock"), "time", SimpleNamespace(monotonic=lambda: time.monotonic() + suspended_s))
    made.look_at_limits()
    made.deadline -= 60
    with pytest.raises(module("batch").Ended, match=r"longer than limits.timeout_s = 60 s"):
        made.look_at_limits()


@pytest.mark.parametrize("exit_code", [143, 0])  # a script that saves and ends well is not done either
@pytest.mark.parametrize(
    ("fields", "words", "kind"),
    [
        ("JobState=RUNNING PreemptTime=2026-11-29T00:00:00", "Slurm preempted it", "preempted"),
        ("JobState=CANCELLED", "canceled from outside of tfjob", "canceled"),
        ("JobState=COMPLETING", "Slurm ended it", ""),  # what it says of canceled jobs while their nodes are told
        ("JobState=RUNNING PreemptTime=None", None, None),
        ("", None, None),  # Slurm does not know
    ],
)
def test_what_slurm_ended_before_anybody_knew_has_not_ended_by_itself(
    attempt: Attempts,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    *,
    fields: str,
    words: str | None,
    kind: str | None,
    exit_code: int,
) -> None:
    # The others do not wait for Slurm's answer.
    told = f"until grep -q '\"stop\"' {tmp_path}/told; do sleep 0.05; done"
    commands(tmp_path / "bin", scontrol=f"{told}; case $2 in job) echo {fields};; esac")
    monkeypatch.setattr(module("judging"), "DOUBT_S", 60.0)
    made = attempt({})
    for task in made.gang["tasks"]:
        made.statuses[task["name"]] = {"state": "ended", "exit_code": exit_code, "time": 1.0, "stopped": False}
    with pytest.raises(module("batch").Ended) as found:
        module("judging").judge_gang(made, 1.0)
    own = ("failed", "", "failure") if exit_code else ("completed", "", None)
    expected = own if words is None else ("slurm", words, kind)
    assert (found.value.outcome, found.value.message, found.value.kind) == expected


def test_what_slurm_does_is_written_before_it_is_asked_why(attempt: Attempts, tmp_path: Path) -> None:
    kept = tmp_path / "kept.json"
    commands(tmp_path / "bin", scontrol=f"cp {tmp_path}/run/slurm/state.json {kept}; echo JobState=TIMEOUT")
    made = attempt({})
    with pytest.raises(module("batch").Ended, match="time limit"):
        made.on_signal(signal.SIGTERM)
    end = json.loads(kept.read_text())["end"]
    assert (end["outcome"], end["kind"]) == ("slurm", "")
    # Killed meanwhile and put back in the queue, it has lost no node, and used up no retry.
    state = module("state").State(str(tmp_path / "run"))
    state.value["phase"], state.value["end"], state.was_cut_off = "ending", end, True
    assert not state.was_lost
    assert state.verdict is None


def test_a_step_that_is_over_because_slurm_ends_the_job_lost_no_node(attempt: Attempts, tmp_path: Path) -> None:
    commands(tmp_path / "bin", scontrol="case $2 in job) echo JobState=COMPLETING;; esac")
    end = attempt({}).step_end()
    assert (end.outcome, end.message, end.kind) == ("slurm", "Slurm ended it", "")


@pytest.mark.parametrize(
    ("said", "kind"),
    [
        (
            "slurmstepd: error: Detected 1 oom_kill event in StepId=7.0. Some of the step tasks have been OOM Killed.",
            "failure",
        ),
        ("srun: error: Node failure on node2", "node_lost"),
    ],
)
def test_a_step_that_ran_out_of_memory_lost_no_node(
    attempt: Attempts, monkeypatch: pytest.MonkeyPatch, said: str, kind: str
) -> None:
    made = attempt({})
    monkeypatch.setattr(made.step, "last_words", lambda: said)
    end = made.step_end()
    assert (end.outcome, end.kind) == ("failed", kind)
    assert said in end.message


def test_nobody_is_blamed_before_every_node_has_looked(attempt: Attempts, tmp_path: Path) -> None:
    made = attempt({})
    first, second = (task["name"] for task in made.gang["tasks"])
    made.statuses[second] = {"state": "ended", "exit_code": 1, "time": 7.0, "stopped": False}
    module("judging").judge_gang(made, 10.0)
    told = tmp_path / "told"
    eventually(lambda: told.exists() and '"look"' in told.read_text(), "the nodes are asked")
    made.hear(b'{"looked": true, "node": 1}')
    module("judging").judge_gang(made, 10.1)  # node 0 has not looked
    made.hear(json.dumps({"task": first, "state": "ended", "exit_code": 3, "time": 6.0, "node": 0}).encode())
    with pytest.raises(module("batch").Ended) as found:
        module("judging").judge_gang(made, 10.2)
    assert (found.value.outcome, found.value.task, found.value.kind) == ("failed", first, "failure")


def test_a_node_that_says_nothing_after_a_failure_on_another_is_lost(attempt: Attempts, tmp_path: Path) -> None:
    made = attempt({})
    made.hellos = {0: {"name": "n1"}, 1: {"name": "n2"}}
    made.statuses[made.gang["tasks"][0]["name"]] = {"state": "ended", "exit_code": 1, "time": 7.0, "stopped": False}
    module("judging").judge_gang(made, 10.0)
    made.hear(b'{"looked": true, "node": 0}')
    lost_s = module("judging").LOST_S
    module("judging").judge_gang(made, 10.0 + lost_s - 0.1)
    told = tmp_path / "told"
    eventually(lambda: told.exists() and '"stop"' in told.read_text(), "the others need not go on so long")
    with pytest.raises(module("batch").Ended) as found:
        module("judging").judge_gang(made, 10.0 + lost_s + 0.1)
    assert (found.value.outcome, found.value.message, found.value.kind) == ("slurm", "a node was lost: n2", "node_lost")


def test_an_answer_that_does_not_come_is_not_waited_for(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    commands(tmp_path / "bin", scontrol="sleep 600; true")  # a script whose child has its output
    monkeypatch.setenv("PATH", f"{tmp_path}/bin:{os.environ['PATH']}")
    assert module("slurm").Asked("ping").answer(0.1) == ""


def test_a_slurm_that_does_not_answer_keeps_no_failure_back(
    attempt: Attempts, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    commands(tmp_path / "bin", scontrol="exec sleep 600")
    monkeypatch.setattr(module("judging"), "DOUBT_S", 0.1)
    made = attempt({})
    name = made.gang["tasks"][0]["name"]
    made.statuses[name] = {"state": "ended", "exit_code": 1, "time": time.time(), "stopped": False}
    assert module("judging").doubts(made, 1.0)
    made.looked.update(range(made.gang["node_count"]))
    with pytest.raises(module("batch").Ended) as found:
        module("judging").judge_gang(made, 1.0)
    assert (found.value.outcome, found.value.task, found.value.kind) == ("failed", name, "failure")


def test_a_node_tells_what_slurm_does_before_what_came_of_it(monkeypatch: pytest.MonkeyPatch) -> None:
    node = object.__new__(module("node").Node)
    node.has_begun, node.launching, node.children, node.told = True, None, {}, {}
    node.tasks = [{"name": "a"}, {"name": "b"}]
    node.wakeup, wake = os.pipe()
    os.set_blocking(node.wakeup, False)
    said: list[dict[str, Any]] = []
    ended: set[str] = set()

    def status(task: dict[str, Any], *, gone: bool) -> dict[str, Any]:
        if task["name"] == "b" and "b" not in ended:  # all of it comes after a was looked at
            ended.update("ab")
            os.write(wake, bytes([signal.SIGCHLD, signal.SIGTERM]))
        return {"state": "ended" if task["name"] in ended and not gone else "pending"}

    monkeypatch.setattr(node, "say", lambda **word: said.append(word))
    monkeypatch.setattr(node, "status", status)
    node.look()
    b, a = ({"task": name, "state": "ended"} for name in "ba")
    os.close(node.wakeup)
    os.close(wake)
    assert said == [{"signal": signal.SIGTERM}, b, a]  # and a child that ended meanwhile is seen now, not a tick later
