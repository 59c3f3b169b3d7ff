from __future__ import annotations

import io
import json
import re
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
from support import PROGRAM, Tfjob
from typer.testing import CliRunner

from tfjob.cli.main import COMMANDS, help_text
from tfjob.cli.output import duration, size
from tfjob.cli.parser import app
from tfjob.cli.task_output import TaskOutput
from tfjob.runs.follow import Chunk


def test_the_help_names_every_option_the_parser_knows() -> None:
    from typer.main import get_command  # noqa: PLC0415

    known = {name for parameter in get_command(app).params for name in parameter.opts}
    assert known | {"-h", "--help"} == set(re.findall(r"(?:^  |, )(--?[a-z-]+)", help_text(), re.MULTILINE))


@pytest.mark.parametrize("command", COMMANDS)
def test_every_command_explains_itself(command: str) -> None:
    result = CliRunner().invoke(app, [command, "--help"])
    assert result.exit_code == 0, result.output
    assert f"tfjob {command}" in result.output


def test_a_list_without_options_is_the_list_with_its_defaults(tfjob: Tfjob) -> None:
    tfjob.write("job.yml", "name: job\ncommand: 'true'")
    tfjob("submit", "job.yml")
    assert tfjob("list").stdout == tfjob("list", "-o", "table").stdout


def test_submit_with_and_without_the_parser_is_the_same(tfjob: Tfjob) -> None:
    tfjob.write("job.yml", "name: job\ncommand: echo same; exit 3")
    first = tfjob("submit", "job.yml", exit_code=1)
    second = tfjob("submit", "job.yml", "--on-interrupt", "auto", exit_code=1)
    anonymous = [
        re.sub(r"job-\w{6}|[\d.]+ s\b|tfjob: made .*\n", "", done.stdout + done.stderr) for done in (first, second)
    ]
    assert anonymous[0] == anonymous[1]


