"""Programs that are waited for: nothing of them outlives the waiting."""

from __future__ import annotations

import os
import sys
from pathlib import Path

import pytest

from tfjob.entrypoint import stat_fields
from tfjob.environments.processes import run

FORKS = """
import os, signal, sys, time
signal.signal(signal.SIGTERM, signal.SIG_IGN)
if not os.fork():
    sys.stderr.write(f"{os.getpid()}\\n")
    sys.stderr.flush()
time.sleep(600)
"""


def test_who_gives_up_waiting_leaves_no_process(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tfjob.environments.processes._GRACE_S", 0.1)
    pids: list[int] = []

    def hear(line: str) -> None:
        pids.append(int(line))
        raise InterruptedError

    holds = os.open(tmp_path, os.O_RDONLY)
    with pytest.raises(InterruptedError):
        run([sys.executable, "-c", FORKS], environment={}, cwd=tmp_path, on_line=hear, holds=holds)
    os.close(holds)
    [pid] = pids
    fields = stat_fields(pid)
    assert not fields or fields[0] == b"Z"  # nobody has waited for it yet
