"""What task.json tells a task's entrypoint, and what its reports tell of it."""

from __future__ import annotations

import time
from dataclasses import replace
from pathlib import Path

import pytest
from engines.engine_bench import plan, task

from tfjob.engines.base import Allocation
from tfjob.engines.reports import Entrypoint, Watch, status, task_files
from tfjob.rundir import RunDirectory
from tfjob.targets.target import Node


@pytest.mark.parametrize(("rendezvous_timeout_s", "listening_s"), [(120.0, 10.0), (2.0, 0.5)])
def test_who_comes_to_the_rendezvous_is_seen_long_before_its_limit(
    tmp_path: Path, rendezvous_timeout_s: float, listening_s: float
) -> None:
    made = plan(task("true"))
    made = replace(made, limits=replace(made.limits, rendezvous_timeout_s=rendezvous_timeout_s))
    allocation = Allocation((Node("here", "127.0.0.1", ()),), {"main": ()})
    values = {"environment.path": "/bin"}
    files = task_files(
        made, RunDirectory(tmp_path), allocation, values, entrypoint=Entrypoint("python3", "entrypoint.py")
    )
    assert files["main"]["listening_s"] == listening_s


@pytest.mark.parametrize("launched", [False, True])
def test_what_ended_without_a_report_ended_when_it_was_last_seen(tmp_path: Path, launched: bool) -> None:
    one = task("true", launched=launched)
    watch = Watch(plan(one), RunDirectory(tmp_path))
    (watch.run.task("main")).mkdir(parents=True)
    (watch.run.task("main") / "started.json").write_text('{"time": 1.0}')
    status(watch, one, gone=False, lives=lambda _: True)
    between = time.time()
    found = status(watch, one, gone=True, lives=lambda _: False)
    assert found.time is not None
    assert (found.time >= between) is launched  # its launcher kills it, and is to blame
