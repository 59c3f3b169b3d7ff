"""The program in a node's container, spoken to over its pipes, in directories of this machine."""

from __future__ import annotations

import ast
import json
import os
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from support import eventually

from tfjob import entrypoint
from tfjob.engines import run_files
from tfjob.engines.cluster import agent as program
from tfjob.engines.cluster import agent_system, agent_tasks
from tfjob.engines.cluster.agent_system import copy_tree, free_ports, interface_of, link
from tfjob.engines.cluster.container import KEEP
from tfjob.entrypoint import is_listening

SOURCES = (*Path(program.__file__).parent.glob("agent*.py"), Path(run_files.__file__))


@pytest.mark.parametrize("file", sorted([*SOURCES, *SOURCES[0].parent.glob("node_*.py")]), ids=lambda file: file.name)
def test_it_runs_on_python_3_8(file: Path) -> None:
    tree = ast.parse(file.read_text(), feature_version=(3, 8))
    imported = {
        alias.name.partition(".")[0] for node in ast.walk(tree) if isinstance(node, ast.Import) for alias in node.names
    }
    names = {node.attr for node in ast.walk(tree) if isinstance(node, ast.Attribute)}
    assert imported <= sys.stdlib_module_names
    newer = {"removeprefix", "removesuffix", "waitstatus_to_exitcode", "pidfd_open", "pairwise", "file_digest"}
    assert names & newer == set()  # of those that other programs of tfjob use
    assert "match" not in {type(node).__name__.lower() for node in ast.walk(tree)}


