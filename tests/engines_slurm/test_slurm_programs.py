"""The job's programs, as far as they can be looked at without Slurm."""

from __future__ import annotations

import ast
import errno
import importlib
import json
import os
import re
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest
from engines.engine_bench import task
from engines_slurm.slurm_commands import commands
from engines_slurm.slurm_plans import slurm_plan, spread, workers
from hypothesis import given, settings
from hypothesis import strategies as st

import tfjob.engines.slurm.program
from tfjob.engines.base import Prepared
from tfjob.engines.slurm.engine import SlurmEngine
from tfjob.engines.slurm.gang import FLAGS, gang_of
from tfjob.engines.slurm.kept_there import KEEPING
from tfjob.engines.slurm.programs import PROGRAMS, place_programs
from tfjob.engines.slurm.report import begin_report, read_report, statuses_of
from tfjob.planning.plan import Plan
from tfjob.rundir import RunDirectory
from tfjob.runs.verdict import judge

PROGRAM = Path(tfjob.engines.slurm.program.__file__).parent
RUN = RunDirectory(Path("/shared/runs/r1"))
ODD = ["", " ", "a b", "quote\"'", "new\nline", "$HOME `x`", "ä€🙂", "\\", "{}", "%s"]


def module(name: str) -> ModuleType:
    if str(PROGRAM) not in sys.path:
        sys.path.insert(0, str(PROGRAM))
    return importlib.import_module(name)


@pytest.fixture(autouse=True)
def path_as_it_was() -> Iterator[None]:
    before = list(sys.path)
    yield
    sys.path[:] = before


@pytest.mark.parametrize("name", [*PROGRAMS, *KEEPING, "../../run_files.py"])
def test_they_run_under_old_pythons_and_import_nothing_of_tfjob(name: str) -> None:
    tree = ast.parse((PROGRAM / name).read_text(), feature_version=(3, 8))
    own = {program.removesuffix(".py") for program in (*PROGRAMS, *KEEPING)}
    imports = {
        one.names[0].name if isinstance(one, ast.Import) else str(one.module)
        for one in ast.walk(tree)
        if isinstance(one, ast.Import | ast.ImportFrom)
    }
    typing = {
        "typing",
        "tfjob",
        "entrypoint",
        "run_files",
        "tfjob.engines.run_files",
        "collections.abc",
        "tfjob.engines.slurm.program",
        *(f"tfjob.engines.slurm.program.{name}" for name in own),
    }
    assert imports - own - typing <= {*sys.stdlib_module_names, "__future__"}


def test_all_of_them_are_taken_along() -> None:
    assert {path.name for path in PROGRAM.glob("*.py")} == {*PROGRAMS, *KEEPING, "__init__.py"}


class TestBinding:
    def test_nodes_ports_and_gpus_are_put_in_where_they_belong(self) -> None:
        made = slurm_plan(*workers("run", "${{ node.1.address }}", *ODD, count=2))
        gang = json.loads(json.dumps(gang_of(made, RUN, Prepared(None, {"environment.path": "/bin"}))))
        values = {"node.0.address": "n-0.example", "node.1.address": "10.0.0.2", "environment.path": "/p:/bin"}
        values |= {"port.worker-0": "2222", "port.worker-1": "2223", "gpus.worker-0": "", "gpus.worker-1": ""}
        binding = module("binding")
        file = gang["tasks"][1]["file"]
        assert [binding.fill(argument, values) for argument in file["argv"]] == ["run", "10.0.0.2", *ODD]
        env = {name: binding.fill(value, values) for name, value in file["env"].items()}
        assert json.loads(env["TF_CONFIG"]) == {
            "cluster": {"worker": ["n-0.example:2222", "10.0.0.2:2223"]},
            "task": {"type": "worker", "index": 1},
            "environment": "cloud",
        }
        assert env["PATH"] == "/p:/bin"

    def test_text_that_looks_like_an_expression_stays(self) -> None:
        made = slurm_plan(task("echo", "$${{ run.id }} ${{ run.id }}"))
        gang = gang_of(made, RUN, Prepared(None, {"environment.path": "/bin"}))
        assert module("binding").fill(gang["tasks"][0]["file"]["argv"][1], {}) == "${{ run.id }} r1"

    def test_gpus_of_a_node_are_shared_out(self) -> None:
        binding = module("binding")
        tasks = [
            {"name": n, "node": k, "gpus": g, "launched": False} for n, k, g in (("a", 0, 1), ("b", 0, 2), ("c", 1, 1))
        ]
        hellos = {0: {"gpus": "0,2,3"}, 1: {"gpus": "1"}}
        assert binding.shares({"tasks": tasks}, hellos) == {"a": "0", "b": "2,3", "c": "1"}
        for one in tasks:
            one["launched"] = True
        assert binding.shares({"tasks": tasks}, hellos) == {"a": "0,2,3", "b": "0,2,3", "c": "1"}


