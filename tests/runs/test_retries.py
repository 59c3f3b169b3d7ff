"""Runs that start again: what goes on, what is kept of each attempt, and what is never tried again."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from engines.engine_bench import plan, task
from support import Tfjob, eventually, kill, processes_of

from tfjob.planning.plan import Plan, RetriesPlan
from tfjob.rundir import RunDirectory
from tfjob.runs.attempts import is_tried_again, left_by_attempts, put_away
from tfjob.runs.record import Attempt, Failure, Record
from tfjob.runs.verdict import Verdict

FLAKY = """
    name: flaky
    command: |
      at=$(cat outputs/checkpoint 2>/dev/null || echo 0)
      echo "attempt $TFJOB_RESTART_COUNT (${{ restart.count }}) on GPU $CUDA_VISIBLE_DEVICES goes on from $at"
      [ ! -e mark ] || exit 9
      touch mark; echo outside > elsewhere
      echo $((at + 5)) > outputs/checkpoint
      if [ $at -lt 10 ]; then printf 'cut'; exit 3; fi
      echo trained
    compute: {gpus_per_node: 1}
    retries: {max: 3, on: [failure]}
"""
TOLD = [
    "attempt 0 (0) on GPU 0 goes on from 0",
    "cut",
    "tfjob: this is attempt 2",
    "attempt 1 (1) on GPU 0 goes on from 5",
    "cut",
    "tfjob: this is attempt 3",
    "attempt 2 (2) on GPU 0 goes on from 10",
    "trained",
]
PAIR = """
    name: pair
    command: |
      echo "$TFJOB_TASK_NAME $TFJOB_RESTART_COUNT"
      if [ $TFJOB_RESTART_COUNT = 1 ]; then exit 0; fi
      if [ $TFJOB_TASK_INDEX = 1 ]; then until [ -e ../worker-0/ready ]; do sleep 0.02; done; exit 4; fi
      trap true TERM
      touch ready
      until [ -e DIRECTORY/go ]; do sleep 0.05 || true; done
    distribution: {type: tensorflow, worker_count: 2}
    limits: {grace_period_s: 100}
    retries: {max: 1, on: [failure]}
