"""Jobs on several nodes, by the command line, on real Docker Engines behind ssh."""

from __future__ import annotations

import json
import os
import re
import signal
import time
from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING

import pytest
from cluster.node import Node
from engines_cluster.conftest import containers, go, left, names, node_of, others, volumes
from support import Tfjob, eventually, kill, processes_of

if TYPE_CHECKING:
    from cluster_parts import Cluster

pytestmark = [pytest.mark.root, pytest.mark.xdist_group("cluster"), pytest.mark.timeout(300)]
Nodes = tuple[Node, ...]

JOB = """\
    name: job
    compute: {{target: docker-lab, node_count: {nodes}{more}}}
    command: |
    {command}
    """


def job(lab: Tfjob, command: str, *, nodes: int = 3, more: str = "", extra: str = "") -> str:
    lines = "\n".join(f"      {line}" for line in command.strip().splitlines())
    text = f"name: job\ncompute: {{target: docker-lab, node_count: {nodes}{more}}}\ncommand: |\n{lines}\n{extra}"
    (lab.directory / "job.yml").write_text(text, encoding="utf-8")
    return "job.yml"


def is_running(lab: Tfjob, run: str) -> bool:
    tasks = lab.record(run)["tasks"]
    return tasks != [] and all(task["state"] == "running" for task in tasks)


def test_a_gang_runs_on_all_nodes_and_everything_comes_home(lab: Tfjob, nodes: Nodes) -> None:
    lab.write("code/data.txt", "of the code")
    lab.write("code/sub/run.sh", "echo from a script\n")
    lab.write("numbers/a.txt", "1")
    lab.write("numbers/b/c.txt", "2")
    name = job(
        lab,
        """
cat data.txt; echo; bash sub/run.sh; hostname; pwd
cat $TFJOB_DATASET_NUMBERS/a.txt ${{ dataset.numbers }}/b/c.txt; echo
touch $TFJOB_DATASET_NUMBERS/a.txt 2>/dev/null || echo read-only
echo mine >$TFJOB_DATASET_OWN/a.txt && cat $TFJOB_DATASET_OWN/a.txt
echo $TFJOB_TASK_NAME >outputs/$TFJOB_TASK_NAME.txt
mkdir -p outputs/model/assets outputs/deep; ln -s ../$TFJOB_TASK_NAME.txt outputs/deep/$TFJOB_TASK_NAME
echo $TFJOB_TASK_NAME >outputs/same-name; echo alike >outputs/alike
echo event >logs/$TFJOB_TASK_NAME.events; echo lost >elsewhere-$TFJOB_TASK_NAME
""",
        extra="code: code\ndataset:\n  numbers: {paths: [numbers]}\n  own: {paths: [numbers], mode: download}\n",
    )
    done = lab("submit", name)
    run = lab.show()["id"]
    directory = lab.run_directory(run)
    for index, node in enumerate(nodes):
        expected = f"of the code\nfrom a script\n{node.name}\n/tfjob/{run}/work/main-{index}\n12\nread-only\nmine\n"
        assert (directory / "logs" / f"main-{index}.log").read_text() == expected
        assert re.search(rf"^main-{index} +\| {node.name}$", done.stdout, re.MULTILINE)
    outputs = {path.relative_to(directory / "outputs").as_posix() for path in (directory / "outputs").rglob("*")}
    assert outputs == {
        *(f"main-{index}.txt" for index in range(3)),
        *("model", "model/assets", "deep", *(f"deep/main-{index}" for index in range(3))),
        *("alike", "same-name", "same-name.main-1", "same-name.main-2"),
    }
    assert (directory / "outputs/same-name").read_text() == "main-0\n"
    assert (directory / "outputs/same-name.main-2").read_text() == "main-2\n"
    assert (directory / "outputs/deep/main-1").is_symlink()
    assert {path.name for path in (directory / "logs/user").iterdir()} == {f"main-{index}.events" for index in range(3)}
    record = lab.show()
    assert record["left_in_work"] == [f"work/main-{index}/elsewhere-main-{index}" for index in range(3)]
    assert any("same-name (main-1, main-2)" in note for note in record["notes"])
    assert left(nodes) == []
    # What is sent is there for the next run, whoever submits it.
    again = lab("submit", "--detach", name)
    assert eventually(lambda: lab.record(again.stdout.strip())["state"] == "Completed", "the second run")
    assert "sending" not in lab.run_directory(again.stdout.strip()).joinpath("events.jsonl").read_text()


