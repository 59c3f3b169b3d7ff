"""Staying with a run, and leaving it before its end."""

from __future__ import annotations

import io
import json
import os
import pty
import re
import shutil
import signal
import subprocess
import time
from contextlib import suppress
from dataclasses import replace
from typing import TYPE_CHECKING

import pytest
from support import PROGRAM, eventually

from tfjob.cli import control
from tfjob.cli.following import target_named
from tfjob.cli.live import LiveRun, PhaseSpinner
from tfjob.rundir import RunDirectory
from tfjob.runs.record import Record

if TYPE_CHECKING:
    from pathlib import Path

    from support import Tfjob

LONG = "name: long\ncommand: echo begun; while true; do echo more; sleep 0.05; done"
QUIET = "name: quiet\ncommand: sleep 300"
RECORD = Record("job-1", "job", "tf", "Preparing", "2026-01-31T12:00:00.000Z", "/nowhere", "local")


SAYS_WHEN_IT_WAITS = """
import os, time
sleep = time.sleep
def say(seconds):
    open(os.environ["WAITS"], "w").close()
    sleep(seconds)
time.sleep = say
"""


def wait_for_running(tfjob: Tfjob, run: str) -> None:
    eventually(lambda: tfjob.record(run)["state"] == "Running", f"{run} runs")


def patched(tfjob: Tfjob, patch: str, **variables: str) -> Tfjob:
    """The command with a change to itself."""
    tfjob.write("patch/sitecustomize.py", patch)
    path = f"{tfjob.directory}/patch:{os.environ.get('PYTHONPATH', '')}"
    return replace(tfjob, environ={**tfjob.environ, "PYTHONPATH": path, **variables})


def following(tfjob: Tfjob, *command: str) -> subprocess.Popen[str]:
    """A command that follows a run and has seen all there is of it so far."""
    waits = tfjob.directory / f"waits-{command[0]}"
    follower = patched(tfjob, SAYS_WHEN_IT_WAITS, WAITS=str(waits)).start(*command)
    eventually(waits.exists, "it follows")
    return follower


def exit_code_in(tfjob: Tfjob) -> int:
    """What a shell wrote to the file `code`, once it has."""
    code = tfjob.directory / "code"
    return int(eventually(lambda: code.exists() and code.read_text(), "it has ended"))


def test_plain_phases_are_told_by_what_they_do() -> None:
    out, screen = io.TextIOWrapper(io.BytesIO()), io.StringIO()
    live = LiveRun(RECORD, ["main"], out, screen)
    live.open()
    for second, phase in enumerate(("Preparing", "Scaling", "Running", "Finalizing")):
        moment = f"2026-01-31T12:00:0{second}.000Z"
        live.show({"event": "phase", "phase": phase, "time": moment})
        if phase == "Preparing":
            for number in (1, 2):
                live.show({"event": "progress", "phase": phase, "message": "uv resolves", "time": moment})
                data = {"message": f"fetching data: {number} of 9 files", "topic": "data"}
                live.show({"event": "progress", "phase": phase, "time": moment, **data})
    live.close()
    assert screen.getvalue().splitlines() == [
        "tfjob: Run job-1  (experiment tf, target local)",
        "tfjob: Preparing: uv resolves",
        "tfjob: Preparing: fetching data: 1 of 9 files",
        "tfjob: Running",
    ]


@pytest.mark.parametrize("reader", ["2>err | head -n 1", "2>&1 | head -n 4"])
def test_when_the_reader_of_a_submit_leaves_it_detaches(tfjob: Tfjob, reader: str) -> None:
    tfjob.write("long.yml", LONG)
    line = f"{' '.join(PROGRAM)} submit long.yml {reader}; echo ${{PIPESTATUS[0]}}"
    done = subprocess.run(
        ["bash", "-c", line], cwd=tfjob.directory, env=tfjob.environ, capture_output=True, text=True, check=True
    )
    assert done.stdout.splitlines()[-1] == "130"
    assert tfjob.show()["state"] == "Running"
    if "err" in reader:
        assert done.stdout.splitlines()[0] == "begun"
        told = (tfjob.directory / "err").read_text()
        assert re.search(
            r"^Detached; the run goes on\.\n  follow    tfjob logs -f long-\w{6}\n  cancel ", told, re.MULTILINE
        )
    tfjob("cancel", "latest")


def test_a_full_disk_under_the_output_detaches_too(tfjob: Tfjob) -> None:
    tfjob.write("long.yml", LONG)
    with open("/dev/full", "w") as full:
        done = subprocess.run(
            [*PROGRAM, "submit", "long.yml"],
            cwd=tfjob.directory,
            env=tfjob.environ,
            stdout=full,
            stderr=subprocess.PIPE,
            text=True,
            check=False,
        )
    assert done.returncode == 130
    assert (
        "tfjob: what the run prints can't be shown: No space left on device\nDetached; the run goes on." in done.stderr
    )
    tfjob("cancel", "latest")