def test_an_unknown_error_shows_its_traceback(tfjob: Tfjob) -> None:
    tfjob.write(
        "sitecustomize.py", "import tfjob.runs.find as f\ndef broken(*_): raise RuntimeError('a bug')\nf._ids = broken"
    )
    done = subprocess.run(
        [*PROGRAM, "list", "-n", "1"],
        cwd=tfjob.directory,
        env={**tfjob.environ, "PYTHONPATH": str(tfjob.directory), "TFJOB_WORKSPACE": _workspace(tfjob)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert "Traceback (most recent call last)" in done.stderr
    assert "RuntimeError: a bug" in done.stderr
    assert done.returncode == 1


def test_a_reader_that_leaves_early_is_no_error(tfjob: Tfjob) -> None:
    tfjob.write("job.yml", "name: job\ncommand: 'true'")
    for _ in range(3):
        tfjob("submit", "job.yml")
    line = f"{sys.executable} -P -m tfjob.cli.main list -o json | head -n 1"
    done = subprocess.run(
        ["bash", "-c", line], cwd=tfjob.directory, env=tfjob.environ, capture_output=True, text=True, check=True
    )
    assert (done.stdout, done.stderr) == ("[\n", "")


def test_json_on_stdout_is_one_document_and_nothing_else(tfjob: Tfjob) -> None:
    tfjob.write("job.yml", "name: job\ntags: {a: b}\ncommand: echo noise; echo x > outputs/y")
    done = tfjob("submit", "job.yml", "-o", "json")
    record = json.loads(done.stdout)
    assert "noise" in done.stderr
    assert {
        *("id", "name", "experiment", "state", "created", "phases", "tasks", "failure", "dir", "outputs", "tags")
    } <= set(record)
    assert set(record["phases"][0]) == {"name", "started", "ended"}
    assert {"name", "node", "exit_code", "signal"} <= set(record["tasks"][0])
    assert record["tags"] == {"a": "b"}
    assert json.loads(tfjob("show", record["id"], "-o", "json").stdout) == record
    assert json.loads(tfjob("validate", "job.yml", "-o", "json").stdout) == []
    assert json.loads(tfjob("plan", "job.yml", "-o", "json").stdout)["name"] == "job"


def test_validate_reports_all_files_as_json(tfjob: Tfjob) -> None:
    tfjob.write("a.yml", "comand: x")
    tfjob.write("b.yml", "command: x\ncompute: {node_count: 0}")
    found = json.loads(tfjob("validate", "a.yml", "b.yml", "-o", "json", exit_code=2).stdout)
    assert {problem["file"] for problem in found} == {"a.yml", "b.yml"}
    assert all(set(problem) == {"file", "line", "column", "path", "message", "hint"} for problem in found)


@pytest.mark.parametrize("name", ["-", "/dev/stdin"])
def test_a_job_file_from_stdin(tfjob: Tfjob, name: str) -> None:
    tfjob.write("src/x.txt", "here")
    text = "code: src\ncommand: cat x.txt\ndataset: {d: {paths: src}}\n"
    for command, shown in (("validate", f"{name}: ok"), ("plan", "name: stdin"), ("submit", "here")):
        done = subprocess.run(
            [sys.executable, "-P", "-m", "tfjob.cli.main", command, name],
            cwd=tfjob.directory,
            env=tfjob.environ,
            input=text,
            capture_output=True,
            text=True,
            check=True,
        )
        assert shown in done.stdout, done.stderr
    assert "stdin-" in tfjob("list").stdout


def test_a_problem_of_a_job_file_from_stdin_has_its_place(tfjob: Tfjob) -> None:
    done = subprocess.run(
        [sys.executable, "-P", "-m", "tfjob.cli.main", "submit", "-"],
        cwd=tfjob.directory,
        env=tfjob.environ,
        input="comand: x",
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 2
    assert 'stdin:1:1: comand: found the unknown key "comand"' in done.stderr


def test_lines_of_several_tasks_never_mix_and_long_ones_stay_whole() -> None:
    out = io.BytesIO()
    output = TaskOutput(["worker-0", "ps-0"], out, sys.stdout)
    output.write(Chunk("worker-0", b"first "))
    output.write(Chunk("ps-0", b"y" * 10_000 + b"\n"))
    output.write(Chunk("worker-0", b"half\n10%\r20%\r30%\nrest"))
    output.close()
    assert out.getvalue().decode().splitlines() == [
        "ps-0     | " + "y" * 10_000,
        "worker-0 | first half",
        "worker-0 | 30%",
        "worker-0 | rest",
    ]


def test_the_output_of_one_task_is_passed_on_as_it_is() -> None:
    out = io.BytesIO()
    output = TaskOutput(["main"], out, sys.stdout)
    output.write(Chunk("main", b"10%\r20%"))
    output.write(Chunk("main", b"\xff raw"))
    output.close()
    assert out.getvalue() == b"10%\r20%\xff raw\n"


@pytest.mark.parametrize("columns", ["40", "200"])
@pytest.mark.parametrize("no_color", [False, True])
def test_on_a_terminal_nothing_is_cut_and_no_color_is_heeded(tfjob: Tfjob, columns: str, no_color: bool) -> None:
    tfjob.write("job.yml", "name: job\ncommand: echo " + "z" * 300)
    environ = {**tfjob.environ, "TERM": "xterm-256color", "COLUMNS": columns, **({"NO_COLOR": "1"} if no_color else {})}
    script = "import pty, sys; sys.exit(pty.spawn(sys.argv[1:]) >> 8)"
    done = subprocess.run(
        [sys.executable, "-c", script, *PROGRAM, "submit", "job.yml"],
        cwd=tfjob.directory,
        env=environ,
        stdin=subprocess.DEVNULL,
        capture_output=True,
        check=False,
    )
    printed = done.stdout.decode()
    assert "z" * 300 in printed
    assert "Completed" in printed
    assert ("\x1b[" in printed) is not no_color


@pytest.mark.parametrize(
    ("seconds", "words"),
    [(0.04, "0.0 s"), (12.34, "12.3 s"), (99.97, "1 min 40 s"), (245, "4 min 05 s"), (7380, "2 h 03 min")],
)
def test_lengths_of_time_for_people(seconds: float, words: str) -> None:
    assert duration(seconds) == words


@pytest.mark.parametrize(("count", "words"), [(0, "0 B"), (1023, "1023 B"), (1536, "1.5 KiB"), (3 * 2**40, "3.0 TiB")])
def test_sizes_for_people(count: int, words: str) -> None:
    assert size(count) == words


def test_doctor_says_what_is_there(tfjob: Tfjob) -> None:
    findings = {finding["name"]: finding for finding in json.loads(tfjob("doctor", "-o", "json").stdout)}
    assert findings["system"]["status"] == "ok"
    assert findings["uv"]["found"].startswith("uv ")
    assert {"workspace", "environments", "leases", "GPUs", "MPI", "Docker", "Slurm"} <= set(findings)
    assert all(finding["what_to_do"] for finding in findings.values() if finding["status"] != "ok")


def findings_of(tfjob: Tfjob, **environ: str) -> dict[str, dict[str, str]]:
    """What doctor finds where something is broken."""
    done = replace(tfjob, environ={**tfjob.environ, **environ})("doctor", "-o", "json", exit_code=5)
    return {finding["name"]: finding for finding in json.loads(done.stdout)}


def test_doctor_looks_on_where_something_is_broken(tfjob: Tfjob) -> None:
    tfjob("init")
    tfjob.write(".tfjob/config.yml", "stor: x")
    found = findings_of(tfjob)
    assert found["workspace"]["status"] == "broken"
    assert found["workspace"]["found"].startswith(f"{tfjob.directory}/.tfjob/config.yml:1:1: ")
    assert found["environments"]["status"] == found["uv"]["status"] == "ok"
    found = findings_of(tfjob, TFJOB_WORKSPACE="/nowhere")
    assert found["workspace"]["found"] == "TFJOB_WORKSPACE names /nowhere, and there is no workspace"
    assert found["environments"]["status"] == "ok"
    found = findings_of(tfjob, TFJOB_STORE="a/b")
    assert found["environments"]["found"].startswith("TFJOB_STORE is a/b")
    found = findings_of(tfjob, TFJOB_STORE="/proc/x")
    assert found["environments"]["found"].startswith("/proc/x can't be written: ")


def test_completion_offers_run_ids(tfjob: Tfjob) -> None:
    tfjob.write("job.yml", "name: tabbed\ncommand: 'true'")
    tfjob("submit", "job.yml")
    done = subprocess.run(
        [*PROGRAM],
        cwd=tfjob.directory,
        env={
            **tfjob.environ,
            "_TFJOB_COMPLETE": "complete_bash",
            "COMP_WORDS": "tfjob show tab",
            "COMP_CWORD": "2",
        },
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.stdout.startswith("tabbed-")


def _workspace(tfjob: Tfjob) -> str:
    tfjob("init")
    return str(Path(tfjob.directory))