def test_a_node_keeps_no_more_code_than_its_limit(lab: Tfjob, nodes: Nodes) -> None:
    lab.write("limited.yml", (lab.directory / "lab.yml").read_text() + "kept_limit_gib: 0\n")
    lab("compute", "update", "docker-lab", "-f", "limited.yml")
    for content in ("one", "two"):
        lab.write("code/data.txt", content)
        lab("submit", job(lab, "cat data.txt", nodes=3, extra="code: code\n"))
    events_of_last = events(lab, lab.show()["id"])
    for node in nodes:
        assert f"{node.name} has removed code and data that no run has used for longest" in events_of_last
        with node.client() as client:
            assert len(client.volumes.list(filters={"label": "tfjob.tree"})) == 2  # one tree, and its name
    assert "code or data of 0.0 MB that was kept" in lab("compute", "clean", "docker-lab", "--kept").stdout
    for node in nodes:
        with node.client() as client:
            assert client.volumes.list() == []


def test_gpus_are_leased_in_the_engines_first_come_first_served(lab: Tfjob, nodes: Nodes) -> None:
    wait = "echo $CUDA_VISIBLE_DEVICES; until [ -e go ]; do sleep 0.1; done"
    first = lab.submit(job(lab, wait, nodes=2, more=", gpus_per_node: 3"))
    eventually(lambda: is_running(lab, first), "the first run")
    second = lab.submit(job(lab, "echo $CUDA_VISIBLE_DEVICES; sleep 1", nodes=3, more=", gpus_per_node: 2"))
    told = eventually(
        lambda: re.search(
            rf"waiting for 3 nodes with 2 GPUs on docker-lab: \d+ GPUs free; run {first}", events(lab, second)
        ),
        "why it waits",
    )
    assert told
    third = lab.submit(job(lab, "true", nodes=1, more=", gpus_per_node: 4"))
    eventually(
        lambda: f"run {second}" in events(lab, third) and "came first" in events(lab, third), "that another came first"
    )
    assert lab.record(third)["state"] == "Scaling"  # though a node with four free GPUs is there
    small = lab("submit", job(lab, "true", nodes=1))  # who wants no GPU waits for nobody
    assert "Completed" in small.stderr
    too_much = lab(
        "submit",
        job(lab, "true", nodes=1, more=", gpus_per_node: 1", extra="limits: {allocation_timeout_s: 2}\n"),
        exit_code=5,
    )
    assert "no room on docker-lab within 2 s: 1 node with 1 GPU asked for" in too_much.stderr
    lab("cancel", first)
    for run in (second, third):
        eventually(partial(state_is, lab, run, "Completed"), f"run {run}")
    assert (lab.run_directory(second) / "logs/main-2.log").read_text() == "0,1\n"
    assert left(nodes) == []


def state_is(lab: Tfjob, run: str, state: str) -> bool:
    return bool(lab.record(run)["state"] == state)


def events(lab: Tfjob, run: str) -> str:
    file = lab.run_directory(run) / "events.jsonl"
    return file.read_text() if file.exists() else ""


def test_several_small_jobs_share_the_gpus_of_a_node(lab: Tfjob, nodes: Nodes) -> None:
    runs = [lab.submit(job(lab, "sleep 600", nodes=1, more=", gpus_per_node: 2")) for _ in range(6)]
    eventually(lambda: all(is_running(lab, run) for run in runs), "all six at once")
    labels = []
    for node in nodes:
        with node.client() as client:
            labels += [(node.name, one.labels["tfjob.gpus"]) for one in client.containers.list()]
    assert sorted(labels) == [(node.name, gpus) for node in nodes for gpus in ("0,1", "2,3")]
    for run in runs:
        lab("cancel", run)
        eventually(partial(state_is, lab, run, "Canceled"), "the end")


def test_what_never_fits_is_refused_at_once(lab: Tfjob) -> None:
    done = lab("submit", job(lab, "true", nodes=4), exit_code=5)
    assert "docker-lab" in done.stderr
    done = lab("submit", job(lab, "true", nodes=1, more=", gpus_per_node: 5"), exit_code=5)
    assert "5 GPUs" in done.stderr