@pytest.mark.parametrize("code", [0, 3])
def test_a_run_that_is_over_ends_as_it_ended_whoever_reads(tfjob: Tfjob, code: int) -> None:
    tfjob.write("job.yml", f"name: job\ncommand: echo x; exit {code}")
    tfjob("init")
    line = f"({' '.join(PROGRAM)} submit job.yml -o json; echo $? > code) 2>err | true"
    subprocess.run(["bash", "-c", line], cwd=tfjob.directory, env=tfjob.environ, check=True)
    assert exit_code_in(tfjob) == int(code != 0)


@pytest.mark.parametrize("code", [0, 3])
def test_the_last_word_may_go_unread(tfjob: Tfjob, code: int) -> None:
    tfjob.write("job.yml", f"name: job\ncommand: sleep 1; exit {code}")
    tfjob("init")
    line = f"({' '.join(PROGRAM)} submit job.yml; echo $? > code) 2>&1 >/dev/null | head -n 4"
    subprocess.run(["bash", "-c", line], cwd=tfjob.directory, env=tfjob.environ, check=True, stdout=subprocess.DEVNULL)
    assert exit_code_in(tfjob) == int(code != 0)


@pytest.mark.parametrize("command", [["logs", "-f", "latest"], ["wait", "latest"]])
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_whoever_stops_following_is_told_that_the_run_goes_on(
    tfjob: Tfjob, command: list[str], number: signal.Signals
) -> None:
    tfjob.write("quiet.yml", QUIET)
    run = tfjob.submit("quiet.yml")
    wait_for_running(tfjob, run)
    follower = following(tfjob, *command)
    follower.send_signal(number)
    _, told = follower.communicate(timeout=60)
    assert told.endswith("Stopped following; the run goes on.\n")
    assert follower.returncode == 130
    assert tfjob.show()["state"] == "Running"
    tfjob("cancel", "latest")


def test_two_signals_at_once_are_one(tfjob: Tfjob) -> None:
    """timeout(1) sends its signal to its command, and then to their group: the command still waits for the run's end."""
    tfjob.write("quiet.yml", QUIET)
    patch = "import tfjob.cli.following as f\nf._ONE_SIGNAL_S = 600.0"  # it may not see the second for a while
    submitter = patched(tfjob, patch).start("submit", "quiet.yml", "--on-interrupt", "cancel")
    run = eventually(lambda: next((tfjob.directory / ".tfjob" / "runs").glob("quiet-*"), None), "there is a run").name
    wait_for_running(tfjob, run)
    submitter.send_signal(signal.SIGTERM)
    time.sleep(0.02)
    submitter.send_signal(signal.SIGTERM)
    _, told = submitter.communicate(timeout=60)
    assert "Canceled in" in told
    assert submitter.returncode == 130


def test_an_interrupt_before_there_is_a_run_says_so(tfjob: Tfjob) -> None:
    tfjob.write("job.yml", "name: job\ncommand: 'true'")
    loads = tfjob.directory / "loads"
    hangs = f"open({str(loads)!r}, 'w').close() or __import__('time').sleep(60)"
    patch = f"import tfjob.spec.load as m\nm.load = lambda *a, **k: {hangs}"
    submitter = patched(tfjob, patch).start("submit", "job.yml")
    eventually(loads.exists, "it loads the job file")
    submitter.send_signal(signal.SIGINT)
    _, told = submitter.communicate(timeout=60)
    assert told == "tfjob: interrupted; nothing was started\n"
    assert submitter.returncode == 130
    assert not (tfjob.directory / ".tfjob").exists()


def test_until_output_comes_logs_say_what_the_run_is_at(tfjob: Tfjob) -> None:
    tfjob.write("job.yml", f"name: job\ncommand: until [ -e {tfjob.directory}/go ]; do sleep 0.05; done; echo hello")
    run = tfjob.submit("job.yml")
    wait_for_running(tfjob, run)
    follower = following(tfjob, "logs", "-f", run)
    (tfjob.directory / "go").touch()
    printed, told = follower.communicate(timeout=60)
    assert printed == "hello\n"
    assert re.match(r"tfjob: Preparing: this machine's own Python.*\ntfjob: Scaling: 1 task on ", told)
    assert re.fullmatch(r"tfjob: Completed in [\d.]+ s\n", tfjob("logs", "-f", run).stderr)  # it was over


def is_removed(directory: Path) -> bool:
    """Remove it; whether it has gone: who writes there may just make a file."""
    shutil.rmtree(directory, ignore_errors=True)
    return not directory.exists()


