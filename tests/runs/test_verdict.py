from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from tfjob.engines.base import TaskStatus
from tfjob.planning.plan import LimitsPlan, Plan, TaskPlan
from tfjob.runs.verdict import SETTLE_S, absent, describe_end, judge


def plan(*tasks: TaskPlan, launcher: TaskPlan | None = None) -> Plan:
    return Plan(
        name="job",
        experiment="job",
        description="",
        tags=(),
        properties=(),
        target="local",
        runtime="process",
        node_count=1,
        gpus_per_node=0,
        code=None,
        environment=None,
        datasets=(),
        tasks=tasks,
        launcher=launcher,
        keep=("outputs",),
        named_outputs=(),
        secrets=(),
        limits=LimitsPlan(None, 60, 60, 5),
    )


def task(name: str, **facts: Any) -> TaskPlan:
    kind, _, index = name.rpartition("-")
    return TaskPlan(name, kind, int(index), 0, ("true",), **facts)


def running(name: str, **facts: Any) -> TaskStatus:
    return TaskStatus(name, "running", **facts)


def ended(name: str, exit_code: int | None = 0, time: float = 1.0, **facts: Any) -> TaskStatus:
    return TaskStatus(name, "ended", exit_code=exit_code, time=time, **facts)


WORKERS = plan(task("worker-0", port="worker-0"), task("worker-1", port="worker-1"))
RANKS = plan(
    task("rank-0", launched=True),
    task("rank-1", launched=True),
    launcher=replace(task("launcher-0"), name="launcher", argv=("mpirun",)),
)
SERVED = plan(
    task("chief-0", port="chief-0"),
    task("worker-0", port="worker-0", ends_run=False),
    task("ps-0", port="ps-0", ends_run=False),
)


def test_nothing_is_said_while_all_is_well() -> None:
    assert judge(WORKERS, [running("worker-0"), ended("worker-1")], None) is None


def test_all_workers_must_have_ended() -> None:
    verdict = judge(WORKERS, [ended("worker-0"), ended("worker-1")], None)
    assert verdict is not None
    assert verdict.outcome == "completed"


def test_the_first_failure_is_the_earliest_not_the_first_listed() -> None:
    verdict = judge(WORKERS, [ended("worker-0", 1, time=20.5), ended("worker-1", None, time=20.1, signal=9)], None)
    assert verdict is not None
    assert verdict.status is not None
    assert verdict.status.task == "worker-1"
    assert verdict.message.startswith("was killed by signal 9 (SIGKILL)")


def test_the_chiefs_end_is_the_runs_end() -> None:
    statuses = [ended("chief-0"), running("worker-0"), running("ps-0")]
    verdict = judge(SERVED, statuses, None)
    assert verdict is not None
    assert verdict.outcome == "completed"


def test_a_parameter_server_that_dies_is_a_failure() -> None:
    verdict = judge(SERVED, [running("chief-0"), running("worker-0"), ended("ps-0", 1)], None)
    assert verdict is not None
    assert verdict.status is not None
    assert verdict.status.task == "ps-0"


def test_ranks_that_mpirun_ended_are_not_blamed() -> None:
    statuses = [
        ended("rank-0", None, time=1.0, signal=15, stopped=True),
        ended("rank-1", 3, time=1.2),
        ended("launcher", 3, time=1.3),
    ]
    verdict = judge(RANKS, statuses, None)
    assert verdict is not None
    assert verdict.status is not None
    assert verdict.status.task == "rank-1"


def test_a_launcher_that_fails_by_itself_is_named() -> None:
    verdict = judge(
        RANKS, [TaskStatus("rank-0", "pending"), TaskStatus("rank-1", "pending"), ended("launcher", 1)], None
    )
    assert verdict is not None
    assert verdict.status is not None
    assert verdict.status.task == "launcher"


def test_a_task_ended_from_outside_is_a_failure() -> None:
    verdict = judge(WORKERS, [ended("worker-0", None, signal=15, stopped=True), running("worker-1")], None)
    assert verdict is not None
    assert verdict.outcome == "failed"


def test_the_missing_peer_is_the_one_that_does_not_listen() -> None:
    statuses = [running("worker-0", listening=True), running("worker-1")]
    assert [status.task for status in absent(WORKERS, statuses)] == ["worker-1"]
    assert judge(WORKERS, statuses, 59) is None
    verdict = judge(WORKERS, statuses, 61)
    assert verdict is not None
    assert verdict.status is not None
    assert verdict.status.task == "worker-1"
    assert verdict.message == (
        "did not come to the rendezvous within 60 s: its peers wait for it, and it does not listen on its port"
    )


def test_nobody_is_missing_where_nobody_waits() -> None:
    assert absent(WORKERS, [running("worker-0"), running("worker-1")]) == []
    assert absent(WORKERS, [running("worker-0", listening=True), running("worker-1", listening=True)]) == []
    assert absent(WORKERS, [running("worker-0", listening=True), ended("worker-1")]) == []


def test_a_rank_that_is_not_started_is_missing_while_its_launcher_runs() -> None:
    statuses = [running("rank-0"), TaskStatus("rank-1", "pending"), running("launcher")]
    assert [status.task for status in absent(RANKS, statuses)] == ["rank-1"]
    verdict = judge(RANKS, statuses, 61)
    assert verdict is not None
    assert verdict.message == "was not started by mpirun within 60 s"


