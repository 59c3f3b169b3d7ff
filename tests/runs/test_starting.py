"""What a supervisor is told before its run exists."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from datasets.test_datasets_workers import children, lives
from engines.engine_bench import plan, task
from support import eventually

from tfjob import submission
from tfjob.datasets.cache import Cache
from tfjob.datasets.files import Remote, laid_out
from tfjob.datasets.standby import process_count
from tfjob.datasets.wanted import Settings
from tfjob.planning.plan import DatasetPlan
from tfjob.runs import supervisor
from tfjob.runs.planned_data import asked_for
from tfjob.runs.starting import StartingSupervisor
from tfjob.workspace import make_workspace

if TYPE_CHECKING:
    import pytest
    from support import Tfjob

TARGET = "name: lab\nkind: docker\nnodes: [{name: node1, engine: 'ssh://node1'}]\n"


def test_a_wrong_guess_at_the_target_does_no_harm(tfjob: Tfjob) -> None:
    tfjob("init")
    tfjob.write("lab.yml", TARGET)
    tfjob("compute", "create", "-f", "lab.yml")
    tfjob.write("job.yml", "name: label\ncommand: echo hello\n")  # has the target's name in it, and is not for it
    assert tfjob("submit", "job.yml").stdout == "hello\n"


def test_a_job_that_is_refused_leaves_no_run(tfjob: Tfjob) -> None:
    tfjob("init")
    tfjob.write("lab.yml", TARGET)
    tfjob("compute", "create", "-f", "lab.yml")
    tfjob.write("job.yml", "name: label\ncommand: echo hello\ncompute: {target: lab, node_count: 2}\n")
    assert "lab" in tfjob("submit", "job.yml", exit_code=5).stderr
    assert list((tfjob.directory / ".tfjob" / "runs").iterdir()) == []


def supervisor_of(starting: StartingSupervisor) -> int:
    return starting._process.pid


def test_what_fetches_very_many_files_is_started_before_there_is_a_run_and_ends_with_who_started_it() -> None:
    starting = StartingSupervisor()
    starting.expect_data()
    starting.expect_many_files(1000)
    pid = supervisor_of(starting)
    expected = process_count(1000, Settings())
    assert expected > 0
    eventually(lambda: len(children(pid)) == expected, "what fetches")
    begun = children(pid)
    starting.close()
    assert starting._process.wait(60) == 0
    eventually(lambda: not any(map(lives, begun)), "their end")


def test_for_few_files_nothing_is_started() -> None:
    standby = supervisor._start_what_fetches(3)
    try:
        assert standby._processes == []
    finally:
        standby.end()


def test_how_many_files_are_to_be_fetched_is_known_from_the_plan(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TFJOB_STORE", str(tmp_path / "store"))
    workspace, _ = make_workspace(tmp_path)
    rows = [Remote(f"http://127.0.0.1/{number}", f"{number}", -1, "") for number in range(1000)]
    found = laid_out([], rows)
    dataset = DatasetPlan("d", "directory", "mount", found.digest, len(rows), -1, found.files, found.marks)
    made = plan(task("true"), datasets=(dataset,))
    assert submission._files_to_fetch(made, workspace) == 1000
    assert submission._files_to_fetch(replace(made, datasets=(replace(dataset, mode="download"),)), workspace) == 0
    assert submission._files_to_fetch(replace(made, datasets=()), workspace) == 0
    had = Cache(workspace.config.dataset_cache).resolved(asked_for(dataset))
    had.parent.mkdir(parents=True)
    had.write_text("{}")
    assert submission._files_to_fetch(made, workspace) == 0
