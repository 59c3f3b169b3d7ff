"""Runs on a real Slurm from a machine that is none of its login nodes: it has no Slurm, and reaches the head node by ssh."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import signal
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
import yaml
from cluster.layout import SLURM_LAYOUT
from cluster_parts import described
from docker_parts import CannotRunError
from support import Tfjob, eventually

from tfjob.durable import replace_text

if TYPE_CHECKING:
    from cluster.slurm import Slurm

pytestmark = [pytest.mark.root, pytest.mark.xdist_group("cluster")]

FOREVER = "echo up; trap 'echo saved >outputs/last; exit 9' TERM; while :; do sleep 0.05; done"


class Site:
    """tfjob on a machine elsewhere, and the directory that the cluster's nodes share."""

    def __init__(self, tfjob: Tfjob, slurm: Slurm, directory: Path) -> None:
        self.tfjob = tfjob
        self.slurm = slurm
        self.directory = directory
        self._verb = "create"

    def target(self, **keys: Any) -> None:
        """Define the target anew."""
        target = {"kind": "slurm", "login": self.slurm.login_url, "directory": str(self.directory), "partition": "gpu"}
        self.tfjob.write("far.yml", yaml.safe_dump({"name": "far", **target, **keys}))
        self.tfjob("compute", self._verb, "-f", "far.yml")
        self._verb = "update"

    def submit(self, command: str, *, nodes: int = 1, **keys: Any) -> str:
        job = {"name": "job", "command": command, "compute": {"target": "far", "node_count": nodes}, **keys}
        self.tfjob.write("job.yml", yaml.safe_dump(job))
        return self.tfjob.submit("job.yml")

    def ended(self, run: str, exit_code: int = 0) -> dict[str, Any]:
        self.tfjob("wait", run, exit_code=exit_code, timeout_s=120)
        return self.tfjob.record(run)

    def here(self, run: str, path: str) -> str:
        file = self.tfjob.run_directory(run) / path
        return file.read_text() if file.exists() else ""

    def there(self, run: str) -> Path:
        return Path(self.here(run, "slurm/place"))

    def supervisor(self, run: str) -> int:
        pid: int = self.tfjob.record(run)["supervisor"]["pid"]
        return pid

    def received(self) -> int:
        """Bytes that have come to the login node."""
        lines = self.slurm.head.exec(["cat", "/proc/net/dev"]).splitlines()
        return int(next(line for line in lines if "eth0:" in line).split(":")[1].split()[0])

    @contextlib.contextmanager
    def away(self, run: str) -> Iterator[None]:
        """The login node can't be reached by the supervisor of a run, nor by who looks at it."""
        config = Path(self.tfjob.environ["TFJOB_SSH_CONFIG"])
        text = config.read_text()
        replace_text(config, "Host *\n  Port 9\n" + text)  # whoever logs in just now reads it whole
        for pid in logins(self.supervisor(run)):
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        yield
        replace_text(config, text)

    def left_behind(self) -> str:
        """A run that was canceled while the login node was away: its record says so, and its job goes on."""
        run = self.submit(FOREVER)
        eventually(lambda: self.here(run, "logs/main.log"), "the first word")
        os.kill(self.supervisor(run), signal.SIGKILL)
        file = self.tfjob.run_directory(run) / "record.json"
        notes = [f"what it wrote is in {self.there(run)} on {self.slurm.login_url}", "scancel 1"]
        record = {**json.loads(file.read_text()), "state": "Canceled", "outcome": "Canceled", "notes": notes}
        file.write_text(json.dumps({**record, "ended": record["created"]}))
        return run

    def left(self) -> list[Path]:
        return list((self.directory / "runs").glob("*/*"))


