"""The command lines of container runtimes, as text, and images as nodes make them."""

from __future__ import annotations

import importlib
import io
import json
import os
import signal
import sys
import tarfile
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
from engines_slurm.slurm_commands import commands
from engines_slurm.slurm_plans import slurm_plan, workers

import tfjob.engines.slurm.program
from tfjob.engines.base import Mount, Prepared
from tfjob.engines.slurm.container import container_of
from tfjob.engines.slurm.gang import gang_of, python_of
from tfjob.engines.submitter import Submitter
from tfjob.planning.plan import ContainerPlan, Plan
from tfjob.rundir import RunDirectory
from tfjob.targets.definition import SlurmDefinition

PROGRAM = Path(tfjob.engines.slurm.program.__file__).parent
RUN = RunDirectory(Path("/shared/runs/r1"))
ENVIRON = {
    "PATH": "/usr/bin",
    "HOME": "/home/ada",
    "SLURM_JOB_ID": "7",
    "SLURM_STEP_GPUS": "2,3",
    "CUDA_VISIBLE_DEVICES": "0,1",
    "TOKEN": "hunter2",
    "CUDA_HOME": "/site/cuda",
}


@pytest.fixture(autouse=True)
def programs_on_the_path() -> Iterator[None]:
    before = list(sys.path)
    sys.path.insert(0, str(PROGRAM))
    yield
    sys.path[:] = before


def module(name: str) -> ModuleType:
    return importlib.import_module(name)


def spec(*arguments: str, mounts: tuple[Mount, ...] = (), **keys: Any) -> dict[str, Any]:
    made: Plan = slurm_plan(*workers("true"), target=SlurmDefinition("lab", runtime=keys.pop("runtime", "auto")))
    made = replace(made, runtime="docker", container=ContainerPlan("1g", arguments), secrets=("TOKEN",))
    prepared = Prepared(
        None, {"environment.path": "/opt/env/bin:/bin"}, image="sha256:abc", python="/opt/env/bin/python"
    )
    found = container_of(
        made,
        prepared,
        archive=Path("/shared/store/images/abc/image.tar"),
        images=Path("/shared/store/images"),
        who=Submitter(1000, 100, "ada", ((44, "video"),)),
        accounts=(Mount("/shared/runs/r1/accounts/passwd", "/etc/passwd"),),
        mounts=mounts or (Mount("/shared/store/prefixes/k", "/opt/env"),),
        environ={"TOKEN": "hunter2", "TZ": "UTC", "HOME": "/home/ada"},
    )
    return dict(json.loads(json.dumps(found)))


def start(made: dict[str, Any], **facts: Any) -> Any:
    usual = {
        "program": "/usr/bin/x",
        "image": "sha256:abc",
        "name": "tfjob-r1-7.0-0",
        "run": str(RUN.path),
        "inner": [*made["python"], "node.py", str(RUN.path), "7.0"],
        "environ": ENVIRON,
        "gpus": ["2", "3"],
    }
    return module("runtimes").Start(made, **{**usual, **facts})


INNER = ["-E", "-s", "-S", "-X", "utf8", "node.py", "/shared/runs/r1", "7.0"]


