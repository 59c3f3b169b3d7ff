"""The body of the call that makes a node's container, and the archive put into it; the keys of an MPI run."""

from __future__ import annotations

import io
import os
import shutil
import subprocess
import tarfile
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from docker_parts import program
from engines.engine_bench import plan as plan_of
from engines.engine_bench import task

from tfjob.engines.base import Mount, Prepared
from tfjob.engines.cluster.container import (
    AGENT,
    KEEP,
    Place,
    archive_of,
    body_of,
    entrypoint_of,
    inside,
    name_of,
    node_labels,
)
from tfjob.engines.cluster.keys import Door, ssh_files
from tfjob.engines.cluster.leases import RunKey
from tfjob.engines.submitter import Submitter
from tfjob.planning.plan import ContainerPlan, Plan
from tfjob.rundir import RunDirectory
from tfjob.targets.target import Gpu

RUN = RunDirectory(Path("/home/anna/work/.tfjob/runs/swift-fox"))
KEY = RunKey("swift-fox", "0123456789", "anna@desk")
PREPARED = Prepared("key", {}, image="sha256:1234", python="/opt/env/bin/python3")
ANNA = Submitter(1000, 1000, "anna", ((1000, "anna"), (44, "video")))
PLACE = Place(1, (Gpu(2, "GPU-abc"), Gpu(3, "declared-3")), (("tfjob-tree-1", "/tfjob/trees/1"),), (("/shared", True),))


def body(plan: Plan, *, options: frozenset[str] = frozenset(), place: Place = PLACE) -> dict[str, Any]:
    labels = node_labels(KEY, 2, place)
    environ = {"HOME": "/home/anna", "TOKEN": "secret", "https_proxy": "http://proxy:3128", "PATH": "/bin"}
    return body_of(plan, RUN, PREPARED, place, labels=labels, who=ANNA, environ=environ, options=options)


@pytest.fixture
def plan() -> Plan:
    return plan_of(task("true"), container=ContainerPlan())


def test_the_body(plan: Plan) -> None:
    found = body(replace(plan, secrets=("TOKEN",)))
    variables = dict(one.split("=", 1) for one in found.pop("Env"))
    assert (variables["USER"], variables["TOKEN"]) == ("anna", "secret")
    assert "NVIDIA_VISIBLE_DEVICES" not in variables
    assert "PATH" not in variables
    host = found.pop("HostConfig")
    assert found == {
        "Image": "sha256:1234",
        "Entrypoint": ["/opt/env/bin/python3", "-I", "-S", "-c", KEEP, AGENT, "end", "/tfjob/swift-fox"],
        "Cmd": [],
        "User": "1000:1000",
        "WorkingDir": "/",
        "StopSignal": "SIGTERM",
        "Healthcheck": {"Test": ["NONE"]},
        "Labels": {
            "tfjob.run": "swift-fox",
            "tfjob.workspace": "0123456789",
            "tfjob.by": "anna@desk",
            "tfjob.attempt": "2",
            "tfjob.node": "1",
            "tfjob.gpus": "2,3",
        },
    }
    assert (host["NetworkMode"], host["Init"], "Privileged" in host) == ("host", True, False)
    assert host["DeviceRequests"] == [{"DeviceIDs": ["GPU-abc", "3"], "Capabilities": [["gpu"]]}]
    assert host["Mounts"] == [
        {
            "Type": "volume",
            "Source": "tfjob-tree-1",
            "Target": "/tfjob/trees/1",
            "ReadOnly": True,
            "VolumeOptions": {"NoCopy": True},
        },
        {"Type": "bind", "Source": "/shared", "Target": "/shared", "ReadOnly": True},
    ]


def test_no_path_of_this_machine_is_in_it(plan: Plan) -> None:
    found = body(plan)
    del found["Env"]  # HOME is a name there, not a place
    assert "/home/anna" not in str(found)


def test_without_gpus_it_asks_for_none(plan: Plan) -> None:
    found = body(plan, place=Place(0))
    assert "NVIDIA_VISIBLE_DEVICES=void" in found["Env"]
    assert "DeviceRequests" not in found["HostConfig"]
    assert found["Labels"]["tfjob.gpus"] == ""


def test_what_the_engine_is_like(plan: Plan) -> None:
    assert body(plan, options=frozenset({"rootless"}))["User"] == "0:0"
    assert body(plan, options=frozenset({"userns"}))["HostConfig"]["UsernsMode"] == "host"


def test_docker_arguments(plan: Plan) -> None:
    assert plan.container is not None
    arguments = ("--memory=100m", "--label=mine=1", "--mount=type=bind,src=/data,dst=/data")
    found = body(replace(plan, container=replace(plan.container, docker_args=arguments)))
    assert found["HostConfig"]["Memory"] == 100 << 20
    assert (found["Labels"]["tfjob.run"], found["Labels"]["mine"]) == ("swift-fox", "1")
    assert any(one["Target"] == "/data" for one in found["HostConfig"]["Mounts"])