@pytest.fixture
def site(tfjob: Tfjob, slurm: Slurm, tmp_path: Path) -> Site:
    """A cluster that is the target `far`."""
    config = tmp_path / "ssh_config"
    shutil.copy(slurm.layout.etc / "ssh_config", config)
    tfjob.environ["TFJOB_SSH_CONFIG"] = str(config)
    shared = slurm.layout.shared / "elsewhere" / tmp_path.name
    shutil.rmtree(shared, ignore_errors=True)  # of an earlier session: the cluster's files stay
    made = Site(tfjob, slurm, shared)
    made.target()
    return made


def test_a_run_is_sent_and_all_it_wrote_comes_home(site: Site) -> None:
    site.tfjob.write("code/train.py", "import sys, os; print('hello', os.getcwd(), open(sys.argv[1]).read())")
    site.tfjob.write("data/a.txt", "rows")
    site.tfjob.environ["TOKEN"] = "hunter2 'hunter2"  # noqa: S105  # no secret
    run = site.submit(
        "python3 -S train.py ${{ dataset.rows }}/a.txt; echo $TOKEN | wc -c; mkdir -p outputs/deep outputs/empty; "
        "echo model >outputs/deep/model; ln -s deep outputs/link; echo lost >elsewhere.txt; echo mine >logs/own.log",
        code="code",
        dataset={"rows": {"paths": ["data"]}},
        secrets=["TOKEN"],
    )
    record = site.ended(run)
    assert (record["state"], record["notes"]) == ("Completed", [])
    there = site.there(run)
    assert site.here(run, "logs/main.log") == f"hello {there}/work/main rows\n17\n"
    assert [output["path"] for output in record["outputs"]] == ["deep/model", "link"]
    outputs = site.tfjob.run_directory(run) / "outputs"
    assert ((outputs / "link").readlink(), (outputs / "empty").is_dir()) == (Path("deep"), True)
    assert record["left_in_work"] == ["work/main/elsewhere.txt"]
    assert site.here(run, "logs/user/own.log") == "mine\n"
    assert site.left() == []
    assert "hunter2" not in "".join(
        path.read_text(errors="replace") for path in site.tfjob.run_directory(run).rglob("*") if path.is_file()
    )


def test_a_second_run_of_the_same_code_and_data_sends_next_to_nothing(site: Site) -> None:
    site.tfjob.write("code/train.py", "import sys; print(open(sys.argv[1]).read(3)); open('train.py', 'a').write('#')")
    (site.tfjob.directory / "code" / "table").write_bytes(os.urandom(2_000_000))
    site.tfjob.write("data/a.txt", "rows")
    (site.tfjob.directory / "data" / "more").write_bytes(os.urandom(2_000_000))
    command = (
        "python3 -S train.py ${{ dataset.rows }}/a.txt; echo mine >${{ dataset.own }}/a.txt; "
        '[ "$HARM" != yes ] || echo ruin >${{ dataset.rows }}/a.txt'
    )
    datasets = {"rows": {"paths": ["data"]}, "own": {"paths": ["data"], "mode": "download"}}
    sent = []
    for harm in ("no", "yes"):
        before = site.received()
        run = site.submit(command, code="code", dataset=datasets, environment_variables={"HARM": harm})
        record = site.ended(run)
        assert (record["state"], ["written to" in note for note in record["notes"]]) == (
            "Completed",
            [True] * (harm == "yes"),
        )
        assert site.here(run, "logs/main.log") == "row\n"
        sent.append(site.received() - before)
    assert sent[0] > 4_000_000
    assert sent[1] < 300_000  # logins, commands of Slurm, and the run's own files
    kept = site.directory / "kept" / "trees"
    assert list(kept.glob("*/a.txt")) == []  # the second has written to what it may only read: the next has it anew
    assert {path.read_text()[-2:] for path in kept.glob("*/train.py")} == {"')"}