class TestCommands:
    def test_docker_as_the_user_with_gpus_by_the_machines_numbers(self) -> None:
        argv, environ = module("runtimes").command("docker", start(spec("--cap-add", "SYS_PTRACE"), is_user=True))
        assert argv == [
            *("/usr/bin/x", "run", "--rm", "--interactive", "--name=tfjob-r1-7.0-0"),
            *("--label=tfjob.slurm.run=/shared/runs/r1", "--pull=never", "--network=host", "--workdir=/"),
            *("--shm-size=1g", "--no-healthcheck", "--entrypoint=/opt/env/bin/python"),
            "--mount=type=bind,source=/shared/runs/r1,target=/shared/runs/r1",
            "--mount=type=bind,source=/shared/store/prefixes/k,target=/opt/env,readonly",
            "--mount=type=bind,source=/shared/runs/r1/accounts/passwd,target=/etc/passwd,readonly",
            *("--env=CUDA_VISIBLE_DEVICES", "--env=SLURM_JOB_ID", "--env=SLURM_STEP_GPUS", "--env=TOKEN"),
            *("--user=1000:100", "--group-add=44", "--env=HOME=/tmp", "--env=USER=ada", "--env=LOGNAME=ada"),
            *('--gpus="device=2,3"', "--cap-add", "SYS_PTRACE", "sha256:abc", *INNER),
        ]
        assert environ == {**ENVIRON, "CUDA_VISIBLE_DEVICES": "0,1"}

    def test_podman_as_its_root_which_is_the_user(self) -> None:
        made = start(spec(), devices=["nvidia.com/gpu=2", "nvidia.com/gpu=3"])
        argv, environ = module("runtimes").command("podman", made)
        assert argv == [
            *("/usr/bin/x", "run", "--rm", "--interactive", "--name=tfjob-r1-7.0-0"),
            *("--label=tfjob.slurm.run=/shared/runs/r1", "--pull=never", "--network=host", "--workdir=/"),
            *("--shm-size=1g", "--no-healthcheck", "--entrypoint=/opt/env/bin/python"),
            "--mount=type=bind,source=/shared/runs/r1,target=/shared/runs/r1",
            "--mount=type=bind,source=/shared/store/prefixes/k,target=/opt/env,readonly",
            *("--env=CUDA_VISIBLE_DEVICES", "--env=SLURM_JOB_ID", "--env=SLURM_STEP_GPUS", "--env=TOKEN"),
            *("--user=0:0", "--uts=host", "--security-opt=label=disable"),
            *("--device=nvidia.com/gpu=2", "--device=nvidia.com/gpu=3", "sha256:abc", *INNER),
        ]
        assert environ["TOKEN"] == "hunter2"  # noqa: S105  # no secret

    def test_apptainer_gets_variables_by_its_own_prefix_and_sees_gpus_as_slurm_numbers_them(self) -> None:
        own = {"CUDA_VISIBLE_DEVICES": "2,3", "APPTAINER_BIND": "/scratch", "APPTAINER_DISABLE_CACHE": "1"}
        made = start(spec("-e", "A=b c"), image="/shared/image.sif", environ={**ENVIRON, **own})
        argv, environ = module("runtimes").command("apptainer", made)
        assert argv == [
            *("/usr/bin/x", "exec", "--cleanenv", "--no-home", "--writable-tmpfs", "--nv"),
            "--mount=type=bind,source=/shared/runs/r1,target=/shared/runs/r1",
            "--mount=type=bind,source=/shared/store/prefixes/k,target=/opt/env,readonly",
            *("/shared/image.sif", "/opt/env/bin/python", *INNER),
        ]
        assert environ["APPTAINER_BIND"] == "/scratch"
        assert (environ["APPTAINER_NO_EVAL"], environ["SINGULARITY_NO_EVAL"]) == ("1", "1")  # no shell runs values
        assert "APPTAINER_DISABLE_CACHE" not in environ  # by which an image that is unpacked for a run is removed
        given = {
            name[len("APPTAINERENV_") :]: value for name, value in environ.items() if name.startswith("APPTAINERENV_")
        }
        assert given == {
            "A": "b c",
            "CUDA_VISIBLE_DEVICES": "2,3",
            "SLURM_JOB_ID": "7",
            "SLURM_STEP_GPUS": "2,3",
            "TOKEN": "hunter2",
        }

    def test_enroot_gets_mounts_as_lines_of_fstab(self) -> None:
        made = start(spec("-v", "/data:/in:ro"), image="/shared/image.sqsh")
        argv, environ = module("runtimes").command("pyxis", made)
        assert argv == [
            *("/usr/bin/x", "start", "--rw"),
            *("--mount", "/shared/runs/r1:/shared/runs/r1:none:x-create=auto,rbind,rw"),
            *("--mount", "/shared/store/prefixes/k:/opt/env:none:x-create=auto,rbind,ro"),
            *("--mount", "/data:/in:none:x-create=auto,rbind,ro"),
            *("--env", "CUDA_VISIBLE_DEVICES", "--env", "NVIDIA_DRIVER_CAPABILITIES"),
            *("--env", "NVIDIA_VISIBLE_DEVICES", "--env", "SLURM_JOB_ID", "--env", "SLURM_STEP_GPUS", "--env", "TOKEN"),
            *("/shared/image.sqsh", "/opt/env/bin/python", *INNER),
        ]
        assert (environ["NVIDIA_VISIBLE_DEVICES"], environ["CUDA_VISIBLE_DEVICES"]) == ("2,3", "0,1")

    def test_enroot_refuses_a_path_that_its_mounts_cannot_hold(self) -> None:
        with pytest.raises(ValueError, match="enroot can't mount /a b"):
            module("runtimes").command("pyxis", start(spec(mounts=(Mount("/a b", "/a b"),))))

    @pytest.mark.parametrize("runtime", ["pyxis", "apptainer", "podman", "docker"])
    def test_no_secret_is_among_the_arguments(self, runtime: str) -> None:
        argv, environ = module("runtimes").command(runtime, start(spec()))
        assert "hunter2" not in " ".join(argv)
        assert "hunter2" in environ.values()

    @pytest.mark.parametrize("runtime", ["pyxis", "apptainer", "podman", "docker"])
    def test_without_gpus_none_are_seen(self, runtime: str) -> None:
        argv, environ = module("runtimes").command(runtime, start(spec(), gpus=[]))
        prefix = "APPTAINERENV_" if runtime == "apptainer" else ""
        assert (environ[prefix + "CUDA_VISIBLE_DEVICES"], environ[prefix + "NVIDIA_VISIBLE_DEVICES"]) == ("", "void")
        assert not [one for one in argv if "gpu" in one or one == "--nv"]

    def test_paths_with_commas_and_quotes_are_one_word_of_a_mount(self) -> None:
        argv, _ = module("runtimes").command("podman", start(spec(mounts=(Mount('/a,"b"', '/a,"b"'),))))
        assert '--mount=type=bind,"source=/a,""b""","target=/a,""b""",readonly' in argv


