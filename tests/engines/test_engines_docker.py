"""What is the Docker engine's own, with a real Docker Engine."""

from __future__ import annotations

import os
import shutil
import signal
import tarfile  # for a process that may not read Python's own files
import tempfile
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING
from uuid import uuid4

import pytest
from engines import engine_bench
from engines.docker_bench import FOREVER, PYTHON, end, given, says
from engines.engine_bench import IMAGE, PREPARED, Bench, plan, task
from support import eventually

from tfjob.datasets.files import find_files
from tfjob.datasets.placing import place
from tfjob.dockerapi.api import DockerApi
from tfjob.engines.base import Prepared
from tfjob.engines.docker import DockerEngine
from tfjob.planning.plan import DatasetPlan
from tfjob.rundir import RunDirectory

if TYPE_CHECKING:
    from docker_parts import Daemon

assert tarfile
MakeBench = Callable[..., Bench]
pytestmark = pytest.mark.usefixtures("nothing_is_left")


@pytest.fixture
def engine_name() -> str:
    return "docker"


def wrote(bench: Bench, name: str, task_name: str = "main") -> str:
    file = bench.run.work(task_name) / name
    text: str = eventually(lambda: file.exists() and file.read_text(), f"the file {name}")
    return text.strip()


def runs(bench: Bench, name: str) -> None:
    """Wait until a task is seen to run."""
    eventually(lambda: bench.poll()[name].state == "running", f"the start of {name}")


@contextmanager
def reachable(daemon: Daemon, directory: Path, uid: int) -> Iterator[list[int]]:
    """Let another user use the engine and the directory; gives the groups that the user needs for it."""
    os.chown(directory, uid, -1)
    yield [(daemon.folder / "docker.sock").stat().st_gid]


@pytest.fixture
def users_own() -> Iterator[Path]:
    """A directory for another user. Those of pytest are closed to others whenever somebody else starts pytest."""
    directory = Path(tempfile.mkdtemp(prefix="tfjob-owner-"))
    yield directory
    shutil.rmtree(directory)


def as_user(uid: int, gid: int, groups: list[int], do: Callable[[], None]) -> None:
    """Do something as another user, in a process of its own."""
    child = os.fork()
    if not child:
        try:
            os.setgroups(groups)
            os.setgid(gid)
            os.setuid(uid)
            do()
            os._exit(0)
        except BaseException:  # noqa: BLE001  # the child must not go on as pytest
            traceback.print_exc()
        finally:
            os._exit(1)
    assert os.waitpid(child, 0)[1] == 0


class TestWhoItIs:
    @pytest.mark.root
    def test_outputs_belong_to_who_submits(self, docker_engine: Daemon, users_own: Path) -> None:
        if os.geteuid() != 0:
            pytest.skip("to become another user needs root")
        command = (
            "echo x >outputs/file; mkdir outputs/directory; touch ~/at-home; id -u; id -g; id -G; "
            "python3 -c 'import getpass, os, pwd; print(pwd.getpwuid(os.getuid()).pw_name, os.environ[\"HOME\"])'; "
            "tail -n 1 /etc/group; umask"
        )
        run = RunDirectory(users_own / f"bench-{uuid4().hex[:10]}")
        image = DockerApi(docker_engine.host).get(f"/images/{IMAGE}/json")["Id"]
        prepared = Prepared(None, PREPARED["docker"].values, image=image, python=PYTHON)
        with reachable(docker_engine, users_own, 54321) as groups:

            def submit() -> None:
                os.umask(0o027)
                engine = DockerEngine(engine_bench.NODE, environ=os.environ, cache=users_own / "cache")
                for number in range(2):
                    one = Bench.make(engine, run, plan(task(command)), prepared)
                    (run.work("main") / "outputs").symlink_to(run.outputs)
                    one.handle = engine.start(one.plan, run, one.allocation, one.prepared)
                    assert end(one).exit_code == 0, one.log()
                    one.stop()
                    run.path.rename(users_own / str(number))

            as_user(54321, 54322, [*groups, 54323], submit)
        first, second = (users_own / str(number) for number in range(2))
        for at in (first / "outputs/file", first / "outputs/directory", first / "logs/main.log"):
            assert (at.stat().st_uid, at.stat().st_gid) == (54321, 54322)
        assert (first / "outputs/file").stat().st_mode & 0o777 == 0o640
        uid, gid, every, name, last, umask = (first / "logs/main.log").read_text().splitlines()
        assert (uid, gid, name, umask) == ("54321", "54322", "user54321 /tmp", "0027")
        assert set(every.split()) == {"54322", "54323", *map(str, groups)}
        assert last == "group54323:x:54323:"
        assert (first / "logs/main.log").read_bytes() == (second / "logs/main.log").read_bytes()
        assert [path.stem for path in (users_own / "cache").iterdir()] == [image.removeprefix("sha256:")]

    def test_root_is_root(self, bench: MakeBench) -> None:
        if os.geteuid() != 0:
            pytest.skip("this user is not root")
        assert says(bench(task("id -u; echo $HOME"))) == ["0", "/root"]


