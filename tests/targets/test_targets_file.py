"""Target files: what they mean, and everything that is wrong with one at once."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import pytest
import yaml
from jsonschema import Draft202012Validator

from tfjob.errors import InvalidFile, UsageError
from tfjob.spec.schema import target_schema
from tfjob.targets.address import Address, address_of
from tfjob.targets.definition import ClusterDefinition, NodeDefinition, SlurmDefinition
from tfjob.targets.file import load


def read(folder: Path, text: str, name: str | None = None) -> ClusterDefinition | SlurmDefinition:
    file = folder / "target.yml"
    file.write_text(text, encoding="utf-8")
    return load(file, name=name)


def problems(folder: Path, text: str) -> list[str]:
    with pytest.raises(InvalidFile) as caught:
        read(folder, text)
    return [str(problem).removeprefix(f"{folder}/") for problem in caught.value.problems]


def test_an_address_is_enough_for_a_node(tmp_path: Path) -> None:
    found = read(
        tmp_path,
        "name: lab\nkind: docker\nnodes: [ssh://me@gpu1:2222/run/docker.sock, tcp://10.0.0.2:2376, local, context:far]\n",
    )
    assert found == ClusterDefinition(
        "lab",
        (
            NodeDefinition("gpu1", "ssh://me@gpu1:2222/run/docker.sock"),
            NodeDefinition("10.0.0.2", "tcp://10.0.0.2:2376"),
            NodeDefinition("local", "local"),
            NodeDefinition("far", "context:far"),
        ),
    )


def test_everything_that_can_be_said_of_a_cluster(tmp_path: Path) -> None:
    tls = tmp_path / "certificates"
    tls.mkdir()
    for name in ("ca.pem", "cert.pem", "key.pem"):
        (tls / name).touch()
    text = """
    name: lab
    kind: docker
    description: Three machines
    nodes:
      - {name: a, engine: "tcp://[fe80::1]:2376", address: 10.0.0.1, gpus: 4, labels: {type: a100, rack: 7}, tls: certificates}
      - {name: b, engine: unix:///run/b.sock}
    least_nodes: 1
    most_nodes: 2
    wait_s: 5
    node_lost_s: 6.5
    merge_interval_s: 7
    kept_limit_gib: 0.5
    shared: [/data, /data/, /scratch]
    """
    labels = (("type", "a100"), ("rack", "7"))
    assert read(tmp_path, text) == ClusterDefinition(
        name="lab",
        nodes=(
            NodeDefinition("a", "tcp://[fe80::1]:2376", "10.0.0.1", 4, labels, str(tls)),
            NodeDefinition("b", "unix:///run/b.sock"),
        ),
        least_nodes=1,
        most_nodes=2,
        wait_s=5.0,
        node_lost_s=6.5,
        merge_interval_s=7.0,
        kept_limit_gib=0.5,
        shared=("/data", "/scratch"),
        description="Three machines",
    )


def test_everything_that_can_be_said_of_a_slurm_cluster(tmp_path: Path) -> None:
    text = """
    name: site
    kind: slurm
    description: The university's
    login: ssh://me@login
    directory: /home/me/tfjob
    partition: gpu,long
    account: vision
    qos: long
    constraint: a100|h100
    runtime: apptainer
    sbatch_options: [--exclusive, --reservation=spring]
    setup: [module load apptainer]
    """
    assert read(tmp_path, text) == SlurmDefinition(
        name="site",
        login="ssh://me@login",
        directory="/home/me/tfjob",
        partition="gpu,long",
        account="vision",
        qos="long",
        constraint="a100|h100",
        runtime="apptainer",
        sbatch_options=("--exclusive", "--reservation=spring"),
        setup=("module load apptainer",),
        description="The university's",
    )
    assert read(tmp_path, "kind: slurm\n", "site") == SlurmDefinition("site")


def test_a_name_given_wins_over_that_in_the_file(tmp_path: Path) -> None:
    assert read(tmp_path, "name: lab\nkind: docker\nnodes: [local]\n", "other").name == "other"
    with pytest.raises(UsageError, match="has no name") as caught:
        read(tmp_path, "kind: docker\nnodes: [local]\n")
    assert "tfjob compute create NAME -f" in caught.value.hint
    for name in ("local", "a b", ""):
        with pytest.raises(UsageError, match=r"can't be"):
            read(tmp_path, "kind: docker\nnodes: [local]\n", name)


def test_every_problem_is_told_with_its_place_and_a_way_out(tmp_path: Path) -> None:
    text = """\
kind: dockr
name: local
nodes:
  - gpu1
  - ssh://me:secret@gpu2
  - ssh://a@h:1
  - ssh://a@h:2
  - {engine: unix:///run/x.sock, gpus: -1}
  - {engine: tcp://h2:99999, tls: certificates}
  - {name: x}
  - http://h9:2375
  - ssh://a@h:1
  - {name: w, engine: ssh://z, tls: certificates}
min_nodes: 3
partition: a
wait_s: 10m
shared: data
"""
    keys = "name, kind, description, nodes, least_nodes, most_nodes, wait_s, node_lost_s, merge_interval_s, kept_limit_gib or shared"
    ways = "ssh://USER@HOST, tcp://HOST:PORT, unix:///PATH, context:NAME or local or a mapping (keys with values) is allowed"
    certificates = "a directory with ca.pem, cert.pem, key.pem is allowed"
    assert problems(tmp_path, text) == [
        'target.yml:1:7: kind: found "dockr"; docker or slurm is allowed. Did you mean docker?',
        "target.yml:2:7: name: found local, which is this machine and needs no file; any other name is allowed. Choose another name.",
        f'target.yml:4:5: nodes[0]: found text "gpu1"; {ways}. Did you mean ssh://gpu1?',
        f'target.yml:5:5: nodes[1]: found text "ssh://me:secret@gpu2"; {ways}. No password can stand in a file: let ssh use a key.',
        (
            "target.yml:7:5: nodes[3]: found a second node of the name h, beside nodes[2]; each name once is allowed. "
            "Write {name: NAME, engine: ssh://a@h:2}."
        ),
        (
            "target.yml:8:14: nodes[4].engine: found unix:///run/x.sock, which gives the node no name; a name of its own is needed. "
            "Write {name: NAME, engine: unix:///run/x.sock}."
        ),
        "target.yml:8:40: nodes[4].gpus: found the number -1; a whole number of at least 0 is allowed.",
        "target.yml:9:14: nodes[5].engine: found the port 99999; a port from 1 to 65535 is allowed.",
        f'target.yml:9:35: nodes[5].tls: found "certificates", and there is no directory {tmp_path}/certificates; {certificates}.',
        "target.yml:10:5: nodes[6]: the key engine is missing; it is required. Add engine, such as ssh://trainer@gpu1.",
        f'target.yml:11:5: nodes[7]: found text "http://h9:2375"; {ways}. Did you mean tcp://h9:2375?',
        "target.yml:12:5: nodes[8]: found ssh://a@h:1, which is nodes[2] too; each engine once is allowed. Remove one of the two.",
        "target.yml:13:32: nodes[9].tls: found tls with ssh://z; it is allowed with tcp://HOST:PORT. Remove it.",
        f'target.yml:14:1: min_nodes: found the unknown key "min_nodes"; {keys} is allowed. Did you mean least_nodes?',
        f'target.yml:15:1: partition: found the unknown key "partition"; {keys} is allowed. It belongs to kind: slurm.',
        'target.yml:16:9: wait_s: found text "10m"; a number above 0 is allowed. In seconds: 600.',
        'target.yml:17:9: shared: found text "data"; a list is allowed. Put it in brackets: [ ].',
    ]


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("nodes: [local]", "the key kind is missing; it is required. Add kind: docker."),
        ("login: ssh://a", "the key kind is missing; it is required. Add kind: slurm."),
        ("name: a", "the key kind is missing; it is required. Add kind: docker, or kind: slurm."),
        ("kind: docker", "the key nodes is missing; it is required"),
        ("kind: docker\nnodes: []", "a list that is not empty is allowed"),
        ("kind: docker\nnodes: [local]\nleast_nodes: 2", "found 2, and the target has 1 node; at most 1 is allowed"),
        ("kind: docker\nnodes: [local]\nmost_nodes: 2", "found 2, and the target has 1 node; at most 1 is allowed"),
        ("kind: docker\nnodes: [local, ssh://b]\nmost_nodes: 1\nleast_nodes: 2", "above most_nodes (1); at most 1"),
        (
            "kind: slurm\nsbatch_options: [--nodes=2]",
            "tfjob sets itself; other options are allowed. Say it with compute.",
        ),
        ("kind: slurm\nsbatch_options: [--wrap=x]", "found --wrap, which tfjob sets itself; other options are allowed"),
        (
            "kind: slurm\nsbatch_options: [--clusters=other]",
            "found --clusters, which tfjob sets itself; other options are allowed. Say it with login.",
        ),
        ("kind: slurm\nsbatch_options: [--usage]", "found --usage, which tfjob sets itself"),
        ("kind: slurm\nsbatch_options: ['--tres-per-task=gres/gpu:2']", "Say it with compute.gpus_per_node."),
        ("kind: slurm\nsbatch_options: [--ntasks-per-gpu=2]", "Say it with compute.node_count."),
        ("kind: slurm\nsbatch_options: [--outp=x]", "found --outp, the beginning of --output, which tfjob sets itself"),
        ("kind: slurm\nsbatch_options: [-N2]", 'found text "-N2"; --NAME or --NAME=VALUE is allowed'),
        ('kind: slurm\nsetup: ["a\\nb"]', "one line of shell"),
        ("kind: slurm\npartition: 'gpu; rm -rf x'", "the name of a partition is allowed"),
        ("kind: slurm\nlogin: me@login", "ssh://USER@HOST is allowed"),
        ("kind: slurm\nnodes: [a]", "It belongs to kind: docker."),
        ("kind: docker\nnodes: ['ssh://-oProxyCommand=x']", "ssh://USER@HOST"),
        ("kind: docker\nnodes: [{name: a, engine: ssh://a, address: 'http://x'}]", "without port"),
        ("kind: [a]\nnodes: [local]", "found no text; docker or slurm is allowed"),
        ("script: train.py", "this looks like a job file, not a target file"),
        ("- a", "a mapping (keys with values) is allowed"),
        ("kind: docker\nkind: slurm", "kind"),
    ],
)
def test_what_is_refused(text: str, expected: str, tmp_path: Path) -> None:
    assert expected in "\n".join(problems(tmp_path, text))


def test_a_file_that_cannot_be_read(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="cannot be read: No such file"):
        load(tmp_path / "nowhere.yml")
    (tmp_path / "binary.yml").write_bytes(b"\xff\xfea")
    with pytest.raises(InvalidFile, match="UTF-16"):
        load(tmp_path / "binary.yml")


@pytest.mark.parametrize(("kind", "value"), [("docker", ClusterDefinition), ("slurm", SlurmDefinition)])
def test_every_key_is_a_field_with_the_same_default(kind: str, value: type) -> None:
    keys = {key: said for key, said in target_schema(kind)["properties"].items() if key != "$schema"}
    fields = {field.name: field for field in dataclasses.fields(value)}
    assert set(keys) == set(fields)
    for key, said in keys.items():
        if "default" in said:
            expected = tuple(said["default"]) if isinstance(said["default"], list) else said["default"]
            assert fields[key].default == expected


def test_every_key_of_a_node_is_a_field() -> None:
    node = target_schema("docker")["properties"]["nodes"]["items"]
    assert set(node["properties"]) == {field.name for field in dataclasses.fields(NodeDefinition)}


def test_the_schema_for_editors_judges_as_tfjob_does() -> None:
    schema = target_schema()
    Draft202012Validator.check_schema(schema)
    validator = Draft202012Validator(json.loads(json.dumps(schema)))
    assert validator.is_valid(yaml.safe_load("kind: slurm\npartition: gpu"))
    assert validator.is_valid(yaml.safe_load("kind: docker\nnodes: [local, {engine: ssh://a}]"))
    assert not validator.is_valid(yaml.safe_load("kind: docker\nnodes: [gpu1]"))
    assert not validator.is_valid(yaml.safe_load("kind: slurm\nnodes: [local]"))


@pytest.mark.parametrize(
    ("text", "address"),
    [
        ("ssh://h", Address("ssh", "h")),
        ("ssh://me@h:22", Address("ssh", "h", 22, "me")),
        ("ssh://h/run/user/7/docker.sock", Address("ssh", "h", rest="/run/user/7/docker.sock")),
        ("tcp://[::1]:2376", Address("tcp", "::1", 2376)),
        ("unix:///a/b", Address("unix", rest="/a/b")),
        ("context:a", Address("context", rest="a")),
        ("local", Address("local")),
    ],
)
def test_addresses(text: str, address: Address) -> None:
    assert address_of(text) == address


def test_what_is_no_address() -> None:
    for text in ("", "ssh://", "http://a", "context:"):
        with pytest.raises(ValueError, match="no address"):
            address_of(text)


def test_a_thousand_nodes_are_not_too_many(tmp_path: Path) -> None:
    nodes = "".join(
        f"  - {{name: n{n}, engine: ssh://u@n{n}, address: n{n}, gpus: 8, labels: {{type: a100}}}}\n"
        for n in range(1000)
    )
    found = read(tmp_path, f"name: big\nkind: docker\nnodes:\n{nodes}")
    assert isinstance(found, ClusterDefinition)
    assert len(found.nodes) == 1000