class TestWhatIsGiven:
    def test_arguments_that_only_docker_knows_are_named(self) -> None:
        assert spec("-e", "A=b", "-v", "/x:/x")["only_docker"] == []
        assert spec("--cap-add", "SYS_PTRACE", "--mount", "type=tmpfs,target=/t")["only_docker"] == ["CapAdd", "/t"]

    def test_the_programs_outside_run_by_the_nodes_python(self) -> None:
        made = replace(slurm_plan(*workers("true")), runtime="docker", container=ContainerPlan())
        values = {"environment.prefix": "/opt/env", "environment.path": "/x"}
        gang = gang_of(made, RUN, Prepared("k", values), spec())
        assert python_of(made, values) == "python3"
        assert gang["container"]["python"][0] == "/opt/env/bin/python"
        assert (gang["path"], gang["container"]["path"]) == ([], "/opt/env/bin:/bin")

    def test_gpus_by_the_machines_numbers(self) -> None:
        gpus_of = module("runtimes").gpus_of
        assert gpus_of({"SLURM_STEP_GPUS": "2,3", "CUDA_VISIBLE_DEVICES": "0,1"}) == ["2", "3"]
        assert gpus_of({"CUDA_VISIBLE_DEVICES": "1"}) == ["1"]
        assert gpus_of({"CUDA_VISIBLE_DEVICES": "NoDevFiles"}) == gpus_of({}) == []


@pytest.fixture
def container_in(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., Any]:
    """Make the program of a node whose PATH has `tmp_path` first."""

    def made(word: str, **keys: Any) -> Any:
        monkeypatch.setenv("SLURM_NODEID", "0")
        monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
        run = tmp_path / "run"
        (run / "slurm").mkdir(parents=True)
        (run / "slurm" / "gang.json").write_text(json.dumps({"run": "r-1", "container": spec(**keys)}))
        handlers = [(number, signal.getsignal(number)) for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP)]
        found = module("container").Container(str(run), str(run), word)
        for number, handler in handlers:
            signal.signal(number, handler)
        return found

    return made


def test_what_was_left_is_of_an_earlier_attempt_or_of_a_job_that_is_over(
    tmp_path: Path, container_in: Callable[..., Any]
) -> None:
    commands(tmp_path, squeue="printf '7\\n9\\n'")
    made = container_in("7.1")
    ours = ["tfjob-r-1-7.0-3"]
    others = ["tfjob-r-1-7.1-1", "tfjob-r-2-9.0-0", "tfjob-r-12-8.0-1", "tfjob-r-1-main", "something"]
    assert made.left(ours + others) == [*ours, "tfjob-r-12-8.0-1"]
    commands(tmp_path, squeue="exit 1")  # who can't be asked says nothing
    assert made.left(ours + others) == ours


