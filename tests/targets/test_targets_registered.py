"""Compute targets by name: found or created, never changed by accident, and never half a file."""

from __future__ import annotations

import json
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

import pytest

from tfjob.errors import NotFound, UsageError
from tfjob.targets.definition import ClusterDefinition, NodeDefinition, SlurmDefinition
from tfjob.targets.registered import Targets

LAB = ClusterDefinition(
    "lab", (NodeDefinition("a", "ssh://a"), NodeDefinition("b", "ssh://b", gpus=2)), description="Lab"
)
SITE = SlurmDefinition("site", login="ssh://login", sbatch_options=("--exclusive",))


def test_what_was_created_is_found_again(tmp_path: Path) -> None:
    targets = Targets(tmp_path / "compute")
    assert targets.create(LAB).is_new
    assert targets.create(SITE).is_new
    assert targets.names() == ("lab", "site")
    assert targets.get("lab").definition == LAB
    assert targets.get("site").definition == SITE
    again = targets.create(LAB)
    assert (again.is_new, again.is_changed) == (False, False)


def test_another_content_is_refused_with_the_differences_and_changes_nothing(tmp_path: Path) -> None:
    targets = Targets(tmp_path)
    targets.create(LAB)
    before = (tmp_path / "lab.json").read_bytes()
    other = replace(
        LAB, nodes=(LAB.nodes[0], replace(LAB.nodes[1], gpus=4), NodeDefinition("c", "ssh://c")), wait_s=5.0
    )
    with pytest.raises(UsageError) as caught:
        targets.create(other)
    assert caught.value.message == (
        "the compute target lab exists and differs:"
        "\n  - nodes.b.gpus: 2 → 4"
        '\n  - nodes.c: nothing → {"engine": "ssh://c"}'
        "\n  - wait_s: 60.0 → 5.0"
    )
    assert "tfjob compute update" in caught.value.hint
    assert (tmp_path / "lab.json").read_bytes() == before
    made, changes = targets.update(other)
    assert made.is_changed
    assert "nodes.b.gpus: 2 → 4" in changes
    assert made.created == json.loads(before)["created"]
    assert targets.update(other) == (targets.get("lab"), "")


def test_another_kind_under_the_same_name_is_told(tmp_path: Path) -> None:
    targets = Targets(tmp_path)
    targets.create(LAB)
    with pytest.raises(UsageError, match='kind: "docker" → "slurm"'):
        targets.create(replace(SITE, name="lab"))


def test_names_that_are_not_there(tmp_path: Path) -> None:
    targets = Targets(tmp_path)
    targets.create(LAB)
    with pytest.raises(NotFound) as caught:
        targets.get("labb")
    assert caught.value.hint == (
        "Did you mean lab? Known targets: local, lab. Create it: tfjob compute create labb -f FILE"
    )
    with pytest.raises(NotFound):
        targets.update(SITE)
    with pytest.raises(NotFound):
        targets.delete("site")
    with pytest.raises(NotFound):
        targets.get("../lab")
    assert Targets(None).names() == ()
    with pytest.raises(NotFound, match="there is no compute target 'lab'"):
        Targets(None).get("lab")


def test_a_damaged_file_is_told_and_can_be_deleted(tmp_path: Path) -> None:
    targets = Targets(tmp_path)
    targets.create(LAB)
    for damaged in ("{", "[]", '{"definition": {"kind": "x"}}', '{"definition": {"kind": "docker"}, "created": ""}'):
        (tmp_path / "lab.json").write_text(damaged)
        with pytest.raises(UsageError, match=r"lab\.json can't be read"):
            targets.get("lab")
    targets.delete("lab")
    assert targets.names() == ()


def test_of_two_at_once_one_creates_and_the_other_finds(tmp_path: Path) -> None:
    with ThreadPoolExecutor(8) as pool:
        made = list(pool.map(lambda _: Targets(tmp_path / "compute").create(LAB), range(8)))
    assert sum(one.is_new for one in made) == 1


def test_what_cannot_be_written_is_told(tmp_path: Path) -> None:
    (tmp_path / "compute").write_text("a file")
    with pytest.raises(UsageError, match="can't be written"):
        Targets(tmp_path / "compute").create(LAB)
