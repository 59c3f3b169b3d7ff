"""Logins that are begun while a job file is still being read."""

from __future__ import annotations

from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from engines_cluster.conftest import left
from support import eventually

from tfjob.engines.cluster.logins import Logins
from tfjob.targets.definition import ClusterDefinition
from tfjob.targets.registered import Targets

if TYPE_CHECKING:
    from cluster.node import Node
    from support import Tfjob

pytestmark = [pytest.mark.root, pytest.mark.xdist_group("cluster")]


@pytest.fixture
def own(lab: Tfjob) -> Tfjob:
    """The command with a configuration of ssh of its own, by which its logins are known."""
    config = lab.directory / "ssh_config"
    config.write_bytes(Path(lab.environ["TFJOB_SSH_CONFIG"]).read_bytes())
    return replace(lab, environ={**lab.environ, "TFJOB_SSH_CONFIG": str(config)})


def logins(own: Tfjob) -> int:
    """How many processes of ssh there are with that configuration."""
    wanted = f"\0-F\0{own.directory / 'ssh_config'}\0".encode()
    found = 0
    for entry in Path("/proc").iterdir():
        with suppress(OSError):
            found += entry.name.isdigit() and wanted in (entry / "cmdline").read_bytes()
    return found


def test_a_refused_job_file_leaves_no_login(own: Tfjob, nodes: tuple[Node, ...]) -> None:
    own.write("bad.yml", "name: bad\ncompute: {target: docker-lab, node_cuont: 2}\ncommand: echo\n")
    own("submit", "bad.yml", exit_code=2)
    eventually(lambda: not logins(own), "the end of all logins")
    assert left(nodes) == []


def test_only_the_target_as_it_is_now_is_used(own: Tfjob) -> None:
    known = Targets(own.directory / ".tfjob" / "compute").get("docker-lab").definition
    assert isinstance(known, ClusterDefinition)
    begun = Logins(known, own.environ)
    assert list(begun.engines(replace(known))) == [node.name for node in known.nodes]
    eventually(lambda: logins(own) >= len(known.nodes), "the logins")
    assert begun.engines(replace(known, node_lost_s=7.0)) == {}
    eventually(lambda: not logins(own), "the end of all logins")