@pytest.mark.parametrize("asked", ["auto", "apptainer"])
def test_an_apptainer_that_is_too_old_is_passed_over_or_refused(
    tmp_path: Path, container_in: Callable[..., Any], asked: str
) -> None:
    commands(tmp_path, apptainer="echo apptainer version 1.0.3", podman="exit 0")
    made = container_in("7.0", runtime=asked)
    made.environ["PATH"] = str(tmp_path)
    if asked == "auto":
        assert made.choose() == ("podman", str(tmp_path / "podman"))
    else:
        with pytest.raises(module("image").Trouble, match=r"it has apptainer version 1\.0\.3: Apptainer 1\.1"):
            made.choose()


def archive(path: Path, *layers: dict[str, bytes | None]) -> Path:
    """An image as `docker save` writes it. A file without content is a directory."""
    with tarfile.open(path, "w") as outer:
        names = []
        for number, layer in enumerate(layers):
            buffer = io.BytesIO()
            with tarfile.open(fileobj=buffer, mode="w") as tar:
                for name, content in layer.items():
                    member = tarfile.TarInfo(name)
                    member.type = tarfile.DIRTYPE if content is None else tarfile.REGTYPE
                    member.mode, member.size = 0o755, len(content or b"")
                    tar.addfile(member, io.BytesIO(content or b""))
            names.append(f"{number}/layer.tar")
            put(outer, names[-1], buffer.getvalue())
        put(outer, "manifest.json", json.dumps([{"Layers": names}]).encode())
    return path


def put(tar: tarfile.TarFile, name: str, content: bytes) -> None:
    member = tarfile.TarInfo(name)
    member.size = len(content)
    tar.addfile(member, io.BytesIO(content))


class TestUnpacking:
    def test_a_layer_hides_what_it_says_of_those_below(self, tmp_path: Path) -> None:
        image = archive(
            tmp_path / "image.tar",
            {"./": None, "etc": None, "etc/a": b"1", "etc/b": b"1", "var": None, "var/old": b"1"},
            {"etc/a": b"2", "etc/.wh.b": b"", "var/.wh..wh..opq": b"", "var/new": b"2"},
        )
        root = tmp_path / "root"
        root.mkdir()
        module("image").unpack(str(image), str(root))
        files = {str(path.relative_to(root)): path.read_bytes() for path in root.rglob("*") if path.is_file()}
        assert files == {"etc/a": b"2", "var/new": b"2"}

    @pytest.mark.parametrize(
        "name",
        ["../evil", "/../evil", "in/../../evil", "out/evil", "out/../evil", ".wh...", "in/.wh...", ".wh..", ".wh."],
    )
    def test_nothing_is_written_outside(self, tmp_path: Path, name: str) -> None:
        root = tmp_path / "root"
        (root / "in").mkdir(parents=True)
        (root / "in" / "kept").touch()
        (tmp_path / "other" / "deep").mkdir(parents=True)
        (root / "out").symlink_to(tmp_path / "other" / "deep")
        before = sorted(tmp_path.rglob("*"))
        image = archive(tmp_path / "image.tar", {name: b"1"})
        with pytest.raises(module("image").Trouble, match="outside of itself"):
            module("image").unpack(str(image), str(root))
        assert sorted(tmp_path.rglob("*")) == sorted([*before, image])

    def test_an_absolute_name_is_one_of_the_image(self, tmp_path: Path) -> None:
        root, mine = tmp_path / "root", tmp_path / "mine"
        root.mkdir()
        mine.write_bytes(b"mine")
        module("image").unpack(str(archive(tmp_path / "image.tar", {str(mine): b"1"})), str(root))
        assert mine.read_bytes() == b"mine"
        assert (root / str(mine).lstrip("/")).read_bytes() == b"1"

    def test_hard_links_are_to_what_is_in_the_image(self, tmp_path: Path) -> None:
        root, mine = tmp_path / "root", tmp_path / "mine"
        root.mkdir()
        mine.write_bytes(b"mine")
        (root / "shell").symlink_to("/bin/nowhere")  # of an image: it leads nowhere here
        links = {"a": str(mine), "b": "/shell", "c": "out/mine"}
        (root / "out").symlink_to(tmp_path)
        with tarfile.open(tmp_path / "layer.tar", "w") as tar:
            for name, target in links.items():
                member = tarfile.TarInfo(name)
                member.type, member.linkname = tarfile.LNKTYPE, target
                tar.addfile(member)
        with tarfile.open(tmp_path / "layer.tar") as tar:
            for name in ("a", "b"):
                module("image").lay(tar, tar.getmember(name), str(root))
            with pytest.raises(module("image").Trouble, match="outside of itself"):
                module("image").lay(tar, tar.getmember("c"), str(root))
        assert not (root / "a").exists()
        assert os.readlink(root / "b") == "/bin/nowhere"
        assert not (root / "c").exists()

    @pytest.mark.parametrize("content", [b"", b"no archive", b"\x1f\x8b\x08\x00 cut"])
    def test_a_damaged_image_is_said_to_be(self, tmp_path: Path, content: bytes) -> None:
        (tmp_path / "image.tar").write_bytes(content)
        with pytest.raises(module("image").Trouble, match="is damaged"):
            module("image").unpack(str(tmp_path / "image.tar"), str(tmp_path))
        with tarfile.open(tmp_path / "other.tar", "w") as outer:
            put(outer, "manifest.json", b'[{"Layers": ["gone"]}]')
        with pytest.raises(module("image").Trouble, match="is damaged"):
            module("image").unpack(str(tmp_path / "other.tar"), str(tmp_path))


