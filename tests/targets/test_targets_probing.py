"""Nodes are asked what they are like: three virtual machines with Docker Engines, by ssh and by TCP, whole and broken."""

# ruff: noqa: F811  # the arguments of tests are the fixtures imported here

from __future__ import annotations

import json
import os
import time
from dataclasses import replace
from typing import TYPE_CHECKING

import pytest
from cluster_parts import docker_cluster, node_base, nodes  # noqa: F401  # fixtures
from docker_parts import BASE

from tfjob.dockerapi.reach import engine_at
from tfjob.errors import TargetError
from tfjob.targets.definition import ClusterDefinition, NodeDefinition
from tfjob.targets.node_gpus import probe_node
from tfjob.targets.probing import answering, probe
from tfjob.targets.report import NodeReport

if TYPE_CHECKING:
    from collections.abc import Iterator

    from cluster.node import Node
    from cluster_parts import Cluster
    from support import Tfjob

pytestmark = [pytest.mark.root, pytest.mark.xdist_group("cluster")]


@pytest.fixture
def lab(docker_cluster: Cluster, nodes: tuple[Node, ...], monkeypatch: pytest.MonkeyPatch) -> ClusterDefinition:
    for name, value in docker_cluster.ssh_environ.items():
        monkeypatch.setenv(name, value)
    return ClusterDefinition("lab", tuple(NodeDefinition(node.name, node.ssh_url) for node in nodes), wait_s=10.0)


@pytest.fixture
def breakable(docker_cluster: Cluster, nodes: tuple[Node, ...]) -> Iterator[tuple[Node, ...]]:
    """The nodes, of which a test leaves some off or without an engine."""
    yield nodes
    docker_cluster.reset()


def by_tcp(*chosen: Node) -> ClusterDefinition:
    """The nodes by TCP, with TLS where they have it."""
    return ClusterDefinition(
        "lab",
        tuple(NodeDefinition(one.name, one.tcp_url, gpus=2, tls=str(one.tls) if one.tls else None) for one in chosen),
        wait_s=10.0,
    )


def errors(report: NodeReport) -> list[str]:
    return [note.message for note in report.notes if note.severity == "error"]


def test_by_ssh_everything_is_found_without_an_image(lab: ClusterDefinition, nodes: tuple[Node, ...]) -> None:
    told: list[str] = []
    reports = probe(lab, progress=told.append)
    for report, node in zip(reports, nodes, strict=True):
        assert report.is_usable, report.notes
        assert (report.name, report.address) == (node.name, node.address)  # the alias is what ssh_config says
        assert report.version.startswith("20.10")
        assert [gpu.index for gpu in report.gpus] == [0, 1, 2, 3]
        assert (report.gpus[0].model, report.gpus[0].memory_mib) == ("NVIDIA A100-SXM4-40GB", 40960)
        assert report.driver == "535.183.01"
        assert report.disk_free_bytes
        assert report.clock is not None
        assert abs(report.clock.seconds) <= report.clock.error_s + 0.1  # it is the same clock
        assert [(peer.name, peer.reached) for peer in report.peers] == [
            (other.name, True) for other in nodes if other is not node
        ]
    assert told[0] == "asked 0 of 3 nodes"
    assert told[-1] == "checking that the nodes reach each other"


def test_by_tcp_a_node_is_asked_in_a_container_of_a_known_image(
    lab: ClusterDefinition,
    nodes: tuple[Node, ...],
    node_base: str,
) -> None:
    mixed = replace(lab, nodes=(lab.nodes[0], *by_tcp(*nodes[1:]).nodes))
    reports = probe(mixed, images=(node_base,))
    for report in reports:
        assert report.is_usable, report.notes
        assert report.disk_free_bytes
        assert [peer.reached for peer in report.peers] == [True, True]
    warned = [[note.message for note in report.notes if note.severity == "warning"] for report in reports]
    assert [any("has no TLS" in one for one in of_node) for of_node in warned] == [False, True, False]
    assert [len(report.gpus) for report in reports] == [4, 0, 0]
    assert "No NVIDIA driver was found there" in reports[1].gpu_note
    for node in nodes:
        with node.client() as client:
            assert client.api.containers(all=True) == []