"""


def with_one_gpu(tfjob: Tfjob) -> None:
    tfjob("init")
    (tfjob.directory / ".tfjob" / "config.yml").write_text("local: {gpus: 1}\n")


@pytest.mark.xdist_group("gpu")  # all runs of this machine share the one that config.yml declares
def test_a_run_goes_on_from_its_outputs_until_it_is_done(tfjob: Tfjob) -> None:
    with_one_gpu(tfjob)
    tfjob.write("job.yml", FLAKY)
    done = tfjob("submit", "job.yml")
    assert done.stdout.splitlines() == TOLD
    assert "tfjob: Attempt 1 failed: main on " in done.stderr
    assert "exited with code 3; trying again" in done.stderr
    record = tfjob.show()
    assert (record["state"], record["failure"]) == ("Completed", None)
    assert [phase["name"] for phase in record["phases"]] == ["Preparing", "Scaling", "Running", "Finalizing"]
    for number, attempt in enumerate(record["attempts"], 1):
        assert (attempt["number"], attempt["nodes"]) == (number, [record["tasks"][0]["node"]])
        assert (attempt["failure"]["exit_code"], attempt["failure"]["kind"]) == (3, "failure")
        assert attempt["failure"]["log_tail"][-1] == "cut"
        assert attempt["started"] <= attempt["ended"] <= record["ended"]
    run = tfjob.run_directory(record["id"])
    assert (run / "logs/attempt-1/main.log").read_text().splitlines() == TOLD[:2]
    assert (run / "logs/attempt-2/main.log").read_text().splitlines() == TOLD[2:5]
    assert (run / "logs/main.log").read_text().splitlines() == TOLD[5:]
    assert json.loads((run / "attempts/1/tasks/main/exit.json").read_bytes())["exit_code"] == 3
    assert record["outputs"] == [{"path": "checkpoint", "size_bytes": 3}]
    places = ["attempts/1/work/main", "attempts/2/work/main", "work/main"]
    assert record["left_in_work"] == [f"{place}/{name}" for place in places for name in ("elsewhere", "mark")]
    for follow in ([], ["-f"]):
        assert tfjob("logs", *follow, "latest").stdout.splitlines() == TOLD
    for follow in ([], ["-f"]):
        assert tfjob("logs", *follow, "--tail", "1", "latest").stdout == "trained\n"
    shown = tfjob("show", "latest").stdout
    assert "ATTEMPT  NODES" in shown
    assert shown.count("exited with code 3") == 2


def test_what_fails_too_often_has_failed(tfjob: Tfjob) -> None:
    tfjob.write("job.yml", "name: never\ncommand: exit 7\nretries: {max: 2, on: [failure]}")
    done = tfjob("submit", "job.yml", exit_code=1)
    assert "  attempt 2 main on" in done.stderr
    record = tfjob.show()
    assert (len(record["attempts"]), record["failure"]["exit_code"], record["failure"]["kind"]) == (2, 7, "failure")


def test_a_reason_that_was_not_given_is_none(tfjob: Tfjob) -> None:
    tfjob.write("job.yml", "name: once\ncommand: exit 7\nretries: {max: 2}")
    tfjob("submit", "job.yml", exit_code=1)
    assert tfjob.show()["attempts"] == []


def test_what_took_too_long_or_was_canceled_is_not_tried_again(tfjob: Tfjob) -> None:
    retries = "retries: {max: 2, on: [failure, node_lost]}"
    tfjob.write("late.yml", f"command: sleep 300\nlimits: {{timeout_s: 0.5, grace_period_s: 1}}\n{retries}")
    tfjob("submit", "late.yml", exit_code=1)
    assert tfjob.show()["attempts"] == []
    tfjob.write("long.yml", f"command: echo begun; sleep 300\n{retries}")
    run = tfjob.submit("long.yml")
    log = tfjob.run_directory(run) / "logs" / "main.log"
    eventually(lambda: log.exists() and log.read_text(), "it has begun")
    tfjob("cancel", run)
    record = tfjob.show(run)
    assert (record["state"], record["attempts"]) == ("Canceled", [])


def restarting(tfjob: Tfjob) -> tuple[str, int]:
    """A run that has decided to start again, while a task of the first attempt runs until told; and its supervisor."""
    tfjob.write("job.yml", PAIR.replace("DIRECTORY", str(tfjob.directory)))
    run = tfjob.submit("job.yml")
    record = eventually(lambda: (found := tfjob.record(run))["attempts"] and found, "it tries again")
    assert record["state"] == "Scaling"
    return run, int(record["supervisor"]["pid"])


def test_a_supervisor_killed_while_it_starts_again_is_taken_over(tfjob: Tfjob) -> None:
    run, supervisor = restarting(tfjob)
    kill(supervisor)
    waiting = tfjob.start("wait", run, "-o", "json")
    eventually(lambda: (tfjob.record(run)["supervisor"] or {}).get("pid") not in {None, supervisor}, "another is there")
    (tfjob.directory / "go").touch()
    record = json.loads(waiting.communicate(timeout=180)[0])
    assert (record["state"], record["takeovers"], len(record["attempts"])) == ("Completed", 1, 1)
    of_bash = ("Terminated", "Killed")
    told = [line for line in tfjob("logs", run).stdout.splitlines() if not line.endswith(of_bash)]
    assert sorted(told) == [
        f"worker-{n} | {line}"
        for n in range(2)
        for line in ("tfjob: this is attempt 2", f"worker-{n} 0", f"worker-{n} 1")
    ]
    assert processes_of(run) == []


def test_it_can_be_canceled_while_it_starts_again(tfjob: Tfjob) -> None:
    run, _ = restarting(tfjob)
    canceling = tfjob.start("cancel", run)
    eventually(RunDirectory(tfjob.run_directory(run)).cancel_request.exists, "the request")
    (tfjob.directory / "go").touch()
    assert canceling.communicate(timeout=180)[0].startswith("Canceled in ")
    record = tfjob.show(run)
    assert (record["state"], len(record["attempts"])) == ("Canceled", 1)
    assert processes_of(run) == []


def test_a_restart_of_this_machine_is_a_lost_node(tfjob: Tfjob) -> None:
    tfjob.write(
        "job.yml", "command: echo begun; [ $TFJOB_RESTART_COUNT = 1 ] || sleep 300\nretries: {max: 1, on: [node_lost]}"
    )
    run = tfjob.submit("job.yml")
    eventually(lambda: tfjob.record(run)["state"] == "Running", "it is running")
    pids = [tfjob.record(run)["supervisor"]["pid"], *processes_of(run)]
    kill(*pids)
    file = tfjob.run_directory(run) / "record.json"
    file.write_text(file.read_text().replace(tfjob.record(run)["supervisor"]["boot_id"], "another-boot"))
    record = json.loads(tfjob("wait", run, "-o", "json").stdout)
    assert record["state"] == "Completed"
    assert record["attempts"][0]["failure"]["kind"] == "node_lost"
    assert "was restarted while the run was running" in record["attempts"][0]["failure"]["message"]


@pytest.fixture
def failed(tmp_path: Path) -> tuple[Plan, RunDirectory]:
    """A run whose attempt has failed: with logs, reports, and a file outside of what is kept."""
    run = RunDirectory(tmp_path / "run")
    planned = plan(task("true", name="a-0"), task("true", name="a-1"))
    for one in planned.tasks:
        for directory in (run.logs, run.task(one.name), run.work(one.name)):
            directory.mkdir(parents=True, exist_ok=True)
        run.log(one.name).write_text(f"log of {one.name}\n")
        (run.task(one.name) / "exit.json").write_text("{}")
        (run.work(one.name) / "model").write_text("hours")
    run.environment_log.write_text("built\n")
    return planned, run


def files_of(run: RunDirectory) -> list[str]:
    return sorted(path.relative_to(run.path).as_posix() for path in run.path.rglob("*") if not path.is_dir())


@pytest.mark.parametrize("survived", range(8))
def test_putting_away_can_be_gone_on_with_wherever_it_was_interrupted(
    failed: tuple[Plan, RunDirectory], survived: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    planned, run = failed
    rename, left = Path.rename, survived

    def dies(path: Path, target: Path) -> Path:
        nonlocal left
        if left == 0:
            raise KeyboardInterrupt
        left -= 1
        return rename(path, target)

    with monkeypatch.context() as patched:
        patched.setattr(Path, "rename", dies)
        try:
            put_away(planned, run, run.path / "snapshots", 1)
        except KeyboardInterrupt:
            assert run.restart_count == 0
    if run.restart_count == 0:
        put_away(planned, run, run.path / "snapshots", 1)
    assert run.restart_count == 1
    assert run.tasks.is_dir()
    assert files_of(run) == [
        *("attempts/1/tasks/a-0/exit.json", "attempts/1/tasks/a-1/exit.json"),
        *("attempts/1/work/a-0/model", "attempts/1/work/a-1/model"),
        *("logs/attempt-1/a-0.log", "logs/attempt-1/a-1.log", "logs/environment.log"),
    ]
    assert left_by_attempts(run) == ("attempts/1/work/a-0/model", "attempts/1/work/a-1/model")


NO_BLAME = Failure(None, None, None, None, "its supervisor died while the tasks were being started")
FAILED = Failure("a", "n", 1, None, "exited with code 1", kind="failure")


@pytest.mark.parametrize(
    ("retries", "kind", "before", "again"),
    [
        (None, "failure", [], False),
        (RetriesPlan(1, ("failure",)), "failure", [], True),
        (RetriesPlan(1, ("failure",)), "failure", [FAILED], False),
        (RetriesPlan(1, ("failure",)), "failure", [NO_BLAME], True),
        (RetriesPlan(2, ("failure",)), "failure", [FAILED], True),
        (RetriesPlan(9, ("failure",)), "node_lost", [], False),
        (RetriesPlan(9, ("failure", "node_lost")), "node_lost", [], True),
        (RetriesPlan(9, ("failure", "node_lost")), None, [], False),
        (RetriesPlan(9, ()), "failure", [], False),
    ],
)
def test_what_is_tried_again(retries: RetriesPlan | None, kind: str | None, before: list[Failure], again: bool) -> None:
    attempts = tuple(Attempt(n, ("n",), None, "x", failure) for n, failure in enumerate(before, 1))
    record = Record("r", "r", "r", "Running", "x", "/x", "local", attempts=attempts)
    verdict = Verdict("failed", None, "", kind)  # type: ignore[arg-type]  # a text of the table
    assert is_tried_again(plan(task("true"), retries=retries), record, verdict) is again


def test_what_went_well_is_not_tried_again() -> None:
    record = Record("r", "r", "r", "Running", "x", "/x", "local")
    assert not is_tried_again(plan(task("true"), retries=RetriesPlan(9, ("failure",))), record, Verdict("completed"))
