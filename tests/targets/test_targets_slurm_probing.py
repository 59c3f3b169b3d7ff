"""What a Slurm cluster has, asked of a real one, on this machine and by ssh."""

# ruff: noqa: F811  # the arguments of tests are the fixtures imported here

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from slurm_parts import slurm, slurm_cluster, slurm_nodes  # noqa: F401  # fixtures

from tfjob.targets import slurm_probing
from tfjob.targets.definition import SlurmDefinition
from tfjob.targets.node_shell import LocalShell
from tfjob.targets.slurm_probing import probe_slurm

if TYPE_CHECKING:
    from cluster.slurm import Slurm
    from cluster_parts import Cluster
    from support import Tfjob

pytestmark = [pytest.mark.root, pytest.mark.xdist_group("cluster")]


def messages(definition: SlurmDefinition, workspace: Path) -> list[tuple[str, str]]:
    report = probe_slurm(definition, workspace=str(workspace))
    return [(note.severity, note.message) for note in report.notes]


def test_what_a_cluster_has(slurm: Slurm, tmp_path: Path) -> None:
    assert slurm
    report = probe_slurm(SlurmDefinition("site", partition="gpu"), workspace=str(tmp_path))
    assert report.is_usable, report.notes
    assert report.version.startswith("22.05")
    gpu = next(partition for partition in report.partitions if partition.name == "gpu")
    assert (gpu.is_default, gpu.state, gpu.nodes, gpu.idle, gpu.gpus) == (True, "up", 3, 3, "4")
    assert (report.directory, bool(report.file_system)) == (str(tmp_path), True)


def test_what_is_wrong_is_told(slurm: Slurm, tmp_path: Path) -> None:
    assert slurm
    told = {message: severity for severity, message in messages(SlurmDefinition("site", partition="gpu,gqu"), tmp_path)}
    assert told["there is no partition gqu"] == "error"
    told = {message: severity for severity, message in messages(SlurmDefinition("site", runtime="pyxis"), tmp_path)}
    assert told["this machine has no pyxis; jobs in containers need it on the nodes"] == "warning"
    (tmp_path / "file").touch()
    bad = SlurmDefinition("site", directory=str(tmp_path / "file" / "below"))
    assert ("error", f"{bad.directory} can't be written on this machine") in messages(bad, tmp_path)


def test_a_machine_without_slurm_is_no_login_node(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "sh").symlink_to("/bin/sh")
    monkeypatch.setenv("PATH", str(tmp_path))
    assert messages(SlurmDefinition("site"), tmp_path) == [
        ("error", "this machine has no sinfo on its PATH: it is no login node")
    ]
    (tmp_path / "sinfo").write_text("#!/bin/sh\necho 'sinfo: error: no controller' >&2\nexit 1\n")
    (tmp_path / "sinfo").chmod(0o755)
    assert messages(SlurmDefinition("site"), tmp_path) == [("error", "sinfo says: error: no controller")]


@pytest.mark.parametrize(
    ("program", "message"),
    [
        ("echo python 3 6", "python3 on ssh://me@here is Python 3.6"),
        ("echo no such library; exit 127", "python3 on ssh://me@here does not start"),
        ("echo hello; echo python 3 8", None),
    ],
)
def test_a_python_that_is_too_old_is_told(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, program: str, message: str | None
) -> None:
    for name, text in {"python3": program, "sinfo": "echo 'gpu*|up|1:00|1/1/0/2||'"}.items():
        (tmp_path / name).write_text(f"#!/bin/sh\n{text}\n")
        (tmp_path / name).chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
    monkeypatch.setattr(slurm_probing, "SshShell", lambda _: LocalShell())
    found = messages(SlurmDefinition("site", login="ssh://me@here", directory=str(tmp_path)), tmp_path)
    assert [text for severity, text in found if severity == "error"] == ([message] if message else [])


def test_the_command_asks_by_ssh(slurm: Slurm, slurm_nodes: Cluster, tfjob: Tfjob) -> None:
    tfjob.environ.update(slurm_nodes.ssh_environ)
    tfjob.write("site.yml", f"name: site\nkind: slurm\nlogin: {slurm.login_url}\ndirectory: /tmp/tfjob-of-tests\n")
    tfjob("compute", "create", "-f", "site.yml")
    shown = tfjob("compute", "test", "site").stdout
    assert "gpu (default)  up     3      3     4          infinite" in shown
    found = json.loads(tfjob("compute", "test", "site", "-o", "json").stdout)
    assert (found["kind"], found["usable"], found["login"]) == ("slurm", True, slurm.login_url)
    tfjob.write("site.yml", "name: site\nkind: slurm\nlogin: ssh://nobody-there@head\n")
    tfjob("compute", "update", "-f", "site.yml")
    assert "head refuses the login" in tfjob("compute", "test", "site", exit_code=5).stdout