def test_workers_and_a_failure_with_its_last_words(site: Site) -> None:
    run = site.submit(
        """python3 -S -c 'import json, os; c = json.loads(os.environ["TF_CONFIG"]); print(len(c["cluster"]["worker"]))'
        [ "$TFJOB_TASK_INDEX" = 0 ] && sleep 60
        until [ -s ../../logs/worker-0.log ]; do sleep 0.1; done; echo no luck >&2; exit 7""",
        nodes=2,
        distribution={"type": "tensorflow"},
    )
    record = site.ended(run, exit_code=1)
    failure = record["failure"]
    assert (failure["task"], failure["exit_code"], failure["log_tail"][-1]) == ("worker-1", 7, "no luck")
    assert [site.here(run, f"logs/worker-{index}.log").split()[0] for index in range(2)] == ["2", "2"]
    assert site.left() == []


def test_attempts_keep_their_logs(site: Site) -> None:
    run = site.submit(
        "echo try $TFJOB_RESTART_COUNT; [ $TFJOB_RESTART_COUNT = 1 ]", retries={"max": 1, "on": ["failure"]}
    )
    assert site.ended(run)["state"] == "Completed"
    assert [site.here(run, f"logs/{name}main.log") for name in ("attempt-1/", "")] == [
        "try 0\n",
        "tfjob: this is attempt 2\ntry 1\n",
    ]


def test_cancel_a_job_that_runs_and_one_that_waits(site: Site, slurm: Slurm) -> None:
    run = site.submit(FOREVER)
    eventually(lambda: site.here(run, "logs/main.log"), "the first word")
    site.tfjob("cancel", run)
    assert site.ended(run, exit_code=1)["state"] == "Canceled"
    assert site.here(run, "outputs/last") == "saved\n"
    slurm.run("sbatch", "--exclusive", "--nodes=3", "--output=/dev/null", "--wrap=sleep 300")
    waits = site.submit("true")
    eventually(lambda: site.tfjob.record(waits)["state"] == "Scaling" and site.here(waits, "slurm/job.json"), "the job")
    site.tfjob("cancel", waits)
    assert site.ended(waits, exit_code=1)["state"] == "Canceled"
    assert site.left() == []


def test_a_cut_connection_and_a_killed_supervisor_harm_nothing(site: Site) -> None:
    run = site.submit("for i in $(seq 3000); do [ -e outputs/go ] && exit; echo $i; sleep 0.1; done; exit 3")
    log = site.tfjob.run_directory(run) / "logs" / "main.log"
    eventually(lambda: log.exists() and log.stat().st_size > 0, "the first word")
    eventually(lambda: site.tfjob.record(run)["state"] == "Running", "Running")
    for pid in logins(site.supervisor(run)):
        with contextlib.suppress(ProcessLookupError):  # it was there to ask the queue, or ended with the first
            os.kill(pid, signal.SIGKILL)
    size = log.stat().st_size
    eventually(lambda: log.stat().st_size > size + 10, "more after the cut")
    os.kill(site.supervisor(run), signal.SIGKILL)
    (site.there(run) / "outputs" / "go").touch()
    state = site.there(run) / "slurm" / "state.json"
    eventually(lambda: json.loads(state.read_text())["phase"] == "over", "the end of the job")
    assert site.tfjob.record(run)["state"] == "Running"  # nobody has looked
    record = site.ended(run)
    assert record["state"] == "Completed"
    lines = log.read_text().split()
    assert lines == [str(number) for number in range(1, len(lines) + 1)]
    assert site.left() == []


def test_a_login_node_that_is_away_is_told_and_waited_for(site: Site) -> None:
    run = site.submit("echo begun; until [ -e outputs/go ]; do sleep 0.1; done; echo ended")
    eventually(lambda: site.here(run, "logs/main.log"), "the first word")
    eventually(lambda: site.tfjob.record(run)["state"] == "Running", "Running")
    with site.away(run):
        words = "now         the login node can't be reached since "
        eventually(lambda: words in site.tfjob("show", run).stdout, "words for it")
        assert site.tfjob.record(run)["state"] == "Running"
        (site.there(run) / "outputs" / "go").touch()
        state = site.there(run) / "slurm" / "state.json"
        eventually(lambda: json.loads(state.read_text())["phase"] == "over", "the end of the job")
        assert site.here(run, "logs/main.log") == "begun\n"
    record = site.ended(run)
    assert (record["state"], record["notes"], site.here(run, "logs/main.log")) == ("Completed", [], "begun\nended\n")
    assert site.left() == []


