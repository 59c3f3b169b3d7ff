"""What the Docker engine does when containers can't be, and when the engine or the supervisor dies."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import docker_parts
import pytest
from engines import engine_bench
from engines.docker_bench import FOREVER, PYTHON, end, given
from engines.engine_bench import ENGINES, IMAGE, PREPARED, Bench, plan, task
from support import eventually, processes_of

from tfjob.dockerapi.api import DockerApi
from tfjob.engines import docker_handle
from tfjob.engines.base import Prepared
from tfjob.errors import PreparationError, TargetError
from tfjob.rundir import RunDirectory

MakeBench = Callable[..., Bench]
pytestmark = pytest.mark.usefixtures("nothing_is_left")


@pytest.fixture
def engine_name() -> str:
    return "docker"


class TestWhatCannotBe:
    def fails(self, run: Bench, kind: type[Exception], match: str) -> str:
        with pytest.raises(kind, match=match) as caught:
            run.start()
        assert not (run.run.task("main") / "started.json").exists()
        return str(getattr(caught.value, "hint", ""))

    def test_an_image_that_is_not_there(self, bench: MakeBench) -> None:
        prepared = Prepared(None, PREPARED["docker"].values, image="sha256:" + "0" * 64, python=PYTHON)
        self.fails(bench(task("true"), prepared=prepared), PreparationError, "the image sha256:0+ is not in the Docker")

    def test_a_device_that_is_not_there(self, bench: MakeBench) -> None:
        run = bench(task("true"), container=given("--device=/dev/not-there"))
        assert "--device=/dev/not-there" in self.fails(run, TargetError, "could not start a container: .*no such file")

    def test_a_mount_that_is_not_there(self, bench: MakeBench) -> None:
        run = bench(task("true"), container=given("-v", "/not/there:/x"))
        self.fails(run, TargetError, "does not see this machine's files: .*/not/there")

    def test_all_or_none(self, bench: MakeBench) -> None:
        run = bench(task(FOREVER, name="main"), task(FOREVER, name="b"))
        blocker = DockerApi(os.environ["DOCKER_HOST"]).create(
            f"tfjob-{run.run.id}-b", {"Image": IMAGE, "Cmd": ["true"]}
        )
        try:
            with pytest.raises(TargetError, match="already in use"):
                run.start()
        finally:
            DockerApi(os.environ["DOCKER_HOST"]).remove(blocker)
        assert processes_of(run.run.id) == []

    def test_an_engine_on_another_machine(self, bench: MakeBench) -> None:
        for address in ("tcp://10.0.0.1:2375", "ssh://me@far"):
            run = bench(task("true"), environ={**os.environ, "DOCKER_HOST": address})
            with pytest.raises(TargetError, match="reached by network"):
                run.acquire()

    def test_no_engine(self, bench: MakeBench, tmp_path: Path) -> None:
        run = bench(task("true"), environ={**os.environ, "DOCKER_HOST": f"unix://{tmp_path}/no.sock"})
        with pytest.raises(TargetError, match=f"no Docker Engine answers at unix://{tmp_path}/no.sock"):
            run.acquire()


class TestWithoutWhoStartedIt:
    def test_gpus_are_free_soon_after_the_containers_end(self, bench: MakeBench, leases: Path) -> None:
        run, other = bench(task("until [ -e go ]; do sleep 0.02; done", gpus=2), gpus=2), bench(task("true"), gpus=1)
        supervisor = start_elsewhere(run, leases)
        supervisor.kill()
        supervisor.communicate()
        with pytest.raises(TargetError, match=f"run {run.run.id} holds 2"):
            other.acquire(0)
        (run.run.work("main") / "go").touch()
        assert other.acquire(60).gpus == {"main": ()}
        run.handle = run.engine.adopt(run.plan, run.run)
        assert end(run).exit_code == 0

    def test_a_container_that_was_not_noted_is_found_by_its_labels(self, bench: MakeBench, leases: Path) -> None:
        run = bench(task("until [ -e go ]; do sleep 0.02; done; exit 5"))
        supervisor = start_elsewhere(run, leases)
        supervisor.kill()
        supervisor.communicate()
        (run.run.task("main") / "container.json").unlink()
        run.handle = run.engine.adopt(run.plan, run.run)
        eventually(lambda: run.poll()["main"].state == "running", "it is found")
        assert (run.run.task("main") / "container.json").exists()
        (run.run.work("main") / "go").touch()
        assert end(run).exit_code == 5

    def test_a_container_that_is_gone_when_it_is_adopted(
        self, bench: MakeBench, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(docker_handle, "_START_S", 3600.0)  # until it has been looked at
        run = bench(task(FOREVER), task("true", name="never"))
        (run.run.task("main")).mkdir(parents=True)
        (run.run.task("main") / "started.json").write_text('{"pid": 7, "start_ticks": 1, "time": 1.0}')
        run.handle = run.engine.adopt(run.plan, run.run)
        assert [status.state for status in run.poll().values()] == ["running", "pending"]
        monkeypatch.setattr(docker_handle, "_START_S", 0.0)
        assert "it ended without saying how" in end(run).note
        assert end(run, "never").note == "it was never started: the supervisor died before"

    def test_a_holder_whose_starter_died_finds_the_run_s_processes(self, tmp_path: Path) -> None:
        environ = {**os.environ, "TFJOB_RUN_ID": tmp_path.name}
        run = subprocess.Popen(["sleep", "300"], env=environ)
        program = "import sys; from tfjob.engines import holder; holder.SEARCH_S = 5.0; holder.main(sys.argv[1])"
        holder = subprocess.Popen([sys.executable, "-c", program, tmp_path.name], stdin=subprocess.DEVNULL)
        try:
            with pytest.raises(subprocess.TimeoutExpired):
                holder.wait(7)
            run.kill()
            run.wait()
            assert holder.wait(60) == 0
        finally:
            for process in (run, holder):
                process.kill()
                process.wait()

    @pytest.mark.root
    @pytest.mark.parametrize("hangs", [False, True], ids=["dies", "hangs"])
    def test_an_engine_that_dies_takes_no_task_with_it(
        self, hangs: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        try:
            with docker_parts.own_engine(tmp_path / "data") as daemon:
                docker_parts.base_image(daemon)
                monkeypatch.setenv("DOCKER_HOST", daemon.host)
                engine = ENGINES["docker"](tmp_path, os.environ)
                made = plan(
                    task("until [ -e go ]; do sleep 0.02; done"),
                    task("trap 'exit 3' TERM; echo >ready; " + FOREVER, name="b"),
                )
                run = Bench.make(engine, RunDirectory(tmp_path / "bench-engine-dies"), made, PREPARED["docker"])
                run.start()
                for name in ("main", "b"):
                    eventually((run.run.task(name) / "started.json").exists, "the start")
                eventually((run.run.work("b") / "ready").exists, "that it can be told to end")
                if hangs:
                    os.kill(daemon.pid, signal.SIGSTOP)
                else:
                    daemon.kill_only_engine()
                assert {status.state for status in run.poll().values()} == {"running"}
                (run.run.work("main") / "go").touch()
                assert end(run).exit_code == 0
                run.stop()
                status = run.poll()["b"]
                assert (status.exit_code, status.stopped) == (3, True)
                assert processes_of(run.run.id) == []
                if hangs:
                    os.kill(daemon.pid, signal.SIGCONT)
                    run.stop()
                    assert DockerApi(daemon.host).get("/containers/json?all=1") == []
                else:
                    daemon.kill()
        except docker_parts.CannotRunError as reason:
            pytest.skip(str(reason))
        finally:
            subprocess.run(
                ["umount", "--lazy", tmp_path / "data"], check=False, capture_output=True
            )  # left by the kill


def start_elsewhere(run: Bench, leases: Path) -> subprocess.Popen[str]:
    """Another process that starts the run, as a supervisor does."""
    command = [sys.executable, engine_bench.__file__, "docker", str(run.run.path), str(leases)]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    assert process.stdout.readline() == "started\n"
    return process
