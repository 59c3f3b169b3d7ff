"""What is told of runs that did not come far, or of which something was removed."""

from __future__ import annotations

import shutil
from dataclasses import replace
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from support import Tfjob


@pytest.fixture
def without_task(tfjob: Tfjob) -> str:
    """A run that fails before it has a task."""
    tfjob.write("job.yml", "name: job\ncompute: {runtime: docker}\nenvironment: {image: 'a:b'}\ncommand: 'true'")
    nowhere = replace(tfjob, environ={**tfjob.environ, "DOCKER_HOST": "unix:///nowhere"})
    nowhere("submit", "job.yml", exit_code=5)
    return str(tfjob.show()["id"])


@pytest.mark.parametrize("follow", [(), ("-f",)])
def test_logs_of_a_run_without_a_task_say_why_it_has_none(tfjob: Tfjob, without_task: str, follow: tuple[str]) -> None:
    done = tfjob("logs", *follow, without_task)
    assert done.stdout == ""
    assert done.stderr.splitlines()[-2:] == [
        "tfjob: no task started: no Docker Engine answers at unix:///nowhere",
        f"  All that is known of it: tfjob show {without_task}",
    ]
    (tfjob.run_directory(without_task) / "logs" / "environment.log").write_text("pulling\n")
    done = tfjob("logs", *follow, without_task)
    assert done.stderr.endswith(f"\n  How its environment was made: tfjob logs {without_task} --task environment\n")
    assert tfjob("logs", without_task, "--task", "environment").stdout == "pulling\n"
    assert tfjob("logs", without_task, "--task", "environment").stderr == ""


def test_logs_that_were_removed_are_missed(tfjob: Tfjob) -> None:
    tfjob.write("job.yml", "name: job\ncommand: 'true'")
    tfjob("submit", "job.yml")
    assert tfjob("logs", "latest").stderr == ""
    directory = tfjob.run_directory(str(tfjob.show()["id"]))
    shutil.rmtree(directory / "logs")
    for arguments in (("logs", "latest"), ("logs", "-f", "latest")):
        assert f"tfjob: the logs of run {directory.name} were removed" in tfjob(*arguments, exit_code=3).stderr
