"""What comes from outside of tfjob, and how the command line puts it into words."""

from __future__ import annotations

import errno
import json
import os
import subprocess
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from support import PROGRAM

from tfjob.cli.main import COMMANDS, GROUPS
from tfjob.cli.suggestions import _OTHER_WORDS, hint_for
from tfjob.cli.system_errors import explain
from tfjob.targets.docker_engine import probe_docker

if TYPE_CHECKING:
    from support import Tfjob


def run(tfjob: Tfjob, line: str, **environ: str) -> subprocess.CompletedProcess[str]:
    """A line of bash, in which $tfjob is the command."""
    return subprocess.run(
        ["bash", "-c", line.replace("$tfjob", " ".join(PROGRAM))],
        cwd=tfjob.directory,
        env={**tfjob.environ, **environ},
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )


def told(done: subprocess.CompletedProcess[str]) -> list[str]:
    assert done.returncode == 2, done.stderr
    return done.stderr.splitlines()


def patched(tfjob: Tfjob, code: str) -> dict[str, str]:
    """The environment of a Python that has the code run first."""
    tfjob.write("patch/sitecustomize.py", code)
    return {"PYTHONPATH": str(tfjob.directory / "patch")}


def test_what_may_not_be_read_is_told_with_its_owner(tfjob: Tfjob) -> None:
    tfjob("init")
    environ = patched(
        tfjob,
        "import pathlib\n"
        "def iterdir(path): raise PermissionError(13, 'Permission denied', str(path))\n"
        "pathlib.Path.iterdir = iterdir",
    )
    first, hint = told(run(tfjob, "$tfjob list", **environ))
    assert first == "tfjob: .tfjob/runs: Permission denied"
    assert hint.startswith("  .tfjob/runs belongs to ")


def test_a_full_disk_is_told(tfjob: Tfjob) -> None:
    tfjob.write("job.yml", "name: job\ncommand: 'true'")
    assert told(run(tfjob, "$tfjob plan job.yml > /dev/full"))[0] == "tfjob: No space left on device"
    assert told(run(tfjob, "$tfjob --help > /dev/full"))[0] == "tfjob: No space left on device"


def test_a_folder_that_was_removed_is_told(tfjob: Tfjob) -> None:
    done = run(tfjob, "mkdir gone; cd gone; rmdir ../gone; $tfjob list")
    assert told(done) == [
        "tfjob: the current folder: No such file or directory",
        "  It was removed: change to another one.",
    ]


def test_a_user_without_a_home_is_told(tfjob: Tfjob) -> None:
    tfjob.write("job.yml", "name: job\ncommand: 'true'")
    environ = patched(tfjob, "import pwd\ndef getpwuid(number): raise KeyError(number)\npwd.getpwuid = getpwuid")
    done = run(tfjob, "unset HOME TFJOB_STORE XDG_CACHE_HOME; $tfjob submit job.yml", **environ)
    assert "HOME" in "".join(told(done))


def test_a_home_that_pathlib_misses_is_told(tfjob: Tfjob) -> None:
    tfjob("init")
    environ = patched(
        tfjob,
        "import pwd, pathlib\n"
        "def getpwuid(number): raise KeyError(number)\n"
        "pwd.getpwuid = getpwuid\n"
        "pathlib.Path.iterdir = lambda path: pathlib.Path.home()",
    )
    assert told(run(tfjob, "unset HOME; $tfjob list", **environ)) == [
        "tfjob: this user has no home directory",
        "  Set HOME to a directory that can be written.",
    ]


@pytest.mark.parametrize(
    ("number", "words"),
    [
        (errno.EROFS, "Its file system is mounted read-only."),
        (errno.ENOSPC, "are free there: remove something."),
        (errno.EACCES, "belongs to"),
        (errno.EDQUOT, "used up"),
    ],
)
def test_every_reason_has_a_hint(tmp_path: Path, number: int, words: str) -> None:
    explained = explain(OSError(number, os.strerror(number), str(tmp_path / "not" / "there")))
    assert explained is not None
    message, hint = explained
    assert message.endswith(f"/not/there: {os.strerror(number)}")
    assert words in hint


def test_a_bug_is_no_matter_of_the_machine() -> None:
    assert explain(OSError("something")) is None
    assert explain(OSError(errno.EBADF, "Bad file descriptor")) is None
    assert explain(RuntimeError("a bug")) is None


@pytest.mark.parametrize("closed", [">&-", "<&-", "2>&-", "<&- >&- 2>&-"])
def test_closed_streams_are_as_if_nobody_listens(tfjob: Tfjob, closed: str) -> None:
    tfjob.write("job.yml", "name: job\ncommand: echo hello; echo world > outputs/x")
    done = run(tfjob, f"$tfjob submit job.yml {closed}")
    assert done.returncode == 0, done.stderr
    assert ("hello\n" in done.stdout) is (">&-" not in closed.replace("2>&-", ""))
    shown = tfjob.show()
    assert shown["state"] == "Completed"
    assert (tfjob.run_directory(shown["id"]) / "logs" / "main.log").read_text() == "hello\n"
    assert run(tfjob, f"$tfjob list {closed}").returncode == 0
    assert run(tfjob, f"$tfjob list -o json {closed}").returncode == 0
    assert run(tfjob, f"$tfjob --help {closed}").returncode == 0