def plans() -> list[Plan]:
    ranks = [task("true", name=f"rank-{number}", launched=True) for number in range(3)]
    return [
        slurm_plan(*spread(task("true", name="a"), task("true", name="b"))),
        slurm_plan(*workers("true", count=2, parameter_server_count=1, evaluator=True)),
        slurm_plan(*workers("true", nodes=3)),
        slurm_plan(*ranks, launcher=task("mpirun", name="launcher")),
    ]


@st.composite
def situations(draw: st.DrawFn) -> tuple[Plan, dict[str, dict[str, Any]]]:
    made = draw(st.sampled_from(plans()))
    statuses = {}
    for one in made.all_tasks:
        state = draw(st.sampled_from(("pending", "running", "ended")))
        status: dict[str, Any] = {"state": state}
        if state != "pending":
            status["started"] = 1.0
            status["listening"] = draw(st.booleans())
        if state == "ended":
            code = draw(st.sampled_from((0, 1, None)))
            status.update(exit_code=code, signal=9 if code is None else None)
            status.update(time=draw(st.sampled_from((10.0, 20.0, 30.0))), stopped=draw(st.booleans()))
        statuses[one.name] = status
    return made, statuses


@given(situations())
@settings(max_examples=300, deadline=None)
def test_the_gang_is_judged_as_tfjob_judges_it_elsewhere(situation: tuple[Plan, dict[str, dict[str, Any]]]) -> None:
    made, statuses = situation
    gang = gang_of(made, RUN, Prepared(None, {"environment.path": "/bin"}))
    said = module("verdict").judge(gang, statuses, 1000.0)
    found = (said[0], said[2] if len(said) > 2 else None) if said else None
    report = type("Report", (), {"tasks": statuses})
    verdict = judge(made, statuses_of(made, report), 1000.0)  # type: ignore[arg-type]  # it has what is looked at
    expected = (verdict.outcome, verdict.status.task if verdict.status else None) if verdict else None
    assert found == expected


@pytest.mark.parametrize("time", [0.0, 1e12])
def test_how_long_a_failure_is_doubted_no_node_says(time: float) -> None:
    made = plans()[1]
    gang = json.loads(json.dumps(gang_of(made, RUN, Prepared(None, {"environment.path": "/bin"}))))
    (server,) = (one.name for one in made.all_tasks if one.type == "ps")
    statuses: dict[str, dict[str, Any]] = {one.name: {"state": "running"} for one in made.all_tasks}
    statuses[server] = {"state": "ended", "exit_code": 1, "time": time}
    verdict = module("verdict")
    assert verdict.judge(gang, statuses, 0.0, verdict.SETTLE_S - 0.1) is None
    assert verdict.judge(gang, statuses, 0.0, verdict.SETTLE_S + 0.1)[:3] == ("failed", "", server)


def pythons() -> list[str]:
    """The oldest interpreter of this machine that the programs may run under, and the newest."""
    installed = Path(os.environ.get("PYENV_ROOT", Path.home() / ".pyenv"), "versions").glob("*/bin/python3.*")
    found: dict[int, str] = {sys.version_info[1]: sys.executable}
    for path in (*installed, *Path("/usr/bin").glob("python3.*")):
        if (version := re.fullmatch(r"python3\.(\d+)", path.name)) and int(version[1]) >= 8:
            found.setdefault(int(version[1]), str(path))
    return [found[version] for version in dict.fromkeys((min(found), max(found)))]


SRUN = """#!/bin/sh
while case $1 in --*) true;; *) false;; esac; do shift; done
SLURM_NODEID=0 SLURMD_NODENAME=here CUDA_VISIBLE_DEVICES=4,6 exec "$@"
"""


