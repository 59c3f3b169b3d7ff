"""Datasets that nodes fetch by themselves, on real Docker Engines, from a server that they reach on this machine."""

from __future__ import annotations

import hashlib
import os
import re
import signal
from dataclasses import replace
from typing import TYPE_CHECKING

import pytest
from engines_cluster.conftest import containers, left, names, nodes_of
from hdfs_parts import hdfs
from support import eventually
from web_server import Cut, Hang, Slow, WebServer, web_server

from tfjob.dockerapi.api import DockerApi

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from cluster.node import Node
    from cluster_parts import Cluster
    from support import Tfjob

pytestmark = [pytest.mark.root, pytest.mark.xdist_group("cluster"), pytest.mark.timeout(300)]
Nodes = tuple["Node", ...]
MB = 1_000_000


@pytest.fixture
def web(docker_cluster: Cluster) -> Iterator[WebServer]:
    """A server that the nodes reach."""
    with web_server(host=docker_cluster.address) as server:
        yield server


def job(lab: Tfjob, paths: str, *, nodes: int = 3, mode: str = "mount", name: str = "job.yml") -> str:
    lab.write(
        name,
        f"name: job\ncompute: {{target: docker-lab, node_count: {nodes}}}\n"
        f"command: cd ${{{{ dataset.d }}}}; find . -type f | sort | xargs -d '\\n' sha256sum\n"
        f"dataset: {{d: {{paths: [{paths}], mode: {mode}}}}}\n",
    )
    return name


def summed(url: str, content: bytes) -> str:
    return f"{{path: {url}, sha256: {hashlib.sha256(content).hexdigest()}}}"


def events(lab: Tfjob) -> str:
    return (lab.run_directory(lab.show()["id"]) / "events.jsonl").read_text()


def trees(node: Node) -> list[str]:
    return [one["Name"] for one in DockerApi(node.docker_host).volumes({"tfjob.tree": ""})]


def test_each_node_fetches_by_itself_and_goes_on_where_it_broke(lab: Tfjob, nodes: Nodes, web: WebServer) -> None:
    big, small = os.urandom(6 * MB), b"small"  # one node may be cut thrice
    # The first request asks for the size; then there are three cuts, mostly one for each node.
    cut = web.put("data/big.bin", big, None, Cut(MB), Cut(MB), Cut(MB), None)
    paths = f"{summed(cut, big)}, {summed(web.put('s%20p', small), small)}"
    done = lab("submit", job(lab, paths, mode="download"))
    assert done.stdout.count(hashlib.sha256(big).hexdigest()) == 3
    assert done.stdout.count("./s p\n") == 3
    asked = web.asked_by("data/big.bin")
    assert asked[0][1] == "bytes=0-0"
    assert {client for client, _ in asked[1:]} == {node.address for node in nodes}
    assert len([span for _, span in asked[1:] if span.startswith("bytes=")]) == 3
    assert "node1, node2, node3 fetch dataset d" in events(lab)
    assert "sending dataset" not in events(lab)
    (record,) = lab.show()["datasets"]
    assert (record["file_count"], record["size_bytes"]) == (2, 6 * MB + 5)
    assert left(nodes) == []
    count = len(web.requests)
    lab("rerun", lab.show()["id"])
    assert len(web.requests) == count  # what is there by its content is not asked for


def test_what_is_not_known_is_fetched_here_first(
    lab: Tfjob, nodes: Nodes, web: WebServer, docker_cluster: Cluster
) -> None:
    content = os.urandom(2000)
    url = web.put("unknown.bin", content)
    done = lab("submit", job(lab, url, nodes=2))
    assert done.stdout.count(hashlib.sha256(content).hexdigest()) == 2
    clients = [client for client, _ in web.asked_by("unknown.bin")]
    assert clients[0] == docker_cluster.address
    assert sorted(clients[1:]) == [node.address for node in nodes_of(lab.show(), nodes)]


def test_a_node_takes_no_other_content(lab: Tfjob, nodes: Nodes, web: WebServer) -> None:
    web.put("a.bin", b"good")
    wrong = hashlib.sha256(b"evil").hexdigest()
    failed = lab("submit", job(lab, f"{{path: {web.url('a.bin')}, sha256: {wrong}}}", nodes=1), exit_code=4).stderr
    fetched = rf"node\d fetched {re.escape(web.url('a.bin'))}: its SHA-256 is {hashlib.sha256(b'good').hexdigest()}"
    assert re.search(fetched, failed)
    assert f"{wrong} is asked for" in failed
    assert [trees(node) for node in nodes] == [[], [], []]
    assert left(nodes) == []


