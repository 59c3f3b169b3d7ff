"""What the agent does in a node's container, without a container."""

from __future__ import annotations

import os
import sys
from typing import TYPE_CHECKING

from tfjob.engines.cluster import agent_system as agent

if TYPE_CHECKING:
    from pathlib import Path


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


def test_a_program_is_started_in_a_session_of_its_own(tmp_path: Path) -> None:
    program = "import os; print(os.getsid(0) == os.getpid(), os.getcwd(), os.read(0, 1))"
    pid = agent.spawn([sys.executable, "-c", program], str(tmp_path / "log"))
    assert os.waitpid(pid, 0)[1] == 0
    assert (tmp_path / "log").read_text() == "True / b''\n"


def test_a_program_that_is_not_there_is_told_of_in_the_log(tmp_path: Path) -> None:
    pid = agent.spawn(["no-such-program"], str(tmp_path / "log"))
    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 127
    assert "no-such-program: " in (tmp_path / "log").read_text()


def test_free_ports_are_different_and_in_the_range() -> None:
    ports = agent.free_ports(20)
    assert len({*ports}) == 20
    assert {*ports} <= {*agent.PORTS}