class TestWhatItSees:
    def test_the_run_directory_and_no_other(self, bench: MakeBench, tmp_path: Path) -> None:
        other = bench(task("true"))
        run = bench(task(f"ls {tmp_path}; ls /work /home | wc -l"))
        (other.run.path / "secret").touch()
        assert says(run)[0] == run.run.id
        assert "secret" not in run.log()

    def test_the_image_s_own_variables_and_not_the_machine_s(self, bench: MakeBench, tmp_path: Path) -> None:
        bundle = tmp_path / "bundle.crt"
        bundle.write_text("certificates")
        machine = {"HOME": "/home/me", "SHELL": "/bin/zsh", "TMPDIR": "/scratch", "LD_LIBRARY_PATH": "/opt/lib"}
        machine |= {"CUDA_HOME": "/usr/local/cuda", "XDG_CACHE_HOME": "/home/me/.cache", "LC_ALL": "de_DE.UTF-8"}
        travels = {"https_proxy": "http://proxy:1", "TZ": "UTC", "LANG": "C.UTF-8", "XLA_FLAGS": "--x"}
        files = {"SSL_CERT_FILE": str(bundle), "REQUESTS_CA_BUNDLE": str(bundle), "CURL_CA_BUNDLE": "/not/there"}
        environ = {"DOCKER_HOST": os.environ["DOCKER_HOST"], "PATH": "/nowhere", **machine, **travels, **files}
        lines = says(bench(task("env; cat $SSL_CERT_FILE"), environ=environ))
        seen = dict(line.split("=", 1) for line in lines if "=" in line)
        assert lines[-1] == "certificates"
        assert travels.items() <= seen.items()
        assert not (machine.keys() - {"HOME", "SHELL"}) & seen.keys()
        assert not {"/home/me", "/bin/zsh", "/nowhere"} & set(seen.values())
        assert seen["SSL_CERT_FILE"] == seen["REQUESTS_CA_BUNDLE"] == "/opt/tfjob/certificates/0.pem"
        assert "CURL_CA_BUNDLE" not in seen
        assert "DOCKER_HOST" not in seen

    def test_datasets_where_they_are_and_nothing_beside_them(self, bench: MakeBench, tmp_path: Path) -> None:
        data = tmp_path / "data"
        for name in ("all/a", "all/sub/b", "some/c", "some/not-asked-for"):
            (data / name).parent.mkdir(parents=True, exist_ok=True)
            (data / name).write_text(name)
        found = find_files([f"{data}/all", f"{data}/some/c"])
        dataset = DatasetPlan("d", "directory", "mount", found.digest, 3, 0, found.files)
        run = bench(
            task("bash", "-c", f"cat $0/a $0/c $0/sub/b; ls {data}/some; touch $0/sub/b", "${{ dataset.d }}"),
            datasets=(dataset,),
        )
        place(found.files, run.run.datasets / "d", copy=False)
        run.start()
        assert end(run).exit_code == 1
        first, second = run.log().splitlines()
        assert first == "all/asome/call/sub/bc"
        assert "Read-only file system" in second

    def test_shared_memory_of_the_size_asked_for(self, bench: MakeBench) -> None:
        run = bench(task("df --output=size -B1 /dev/shm | tail -1"), container=given(shm_size="96m"))
        assert says(run) == [str(96 * 2**20)]

    def test_what_docker_arguments_say(self, bench: MakeBench, tmp_path: Path) -> None:
        (tmp_path / "mine").mkdir()
        arguments = ("-v", f"{tmp_path}/mine:/mine:ro", "--env", "X=a b", "--cap-drop=ALL", "--ulimit", "nofile=321")
        run = bench(
            task("ls -d /mine; echo $X; grep CapEff /proc/self/status | cut -f 2; ulimit -n"),
            container=given(*arguments),
        )
        assert says(run) == ["/mine", "a b", "0000000000000000", "321"]


class TestGpus:
    def test_a_container_gets_its_own_numbered_from_zero(self, bench: MakeBench) -> None:
        line = "echo $NVIDIA_VISIBLE_DEVICES: $CUDA_VISIBLE_DEVICES"
        run = bench(task(line, name="a", gpus=1), task(line, name="b", gpus=1), task(line, name="none"), gpus=2)
        run.start()
        assert [end(run, name).exit_code for name in ("a", "b", "none")] == [0, 0, 0]
        assert [run.log(name) for name in ("a", "b", "none")] == ["GPU-3: 0\n", "GPU-5: 0\n", "void:\n"]

    def test_a_launcher_gets_those_of_its_ranks(self, bench: MakeBench) -> None:
        rank = '"${{ entrypoint.python }}" "${{ entrypoint.file }}" "${{ run.dir }}/tasks" rank'
        ranks = [task("echo $CUDA_VISIBLE_DEVICES", name="rank-0", gpus=2, launched=True)]
        launcher = task(f"echo $NVIDIA_VISIBLE_DEVICES; PMI_RANK=0 {rank}", name="launcher")
        run = bench(*ranks, launcher=launcher, gpus=2)
        assert says(run, "launcher") == ["GPU-3,GPU-5"]
        assert run.log("rank-0") == "0,1\n"


