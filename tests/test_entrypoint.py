from __future__ import annotations

import json
import os
import re
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
from support import eventually, free_ports

from tfjob import entrypoint

ODD = ["", " ", "a b", "quote\"'", "new\nline", "\t", "$HOME `x` $(x)", "${{ run.id }}", "ä€🙂", "\\", "*", "-n"]


def pythons() -> list[str]:
    """The oldest and the newest interpreter of this machine that tasks may run under."""
    installed = Path(os.environ.get("PYENV_ROOT", Path.home() / ".pyenv"), "versions").glob("*/bin/python3.*")
    found: dict[tuple[int, int], str] = {sys.version_info[:2]: sys.executable}
    for path in (*installed, *Path("/usr/bin").glob("python3.*")):
        if version := re.fullmatch(r"python3\.(\d+)", path.name):
            found.setdefault((3, int(version[1])), str(path))
    usable = sorted(version for version in found if version >= (3, 8))
    return [found[version] for version in dict.fromkeys((usable[0], usable[-1]))]


@dataclass
class Task:
    """One task and the entrypoint that runs it."""

    directory: Path
    python: str = sys.executable
    process: subprocess.Popen[bytes] | None = None
    environ: dict[str, str] = field(default_factory=lambda: {"PATH": os.environ["PATH"]})
    patch: str = ""
    """Lines that change the module `entrypoint` before it runs."""

    def start(self, *argv: str, name: str = "main", said: str = "", **keys: Any) -> None:
        (self.directory / name).mkdir(exist_ok=True)
        places = {"cwd": str(self.directory), "log": str(self.directory / "log")}
        task = {"argv": argv, "env": {}, **places, "port": None, "grace_period_s": 20, **keys}
        (self.directory / name / "task.json").write_text(json.dumps(task))
        program = ["-I", "-S", entrypoint.__file__]
        if self.patch:
            lines = (
                "import sys",
                "from tfjob import entrypoint",
                self.patch,
                "sys.exit(entrypoint.main(*sys.argv[1:]))",
            )
            program = ["-c", "\n".join(lines)]
        command = [self.python, *program, str(self.directory), said or name]
        self.process = subprocess.Popen(command, env=self.environ, start_new_session=True)

    def end(self, name: str = "main") -> dict[str, Any]:
        """Wait for its end and return what it said of it."""
        assert self.process is not None
        self.process.wait(timeout=60)
        found: dict[str, Any] = json.loads((self.directory / name / "exit.json").read_text())
        return found

    def send(self, number: int) -> None:
        assert self.process is not None
        self.process.send_signal(number)

    def wrote(self, name: str) -> str:
        """What the command wrote to a file of that name, once it has."""
        text: str = eventually(lambda: (self.directory / name).exists() and (self.directory / name).read_text(), name)
        return text

    @property
    def log(self) -> str:
        return (self.directory / "log").read_text()


