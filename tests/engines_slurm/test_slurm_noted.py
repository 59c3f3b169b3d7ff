"""Which cluster a machine's Slurm is."""

from __future__ import annotations

from pathlib import Path

import pytest
from engines_slurm.slurm_commands import calls, commands

from tfjob.engines.slurm import noted
from tfjob.engines.slurm.noted import ClusterName, is_another, kept_cluster, kept_job, note_job
from tfjob.errors import TargetError
from tfjob.rundir import RunDirectory

CONFIG = "echo 'Configuration data as of now'; echo 'ClusterName             = lab'; echo 'SlurmUser = slurm(1)'"


def test_its_controller_is_asked_once(tmp_path: Path) -> None:
    name = ClusterName(commands(tmp_path / "bin", scontrol=CONFIG))
    assert [name.get(), name.get()] == ["lab", "lab"]
    assert calls(tmp_path / "bin") == ["scontrol show config"]


def test_one_that_does_not_answer_is_asked_again_later(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(noted, "_REST_S", 60.0)
    name = ClusterName(commands(tmp_path / "bin", scontrol="exit 1"))
    for _ in range(2):
        with pytest.raises(TargetError, match="scontrol failed"):
            name.get()
    assert len(calls(tmp_path / "bin")) == 1
    monkeypatch.setattr(noted, "_REST_S", 0.0)
    monkeypatch.setattr(name, "_rests_until", 0.0)
    commands(tmp_path / "bin", scontrol=CONFIG)
    assert name.get() == "lab"


@pytest.mark.parametrize("cluster", ["lab", ""])
def test_it_is_noted_with_the_job(tmp_path: Path, cluster: str) -> None:
    run = RunDirectory(tmp_path)
    (tmp_path / "slurm").mkdir()
    assert (kept_job(run), kept_cluster(run)) == (None, "")
    note_job(run, "7", cluster)
    assert (kept_job(run), kept_cluster(run)) == ("7", cluster)
    assert is_another(kept_cluster(run), "other") == bool(cluster)
    assert not is_another(kept_cluster(run), cluster)