def test_what_nodes_can_not_reach_is_fetched_here_and_sent(lab: Tfjob, nodes: Nodes) -> None:
    content = os.urandom(2000)
    with web_server() as here:  # on loopback, where a node finds nobody
        done = lab("submit", job(lab, summed(here.put("a.bin", content), content), nodes=2))
    assert done.stdout.count(hashlib.sha256(content).hexdigest()) == 2
    assert "it is fetched here and sent" in events(lab)
    assert f"sending dataset d to {', '.join(names(nodes_of(lab.show(), nodes)))}" in events(lab)


def test_files_of_hdfs_are_fetched_here_and_sent(lab: Tfjob, nodes: Nodes, tmp_path: Path) -> None:
    content = os.urandom(2000)
    with hdfs(tmp_path) as store:  # on loopback, too: no node needs to reach it
        store.put({"/data/deep/a": content})
        done = lab("submit", job(lab, f"hdfs://{store.place}/data", nodes=2))
    assert done.stdout.count(f"{hashlib.sha256(content).hexdigest()}  ./deep/a") == 2
    assert "(only this machine can read hdfs:// addresses here): it is fetched here and sent" in events(lab)
    assert left(nodes) == []


def test_runs_that_want_the_same_at_once_fetch_it_once_a_node(lab: Tfjob, nodes: Nodes, web: WebServer) -> None:
    content = os.urandom(1000)
    paths = summed(web.put("slow.bin", content, None, None, Slow(200, 0.5)), content)
    runs = [lab("submit", "--detach", job(lab, paths, nodes=3, name=f"{n}.yml")).stdout.strip() for n in range(2)]
    for run in runs:
        lab("wait", run)
        for index in range(3):
            log = lab.run_directory(run) / f"logs/main-{index}.log"
            assert hashlib.sha256(content).hexdigest() in log.read_text()
    fetched = [client for client, span in web.asked_by("slow.bin") if not span]
    assert sorted(fetched) == [node.address for node in nodes]
    assert left(nodes) == []


def test_objects_are_fetched_by_signed_addresses(lab: Tfjob, nodes: Nodes, docker_cluster: Cluster) -> None:
    pytest.importorskip("moto.server", reason="moto is missing: pip install 'moto[server]'")
    import boto3  # noqa: PLC0415  # it comes with moto
    from moto.server import ThreadedMotoServer  # noqa: PLC0415  # 2 s, and it may be missing

    secret = "not-to-be-seen"  # noqa: S105  # of nobody
    content = os.urandom(2000)
    server = ThreadedMotoServer(docker_cluster.address, port=0, verbose=False)
    server.start()
    try:
        environ = {
            "AWS_ENDPOINT_URL": "http://{}:{}".format(*server.get_host_and_port()),
            "AWS_ACCESS_KEY_ID": "key",
            "AWS_SECRET_ACCESS_KEY": secret,
            "AWS_DEFAULT_REGION": "us-east-1",
        }
        client = boto3.client(
            "s3",
            endpoint_url=environ["AWS_ENDPOINT_URL"],
            aws_access_key_id="key",
            aws_secret_access_key=secret,
            region_name="us-east-1",
        )
        client.create_bucket(Bucket="data")
        client.put_object(Bucket="data", Key="a b/c.bin", Body=content)
        cloud = replace(lab, environ={**lab.environ, **environ})
        done = cloud("submit", job(cloud, "s3://data/a b", nodes=2))
    finally:
        server.stop()
    assert done.stdout.count(f"{hashlib.sha256(content).hexdigest()}  ./c.bin") == 2
    assert "sending dataset" not in events(lab)
    kept = [path for path in lab.run_directory(lab.show()["id"]).rglob("*") if path.is_file()]
    for word in (secret.encode(), b"Signature="):
        assert [path.name for path in kept if word in path.read_bytes()] == []
    assert left(nodes) == []


def test_the_container_that_fetches_ends_with_the_supervisor(lab: Tfjob, nodes: Nodes, web: WebServer) -> None:
    content = os.urandom(2000)
    paths = summed(web.put("a.bin", content, None, Hang(10), None), content)
    run = lab("submit", "--detach", job(lab, paths, nodes=1)).stdout.strip()
    eventually(lambda: len(web.asked("a.bin")) == 2, "the node fetches")
    os.kill(lab.record(run)["supervisor"]["pid"], signal.SIGKILL)
    eventually(lambda: not any(map(containers, nodes)), "the container is gone")
    lab("wait", run)  # whoever looks at the run starts another supervisor
    assert hashlib.sha256(content).hexdigest() in lab("logs", run).stdout
    assert left(nodes) == []