def test_a_directory_removed_under_its_followers(tfjob: Tfjob) -> None:
    tfjob.write("quiet.yml", QUIET)
    submitter = tfjob.start("submit", "quiet.yml")
    run = eventually(lambda: next((tfjob.directory / ".tfjob" / "runs").glob("quiet-*"), None), "there is a run").name
    wait_for_running(tfjob, run)
    followers = [submitter, following(tfjob, "logs", "-f", run), following(tfjob, "wait", run)]
    directory = tfjob.run_directory(run)
    started = directory / "tasks" / "main" / "started.json"
    pids = [json.loads(eventually(lambda: started.exists() and started.read_bytes(), "it has started"))["pid"]]
    supervisor = tfjob.record(run)["supervisor"]["pid"]
    eventually(lambda: is_removed(directory), "nobody writes there")
    try:
        for follower in followers:
            _, told = follower.communicate(timeout=60)
            assert f"tfjob: the directory of run {run} was removed while the run was followed\n" in told
            assert follower.returncode == 3
    finally:
        for pid in (supervisor, *pids):
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def test_waiting_at_a_terminal_shows_the_phase(tfjob: Tfjob) -> None:
    tfjob.write("quiet.yml", QUIET)
    run = tfjob.submit("quiet.yml")
    wait_for_running(tfjob, run)
    ours, theirs = pty.openpty()
    environ = {**tfjob.environ, "TERM": "xterm-256color", "COLUMNS": "100"}
    waiter = subprocess.Popen(
        [*PROGRAM, "wait", run], cwd=tfjob.directory, env=environ, stdout=subprocess.DEVNULL, stderr=theirs
    )
    os.close(theirs)
    seen = b""

    def shows_the_phase() -> bool:
        nonlocal seen
        seen += os.read(ours, 65536)
        return b"Running" in seen

    eventually(shows_the_phase, "the phase is shown")
    assert b"Preparing" not in seen
    waiter.terminate()
    waiter.wait(60)
    os.close(ours)
    tfjob("cancel", "latest")


def test_waiting_elsewhere_shows_nothing() -> None:
    screen = io.StringIO()
    spinner = PhaseSpinner(screen)
    spinner.show({"event": "phase", "phase": "Running", "time": "2026-01-31T12:00:00.000Z"})
    spinner.show(None)
    spinner.close()
    assert screen.getvalue() == ""


def test_canceling_is_as_patient_as_the_plan(tmp_path: Path) -> None:
    directory = RunDirectory(tmp_path)
    for text, seconds in (('{"limits": {"grace_period_s": 90.5}}', 90.5), ("{", 0), ('{"limits": null}', 0)):
        directory.plan.write_text(text)
        assert control._grace_period_s(directory) == seconds


def test_a_cancel_waits_for_the_grace_period_and_a_margin(tfjob: Tfjob) -> None:
    tfjob.write(
        "slow.yml",
        "name: slow\ncommand: trap 'sleep 3; exit' TERM; echo begun; while true; do sleep 0.1; done\n"
        "limits: {grace_period_s: 60}",
    )
    run = tfjob.submit("slow.yml")
    log = tfjob.run_directory(run) / "logs" / "main.log"
    eventually(lambda: log.exists() and "begun" in log.read_text(), "it has begun")
    done = patched(tfjob, "import tfjob.cli.control as c\nc._CANCEL_MARGIN_S = 1")("cancel", run)
    assert done.stdout.startswith("Canceled in ")


@pytest.mark.parametrize(
    ("text", "overrides", "found"),
    [
        ("compute: {target: lab, node_count: 2}", [], "lab"),
        ('{"compute": {"target": "lab"}}', [], "lab"),
        ("compute:\n  target: lab2\n", [], None),
        ("compute: {gpus_per_node: 2}\nname: lab\n", [], None),
        ("compute: {target: lab}", ["compute.target=gpu"], "gpu"),
        ("name: job", ["compute.target = lab"], "lab"),
    ],
)
def test_the_target_that_a_job_names_is_guessed(
    tmp_path: Path, text: str, overrides: list[str], found: str | None
) -> None:
    (tmp_path / "job.yml").write_text(text)
    assert target_named(tmp_path / "job.yml", overrides, ("gpu", "lab")) == found
    assert target_named(tmp_path / "no.yml", overrides, ("gpu", "lab")) is None


def test_on_a_terminal_what_goes_on_beside_a_phase_has_a_line_of_its_own(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.delenv("NO_COLOR", raising=False)
    out, screen = io.TextIOWrapper(io.BytesIO()), Terminal()
    live = LiveRun(RECORD, ["main"], out, screen)
    live.show({"event": "phase", "phase": "Preparing", "time": "2026-01-31T12:00:00.000Z"})
    for message, topic in (("fetching data: 1 of 9 files, 3 of 40 MB", "data"), ("uv resolves", ""), ("made", "")):
        live.show(
            {"event": "progress", "phase": "Preparing", "message": message, **({"topic": topic} if topic else {})}
        )
    assert live._spinner is not None
    lines = [(task.description, task.completed, task.total) for task in live._spinner._progress.tasks]
    assert lines == [("Preparing  made", 0, None), ("           fetching data: 1 of 9 files, 3 of 40 MB", 3, 40)]
    live.show({"event": "phase", "phase": "Scaling", "time": "2026-01-31T12:00:02.000Z"})
    live.close()
    shown = re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", screen.getvalue())
    assert "  Preparing      2.0 s  made\n" + " " * 24 + "fetching data: 1 of 9 files, 3 of 40 MB\n" in shown