def run_of_a_gang(
    tmp_path: Path, command: str, *, python: str = sys.executable, srun: str = SRUN, **environ: str
) -> tuple[RunDirectory, subprocess.CompletedProcess[str]]:
    """A run of one task and one node, taken to its end."""
    # Nodes kill what bears the run's name, and another process of pytest may be at the same.
    run, made = RunDirectory(tmp_path / f"run-{os.getpid()}"), slurm_plan(task(command, gpus=1), gpus=2)
    commands(tmp_path, scontrol="true")
    for directory in (run.logs, run.tasks, run.work("main")):
        directory.mkdir(parents=True)
    (tmp_path / "srun").write_text(srun)
    (tmp_path / "srun").chmod(0o755)
    SlurmEngine(environ={}, cache=tmp_path).keep(made, run, Prepared(None, {"environment.path": "/bin"}))
    argv = [python, *FLAGS, str(run.path / "slurm" / "program" / "start.py"), "batch", str(run.path)]
    environ = {"PATH": f"{tmp_path}:{os.environ['PATH']}", "SLURM_JOB_ID": "5", **environ}
    return run, subprocess.run(argv, env=environ, capture_output=True, text=True, timeout=60, check=False)


@pytest.mark.parametrize("python", pythons())
@pytest.mark.parametrize(
    ("command", "code", "outcome"), [("echo $CUDA_VISIBLE_DEVICES", 0, "completed"), ("exit 3", 1, "failed")]
)
def test_a_gang_of_one_node_under_old_and_new_pythons(
    tmp_path: Path, python: str, command: str, code: int, outcome: str
) -> None:
    step = {} if code else {"SLURM_JOB_NUM_NODES": "1"}  # as under Slurm, where the step begins before anything else
    run, done = run_of_a_gang(tmp_path, command, python=python, **step)
    assert (done.returncode, done.stderr) == (code, "")
    report = read_report(run)
    assert report is not None
    assert report.end is not None
    assert (report.phase, report.end.outcome) == ("over", outcome)
    assert run.log("main").read_text() == ("4\n" if code == 0 else "")
    assert (run.tasks / "main" / "exit.json").exists()


def test_a_node_may_have_more_gpus_than_a_line_of_srun_has_room_for(tmp_path: Path) -> None:
    names = [f"MIG-{number:08}-1111-2222-3333-abcdefabcdef" for number in range(56)]
    srun = SRUN.replace("4,6", ",".join(names))
    run, done = run_of_a_gang(tmp_path, "echo $CUDA_VISIBLE_DEVICES", srun=srun)
    assert (done.returncode, done.stderr) == (0, "")
    assert run.log("main").read_text() == names[0] + "\n"


def test_a_long_word_of_a_node_comes_in_lines_that_are_short(monkeypatch: pytest.MonkeyPatch) -> None:
    said: list[bytes] = []
    monkeypatch.setattr(module("node").os, "write", lambda _, data: said.append(data))
    node = object.__new__(module("node").Node)
    node.index = 3
    word = {"name": "n1", "gpus": '\\"\n' * 2000}
    node.say(hello=word)
    monkeypatch.undo()
    assert max(map(len, said)) <= module("node").LINE_BYTES
    attempt = object.__new__(module("batch").Attempt)
    attempt.parts, attempt.hellos = {}, {}
    for line in said:
        attempt.hear(line)
    assert attempt.hellos == {3: word}


