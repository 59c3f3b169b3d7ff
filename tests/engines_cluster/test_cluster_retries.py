"""What is blamed, and so tried again, when a node is lost and its peers fail long before that is known."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest
from engines_cluster.conftest import node_of
from support import Tfjob, eventually

if TYPE_CHECKING:
    from cluster.node import Node

pytestmark = [pytest.mark.root, pytest.mark.xdist_group("cluster"), pytest.mark.timeout(300)]

JOB = """\
name: peers
compute: {target: docker-lab, node_count: 2}
distribution: {type: tensorflow, worker_count: 2}
command: |
  if [ $TFJOB_RESTART_COUNT = 1 ]; then echo well; exit 0; fi
  if [ $TFJOB_TASK_INDEX = 1 ]; then sleep 120; fi
  peer=$(echo "$TF_CONFIG" | grep -oE '[0-9]+([.][0-9]+){3}' | sed -n 2p)
  echo "begun with $peer"
  misses=0  # one alone may be for want of a processor
  until [ $misses = 3 ]; do
    if timeout 2 bash -c "</dev/tcp/$peer/22"; then misses=0; sleep 0.1; else misses=$((misses + 1)); fi
  done
  echo "lost my peer"; exit 3
retries: {max: 1}
"""


def test_the_lost_node_is_blamed_and_not_its_peer_that_failed_first(lab: Tfjob, nodes: tuple[Node, ...]) -> None:
    lab.write("impatient.yml", (lab.directory / "lab.yml").read_text() + "node_lost_s: 20\n")
    lab("compute", "update", "docker-lab", "-f", "impatient.yml")
    lab.write("peers.yml", JOB)
    run = lab.submit("peers.yml")
    logs = lab.run_directory(run) / "logs"
    began = [logs / "worker-0.log", logs / "attempt-1" / "worker-0.log"]
    eventually(lambda: any(log.exists() and "begun with" in log.read_text() for log in began), "it has begun")
    lost = node_of(lab.record(run), "worker-1", nodes)
    lost.power_off()
    eventually(lambda: lab.record(run)["state"] == "Completed", "the second attempt")
    (attempt,) = lab.record(run)["attempts"]
    assert "lost my peer" in (logs / "attempt-1" / "worker-0.log").read_text()
    failure = attempt["failure"]
    assert (failure["task"], failure["node"], failure["kind"]) == ("worker-1", lost.name, "node_lost")
    assert (logs / "worker-0.log").read_text() == "tfjob: this is attempt 2\nwell\n"
    lost.boot()