def test_names() -> None:
    assert name_of(KEY, 2, 1) == "tfjob-swift-fox.0123456789-2-1"
    assert inside(RUN).path == Path("/tfjob/swift-fox")
    argv = entrypoint_of(PREPARED).argv(inside(RUN), "main-0")
    assert argv[0] == "/opt/env/bin/python3"
    assert "/opt/tfjob/entrypoint.py" in argv


@pytest.mark.parametrize(("options", "owner"), [(frozenset[str](), (1000, 1000)), (frozenset({"rootless"}), (0, 0))])
def test_the_archive_belongs_to_the_submitter(options: frozenset[str], owner: tuple[int, int]) -> None:
    accounts = [("passwd", "root:x:0:0::/:/bin/sh\n")]
    with tarfile.open(fileobj=io.BytesIO(archive_of(RUN, ANNA, options, accounts))) as tar:
        members = {one.name: one for one in tar}
    assert not any(name.startswith("/") or ".." in name for name in members)
    for name in ("opt/tfjob/agent.py", "opt/tfjob/entrypoint.py"):
        assert (members[name].uid, members[name].mode) == (0, 0o755)
    for name in ("tfjob/swift-fox", "tfjob/swift-fox/outputs"):
        assert (members[name].uid, members[name].gid) == owner
    assert members["tfjob/swift-fox/ssh"].mode == 0o700
    assert (members["etc/passwd"].uid, members["etc/passwd"].mode) == (0, 0o644)


def test_the_keys_of_a_run(tmp_path: Path) -> None:
    program("ssh-keygen", "openssh-client")
    doors = [Door("10.0.0.1", 20001, "anna"), Door("10.0.0.2", 20002, "root")]
    run = RunDirectory(tmp_path)
    files = ssh_files(run, doors, "/opt/env/bin:/usr/bin")
    assert {mode for node in files for _, mode in node.values()} == {0o600}
    assert files[0]["ssh/id"] == files[1]["ssh/id"] != ssh_files(run, doors, "")[0]["ssh/id"]
    assert "Port 20002\n" in files[1]["ssh/sshd_config"][0]
    assert "ListenAddress 10.0.0.2\n" in files[1]["ssh/sshd_config"][0]
    assert "SetEnv PATH=/opt/env/bin:/usr/bin\n" in files[1]["ssh/sshd_config"][0]
    (tmp_path / "ssh").mkdir()
    for name, (text, mode) in files[0].items():
        (tmp_path / name).write_text(text)
        (tmp_path / name).chmod(mode)
    said = subprocess.run(
        ["ssh", "-G", "-F", tmp_path / "ssh/config", "10.0.0.2"], capture_output=True, text=True, check=True
    ).stdout
    for line in ("user root", "port 20002", "stricthostkeychecking true", "batchmode yes", "serveraliveinterval 5"):
        assert f"{line}\n" in said
    found = subprocess.run(
        ["ssh-keygen", "-F", "[10.0.0.1]:20001", "-f", tmp_path / "ssh/known_hosts"], capture_output=True, check=False
    )
    assert found.returncode == 0
    sshd = shutil.which("sshd", path=f"{os.defpath}:/usr/sbin")
    if sshd and os.geteuid() == 0:
        Path("/run/sshd").mkdir(exist_ok=True)
        asked = subprocess.run(
            [sshd, "-t", "-f", tmp_path / "ssh/sshd_config"], capture_output=True, text=True, check=False
        )
        assert asked.returncode == 0, asked.stderr


def test_mounts_of_the_environment_are_binds(plan: Plan) -> None:
    prepared = replace(PREPARED, mounts=(Mount("/a", "/b"),))
    found = body_of(plan, RUN, prepared, Place(0), labels={}, who=ANNA, environ={}, options=frozenset())
    assert {"Type": "bind", "Source": "/a", "Target": "/b", "ReadOnly": True} in found["HostConfig"]["Mounts"]


@pytest.mark.parametrize(
    ("of_image", "name", "line"),
    [
        ("root:x:0:0::/root:/bin/sh\n", "anna", "anna:x:1000:1000::/tmp:/bin/sh"),
        ("ubuntu:x:1000:1000:Ubuntu:/home/ubuntu:/bin/bash\n", "ubuntu", "ubuntu:x:1000:1000:Ubuntu:/tmp:/bin/bash"),
        ("app:x:1000:1000::/nonexistent:/usr/sbin/nologin\n", "app", "app:x:1000:1000::/tmp:/bin/sh"),
        ("anna:x:5:5::/:/bin/sh\n", "user1000", "user1000:x:1000:1000::/tmp:/bin/sh"),
        ("", "anna", "anna:x:1000:1000::/tmp:/bin/sh"),
    ],
)
def test_ranks_log_in_as_the_image_calls_the_user(of_image: str, name: str, line: str) -> None:
    text, found = ANNA.login(of_image)
    assert found == name
    assert line in text.splitlines()