class TestSecondJob:
    """A second job of a run: its script was submitted by hand, or again because sbatch did not answer."""

    @pytest.fixture
    def run(self, tmp_path: Path) -> RunDirectory:
        """A run that job 4 is at, on a Slurm whose squeue is still to be written."""
        run = RunDirectory(tmp_path / "run")
        (run.path / "slurm").mkdir(parents=True)
        run.logs.mkdir()
        SlurmEngine(environ={}, cache=tmp_path).keep(slurm_plan(), run, Prepared(None, {"environment.path": "/bin"}))
        value = {"phase": "running", "job": "4", "attempt": 0, "attempts": [], "tasks": {}, "end": None}
        (run.path / "slurm" / "state.json").write_text(json.dumps(value))
        return run

    def start(self, run: RunDirectory, squeue: str) -> subprocess.CompletedProcess[str]:
        commands(run.path.parent / "bin", squeue=squeue)
        argv = [sys.executable, *FLAGS, str(run.path / "slurm" / "program" / "start.py"), "batch", str(run.path)]
        environ = {"PATH": f"{run.path.parent / 'bin'}:{os.environ['PATH']}", "SLURM_JOB_ID": "5"}
        return subprocess.run(argv, env=environ, capture_output=True, text=True, timeout=60, check=False)

    @pytest.mark.parametrize("state", ["RUNNING", "SUSPENDED", "PENDING", "COMPLETING"])
    def test_it_leaves_a_run_that_another_job_is_at(self, run: RunDirectory, state: str) -> None:
        before = {path: path.stat().st_mtime_ns for path in run.path.rglob("*")}
        done = self.start(run, f"echo {state}")
        assert (done.returncode, done.stderr) == (
            1,
            "tfjob: job 4 runs this run already; this one leaves it alone\n",
        )
        assert {path: path.stat().st_mtime_ns for path in run.path.rglob("*")} == before

    @pytest.mark.parametrize(
        "squeue", ["echo NODE_FAIL", "echo 'slurm_load_jobs error: Invalid job id specified' >&2; exit 1"]
    )
    def test_it_takes_a_run_whose_job_is_over(self, run: RunDirectory, squeue: str) -> None:
        self.start(run, squeue)
        report = read_report(run)
        assert report is not None
        assert report.end is not None
        assert (report.phase, report.end.kind) == ("over", "node_lost")

    def test_of_two_that_begin_at_once_one_has_the_run(
        self, run: RunDirectory, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        (run.path / "slurm" / "state.json").unlink()
        states = [module("state").State(str(run.path)) for _ in range(3)]
        others = []
        for state, job in zip(states, ("5", "6", "5"), strict=True):
            monkeypatch.setenv("SLURM_JOB_ID", job)
            others.append(state.other_job())
        assert others == ["", "5", ""]
        assert sorted(path.name for path in (run.path / "slurm").glob("first_job*")) == ["first_job"]

    def test_it_leaves_the_run_where_slurm_can_not_be_asked(self, monkeypatch: pytest.MonkeyPatch) -> None:
        answers = iter([None, "RUNNING"])
        monkeypatch.setattr(module("slurm"), "squeue", lambda *_: next(answers, None))
        monkeypatch.setattr(module("slurm"), "ASKED_PAUSE_S", 0)
        assert module("slurm").is_living("4")
        assert module("slurm").is_living("4")


class TestStandstill:
    """Slurm suspends a job: all its processes stand still, and the kernel's clock goes on."""

    def test_it_is_left_out(self, monkeypatch: pytest.MonkeyPatch) -> None:
        moment = 100.0
        monkeypatch.setattr(module("clock"), "time", SimpleNamespace(monotonic=lambda: moment))
        clock = module("clock").Clock()
        began = clock.now()
        for step_s in (2.0, 1000.0, 3.0, 500.0, 0.0):
            moment += step_s
            clock.now()
        assert clock.now() - began == 5.0

    def test_nodes_kill_nothing_after_it(self, tmp_path: Path) -> None:
        (tmp_path / "slurm").mkdir()
        (tmp_path / "slurm" / "gang.json").write_text(json.dumps({"run": "r", "tasks": [], "container": None}))
        place_programs(tmp_path / "program", None, tmp_path)
        jumps = (  # with SIGUSR1 the clock is an hour ahead
            "import signal, sys, time; before, lead = time.monotonic, []\n"
            "time.monotonic = lambda: before() + sum(lead)\n"
            "signal.signal(signal.SIGUSR1, lambda *_: lead.append(3600.0))\n"
            f"sys.path.insert(0, {str(tmp_path / 'program')!r})\n"
            "import node; sys.exit(node.main(*sys.argv[1:]))"
        )
        node = subprocess.Popen(
            [sys.executable, "-c", jumps, str(tmp_path), str(tmp_path), "5.0"],
            env={"SLURM_NODEID": "0"},
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
        )
        assert node.stdout is not None
        said = map(json.loads, iter(node.stdout.readline, b""))
        assert any("ready" in word for word in said)
        node.send_signal(signal.SIGUSR1)
        assert any("signal" in word for word in said)
        assert [word for word, _ in zip(said, range(2), strict=False)] == [{"beat": True, "node": 0}] * 2
        node.communicate(timeout=60)
        assert node.returncode == 0


def test_a_task_is_asked_to_end_once(monkeypatch: pytest.MonkeyPatch) -> None:
    signaled: list[int] = []
    monkeypatch.setattr(module("node"), "send", lambda pid, _number: signaled.append(pid))
    node = object.__new__(module("node").Node)
    node.tasks = [{"name": "a", "launched": False}, {"name": "b", "launched": False}]
    node.children = {"a": SimpleNamespace(pid=7, has_ended=lambda: False)}
    node.stopped = set()
    node.stop(launched=False)
    node.children["b"] = SimpleNamespace(pid=8, has_ended=lambda: False)
    node.stop(launched=False)
    assert signaled == [7, 8]


def test_the_fence_kills_no_process_that_has_the_number_of_a_task_that_ended(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    killed: list[int] = []

    class Gone(Exception):
        pass

    def leave(_code: int) -> None:
        raise Gone

    made = module("node")
    monkeypatch.setattr(made, "send", lambda pid, _number: killed.append(pid))
    monkeypatch.setattr(made, "FENCE_S", 0.0)
    monkeypatch.setattr(made.os, "_exit", leave)
    (tmp_path / "slurm").mkdir()
    (tmp_path / "slurm" / "attempt").write_text("5.1\n")
    node = object.__new__(made.Node)
    node.run, node.word, node.children, node.kill = str(tmp_path), "5.0", {}, lambda: None
    for pid, status in ((7, 0), (8, None)):
        child = node.children[str(pid)] = object.__new__(made.Child)
        child.pid, child.status, child.lock = pid, status, threading.Lock()
    with pytest.raises(Gone):
        node.watch_fence()
    assert killed == [8]


class TestPlacing:
    def test_the_programs_are_compiled_once_for_the_python_that_runs_them(self, tmp_path: Path) -> None:
        for name in ("one", "two"):
            place_programs(tmp_path / name, sys.executable, tmp_path / "cache")
        [kept] = (tmp_path / "cache" / "slurm-programs").iterdir()
        tag = sys.implementation.cache_tag
        expected = sorted(
            f"{program.removesuffix('.py')}.{tag}.pyc" for program in (*PROGRAMS, "run_files.py", "entrypoint.py")
        )
        for directory in (kept, tmp_path / "one" / "__pycache__", tmp_path / "two" / "__pycache__"):
            assert sorted(path.name for path in directory.iterdir()) == expected

    def test_a_python_that_cannot_compile_is_no_hindrance(self, tmp_path: Path) -> None:
        place_programs(tmp_path / "one", "/bin/false", tmp_path / "cache")
        place_programs(tmp_path / "two", None, tmp_path / "cache")
        assert sorted(path.name for path in (tmp_path / "two").iterdir()) == sorted(
            (*PROGRAMS, "run_files.py", "entrypoint.py")
        )


@pytest.mark.parametrize("python", pythons())
def test_the_programs_around_containers_load_under_old_and_new_pythons(python: str) -> None:
    program = "import container, launching; container.runtimes.devices(['0']); container.environment({})"
    done = subprocess.run([python, "-B", "-c", program], cwd=PROGRAM, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (0, "")


class TestSending:
    @pytest.fixture
    def sending(self, monkeypatch: pytest.MonkeyPatch) -> ModuleType:
        monkeypatch.syspath_prepend(str(PROGRAM.parent.parent))  # run_files.py, which lies beside it on a login node
        return module("sending")

    @pytest.fixture
    def sender(self, sending: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
        """What has sent all outputs and logs of a run before; `words` is what it says."""
        (tmp_path / "run" / "logs").mkdir(parents=True)
        (tmp_path / "run" / "logs" / "main.log").write_text("up\n")
        outputs = tmp_path / "run" / "outputs"
        outputs.mkdir(parents=True)
        for number in range(100):
            (outputs / str(number)).touch()
        stamps = {f"outputs/{path.name}": (0, path.stat().st_mtime_ns) for path in outputs.iterdir()}
        made = sending.Sender(str(tmp_path / "run"), {"logs": {"logs/main.log": 3}, "files": stamps, "attempts": []})
        made.words = []
        monkeypatch.setattr(made, "say", lambda kind, *_, **__: made.words.append(kind))
        return made

    def test_a_long_look_at_what_is_known_is_not_silent(
        self, sending: ModuleType, sender: Any, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(sending, "BEAT_S", -1.0)
        monkeypatch.setattr(sending, "LOOK_S", -1.0)
        sender.send_outputs()
        assert set(sender.words) == {"beat"}
        assert len(sender.words) >= 100

    @pytest.mark.parametrize("how", ["unmounted", "stale", "stale link"])
    def test_files_that_can_not_be_seen_now_are_not_told_as_gone(
        self, sender: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, how: str
    ) -> None:
        def stale(path: Any = ".", **_: Any) -> Any:
            raise OSError(errno.ESTALE, "Stale file handle", path)

        if how == "unmounted":
            (tmp_path / "run").rename(tmp_path / "elsewhere")
        else:
            monkeypatch.setattr(os, "scandir" if how == "stale" else "lstat", stale)
        with pytest.raises(OSError, match=r"No such file|Stale"):
            sender.sync()
        assert set(sender.words) <= {"beat"}


class TestState:
    def test_what_is_written_is_read(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setenv("SLURM_JOB_ID", "77")
        run = RunDirectory(tmp_path)
        (tmp_path / "slurm").mkdir()
        (tmp_path / "logs").mkdir()
        assert read_report(run) is None
        state = module("state").State(str(tmp_path))
        assert state.begin_attempt() == 0
        state.say(phase="running", nodes=[{"name": "n1", "address": "10.0.0.1"}], started=5.0)
        state.put({"main": {"state": "running", "started": 5.0}})
        state.save()
        report = read_report(run)
        assert report is not None
        assert (report.phase, report.job, report.attempt, report.nodes) == ("running", "77", 0, (("n1", "10.0.0.1"),))
        [status] = statuses_of(slurm_plan(), report)
        assert (status.state, status.started) == ("running", 5.0)
        [status] = statuses_of(slurm_plan(), report, is_over=True)
        assert (status.state, status.stopped) == ("ended", True)

    def test_one_that_says_that_nothing_has_begun_is_as_none(self, tmp_path: Path) -> None:
        run = RunDirectory(tmp_path)
        (tmp_path / "slurm").mkdir()
        file = tmp_path / "slurm" / "state.json"
        without = module("state").State(str(tmp_path)).value
        assert module("step").is_new(str(file))
        begin_report(run)
        assert read_report(run) is None
        assert module("step").is_new(str(file))
        state = module("state").State(str(tmp_path))
        assert (state.value, state.was_cut_off, state.is_over) == (without, False, False)
        assert state.begin_attempt() == 0
        assert not module("step").is_new(str(file))
        assert state.value["attempts"] == []

    def test_an_attempt_that_was_cut_off_is_told_and_its_logs_are_kept(self, tmp_path: Path) -> None:
        (tmp_path / "slurm").mkdir()
        (tmp_path / "logs").mkdir()
        (tmp_path / "logs" / "main.log").write_text("old\n")
        first = module("state").State(str(tmp_path))
        first.begin_attempt()
        first.say(phase="running")
        second = module("state").State(str(tmp_path))
        assert second.was_lost
        assert second.begin_attempt() == 1
        second.put_away(1, ["main"])
        assert (tmp_path / "logs" / "attempt-1" / "main.log").read_text() == "old\n"
        assert not (tmp_path / "logs" / "main.log").exists()
        run = RunDirectory(tmp_path)
        assert run.restart_count == 1
        report = read_report(run)
        assert report is not None
        assert [one.end.kind for one in report.attempts if one.end] == ["node_lost"]

    def test_who_was_preempted_has_used_up_no_retry(self, tmp_path: Path) -> None:
        (tmp_path / "slurm").mkdir()
        (tmp_path / "logs").mkdir()
        retries = {"on": ["node_lost", "failure"], "most": 1}
        for kind, may in (("preempted", True), ("requeued", True), ("node_lost", False)):
            state = module("state").State(str(tmp_path))
            state.begin_attempt()
            state.cut_off("it ended", kind)
            state = module("state").State(str(tmp_path))
            state.begin_attempt()
            assert state.may_try_again(retries, "failure") == may
            state.put_away(state.value["attempt"], [])
            state.cut_off("it ended", "preempted")
