"""The test cluster is what other tests take it for: machines of their own, that lose their power and their cables."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
from pathlib import Path

import pytest
from cluster import network
from cluster.layout import Layout
from cluster.node import Node
from cluster_parts import Cluster, down, up
from docker_parts import archive, command_line, pids
from support import REPOSITORY, eventually

pytestmark = [pytest.mark.root, pytest.mark.xdist_group("cluster")]
Nodes = tuple[Node, ...]


def ssh(cluster: Cluster, *arguments: str, connect_s: int = 60) -> subprocess.CompletedProcess[str]:
    command = ["ssh", "-F", str(cluster.ssh_config), "-o", f"ConnectTimeout={connect_s}", *arguments]
    return subprocess.run(command, check=False, capture_output=True, text=True, stdin=subprocess.DEVNULL, timeout=120)


def test_every_node_is_a_machine_of_its_own(docker_cluster: Cluster, nodes: Nodes, tmp_path: Path) -> None:
    for node in nodes:
        # by name with its host key checked, as root and as a user who may use Docker, and with the engine behind it
        assert ssh(docker_cluster, f"root@{node.name}", "hostname").stdout == f"{node.name}\n"
        listed = ssh(docker_cluster, f"{docker_cluster.user}@{node.name}", "id -u; docker info -f {{.Name}}")
        assert listed.stdout == f"10077\n{node.name}\n"
        # nothing of this machine's user and checkout is there, but the shared directory is
        assert node.exec(["ls", "-d", str(tmp_path)], check=False) == ""
        assert node.exec(["ls", "-A", str(REPOSITORY)]) == ".cache\n"
        assert node.exec(["ls", "-A", str(REPOSITORY / ".cache" / "cluster")]) == "shared\n"
        (docker_cluster.shared / node.name).write_text("seen", encoding="utf-8")
    for name in (node.name for node in nodes):
        assert nodes[0].exec(["cat", str(docker_cluster.shared / name)]) == "seen"
        assert "ssh-ed25519" in nodes[0].exec(["ssh-keyscan", "-T", "20", name])  # nodes reach each other, by name
        (docker_cluster.shared / name).unlink()


def test_every_node_has_stand_in_gpus(nodes: Nodes) -> None:
    query = ["nvidia-smi", "--query-gpu=index,uuid,name,memory.total,driver_version", "--format=csv,noheader,nounits"]
    seen = [node.exec(query).splitlines() for node in nodes]
    assert [len(gpus) for gpus in seen] == [4, 4, 4]
    assert len({line.split(", ")[1] for gpus in seen for line in gpus}) == 12
    assert [line.split(", ")[0] for line in seen[0]] == ["0", "1", "2", "3"]
    assert seen[0][0].split(", ")[2:] == ["NVIDIA A100-SXM4-40GB", "40960", "535.183.01"]
    nodes[0].set_gpus(0)
    assert nodes[0].exec([*query], check=False) == ""


def test_engines_by_tcp_with_and_without_tls(nodes: Nodes) -> None:
    for node in nodes:
        secured = []
        if node.tls is not None:
            assert node.tcp_url.startswith("tcp://10.")
            files = {"tlscacert": "ca.pem", "tlscert": "cert.pem", "tlskey": "key.pem"}
            secured = ["--tlsverify", *(f"--{name}={node.tls / file}" for name, file in files.items())]
        asked = ["docker", *secured, "--host", node.tcp_url, "info", "--format", "{{.Name}}"]
        assert subprocess.run(asked, check=True, capture_output=True, text=True).stdout == f"{node.name}\n"
    assert [node.tls is None for node in nodes] == [True, True, False]


def test_the_base_image_has_one_id_and_runs_with_gpus(nodes: Nodes, node_base: str) -> None:
    assert len({node.image_id(node_base) for node in nodes} | {""}) == 2
    with nodes[1].client() as client:
        said = client.containers.run(
            node_base,
            ["sh", "-c", "echo $NVIDIA_VISIBLE_DEVICES; cat /etc/hostname; getent hosts node3"],
            network_mode="host",
            device_requests=[{"Driver": "nvidia", "DeviceIDs": ["1", "3"], "Capabilities": [["gpu"]]}],
        )
    assert said.decode().split() == ["1,3", "node2", nodes[2].address, "node3"]
    assert archive(node_base).exists()


def test_power_loss_is_silent_and_the_next_boot_finds_the_disk(
    docker_cluster: Cluster, nodes: Nodes, node_base: str
) -> None:
    node = nodes[1]
    with node.client() as client:
        container = client.containers.run(node_base, ["sleep", "600"], network_mode="host", detach=True)
    with socket.create_connection((node.address, 22)) as connection:
        assert connection.recv(64).startswith(b"SSH-2.0")
        node.power_off()
        connection.settimeout(0.3)
        with pytest.raises(TimeoutError):  # no farewell: the peer is just not there any more
            connection.recv(64)
    assert not node.runs
    assert network.occupants(node.layout, node.name) == []
    assert ssh(docker_cluster, f"root@{node.name}", "true", connect_s=2).returncode == 255
    node.boot()
    with node.client() as client:
        assert client.containers.get(container.id).attrs["State"]["ExitCode"] == 255
        assert node.image_id(node_base)


def test_a_cut_cable_cuts_only_the_network(docker_cluster: Cluster, nodes: Nodes) -> None:
    node = nodes[0]
    node.cut_cable()
    assert ssh(docker_cluster, f"root@{node.name}", "true", connect_s=2).returncode == 255
    assert node.answers
    assert nodes[1].exec(["ssh-keyscan", "-T", "1", node.name], check=False) == ""
    node.plug_cable()
    assert eventually(lambda: ssh(docker_cluster, f"root@{node.name}", "true").returncode == 0, "the cable is back")


def test_an_engine_that_ends_is_started_again(nodes: Nodes) -> None:
    nodes[2].stop_engine()
    assert nodes[2].runs
    assert not nodes[2].answers
    nodes[2].start_engine()
    assert nodes[2].answers


def test_nodes_are_brought_back_for_the_next_test(docker_cluster: Cluster, nodes: Nodes, node_base: str) -> None:
    with nodes[0].client() as client:
        client.containers.run(node_base, ["true"], network_mode="host")
        client.volumes.create("left")
    nodes[0].cut_cable()
    nodes[1].power_off()
    docker_cluster.reset()
    assert all(node.answers and node.is_plugged for node in nodes)
    with nodes[0].client() as client:
        assert client.containers.list(all=True) == []
        assert client.volumes.list() == []


def test_two_checkouts_have_clusters_that_do_not_meet(nodes: Nodes, tmp_path: Path) -> None:
    layout = Layout(tmp_path / "checkout")
    layout.repository.mkdir()
    try:
        other = up(layout)
        assert other.layout.network != nodes[0].layout.network
        assert {node.address for node in other.nodes}.isdisjoint(node.address for node in nodes)
        # a session that was killed may leave a node that runs without a record, and one that is half gone
        (other.nodes[0].directory / "node.json").unlink()
        dying = other.nodes[1]
        os.kill(dying.pid, signal.SIGKILL)
        eventually(lambda: not dying.runs, "it is off")
        assert up(layout).nodes[0].answers
        assert other.nodes[1].answers
    finally:
        down(layout)
    assert not [name for name in os.listdir("/run/netns") if layout.tag in name]
    assert layout.machine_interface not in os.listdir("/sys/class/net")
    assert not layout.sockets.exists()
    assert not [pid for pid in pids() if str(layout.directory).encode() in command_line(pid)]
    assert all(node.answers for node in nodes)