@pytest.fixture
def task(tmp_path: Path) -> Iterator[Task]:
    made = Task(tmp_path)
    yield made
    if made.process is not None:
        made.process.kill()
        made.process.wait()


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A disk of 64 KiB and 16 files."""
    at = tmp_path / "disk"
    at.mkdir()
    command = ["mount", "-t", "tmpfs", "-o", "size=64k,nr_inodes=16", "none", str(at)]
    if subprocess.run(command, capture_output=True, check=False).returncode:
        pytest.skip("a small disk can be made by root only")
    yield at
    subprocess.run(["umount", "--lazy", at], check=True)


def lives(pid: int) -> bool:
    fields = entrypoint.stat_fields(pid)
    return bool(fields) and fields[0] != b"Z"


@pytest.mark.parametrize("python", pythons(), ids=os.path.basename)
class TestUnderTheOldestAndTheNewestPython:
    def test_there_are_two_of_them(self, python: str) -> None:
        if len(pythons()) < 2:
            pytest.skip(f"this machine has one Python for tasks, {python}")

    def test_it_says_how_the_command_ended(self, task: Task, python: str) -> None:
        task.python = python
        before = time.time()
        task.start("sh", "-c", "echo out; echo err >&2; exit 3")
        result = task.end()
        assert before - 1 < result.pop("time") < time.time() + 1
        assert result == {"exit_code": 3, "signal": None, "stopped": False}
        assert task.log == "out\nerr\n"
        assert task.process is not None
        assert task.process.returncode == 3

    def test_arguments_and_variables_arrive_byte_for_byte(self, task: Task, python: str) -> None:
        task.python = python
        show = "import os, sys, json; print(json.dumps([sys.argv[1:], os.environ['ODD'], os.environ['PWD']]))"
        for odd in ("\n".join(ODD), ""):
            task.start(sys.executable, "-c", show, *ODD, env={"ODD": odd})
            task.end()
            assert json.loads(task.log.splitlines()[-1]) == [ODD, odd, str(task.directory)]

    def test_it_passes_the_request_to_end_on(self, task: Task, python: str) -> None:
        task.python = python
        task.start("sh", "-c", "trap 'echo asked; exit 7' TERM; touch ready; while :; do sleep 0.02; done")
        eventually((task.directory / "ready").exists, "the command runs")
        task.send(signal.SIGTERM)
        result = task.end()
        assert (result["exit_code"], result["stopped"]) == (7, True)
        assert "asked" in task.log.splitlines()

    @pytest.mark.parametrize(
        ("family", "address"), [(socket.AF_INET, "127.0.0.1"), (socket.AF_INET, ""), (socket.AF_INET6, "::1")]
    )
    def test_it_notes_when_the_port_is_listened_on(
        self, task: Task, python: str, family: socket.AddressFamily, address: str
    ) -> None:
        task.python = python
        marker = task.directory / "main" / "listening"
        (port,) = free_ports(1)  # of no other listener: one on another address would do
        with socket.socket(family) as server:
            try:
                server.bind((address, port))
            except OSError:
                pytest.skip(f"this machine has no {address}")
            task.start("sleep", "60", port=port)
            eventually((task.directory / "main" / "started.json").exists, "the start")
            assert not marker.exists()
            server.listen()
            eventually(marker.exists, "the marker")
        task.send(signal.SIGTERM)
        assert task.end()["signal"] == signal.SIGTERM


def test_a_signal_that_kills_the_command_is_named(task: Task) -> None:
    task.start("sh", "-c", "kill -SEGV $$")
    result = task.end()
    assert (result["exit_code"], result["signal"], result["stopped"]) == (None, signal.SIGSEGV, False)
    assert task.process is not None
    assert task.process.returncode == 128 + signal.SIGSEGV


@pytest.mark.parametrize(
    ("command", "code", "said"),
    [
        ("no-such-program", 127, "tfjob: command not found: no-such-program (PATH is "),
        ("./missing", 127, "tfjob: command not found: ./missing"),
        ("./not-executable", 126, "tfjob: ./not-executable can't be run: Permission denied"),
        ("./no-format", 126, "tfjob: ./no-format can't be run: Exec format error"),
    ],
)
def test_a_command_that_can_not_start_says_so(task: Task, command: str, code: int, said: str) -> None:
    (task.directory / "not-executable").touch()
    (task.directory / "no-format").write_text("no program")
    (task.directory / "no-format").chmod(0o755)
    task.start(command)
    assert task.end()["exit_code"] == code
    assert task.log.startswith(said)


def test_a_working_directory_that_has_gone_is_said(task: Task) -> None:
    task.start("true", cwd=str(task.directory / "gone"))
    assert task.end()["exit_code"] == 126
    assert "FileNotFoundError" in task.log


def test_a_task_has_said_that_it_started_before_its_command_runs(task: Task) -> None:
    task.patch = "import time; write = entrypoint.write; entrypoint.write = lambda *a: time.sleep(1) or write(*a)"
    task.start("test", "-s", "main/started.json")
    assert task.end()["exit_code"] == 0


def test_a_machine_without_room_for_another_process_is_said(task: Task) -> None:
    task.patch = (
        "import errno, os\n"
        "def fork(): raise BlockingIOError(errno.EAGAIN, os.strerror(errno.EAGAIN))\n"
        "entrypoint.os.fork = fork"
    )
    task.start("true")
    assert task.end()["exit_code"] == 126
    assert "Resource temporarily unavailable" in task.log


def test_nothing_the_command_started_outlives_it(task: Task) -> None:
    line = "env -i setsid -f sh -c 'trap \"\" TERM; echo $$ >escaped; sleep 60'; sleep 60 & until [ -s escaped ]; do sleep 0.02; done"
    task.start("sh", "-c", line)
    assert task.end()["exit_code"] == 0
    escaped = int(task.wrote("escaped"))
    assert not lives(escaped)


def test_a_command_that_ignores_the_request_is_killed_after_the_grace(task: Task) -> None:
    task.start("sh", "-c", "trap '' TERM; touch ready; while :; do sleep 0.02; done", grace_period_s=0.3)
    eventually((task.directory / "ready").exists, "the command runs")
    begun = time.monotonic()
    task.send(signal.SIGTERM)
    result = task.end()
    assert time.monotonic() - begun >= 0.3
    assert (result["signal"], result["stopped"]) == (signal.SIGKILL, True)


def test_the_time_of_an_end_is_that_of_the_command_not_of_what_saves_after_it(task: Task) -> None:
    saves = "trap 'until [ -e go ]; do sleep 0.02; done; exit 0' TERM; echo $PPID >ready; while :; do sleep 0.02; done"
    task.start("sh", "-c", f'sh -c "{saves}"; echo not reached', grace_period_s=60)
    shell = int(task.wrote("ready"))
    task.send(signal.SIGTERM)
    eventually(lambda: not lives(shell), "the command has ended")
    time.sleep(2.5)  # for a slow entrypoint to look at its clock
    gone = time.time()
    (task.directory / "go").touch()
    assert task.end()["time"] < gone


def test_what_runs_below_a_shell_has_the_grace_too(task: Task) -> None:
    saves = "trap 'sleep 0.3; echo saved >checkpoint; exit 0' TERM; touch ready; while :; do sleep 0.02; done"
    task.start("sh", "-c", f'sh -c "{saves}"; echo not reached')
    eventually((task.directory / "ready").exists, "the training runs")
    task.send(signal.SIGTERM)
    result = task.end()
    assert (result["signal"], result["stopped"]) == (signal.SIGTERM, True)
    assert (task.directory / "checkpoint").read_text() == "saved\n"


def test_the_command_dies_with_its_entrypoint(task: Task) -> None:
    task.start("sh", "-c", "echo $$ >pid; exec sleep 60")
    pid = int(task.wrote("pid"))
    started = json.loads((task.directory / "main" / "started.json").read_text())
    assert task.process is not None
    assert started["pid"] == task.process.pid
    assert started["start_ticks"] == entrypoint.start_ticks(started["pid"])
    task.process.kill()
    task.process.wait()
    eventually(lambda: not lives(pid), "the end of the command")
    assert not (task.directory / "main" / "exit.json").exists()


@pytest.mark.parametrize("variable", entrypoint.RANK_VARIABLES)
def test_a_rank_becomes_the_task_of_its_number(task: Task, variable: str) -> None:
    task.environ[variable] = "3"
    task.start("sh", "-c", f"echo rank ${variable}", name="rank-3", said="rank")
    assert task.end("rank-3")["exit_code"] == 0
    assert task.log == "rank 3\n"


def test_a_rank_that_does_not_know_its_number_says_so(task: Task) -> None:
    task.environ["OMPI_COMM_WORLD_RANK"] = "all"
    command = [task.python, "-I", "-S", entrypoint.__file__, str(task.directory), "rank"]
    done = subprocess.run(command, env=task.environ, capture_output=True, text=True, check=False)
    assert done.returncode == 1
    assert "no MPI rank in the environment" in done.stderr


@pytest.mark.root
def test_how_it_ended_is_written_on_a_full_disk(task: Task, small_disk: Path) -> None:
    task.directory = small_disk
    task.start("sh", "-c", "dd if=/dev/zero of=filling bs=4k; touch full; exit 5")
    assert task.end()["exit_code"] == 5
    assert os.statvfs(small_disk).f_bavail == 0


@pytest.mark.root
def test_a_full_disk_does_not_end_a_task_that_comes_to_listen(task: Task, small_disk: Path) -> None:
    task.directory = small_disk
    with socket.socket() as server:
        (port,) = free_ports(1)
        server.bind(("127.0.0.1", port))
        task.start("sleep", "60", port=port)
        eventually((small_disk / "main" / "started.json").exists, "the start")
        filling: list[Path] = []
        while os.statvfs(small_disk).f_favail:
            filling.append(small_disk / f"filling-{len(filling)}")
            filling[-1].touch()
        server.listen()
        time.sleep(0.6)  # longer than it takes to look at the port
        assert task.process is not None
        assert task.process.poll() is None
        filling[0].unlink()
        eventually((small_disk / "main" / "listening").exists, "the marker")


def test_it_looks_for_the_port_less_and_less_but_as_often_as_it_is_told() -> None:
    assert entrypoint.look_s({}, 0) < entrypoint.look_s({}, 60) < entrypoint.look_s({}, 1000) == entrypoint.LISTENING_S
    assert entrypoint.look_s({"listening_s": 0.5}, 1000) == 0.5


def test_it_imports_nothing_but_the_standard_library() -> None:
    show = f"import runpy, sys; runpy.run_path({entrypoint.__file__!r}); print(sorted(sys.modules))"
    done = subprocess.run([sys.executable, "-I", "-S", "-c", show], capture_output=True, text=True, check=True)
    assert "tfjob" not in done.stdout
    assert "pathlib" not in done.stdout  # it starts in milliseconds