class TestFailure:
    def test_the_first_to_fail_is_named_and_the_others_are_told(self, lab: Tfjob, nodes: Nodes) -> None:
        command = """
trap 'echo saved >outputs/$TFJOB_TASK_NAME; exit 9' TERM
echo ready
[ $TFJOB_TASK_NAME = main-1 ] && { until [ -e /go ]; do sleep 0.1; done; echo oh no; exit 7; }
for i in $(seq 600); do sleep 0.1; done
"""
        run = lab.submit(job(lab, command))
        logs = [lab.run_directory(run) / f"logs/main-{index}.log" for index in range(3)]
        eventually(lambda: all(log.exists() and "ready" in log.read_text() for log in logs), "that all are ready")
        go(nodes[1])
        done = lab("wait", run, exit_code=1)
        assert "main-1 on node2 exited with code 7" in done.stdout
        assert "oh no" in done.stdout
        record = lab.show()
        assert [task["exit_code"] for task in record["tasks"]] == [9, 7, 9]
        assert [one["path"] for one in record["outputs"]] == ["main-0", "main-2"]
        assert left(nodes) == []
        assert processes_of(record["id"]) == []

    def test_a_container_that_runs_out_of_memory_is_told_as_such(self, lab: Tfjob) -> None:
        hungry = "python3 -c 'x = bytearray(400 << 20); print(len(x))'"
        done = lab("submit", job(lab, hungry, nodes=1, more=", docker_args: [--memory=100m]"), exit_code=1)
        assert "out of memory" in done.stderr

    def test_a_node_that_loses_its_power_is_lost_and_the_run_goes_on_elsewhere(self, lab: Tfjob, nodes: Nodes) -> None:
        lab("compute", "update", "docker-lab", "-f", with_limits(lab, 6))
        command = """
echo attempt $TFJOB_RESTART_COUNT on $(hostname); [ -e outputs/step ] && cat outputs/step
[ $TFJOB_RESTART_COUNT = 1 ] && exit 0
echo step of $TFJOB_TASK_NAME >outputs/step; for i in $(seq 600); do sleep 0.1; done
"""
        run = lab.submit(job(lab, command, nodes=2, extra="retries: {max: 1}\n"))
        step = lab.run_directory(run) / "outputs/step"
        eventually(lambda: is_running(lab, run) and step.exists(), "the first merge of outputs")
        lost = node_of(lab.record(run), "main-1", nodes)
        rest = others(nodes, lost)
        lost.power_off()
        lab("wait", run, timeout_s=120)
        record = lab.record(run)
        assert [task["node"] for task in record["tasks"]] == names(rest)
        (attempt,) = record["attempts"]
        assert attempt["failure"]["node"] == lost.name
        assert attempt["failure"]["kind"] == "node_lost"
        assert "did not answer for 6 s" in attempt["failure"]["message"]
        log = (lab.run_directory(run) / "logs/main-0.log").read_text()
        assert f"attempt 1 on {rest[0].name}\nstep of main-0\n" in log
        assert any(f"{lost.name} could not be cleaned up" in note for note in record["notes"])
        assert [containers(node) for node in rest] == [[], []]
        # What is left on the lost node is removed when it is back.
        lost.boot()
        assert containers(lost) != []
        cleaned = lab("compute", "clean", "docker-lab")
        assert run in cleaned.stdout
        assert containers(lost) == []

    def test_a_cut_cable_is_noticed_and_what_comes_back_changes_nothing(self, lab: Tfjob, nodes: Nodes) -> None:
        lab("compute", "update", "docker-lab", "-f", with_limits(lab, 6))
        command = "echo one >outputs/$TFJOB_TASK_NAME; until [ -e /go ]; do sleep 0.1; done; echo two >outputs/$TFJOB_TASK_NAME"
        run = lab.submit(job(lab, command, nodes=2))
        eventually((lab.run_directory(run) / "outputs/main-1").exists, "the first merge")
        cut = node_of(lab.record(run), "main-1", nodes)
        cut.cut_cable()
        go(cut)
        eventually(lambda: lab.record(run)["state"] == "Failed", "the end")
        record = lab.record(run)
        assert (record["failure"]["task"], record["failure"]["node"]) == ("main-1", cut.name)
        assert record["failure"]["kind"] == "node_lost"
        cut.plug_cable()
        assert containers(cut) != []

        def next_run_removes() -> bool:
            """What a run finds it removes beside all else, and may itself be over before."""
            lab("submit", job(lab, "true", nodes=3))
            return left(nodes) == []

        eventually(next_run_removes, "that nothing is left")
        assert (lab.run_directory(run) / "outputs/main-1").read_text() == "one\n"

    def test_a_short_cut_is_no_failure(self, lab: Tfjob, nodes: Nodes) -> None:
        command = "for i in $(seq 80); do echo line $i; sleep 0.1; done"
        run = lab.submit(job(lab, command, nodes=2))
        eventually(lambda: is_running(lab, run), "the start")
        cut = node_of(lab.record(run), "main-1", nodes)
        cut.cut_cable()
        time.sleep(4)
        cut.plug_cable()
        eventually(lambda: lab.record(run)["state"] == "Completed", "the end")
        for index in range(2):
            log = (lab.run_directory(run) / f"logs/main-{index}.log").read_text()
            assert log == "".join(f"line {number}\n" for number in range(1, 81))