@pytest.fixture(scope="session")
def program_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The agent with its modules beside it, as they lie in a container."""
    directory = tmp_path_factory.mktemp("programs")
    for source in (*SOURCES, Path(entrypoint.__file__)):
        shutil.copy(source, directory)
    return directory / "agent.py"


class Agent:
    """An agent at work: what it says is gathered."""

    def __init__(self, file: Path, run: Path) -> None:
        self.process = subprocess.Popen(
            [sys.executable, "-I", "-S", str(file), "serve", str(run), "2", "127.0.0.1"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
        )
        self.said: list[dict[str, Any]] = []
        self.data: dict[str, bytes] = {}
        self._number = 0
        self._thread = threading.Thread(target=self._hear, daemon=True)
        self._thread.start()

    def _hear(self) -> None:
        assert self.process.stdout is not None
        for line in self.process.stdout:
            header = json.loads(line)
            data = self.process.stdout.read(header.get("length", 0))
            if header["kind"] in {"file", "log"} and header.get("size", 0) < 1 << 20:
                known = self.data.get(header["path"], b"")
                self.data[header["path"]] = known + data if len(known) < 1 << 20 else known
            self.said.append(header)

    def tell(self, order: str, **facts: Any) -> None:
        self._number += 1
        assert self.process.stdin is not None
        self.process.stdin.write(json.dumps({"do": order, "number": self._number, **facts}).encode() + b"\n")
        self.process.stdin.flush()

    def have(self, *tasks: str, merge_interval_s: float = 3600, **more: Any) -> None:
        facts = {"logs": {}, "reports": [], "files": {}, "keep": ["outputs"], "code": "", **more}
        self.tell("have", tasks=list(tasks), merge_interval_s=merge_interval_s, **facts)

    def prepare(self, *tasks: str, **more: Any) -> None:
        facts = {"datasets": [], "named": [], "files": {}, **more}
        self.tell("prepare", tasks={task: {} for task in tasks}, **facts)
        eventually(lambda: self.kinds("ready"), "it is prepared")

    def sync(self) -> None:
        count = len(self.kinds("synced"))
        self.tell("sync")
        eventually(lambda: len(self.kinds("synced")) > count, "it has sent everything")

    def kinds(self, kind: str) -> list[dict[str, Any]]:
        return [one for one in list(self.said) if one["kind"] == kind]

    def paths(self, kind: str) -> list[str]:
        return [one["path"] for one in self.kinds(kind)]

    def end(self) -> None:
        assert self.process.stdin is not None
        self.process.stdin.close()
        assert self.process.wait(60) == 0
        self._thread.join(60)


@pytest.fixture
def run(tmp_path: Path) -> Path:
    found = tmp_path / "run"
    for name in ("outputs", "logs/user", "tasks", "work", "datasets"):
        (found / name).mkdir(parents=True)
    return found


@pytest.fixture
def agents(program_file: Path, run: Path) -> Iterator[list[Agent]]:
    found: list[Agent] = [Agent(program_file, run)]
    yield found
    for one in found:
        one.process.kill()
        one.process.wait()


@pytest.fixture
def agent(agents: list[Agent]) -> Agent:
    return agents[0]


def test_it_says_what_its_node_has_and_ends_with_its_stdin(agent: Agent) -> None:
    eventually(lambda: agent.kinds("beat"), "a sign of life")
    (hello,) = agent.kinds("hello")
    assert all(isinstance(word["time"], float) for word in (hello, *agent.kinds("beat")))
    assert hello["interface"] == "lo"
    assert hello["subnet"] == "127.0.0.0/8"
    assert len(set(hello["ports"])) == 2
    agent.end()


def test_pipes_in_outputs_silence_nothing(agent: Agent, run: Path) -> None:
    agent.have("main-0")
    agent.prepare("main-0")
    for place in ("outputs/pipe", "logs/user/pipe", "work/main-0/pipe"):
        os.mkfifo(run / place)
    (run / "outputs/file").write_text("kept")
    (run / "outputs/link").symlink_to("file")
    (run / "work/main-0/elsewhere").write_text("kept too")
    agent.sync()
    assert agent.data == {"outputs/file": b"kept", "work/main-0/elsewhere": b"kept too"}
    assert [(one["path"], one["target"]) for one in agent.kinds("link")] == [("outputs/link", "file")]


def test_a_log_that_may_not_be_read_hides_no_end(agent: Agent, run: Path) -> None:
    agent.have("main-0")
    agent.prepare("main-0")
    (run / "logs/user/loop").symlink_to("loop")
    (run / "logs/main-0.log").mkdir()
    (run / "tasks/main-0/exit.json").write_text("{}")
    eventually(lambda: [one["name"] for one in agent.kinds("report")] == ["exit.json"], "the report")


def test_a_file_that_becomes_a_directory_is_gone_first(agent: Agent, run: Path) -> None:
    agent.have("main-0")
    agent.prepare("main-0")
    (run / "outputs/x").write_text("file")
    (run / "outputs/empty").mkdir()
    agent.sync()
    (run / "outputs/x").unlink()
    (run / "outputs/x").mkdir()
    (run / "outputs/x/y").write_text("below")
    agent.sync()
    said = [(one["kind"], one["path"]) for one in agent.said if one["kind"] in {"file", "gone", "directory"}]
    assert said == [
        ("file", "outputs/x"),
        ("directory", "outputs/empty"),
        ("gone", "outputs/x"),
        ("file", "outputs/x/y"),
    ]


def test_what_an_earlier_attempt_left_is_not_sent_again(agents: list[Agent], program_file: Path, run: Path) -> None:
    (run / "outputs/old").write_text("of the first attempt")
    (run / "outputs/changed").write_text("of the first attempt")
    first = agents[0]
    first.have("main-0")
    first.prepare("main-0")
    (run / "outputs/new").write_text("of the second")
    first.sync()
    assert first.data == {"outputs/new": b"of the second"}
    first.end()
    agents.append(Agent(program_file, run))  # after a connection that broke, or for another supervisor
    (run / "outputs/changed").write_text("of the second attempt")
    agents[1].have("main-0", files={})
    agents[1].sync()
    assert agents[1].data == {"outputs/new": b"of the second", "outputs/changed": b"of the second attempt"}


def test_tasks_are_told_to_end_while_much_is_sent(agent: Agent, run: Path) -> None:
    agent.have("main-0")
    agent.prepare("main-0")
    task = subprocess.Popen(["sleep", "600"])
    report = {"pid": task.pid, "start_ticks": agent_system.start_ticks(task.pid)}
    (run / "tasks/main-0/started.json").write_text(json.dumps(report))
    with (run / "outputs/large").open("wb") as file:
        file.truncate(64 << 30)  # holes: nothing is on the disk
    agent.tell("sync")
    eventually(lambda: agent.kinds("file"), "it has begun to send")
    (run / "logs/main-0.log").write_text("meanwhile")
    agent.tell("stop", launcher=False)
    assert task.wait(60) == -signal.SIGTERM
    eventually(lambda: "logs/main-0.log" in agent.data, "the log")
    assert not agent.kinds("synced")


def test_a_long_log_keeps_neither_orders_nor_other_tasks_waiting(agent: Agent, run: Path) -> None:
    agent.have("main-0", "main-1")
    agent.prepare("main-0", "main-1")
    task = subprocess.Popen(["sleep", "600"])
    report = {"pid": task.pid, "start_ticks": agent_system.start_ticks(task.pid)}
    (run / "tasks/main-0/started.json").write_text(json.dumps(report))
    with (run / "logs/main-0.log").open("wb") as file:
        file.truncate(64 << 30)  # holes: nothing is on the disk
    eventually(lambda: agent.kinds("log"), "it has begun to send")
    (run / "logs/main-1.log").write_text("meanwhile")
    for name in ("main-0", "main-1"):
        (run / "tasks" / name / "exit.json").write_text("{}")
    eventually(lambda: "logs/main-1.log" in agent.data, "the other log")
    eventually(lambda: [one["task"] for one in agent.kinds("report") if one["name"] == "exit.json"], "its end")
    (run / "tasks/main-0/exit.json").unlink()  # it would not be told to end any more
    agent.tell("stop", launcher=False)
    assert task.wait(60) == -signal.SIGTERM
    assert {one["task"] for one in agent.kinds("report") if one["name"] == "exit.json"} == {"main-1"}
    agent.tell("sync")
    agent.tell("kill")
    eventually(lambda: [one["number"] for one in agent.kinds("done")][-1:] == [5], "that is heard while all is sent")
    assert not agent.kinds("synced")


def test_the_last_of_long_logs_comes_before_the_end(agent: Agent, run: Path) -> None:
    agent.have("main-0", "main-1")
    agent.prepare("main-0", "main-1")
    for name in ("main-0", "main-1"):
        (run / "logs" / f"{name}.log").write_bytes(b"x" * (9 << 20))
        (run / "tasks" / name / "exit.json").write_text("{}")
    agent.sync()
    ends = {one["task"]: at for at, one in enumerate(agent.said) if one["kind"] == "report"}
    for name in ("main-0", "main-1"):
        logs = [at for at, one in enumerate(agent.said) if one.get("path") == f"logs/{name}.log"]
        assert sum(agent.said[at]["length"] for at in logs) == 9 << 20
        assert logs[-1] < ends[name]


def test_who_looks_at_many_files_says_so(agent: Agent, run: Path) -> None:
    agent.have("main-0")
    agent.prepare("main-0")
    assert not agent.kinds("walking")
    (run / "work/main-0/same").write_text("of the code")
    (run / "code").mkdir()
    shutil.copy2(run / "work/main-0/same", run / "code/same")
    agent.have("main-0", code=str(run / "code"))
    agent.sync()
    assert agent.kinds("walking")
    assert not agent.kinds("file")


def test_an_end_from_outside_is_not_the_tasks_own(agent: Agent, program_file: Path, run: Path) -> None:
    agent.have("main-0")
    agent.prepare("main-0")
    task = subprocess.Popen(["sleep", "600"])
    report = {"pid": task.pid, "start_ticks": agent_system.start_ticks(task.pid)}
    (run / "tasks/main-0/started.json").write_text(json.dumps(report))
    eventually(lambda: agent.kinds("report"), "it has started")
    signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM})  # which it inherits: so none comes too early
    keeper = subprocess.Popen([sys.executable, "-I", "-S", "-c", KEEP, str(program_file), "end", str(run)])
    signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGTERM})
    keeper.terminate()
    assert task.wait(60) == -signal.SIGTERM
    (run / "tasks/main-0/exit.json").write_text("{}")
    assert keeper.wait(60) == 0
    eventually(lambda: agent.kinds("leaving"), "that it is told")
    agent.sync()
    assert [one["name"] for one in agent.kinds("report")] == ["started.json"]


def exits(agent: Agent) -> list[str]:
    return [one["task"] for one in agent.kinds("report") if one["name"] == "exit.json"]


def write_end(run: Path, task: str, *, time: float, stopped: bool = False) -> None:
    report = {"exit_code": 0, "signal": None, "time": time, "stopped": stopped}
    (run / "tasks" / task / "exit.json").write_text(json.dumps(report))


def test_an_end_before_that_is_the_tasks_own(agent: Agent, run: Path) -> None:
    tasks = ("main-0", "main-1", "main-2")
    agent.have(*tasks)
    agent.prepare(*tasks)
    (run / "told-to-end.new").write_text("20.0")
    (run / "told-to-end.new").rename(run / "told-to-end")
    (leaving,) = eventually(lambda: agent.kinds("leaving"), "that it is told")
    assert leaving["since"] == 20.0
    write_end(run, "main-0", time=20.1)
    write_end(run, "main-1", time=19.9)
    write_end(run, "main-2", time=19.9, stopped=True)
    eventually(lambda: exits(agent), "its end")
    agent.sync()
    assert exits(agent) == ["main-1"]


def test_the_end_of_tasks_is_noted_with_its_time_also_on_a_full_disk(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    note = tmp_path / "told-to-end"
    assert agent_tasks.told_at(str(note)) is None
    before = time.time()
    agent_tasks.note_end(str(note))
    assert before <= (agent_tasks.told_at(str(note)) or 0) <= time.time()

    def no_room(*_: object) -> None:
        raise OSError

    monkeypatch.setattr(os, "replace", no_room)
    agent_tasks.note_end(str(note))
    assert agent_tasks.told_at(str(note)) == 0.0


def test_that_it_is_told_to_end_is_said_before_the_next_beat_whatever_else_it_does(
    agent: Agent, run: Path, tmp_path: Path
) -> None:
    os.mkfifo(tmp_path / "slow")  # a copy of it waits until somebody writes
    agent.have("main-0")
    datasets = [{"at": "d", "mode": "download", "links": [[str(tmp_path / "slow"), "f"]]}]
    agent.tell("prepare", tasks={}, named=[], files={}, datasets=datasets)
    eventually((run / "left.json").exists, "it is at it")
    (run / "told-to-end").write_text("20.0")
    eventually(lambda: agent.kinds("leaving"), "that it is told")
    eventually(lambda: agent.said[-1]["kind"] == "beat", "it goes on")
    assert len(agent.kinds("leaving")) == 1


def test_beats_say_when_it_last_looked_and_had_told_all(agent: Agent, run: Path) -> None:
    def looked() -> float:
        return float(agent.kinds("beat")[-1]["looked"]) if agent.kinds("beat") else 0.0

    agent.have("main-0", "main-1")
    agent.prepare("main-0", "main-1")
    begun = time.time()
    eventually(lambda: looked() > begun, "it looks")
    with (run / "logs/main-0.log").open("wb") as file:
        file.truncate(64 << 30)  # holes: nothing is on the disk
    eventually(lambda: agent.kinds("log"), "it has begun to send")
    begun = time.time()
    eventually(lambda: looked() > begun, "a task with a long log has not ended")
    write_end(run, "main-0", time=20.0)
    ended = time.time()
    eventually(lambda: agent.kinds("beat")[-1]["time"] > ended + 1, "it goes on")
    count = len(agent.kinds("beat"))
    eventually(lambda: len(agent.kinds("beat")) > count + 1, "it goes on")
    assert looked() <= ended
    assert not exits(agent)
    os.truncate(run / "logs/main-0.log", 0)
    eventually(lambda: exits(agent), "its end")
    eventually(lambda: looked() > ended + 1, "all is told")


def test_code_is_copied_whole_or_not_at_all(tmp_path: Path) -> None:
    source = tmp_path / "source"
    (source / "sub").mkdir(parents=True)
    (source / "sub/file").write_text("x")
    (source / "sub/file").chmod(0o444)
    os.utime(source / "sub/file", (1_000_000_000, 1_000_000_000))
    copy_tree(str(source), str(tmp_path / "copy"))
    copied = tmp_path / "copy/sub/file"
    assert (copied.read_text(), copied.stat().st_mtime, copied.stat().st_mode & 0o777) == ("x", 1_000_000_000, 0o644)
    copied.write_text("changed")
    copy_tree(str(source), str(tmp_path / "copy"))  # told twice, or another one was quicker
    assert copied.read_text() == "changed"
    with pytest.raises(OSError, match="nowhere"):
        copy_tree(str(tmp_path / "nowhere"), str(tmp_path / "none"))
    assert sorted(path.name for path in tmp_path.iterdir()) == ["copy", "source"]


def test_what_is_in_the_way_of_a_link_moves_there(tmp_path: Path) -> None:
    (tmp_path / "work/outputs").mkdir(parents=True)
    (tmp_path / "work/outputs/seed").write_text("of the code")
    link(str(tmp_path / "work/outputs"), str(tmp_path / "outputs"))
    link(str(tmp_path / "work/outputs"), str(tmp_path / "outputs"))
    assert (tmp_path / "outputs/seed").read_text() == "of the code"
    assert (tmp_path / "work/outputs").is_symlink()


def test_ports_are_free_and_different() -> None:
    ports = free_ports(20)
    assert len(set(ports)) == 20
    assert not any(map(is_listening, ports))


def test_an_address_that_is_not_here_has_no_interface() -> None:
    assert interface_of("192.0.2.1") == ("", "")


def test_outputs_are_sent_as_often_as_it_is_told(run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """From the first time on, however late it is told."""
    monkeypatch.setattr(program.Agent, "say", lambda *_, **__: None)
    agent = program.Agent(str(run))
    facts: dict[str, Any] = {"logs": {}, "reports": [], "files": {}, "tasks": ["main-0"], "keep": [], "code": ""}
    for interval_s in (2.0, 3600.0):
        before = time.monotonic()
        agent.do_have(merge_interval_s=interval_s, **facts)
        assert interval_s <= agent.next_merge - before < interval_s + 60


def test_time_goes_on_while_it_copies(agent: Agent, run: Path, tmp_path: Path) -> None:
    (tmp_path / "tree").mkdir()
    os.mkfifo(tmp_path / "tree/slow")  # a copy of it waits until somebody writes
    agent.have("main-0")
    agent.tell(
        "prepare",
        tasks={},
        named=[],
        files={},
        datasets=[{"at": "d", "mode": "download", "tree": str(tmp_path / "tree")}],
    )
    eventually((run / "left.json").exists, "it is at it")
    count = len(agent.kinds("beat"))
    eventually(lambda: len(agent.kinds("beat")) >= count + 2, "signs of life")
    assert not agent.kinds("ready")

    def writer() -> int:
        try:
            return os.open(tmp_path / "tree/slow", os.O_WRONLY | os.O_NONBLOCK)
        except OSError:  # nobody waits for what is written
            return 0

    os.close(eventually(writer, "it copies all the while"))
    eventually(lambda: agent.kinds("ready"), "the copy")
    assert not agent.kinds("problem")
