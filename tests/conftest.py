"""What all tests share: the tfjob command in a workspace of its own, and the assurance that nothing is left running."""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest
from compiler_parts import compilers
from hypothesis import HealthCheck, settings
from support import Tfjob, environ_of_users, kill, processes_of

__all__ = ["compilers"]


def pytest_configure() -> None:
    """See that what tests start takes Ctrl-C: a shell without a terminal has what it puts behind itself ignore that.

    And that it keeps what Python compiles: thousands of commands would each compile tfjob anew. Examples of a property may
    take as long as they like.
    """
    os.environ.pop("PYTHONDONTWRITEBYTECODE", None)
    settings.register_profile("any machine", deadline=None, suppress_health_check=[HealthCheck.too_slow])
    settings.load_profile("any machine")
    if signal.getsignal(signal.SIGINT) is signal.SIG_IGN and threading.current_thread() is threading.main_thread():
        signal.signal(signal.SIGINT, signal.default_int_handler)


def pytest_itemcollected(item: pytest.Item) -> None:
    """Put what uses Slurm into a group of its own: its nodes are not those of the other tests of the group `cluster`."""
    if "slurm_cluster" in getattr(item, "fixturenames", ()):
        for group in ("cluster", "slurm"):  # of several groups, xdist makes one
            item.add_marker(pytest.mark.xdist_group(group))


@pytest.fixture
def tfjob(tmp_path: Path) -> Iterator[Tfjob]:
    directory = tmp_path / "project"
    directory.mkdir()
    command = Tfjob(directory, environ_of_users())
    yield command
    runs = directory / ".tfjob" / "runs"
    names = [path.name for path in runs.iterdir() if not path.name.startswith(".")] if runs.is_dir() else []
    left = {name: pids for name in names if (pids := processes_of(name))}
    kill(*(pid for pids in left.values() for pid in pids))
    assert not left, f"processes of these runs were left: {left}"