def test_what_is_copied_for_tasks_has_no_time_of_theirs_to_find_each_other(lab: Tfjob, nodes: Nodes) -> None:
    lab.write("code/data.txt", "of the code\n")
    extra = "code: code\nlimits: {rendezvous_timeout_s: 0.001}\n"
    assert lab("submit", job(lab, "cat data.txt", nodes=2, extra=extra)).stdout.count("of the code") == 2
    assert left(nodes) == []


def with_limits(lab: Tfjob, lost_s: float) -> str:
    text = (lab.directory / "lab.yml").read_text()
    (lab.directory / "impatient.yml").write_text(f"{text}node_lost_s: {lost_s}\nmerge_interval_s: 1\n")
    return "impatient.yml"


class TestSupervisor:
    def test_its_death_does_not_end_the_run(self, lab: Tfjob, nodes: Nodes) -> None:
        lines = "for i in $(seq 60); do echo line $i; sleep 0.1; done"
        command = f"{lines}; until [ -e /go ]; do sleep 0.1; done; echo end >outputs/$TFJOB_TASK_NAME"
        run = lab.submit(job(lab, command, more=", gpus_per_node: 1"))
        eventually(lambda: is_running(lab, run), "the start")
        pid = lab.record(run)["supervisor"]["pid"]
        os.kill(pid, signal.SIGKILL)
        time.sleep(1)
        go(*nodes)
        lab("wait", run)
        record = lab.record(run)
        assert record["state"] == "Completed"
        assert record["takeovers"] == 1
        for index in range(3):
            log = (lab.run_directory(run) / f"logs/main-{index}.log").read_text()
            assert log == "".join(f"line {number}\n" for number in range(1, 61))
            assert (lab.run_directory(run) / f"outputs/main-{index}").read_text() == "end\n"
        assert left(nodes) == []

    def test_its_death_while_it_starts_leaves_nothing(self, lab: Tfjob, nodes: Nodes) -> None:
        for delay_s in (0.3, 0.6, 0.9):
            run = lab.submit(job(lab, "echo ran >outputs/$TFJOB_TASK_NAME", more=", gpus_per_node: 1"))
            time.sleep(delay_s)
            if supervisor := lab.record(run)["supervisor"]:
                kill(supervisor["pid"])
            lab("wait", run)
            assert lab.record(run)["state"] == "Completed"
            assert left(nodes) == []


@pytest.mark.parametrize("phase", ["Scaling", "Running"])
def test_cancel_works_in_every_phase(lab: Tfjob, nodes: Nodes, phase: str) -> None:
    blocker = lab.submit(job(lab, "sleep 600", nodes=3, more=", gpus_per_node: 4")) if phase == "Scaling" else None
    if blocker:
        eventually(lambda: is_running(lab, blocker), "the one that has the room")
    run = lab.submit(job(lab, "sleep 600", nodes=1, more=", gpus_per_node: 1"))
    eventually(lambda: lab.record(run)["state"] == phase and (phase == "Scaling" or is_running(lab, run)), phase)
    lab("cancel", run)
    eventually(lambda: lab.record(run)["state"] == "Canceled", "the end")
    if blocker:
        lab("cancel", blocker)
        eventually(lambda: lab.record(blocker)["state"] == "Canceled", "the other's end")
    eventually(lambda: left(nodes) == [], "that nothing is left")


def test_an_unreachable_node_is_no_obstacle_to_those_who_can_do_without(lab: Tfjob, nodes: Nodes) -> None:
    nodes[2].power_off()
    done = lab("submit", job(lab, "hostname", nodes=2))
    assert "node1" in done.stdout
    text = (lab.directory / "lab.yml").read_text()
    (lab.directory / "impatient.yml").write_text(f"{text}wait_s: 2\n")
    lab("compute", "update", "docker-lab", "-f", "impatient.yml")
    done = lab("submit", job(lab, "hostname", nodes=3), exit_code=5)
    assert "node3" in done.stderr