@pytest.mark.parametrize(
    ("said", "too_old"),
    [
        ("apptainer version 1.0.3", True),
        ("apptainer version 1.1.9-1.el9", False),
        ("singularity version 3.8.7", True),
        ("singularity-ce version 3.10.0-rc.1", False),
        ("singularity-ce version 4.1.2", False),
        ("something else", False),
    ],
)
def test_an_apptainer_that_runs_what_values_hold_is_known(said: str, *, too_old: bool) -> None:
    assert module("runtimes").is_too_old(said) is too_old


@pytest.mark.parametrize(
    ("config", "all_of_them"),
    [
        ("ProctrackType           = proctrack/cgroup\nSignalChildrenProcesses = no\n", False),
        ("ProctrackType           = proctrack/cgroup\n", False),
        ("ProctrackType           = proctrack/cgroup\n  SignalChildrenProcesses = yes\n", True),
        ("ProctrackType           = proctrack/linuxproc\n", True),
        ("", False),
    ],
)
def test_whether_slurm_signals_all_of_a_step(config: str, *, all_of_them: bool) -> None:
    assert module("container").signals_all(config) is all_of_them


def test_what_an_image_had_is_removed_whatever_its_rights(tmp_path: Path) -> None:
    root = tmp_path / "tree"
    (root / "usr" / "bin").mkdir(parents=True)
    (root / "usr" / "bin" / "program").touch()
    (root / "usr" / "link").symlink_to(tmp_path)
    for directory in (root / "usr" / "bin", root / "usr"):
        directory.chmod(0o555)
    module("image").remove_tree("")
    module("image").remove_tree(str(root))
    assert list(tmp_path.iterdir()) == []


def test_apptainer_makes_its_file_once_and_keeps_no_other_copy(tmp_path: Path) -> None:
    commands(tmp_path, apptainer=f'echo "$@" >>{tmp_path}/said; [ "$3" = --sandbox ] || echo image >"$3"')
    image = archive(tmp_path / "image.tar", {"etc": None})
    made = {"archive": str(image), "reference": None, "directory": str(tmp_path)}
    images = module("image").Images(
        "apptainer",
        str(tmp_path / "apptainer"),
        spec=made,
        environ=dict(os.environ),
        tell=lambda _: None,
        check=lambda: None,
    )
    assert {images.make_ready() for _ in range(2)} == {str(tmp_path / "image.sif")}
    [said] = (tmp_path / "said").read_text().splitlines()
    assert said.split()[:2] == ["build", "--disable-cache"]
    assert said.split()[3:] == [f"docker-archive:{image}"]
    assert images.lay_out(str(tmp_path / "image.sif"), str(tmp_path / "root")) == str(tmp_path / "root")


@pytest.mark.parametrize(
    ("reference", "named"),
    [
        ("ubuntu:22.04", "ubuntu:22.04"),
        ("nvidia/cuda:12", "nvidia/cuda:12"),
        ("registry.example:5000/team/x", "registry.example:5000#team/x"),
    ],
)
def test_enroot_is_told_the_registry_apart(reference: str, named: str) -> None:
    assert module("image").registry(reference) == named