@pytest.mark.parametrize("command", ["list", "list -o json", "show latest", "plan job.yml", "--help", "logs latest"])
def test_whoever_only_looks_may_leave(tfjob: Tfjob, command: str) -> None:
    tfjob.write("job.yml", "name: job\ndescription: |\n" + "  much\n" * 20_000 + "command: echo hello; seq 100000")
    tfjob("submit", "job.yml")
    done = run(tfjob, f"$tfjob {command} | true; echo ${{PIPESTATUS[0]}}")
    assert (done.stdout, done.stderr) == ("0\n", "")


def test_a_command_that_is_not_there(tfjob: Tfjob) -> None:
    assert told(run(tfjob, "$tfjob sumbit job.yml")) == [
        "tfjob: there is no command 'sumbit'",
        "  Did you mean submit?",
    ]
    assert told(run(tfjob, "$tfjob xyz"))[1] == "  See what there is: tfjob --help"
    assert told(run(tfjob, "$tfjob list --lmit 3"))[-1].startswith("Error: No such option: --lmit")


def test_what_other_tools_call_it_is_known() -> None:
    for word, meant in {
        "run": "submit",
        "ps": "list",
        "kill": "cancel",
        "tail": "logs -f",
        "prune": "env prune, or dataset cache --prune",
        "lock": "env lock",
        "env delete": "env remove",
        "env ls": "env list",
        "dataset remove": "dataset delete",
        "compute remove": "compute delete",
        "compute tset": "compute test",
    }.items():
        group, _, name = word.rpartition(" ")
        assert hint_for(name, group) == f"Did you mean {meant}?"
    assert "rm -r .tfjob/runs/RUN" in hint_for("delete")
    assert hint_for("xyz", "env") == "See what there is: tfjob env --help"


def test_every_word_that_is_suggested_is_a_command() -> None:
    for group, words in _OTHER_WORDS.items():
        for word, meant in words.items():
            assert word not in (GROUPS[group] if group else COMMANDS)
            for one in meant.split(", or "):
                first, *more = one.split()
                assert first in COMMANDS
                assert first not in GROUPS or more[0] in GROUPS[first]


def test_numbers_that_are_none_are_told_with_what_is_allowed(tfjob: Tfjob) -> None:
    assert (
        "'10m' is not a valid number of seconds from 0." in tfjob("wait", "x", "--timeout", "10m", exit_code=2).stderr
    )
    assert "'x' is not a valid whole number from 1." in tfjob("logs", "x", "--tail", "x", exit_code=2).stderr
    assert "  --tail N " in tfjob("logs", "--help").stdout


def test_help_is_help(tfjob: Tfjob) -> None:
    assert tfjob("help").stdout == tfjob("--help").stdout


def test_a_list_passes_over_what_it_can_not_read_or_recover(tfjob: Tfjob) -> None:
    tfjob.write("job.yml", "name: job\ncommand: 'true'")
    tfjob("submit", "job.yml")
    good = str(tfjob.show()["id"])
    record = tfjob.record(good)
    going_on = {**record, "state": "Running", "ended": None, "supervisor": None}
    strange = {
        "no-json": "{",
        "a-list": "[]",
        "no-text": json.dumps({**record, "id": 3}),
        "no-date": json.dumps({**record, "created": "yesterday"}),
    }
    for name, text in strange.items():
        tfjob.write(f".tfjob/runs/{name}/record.json", text)
    tfjob.write(".tfjob/runs/a-file", "")
    tfjob.write(".tfjob/runs/newer/record.json", json.dumps({**going_on, "id": "newer", "tasks": "of another version"}))
    tfjob.write(".tfjob/runs/locked/record.json", json.dumps({**going_on, "id": "locked"}))
    (tfjob.run_directory("locked") / "supervisor.lock").mkdir()  # can't be locked, whoever asks
    tfjob.write(".tfjob/runs/no-record/job.yml", "")
    tfjob.write(".tfjob/runs/.new-being-made/job.yml", "")
    for arguments in (["list"], ["list", "-n", "10"]):
        done = tfjob(*arguments)
        told = "tfjob: 5 runs can't be read: a-list, no-date, no-json, no-record, no-text; "
        assert done.stderr.startswith(told)
        lines = done.stdout.splitlines()[1:]
        assert sorted(line.split()[0] for line in lines) == sorted([good, "newer", "locked"])
    assert tfjob("show", "locked").stdout.startswith("locked  Running")


def test_a_damaged_plan_is_named(tfjob: Tfjob) -> None:
    tfjob.write("job.yml", "name: job\ncommand: 'true'")
    tfjob("submit", "job.yml")
    directory = tfjob.run_directory(str(tfjob.show()["id"]))
    for text in ("{", "[]", '{"tasks": [3]}', None):
        if text is None:
            (directory / "plan.json").unlink()
        else:
            (directory / "plan.json").write_text(text)
        for command in ("rerun", "logs"):
            error = tfjob(command, "latest", exit_code=3).stderr
            assert f"the plan of run {directory.name} " in error
            assert f"{directory}/plan.json" in error
    assert tfjob("cancel", "latest").stderr.endswith("is over already\n")


def test_signals_have_names(tfjob: Tfjob) -> None:
    tfjob.write("job.yml", "name: job\ncommand: kill -TERM $$")
    tfjob("submit", "job.yml", exit_code=1)
    assert "signal 15 (SIGTERM)" in tfjob("show", "latest").stdout


def test_no_docker_engine_is_told_by_its_socket(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("DOCKER_HOST", f"unix://{tmp_path}/docker.sock")
    assert probe_docker().note == f"no Docker Engine answers on unix://{tmp_path}/docker.sock"
    monkeypatch.setenv("DOCKER_HOST", "")
    if not Path("/var/run/docker.sock").exists():
        assert probe_docker().note == "no Docker Engine answers on /var/run/docker.sock"