@pytest.mark.parametrize(
    ("status", "words"),
    [
        (ended("a-0", 3), "exited with code 3"),
        (ended("a-0", None, signal=11), "was killed by signal 11 (SIGSEGV)"),
        (ended("a-0", None, signal=64), "was killed by signal 64 (SIGRTMAX)"),
        (ended("a-0", None, note="it vanished"), "failed: it vanished"),
    ],
)
def test_an_end_is_told_in_words(status: TaskStatus, words: str) -> None:
    assert describe_end(status) == words


def test_a_worker_that_fails_while_its_chief_ends_is_given_the_benefit_of_the_doubt() -> None:
    early = [running("chief-0"), ended("worker-0", 1, time=10.0), running("ps-0")]
    assert judge(SERVED, early, None, failed_for_s=1.0) is None
    late = judge(SERVED, early, None, failed_for_s=5.5)
    assert late is not None
    assert late.outcome == "failed"
    over = judge(
        SERVED,
        [ended("chief-0", 0, time=10.2), ended("worker-0", 1, time=10.0), running("ps-0")],
        None,
        failed_for_s=0.1,
    )
    assert over is not None
    assert over.outcome == "completed"


@pytest.mark.parametrize("time", [0.0, 1e12])
def test_how_long_a_failure_is_doubted_no_other_clock_says(time: float) -> None:
    statuses = [running("chief-0"), ended("worker-0", 1, time=time), running("ps-0")]
    assert judge(SERVED, statuses, None, failed_for_s=SETTLE_S - 0.1) is None
    assert judge(SERVED, statuses, None, failed_for_s=SETTLE_S + 0.1) is not None


def test_a_chief_that_fails_is_not_doubted_and_the_earliest_is_named() -> None:
    statuses = [ended("chief-0", 1, time=10.5), ended("worker-0", None, time=10.0, signal=9), running("ps-0")]
    verdict = judge(SERVED, statuses, None, failed_for_s=1.1)
    assert verdict is not None
    assert verdict.status is not None
    assert verdict.status.task == "worker-0"


def test_who_failed_first_is_told_when_none_that_runs_may_have_failed_before_unless_a_node_is_lost() -> None:
    victim, culprit = ended("worker-0", 1, time=11.0), ended("worker-1", 3, time=10.0)
    assert judge(WORKERS, [victim, running("worker-1")], None, failed_for_s=0.9) is None
    verdict = judge(WORKERS, [victim, culprit], None, failed_for_s=0.9)
    assert verdict is not None
    assert verdict.status == culprit
    lost = ended("worker-1", None, time=10.0, node_lost=True, note="gone")
    assert judge(WORKERS, [running("worker-0"), lost], None, failed_for_s=0.0) is not None


def test_a_lost_node_is_named_though_its_peers_failed_before_it_was_known_to_be_lost() -> None:
    statuses = [ended("worker-0", 1, time=10.0), ended("worker-1", None, time=30.0, node_lost=True, note="gone")]
    verdict = judge(WORKERS, statuses, None, failure_seen=10.0)
    assert verdict is not None
    assert verdict.status is not None
    assert (verdict.status.task, verdict.kind, verdict.message) == ("worker-1", "node_lost", "failed: gone")


def test_nobody_is_blamed_while_another_node_has_not_been_heard_since() -> None:
    failed = ended("worker-0", 1, time=10.0)
    assert judge(WORKERS, [failed, running("worker-1", heard=9.9)], None, failure_seen=10.1) is None
    for other in (running("worker-1", heard=10.2), running("worker-1"), ended("worker-1", 0, heard=9.9)):
        verdict = judge(WORKERS, [failed, other], None, failure_seen=10.1)
        assert verdict is not None
        assert verdict.status is not None
        assert (verdict.status.task, verdict.kind) == ("worker-0", "failure")


def test_nobody_is_blamed_while_an_end_may_be_held_back_on_another_node_but_not_for_ever() -> None:
    statuses = [ended("worker-0", 1, time=10.0), running("worker-1", heard=10.2, looked=9.9)]
    assert judge(WORKERS, statuses, None, failed_for_s=29.0, failure_seen=10.1) is None
    assert judge(WORKERS, statuses, None, failed_for_s=31.0, failure_seen=10.1) is not None
    looked = [statuses[0], running("worker-1", heard=10.2, looked=10.2)]
    assert judge(WORKERS, looked, None, failed_for_s=1.1, failure_seen=10.1) is not None


def test_who_comes_late_to_the_rendezvous_is_not_blamed_while_its_node_is_not_heard() -> None:
    def late(**facts: float) -> list[TaskStatus]:
        return [running("worker-0", listening=True, heard=9.0), running("worker-1", **facts)]

    assert judge(WORKERS, late(heard=9.9), 61, late_seen=10.0) is None
    assert judge(WORKERS, late(heard=10.1, looked=9.9), 61, late_seen=10.0) is None
    for facts in ({"heard": 10.1}, {"heard": 10.1, "looked": 10.1}):
        verdict = judge(WORKERS, late(**facts), 61, late_seen=10.0)
        assert verdict is not None
        assert verdict.status is not None
        assert (verdict.status.task, verdict.kind) == ("worker-1", "failure")