class TestHowItEnds:
    def test_ranks_have_their_grace_before_their_launcher_is_told(self, bench: MakeBench) -> None:
        rank = 'OMPI_COMM_WORLD_RANK={0} "${{{{ entrypoint.python }}}}" "${{{{ entrypoint.file }}}}" "${{{{ run.dir }}}}/tasks" rank &'
        saves = f"trap 'sleep 0.3; echo saved; exit 3' TERM; echo >ready; {FOREVER}"
        ranks = [task(saves, name=f"rank-{number}", launched=True) for number in range(2)]
        lines = " ".join(rank.format(number) for number in range(2))
        run = bench(*ranks, launcher=task(f"trap 'kill -KILL $(jobs -p); exit' TERM; {lines} wait", name="launcher"))
        run.start()
        for name in ("rank-0", "rank-1"):
            eventually((run.run.work(name) / "ready").exists, f"that {name} can be told to end")
            runs(run, name)
        run.stop()
        assert [run.log(f"rank-{number}").splitlines()[-1] for number in range(2)] == ["saved"] * 2
        assert {status.state for status in run.poll().values()} == {"ended"}

    def test_a_rank_that_is_killed_with_its_watcher_is_lost_at_once(self, bench: MakeBench) -> None:
        rank = 'PMI_RANK=0 "${{ entrypoint.python }}" "${{ entrypoint.file }}" "${{ run.dir }}/tasks" rank &'
        ranks = [task("echo $PPID >watcher; " + FOREVER, name="rank-0", launched=True)]
        run = bench(*ranks, launcher=task(f"{rank} {FOREVER}", name="launcher"))
        run.start()
        watcher = wrote(run, "watcher", "rank-0")
        runs(run, "rank-0")
        api = DockerApi(os.environ["DOCKER_HOST"])
        assert api.state(run.handle.containers["launcher"].id)["Running"]
        os.kill(run.handle.entrypoints["rank-0"].pid, signal.SIGKILL)
        status = end(run, "rank-0")
        assert status.failed
        assert "killed together with the process that watched it" in status.note
        assert run.poll()["launcher"].state == "running"
        assert int(watcher) > 1

    def test_orphans_are_reaped(self, bench: MakeBench) -> None:
        orphan = "(sh -c 'echo $$ >child; exec sleep 0.01' & exec true) & wait"
        reaped = "until [ -s child ] && [ ! -e /proc/$(cat child) ]; do sleep 0.02; done"
        assert says(bench(task(f"cat /proc/1/comm; {orphan}; {reaped}"))) == ["docker-init"]

    def test_out_of_memory_is_named(self, bench: MakeBench) -> None:
        run = bench(
            task("python3", "-c", "bytearray(500_000_000)"), container=given("--memory=64m", "--memory-swap=64m")
        )
        run.start()
        status = end(run)
        assert (status.signal, status.failed) == (signal.SIGKILL, True)
        assert status.note == "the kernel killed it: out of memory"

    def test_a_container_that_somebody_kills(self, bench: MakeBench) -> None:
        run = bench(task(FOREVER))
        run.start()
        runs(run, "main")
        os.kill(run.handle.containers["main"].first.pid, signal.SIGKILL)
        status = end(run)
        assert (status.signal, status.failed) == (signal.SIGKILL, True)
        assert "it ended without saying how" in status.note
        run.stop()
        assert run.poll()["main"] == status

    def test_a_container_that_somebody_removes(self, bench: MakeBench) -> None:
        run = bench(task(FOREVER))
        run.start()
        runs(run, "main")
        DockerApi(os.environ["DOCKER_HOST"]).remove(run.handle.containers["main"].id)
        assert end(run).note.endswith("its container is gone")

    @pytest.mark.parametrize(
        ("python", "code", "says"),
        [("/bin/ls", 2, "/bin/ls: "), ("/opt/none", 127, "exec /opt/none failed: No such file")],
    )
    def test_an_entrypoint_that_fails_before_the_command_starts(
        self, bench: MakeBench, python: str, code: int, says: str
    ) -> None:
        run = bench(task("true"), prepared=Prepared(None, PREPARED["docker"].values, image=IMAGE, python=python))
        run.start()
        status = end(run)
        assert (status.exit_code, status.failed) == (code, True)
        assert status.note.startswith("it could not be started: ")
        assert says in status.note