def test_without_an_image_what_was_not_found_out_is_told(
    nodes: tuple[Node, ...], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("tfjob.targets.node_shell._OWN_IMAGES", "none/")  # of those that jobs of other tests have sent
    cluster = by_tcp(*nodes[1:])
    (report, other) = probe(cluster, images=("there-is:none",))
    assert (report.disk_free_bytes, report.peers[0].reached) == (None, None)
    assert report.is_usable
    notes = {note.message: note.hint for note in report.notes if note.severity == "note"}
    assert "its image can then be used to ask" in notes["how much disk its engine has left was not found out"]
    assert any("reaches node3 was not checked" in message for message in notes)
    assert other.is_usable


def test_a_cut_cable_and_a_dead_engine_are_waited_for_and_told(
    lab: ClusterDefinition, breakable: tuple[Node, ...]
) -> None:
    breakable[1].cut_cable()
    breakable[2].stop_engine()
    told: list[str] = []
    reports = probe(lab, wait_s=15, progress=told.append)
    assert [report.is_usable for report in reports] == [True, False, False]
    assert "node2 can't be reached" in errors(reports[1])[0]
    assert "no Docker Engine answers at ssh://root@node3" in errors(reports[2])[0]
    assert any("waiting for" in line for line in told)
    assert reports[0].peers == ()  # there is nobody left to reach


def test_a_slow_node_is_waited_for(lab: ClusterDefinition, breakable: tuple[Node, ...]) -> None:
    breakable[0].stop_engine()
    waited: list[str] = []

    def start(message: str) -> None:
        waited.append(message)
        if len(waited) == 1:
            breakable[0].start_engine()

    api = engine_at(lab.nodes[0].engine, environ=os.environ)
    try:
        assert answering(api, time.monotonic() + 60, start)["Name"] == "node1"
    finally:
        api.close()
    assert waited


def test_a_node_that_refuses_is_not_waited_for(
    lab: ClusterDefinition,
    docker_cluster: Cluster,
    nodes: tuple[Node, ...],
    tmp_path_factory: pytest.TempPathFactory,
) -> None:
    config = tmp_path_factory.mktemp("ssh") / "config"
    config.write_text(f"UserKnownHostsFile /dev/null\n{docker_cluster.ssh_config.read_text()}")
    definitions = (
        replace(lab.nodes[0], engine="ssh://nobody-there@node1"),
        NodeDefinition("node2", nodes[2].tcp_url, tls=str(nodes[2].tls)),
        NodeDefinition("node3", "context:nowhere"),
    )
    bad_tls = replace(
        definitions[1], engine=nodes[2].tcp_url.replace(nodes[2].address, nodes[2].address), tls="/nowhere"
    )
    began = time.monotonic()
    reports = probe(replace(lab, nodes=(definitions[0], bad_tls, definitions[2])), wait_s=3600)
    assert "node1 refuses the login" in errors(reports[0])[0]
    assert "certificates in /nowhere can't be used" in errors(reports[1])[0]
    assert "there is no Docker context nowhere" in errors(reports[2])[0]
    unknown = {**os.environ, "TFJOB_SSH_CONFIG": str(config)}
    (report,) = probe(replace(lab, nodes=lab.nodes[:1]), wait_s=3600, environ=unknown)
    assert "the host key of node1 is not known" in errors(report)[0]
    assert "compare the fingerprint" in report.notes[0].hint
    assert time.monotonic() - began < 3600


def test_ports_that_a_node_does_not_open_to_the_others_are_told(
    lab: ClusterDefinition, nodes: tuple[Node, ...]
) -> None:
    rule = ["INPUT", "-p", "tcp", "--syn", "--dport", "1024:65535", "-j", "REJECT"]
    nodes[1].exec(["iptables", "-I", *rule])
    try:
        reports = probe(lab)
    finally:
        nodes[1].exec(["iptables", "-D", *rule])
    assert [report.is_usable for report in reports] == [False, True, False]
    assert errors(reports[0]) == [f"it does not reach node2 at {nodes[1].address}: Connection refused"]
    assert [peer.reached for peer in reports[1].peers] == [True, True]


def test_an_address_of_another_network_is_not_taken_for_the_node(
    lab: ClusterDefinition, nodes: tuple[Node, ...]
) -> None:
    wrong = replace(lab, nodes=(lab.nodes[0], replace(lab.nodes[1], address=nodes[2].address)))
    report = probe(wrong)[0]
    assert [peer.reached for peer in report.peers] == [False]
    assert f"node2: {nodes[2].address} is no address of its own" in errors(report)[0]


def test_gpus_are_asked_for_again_each_time(lab: ClusterDefinition, nodes: tuple[Node, ...]) -> None:
    definition = lab.nodes[0]
    api = engine_at(definition.engine)
    try:
        found = probe_node(definition, api, address="10.0.0.1")
        assert (found.name, found.address, found.driver) == ("node1", "10.0.0.1", "535.183.01")
        assert len({gpu.uuid for gpu in found.gpus}) == 4
        nodes[0].set_gpus(2)
        assert len(probe_node(definition, api, address="").gpus) == 2
        nodes[0].set_gpus(0)
        none = probe_node(definition, api, address="")
        assert (none.gpus, none.gpu_note) == ((), "nvidia-smi there says: No devices were found")
        declared = probe_node(replace(definition, gpus=3), api, address="")
        assert [gpu.index for gpu in declared.gpus] == [0, 1, 2]
    finally:
        api.close()


def test_more_gpus_declared_than_there_are(lab: ClusterDefinition, nodes: tuple[Node, ...]) -> None:
    nodes[0].set_gpus(2)
    (report,) = probe(replace(lab, nodes=(replace(lab.nodes[0], gpus=4),)))
    assert errors(report) == ["the target declares 4 GPUs there, and it has 2"]
    assert report.notes[0].hint == "Set gpus: 2, or leave it out: then they are asked for."


def test_an_engine_by_a_socket_is_asked_like_one_by_tcp(nodes: tuple[Node, ...], node_base: str) -> None:
    cluster = ClusterDefinition("lab", (NodeDefinition("a", nodes[0].docker_host),))
    (report,) = probe(cluster, images=(BASE,))
    assert report.is_usable, report.notes
    assert report.disk_free_bytes
    assert report.has_image
    assert node_base == BASE


def test_a_node_that_never_answers_ends_with_its_reason(breakable: tuple[Node, ...]) -> None:
    breakable[0].power_off()
    api = engine_at(breakable[0].tcp_url)
    with pytest.raises(TargetError):
        answering(api, time.monotonic() + 0.5)


def test_the_command_tells_it_in_a_table_a_document_and_its_exit_code(
    tfjob: Tfjob, docker_cluster: Cluster, breakable: tuple[Node, ...]
) -> None:
    tfjob.environ.update(docker_cluster.ssh_environ)
    tfjob.write("lab.yml", docker_cluster.target())
    tfjob("compute", "create", "lab", "-f", "lab.yml")
    rows = tfjob("compute", "test", "lab").stdout.splitlines()
    assert rows[0].split() == ["NODE", "STATE", "ENGINE", "GPUS", "DRIVER", "DISK", "FREE", "CLOCK", "PEERS"]
    assert "4 x NVIDIA A100-SXM4-40GB (40 GiB)  535.183.01" in rows[1]
    assert rows[3].startswith("node3  ok ")
    assert rows[3].endswith("2 of 2")
    breakable[2].stop_engine()
    done = tfjob("compute", "test", "lab", "--wait", "15", exit_code=5)
    assert done.stdout.splitlines()[3].split() == ["node3", "unusable", "4", "declared"]
    assert "error: node3: no Docker Engine answers at ssh://root@node3" in done.stdout
    assert done.stdout.endswith("\n2 of 3 nodes can be used.\n")
    found = json.loads(tfjob("compute", "test", "lab", "--wait", "15", "-o", "json", exit_code=5).stdout)
    assert [node["usable"] for node in found["nodes"]] == [True, True, False]
    assert found["nodes"][0]["clock"]["error_s"] < 0.6
    assert found["nodes"][2]["notes"][0]["severity"] == "error"


def test_an_engine_without_nvidias_toolkit_gives_no_gpus_and_that_is_told(
    lab: ClusterDefinition, breakable: tuple[Node, ...], node_base: str
) -> None:
    node = breakable[0]
    bare = node.exec(["cat", "/run/lab/bin/start-engine"]).replace("PATH=/run/lab/bin:", "PATH=")
    node.stop_engine()
    node.exec(["sh", "-c", bare])
    node.wait_ready()
    try:
        by_ssh, by_tcp_too = (
            replace(lab.nodes[0], gpus=4),
            NodeDefinition("again", node.tcp_url, address=node.address, gpus=4),
        )
        reports = probe(replace(lab, nodes=(by_ssh, by_tcp_too)), images=(node_base,))
        for report in reports:
            assert any(
                "its engine gives no GPUs to containers: could not select device" in one for one in errors(report)
            )
        assert len(reports[0].gpus) == 4
        api = engine_at(node.tcp_url)
        found = probe_node(NodeDefinition("a", node.tcp_url), api, address="", images=(node_base,))
        assert "gives no GPUs to containers" in found.gpu_note
    finally:
        node.stop_engine()
        node.start_engine()
