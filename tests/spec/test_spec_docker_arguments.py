"""Arguments of `docker run`: which are passed on, as what, and what is said of the others."""

from __future__ import annotations

import pytest

from tfjob.spec.docker_arguments import DockerArguments, parse, problems, size_bytes


def mount(kind: str, source: str, target: str, **more: object) -> dict[str, object]:
    return {"Type": kind, "Target": target, **({"Source": source} if source else {}), **more}


@pytest.mark.parametrize(
    ("arguments", "host"),
    [
        ("--cap-add SYS_PTRACE --cap-add=SYS_ADMIN", {"CapAdd": ["SYS_PTRACE", "SYS_ADMIN"]}),
        ("--cap-drop ALL", {"CapDrop": ["ALL"]}),
        ("--ipc host", {"IpcMode": "host"}),
        ("-m 8g --memory-swap=-1", {"Memory": 8 * 2**30, "MemorySwap": -1}),
        ("-m8g", {"Memory": 8 * 2**30}),
        ("--cpus 1.5 --cpuset-cpus 0-3", {"NanoCpus": 1_500_000_000, "CpusetCpus": "0-3"}),
        ("-c 512 --pids-limit -1", {"CpuShares": 512, "PidsLimit": -1}),
        (
            "--device /dev/fuse --device /dev/a:/dev/b:r",
            {
                "Devices": [
                    {"PathOnHost": "/dev/fuse", "PathInContainer": "/dev/fuse", "CgroupPermissions": "rwm"},
                    {"PathOnHost": "/dev/a", "PathInContainer": "/dev/b", "CgroupPermissions": "r"},
                ]
            },
        ),
        ("--privileged --read-only=false", {"Privileged": True, "ReadonlyRootfs": False}),
        ("--security-opt seccomp=unconfined", {"SecurityOpt": ["seccomp=unconfined"]}),
        ("--security-opt systempaths=unconfined", {"MaskedPaths": [], "ReadonlyPaths": []}),
        (
            "--sysctl kernel.shmmax=1 --tmpfs /x:size=1g --tmpfs /y",
            {"Sysctls": {"kernel.shmmax": "1"}, "Tmpfs": {"/x": "size=1g", "/y": ""}},
        ),
        ("--add-host store:10.0.0.1", {"ExtraHosts": ["store:10.0.0.1"]}),
        ("--group-add video --runtime nvidia", {"GroupAdd": ["video"], "Runtime": "nvidia"}),
    ],
)
def test_fields_of_the_engine_s_api(arguments: str, host: dict[str, object]) -> None:
    assert problems(tuple(arguments.split())) == []
    assert parse(tuple(arguments.split())) == DockerArguments(host=host)


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (("-v", "/data:/data:ro"), mount("bind", "/data", "/data", ReadOnly=True)),
        (("--volume=/a b:/c",), mount("bind", "/a b", "/c")),
        (("-v/a:/b:rw,rslave",), mount("bind", "/a", "/b", BindOptions={"Propagation": "rslave"}, ReadOnly=False)),
        (("-v", "cache:/cache"), mount("volume", "cache", "/cache")),
        (("--mount", "type=bind,source=/a,target=/b,readonly"), mount("bind", "/a", "/b", ReadOnly=True)),
        (("--mount", "type=tmpfs,dst=/b"), mount("tmpfs", "", "/b")),
    ],
)
def test_mounts(arguments: tuple[str, ...], expected: dict[str, object]) -> None:
    assert problems(arguments) == []
    assert parse(arguments).mounts == (expected,)


def test_what_goes_beside_tfjob_s_own() -> None:
    found = parse(("--env", "A=b c=d", "-e=X=", "-l", "team=vision", "--ulimit", "memlock=-1", "--ulimit=nofile=1:2"))
    assert found.environment == ("A=b c=d", "X=")
    assert found.labels == {"team": "vision"}
    assert found.ulimits == {
        "memlock": {"Name": "memlock", "Soft": -1, "Hard": -1},
        "nofile": {"Name": "nofile", "Soft": 1, "Hard": 2},
    }
    assert found.host == {}


@pytest.mark.parametrize(
    ("arguments", "place", "message"),
    [
        (("--name", "x"), 0, "found --name, which tfjob does not pass on: tfjob names containers by run and task"),
        (("--cap-add", "A", "--network=bridge"), 2, "found --network, which tfjob does not pass on"),
        (("-d",), 0, "tfjob starts containers detached"),
        (("--gpus", "all"), 0, "compute.gpus_per_node asks for GPUs"),
        (("--cap-ad", "A"), 0, "found --cap-ad, which tfjob does not pass on to containers; the common options"),
        (("ubuntu:22.04",), 0, "found ubuntu:22.04, where an argument of `docker run`"),
        (("--ulimit",), 0, "found --ulimit without a value"),
        (("--ulimit", "memlock"), 0, "found --ulimit memlock; NAME=SOFT or NAME=SOFT:HARD"),
        (("--ipc", "container:x"), 0, "found --ipc container:x; host or private or shareable is allowed"),
        (("-m", "much"), 0, "found --memory much; a number with b, k, m or g"),
        (("-v", "data:data"), 0, "found --volume data:data; SOURCE:TARGET"),
        (("-v", "./data:/data"), 0, "found --volume ./data:/data; an absolute path, or the name of a volume"),
        (("-v", "/a:/b:rx"), 0, "rx is not known after the target"),
        (("--env", "TOKEN"), 0, "found --env TOKEN; NAME=VALUE is allowed; a value of your shell's is passed on by"),
        (("--security-opt", "seccomp=/my.json"), 0, "apparmor=…, label=…, no-new-privileges"),
        (("--label", "tfjob.run=x"), 0, "no name that starts with tfjob."),
        (("--privileged=maybe",), 0, "found --privileged=maybe; --privileged or --privileged=false is allowed"),
        (("--cpus", "many"), 0, "a number of processors"),
        (("--pids-limit", "1.5"), 0, "a whole number"),
        (("--sysctl", "kernel.x"), 0, "NAME=VALUE is allowed"),
        (("--device", "fuse"), 0, "/dev/NAME"),
        (("--mount", "type=bind,source=/a,target=/b,what=x"), 0, "type=bind|volume|tmpfs"),
    ],
)
def test_what_is_not_passed_on(arguments: tuple[str, ...], place: int, message: str) -> None:
    (problem,) = problems(arguments)
    assert problem.place == place
    assert message in problem.message
    with pytest.raises(ValueError, match=r".+"):
        parse(arguments)


def test_everything_wrong_is_told_at_once_with_a_hint() -> None:
    found = problems(("--cap-ad", "A", "--ulimit", "x", "--rm"))
    assert [problem.place for problem in found] == [0, 2, 4]
    assert found[0].hint == "Did you mean --cap-add?"
    assert found[2].hint == "Remove --rm."


@pytest.mark.parametrize(("text", "size"), [("1", 1), ("2g", 2 * 2**30), ("1.5GiB", 3 * 2**29), ("64 MB", 2**26)])
def test_sizes(text: str, size: int) -> None:
    assert size_bytes(text) == size
