"""What a supervisor is told before its run exists."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
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