def test_what_a_run_left_while_the_login_node_was_away_is_fetched_and_removed_later(site: Site, slurm: Slurm) -> None:
    others = site.directory / "runs" / "another-workspace" / "2026"
    (others / "slurm").mkdir(parents=True)
    first = site.left_behind()
    done = site.tfjob("compute", "clean", "far").stdout
    assert done == f"{slurm.login_url}  removed the directory of run {first}\n"
    second = site.left_behind()
    other = site.submit("until [ -e outputs/go ]; do sleep 0.1; done")
    eventually(lambda: len(site.tfjob.record(second)["notes"]) == 1, "the next run finishes it")
    (site.there(other) / "outputs" / "go").touch()
    site.ended(other)
    for run in (first, second):
        record = site.tfjob.record(run)
        assert record["notes"][0].startswith("what it left on the cluster was brought home and removed at ")
        assert (record["state"], [one["path"] for one in record["outputs"]]) == ("Canceled", ["last"])
    assert site.left() == [others]
    for name in ("removed", "job.json"):
        (site.tfjob.run_directory(first) / "slurm" / name).unlink()
    job = slurm.run("sbatch", "--parsable", f"--job-name={first}", "--output=/dev/null", "--wrap=sleep 300").strip()
    words = f"run {first} is not finished: a job bears its name, and may be another's: {job}"
    assert words in site.tfjob("compute", "clean", "far", exit_code=5).stdout
    slurm.run("scancel", job)
    eventually(lambda: "removed the" in site.tfjob("compute", "clean", "far", exit_code=None).stdout, "it is finished")
    assert site.tfjob("compute", "clean", "far").stdout == f"{slurm.login_url}  nothing was left\n"
    assert "removed the kept trees/" in site.tfjob("compute", "clean", "far", "--kept").stdout


def test_nodes_fetch_an_image_themselves(site: Site) -> None:
    try:
        image = described(SLURM_LAYOUT).load_base_image()
    except CannotRunError as reason:
        pytest.skip(str(reason))
    site.target(runtime="docker")
    site.tfjob.environ["DOCKER_HOST"] = "unix:///nowhere.sock"
    command = "test ! -e /run/lab; cat $1 >outputs/copy; echo ${{ run.dir }}"
    run = site.submit(
        command.replace("$1", "${{ dataset.rows }}"),
        environment={"image": image},
        dataset={"rows": {"paths": ["far.yml"], "type": "file"}},
    )
    record = site.ended(run)
    assert (record["state"], site.here(run, "logs/main.log")) == ("Completed", f"{site.there(run)}\n")
    assert yaml.safe_load(site.here(run, "outputs/copy"))["runtime"] == "docker"
    assert site.left() == []


def test_a_target_without_a_directory_is_refused(site: Site) -> None:
    site.tfjob.write("near.yml", "name: near\nkind: slurm\nlogin: ssh://root@head\n")
    site.tfjob("compute", "create", "-f", "near.yml", exit_code=None)
    site.tfjob.write("job.yml", yaml.safe_dump({"name": "job", "command": "true", "compute": {"target": "near"}}))
    assert "it has no directory" in site.tfjob("submit", "job.yml", exit_code=2).stderr


def test_a_login_that_is_refused_is_told(site: Site) -> None:
    site.tfjob.environ["TFJOB_SSH_CONFIG"] = "/dev/null"
    failure = site.ended(site.submit("true"), exit_code=5)["failure"]
    assert "head" in failure["message"]


def logins(supervisor: int) -> list[int]:
    """The ssh processes of a supervisor."""
    found = subprocess.run(["ps", "-o", "pid=,comm=", "--ppid", str(supervisor)], capture_output=True, check=True)
    return [int(line.split()[0]) for line in found.stdout.decode().splitlines() if line.split()[1] == "ssh"]