def test_a_packages_environment_is_baked_and_sent(lab: Tfjob, nodes: Nodes) -> None:
    extra = "environment: {conda: {dependencies: [python=3.11, pip, {pip: [six==1.16.0]}]}}\n"
    done = lab(
        "submit",
        job(lab, "python3 -c 'import six, sys; print(six.__version__, sys.prefix)'", extra=extra),
        timeout_s=280,
    )
    assert done.stdout.count("1.16.0 /opt/env") == 3
    plan = json.loads((lab.run_directory(lab.show()["id"]) / "plan.json").read_text())
    assert plan["container"]["packages"] == "baked"
    assert volumes(nodes[0]) == []
    cleaned = lab("compute", "clean", "docker-lab", "--kept").stdout
    assert set(re.findall(r"(node\d)  removed the image tfjob/env:", cleaned)) == {node.name for node in nodes}
    # The same environment, made anew elsewhere, is found as the image that the engine has, and that one is sent.
    other = replace(lab, environ={**lab.environ, "TFJOB_STORE": str(lab.directory / "store")})
    assert "1.16.0 /opt/env" in other("submit", "job.yml", "--set", "compute.node_count=1", timeout_s=280).stdout


def test_of_an_image_only_what_a_node_lacks_is_sent(lab: Tfjob, node_base: str) -> None:
    own = os.urandom(8).hex()  # nodes keep what they were sent
    (lab.directory / "Dockerfile").write_text(f"FROM {node_base}\nRUN echo {own} >/own.txt\n")
    told = "environment: {dockerfile: Dockerfile}\n"
    done = lab("submit", job(lab, "cat /own.txt", extra=told), timeout_s=200)
    assert len(re.findall(rf"^main-\d +\| {own}$", done.stdout, re.MULTILINE)) == 3
    sent = re.findall(r"image for node1, node2, node3: (\d+) of (\d+) layers to send", done.stderr)
    assert sent == [("1", "2")]


def test_the_submitting_machine_needs_no_docker(lab: Tfjob, node_base: str) -> None:
    without = replace(lab, environ={**lab.environ, "DOCKER_HOST": "unix:///nonexistent.sock"})
    extra = f"environment: {{image: '{node_base}'}}\n"
    assert "Completed" in without("submit", job(lab, "hostname", extra=extra)).stderr
    packages = "environment: {conda: {dependencies: [python=3.11, pip, {pip: [six]}]}}\n"
    done = without("submit", job(lab, "true", extra=packages), exit_code=5)
    assert "Start Docker on this machine, or give the job a finished image" in done.stderr


def test_tensorflow_tasks_find_each_other(lab: Tfjob, docker_cluster: Cluster) -> None:
    lab.write(
        "code/peer.py",
        """
        import json, os, socket, time
        config = json.loads(os.environ["TF_CONFIG"])
        kind, index = config["task"]["type"], config["task"]["index"]
        host, port = config["cluster"][kind][index].rsplit(":", 1)
        server = socket.create_server((host, int(port)))
        count = sum(map(len, config["cluster"].values()))
        for kind, places in config["cluster"].items():
            for place in places:
                host, port = place.rsplit(":", 1)
                for _ in range(300):
                    try:
                        socket.create_connection((host, int(port)), 20).close()
                        break
                    except OSError:
                        time.sleep(0.1)
                else:
                    raise SystemExit(f"{place} can't be reached")
        print("reached", count, "of", sorted(config["cluster"]))
        for _ in range(count):  # nobody leaves before all have been here
            server.accept()
        """,
    )
    text = (
        "name: peers\ncode: code\nscript: peer.py\ncompute: {target: docker-lab, node_count: 3, gpus_per_node: 2}\n"
        "distribution: {type: tensorflow, worker_count: 5, parameter_server_count: 2, evaluator: false}\n"
    )
    (lab.directory / "peers.yml").write_text(text)
    done = lab("submit", "peers.yml")
    assert done.stdout.count("reached 8 of ['chief', 'ps', 'worker']") >= 1
    env = json.loads((lab.run_directory(lab.show()["id"]) / "plan.json").read_text())
    assert {task["node"] for task in env["tasks"]} == {0, 1, 2}
    assert docker_cluster.nodes
