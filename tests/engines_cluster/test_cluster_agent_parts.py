"""What the agent does in a node's container, without a container."""

from __future__ import annotations

import os
import time
from functools import partial
from typing import TYPE_CHECKING

from tfjob.engines.cluster import agent_system as agent
from tfjob.engines.cluster.agent import QUICK_LOOK_S, Agent
from tfjob.engines.cluster.agent_tasks import load

if TYPE_CHECKING:
    from pathlib import Path

    import pytest


def test_a_working_copy_has_everything_of_the_code_and_may_be_written_to(tmp_path: Path) -> None:
    code = tmp_path / "code"
    (code / "sub/empty").mkdir(parents=True)
    (code / "sub/run.sh").write_text("echo")
    (code / "sub/run.sh").chmod(0o555)
    (code / "to-file").symlink_to("sub/run.sh")
    (code / "to-directory").symlink_to("sub")
    os.utime(code / "sub/run.sh", ns=(1_000_000_123, 2_000_000_456))
    (code / "sub").chmod(0o555)
    agent.copy_tree(str(code), str(tmp_path / "copy"))
    copy = tmp_path / "copy"
    names = sorted(path.relative_to(copy).as_posix() for path in copy.rglob("*"))
    assert names == ["sub", "sub/empty", "sub/run.sh", "to-directory", "to-file"]
    status = (copy / "sub/run.sh").stat()
    assert (status.st_mtime_ns, status.st_mode & 0o777) == (2_000_000_456, 0o755)
    assert (copy / "sub").stat().st_mode & 0o700 == 0o700
    assert (os.readlink(copy / "to-file"), os.readlink(copy / "to-directory")) == ("sub/run.sh", "sub")


def test_a_task_is_started_in_a_session_of_its_own_and_has_none_of_the_agents_files(tmp_path: Path) -> None:
    def work() -> int:
        os.write(
            1, f"{os.getsid(0) == os.getpid()} {os.getcwd()} {os.read(0, 1)!r} {os.listdir('/proc/self/fd')}".encode()
        )
        return 3

    with (tmp_path / "open").open("w"):
        pid = agent.spawn(work, str(tmp_path / "log"))
    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 3
    said, _, files = (tmp_path / "log").read_text().partition(" [")
    assert said == "True / b''"
    assert sorted(files.rstrip("]").split(", ")) == ["'0'", "'1'", "'2'", "'3'"]  # the last is that of the list


def test_a_task_that_can_not_be_started_is_told_of_in_the_log(tmp_path: Path) -> None:
    pid = agent.spawn(partial(load(), str(tmp_path), "no-such-task"), str(tmp_path / "log"))
    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 1
    assert "no-such-task/task.json" in (tmp_path / "log").read_text()


def test_free_ports_are_different_and_in_the_range() -> None:
    ports = agent.free_ports(20)
    assert len({*ports}) == 20
    assert {*ports} <= {*agent.PORTS}


def test_what_a_task_prints_is_looked_for_as_soon_as_it_starts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    idle = Agent(str(tmp_path))
    monkeypatch.setattr(idle, "say", lambda *_, **__: None)
    idle.next_look = time.monotonic() + 3600  # when it would have looked, had nothing begun
    idle.do_start([])
    assert idle.next_look <= time.monotonic()
    assert idle.pause_s() == QUICK_LOOK_S
