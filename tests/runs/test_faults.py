"""What is true when things break: each fault is provoked for real, by a signal, a full disk, a missing peer."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import textwrap
import time
from collections.abc import Iterator
from datetime import datetime
from pathlib import Path

import pytest
from support import PROGRAM, Tfjob, eventually, has_ended, kill, processes_of

NUMBERED = """
    name: numbered
    command: |
      for i in $(seq 1 100); do echo "line $i"; sleep 0.01; done
      until [ -e {directory}/go ]; do sleep 0.05; done
      for i in $(seq 101 200); do echo "line $i"; sleep 0.01; done
"""
EXPECTED_LINES = [f"line {number}" for number in range(1, 201)]


def supervisor_of(tfjob: Tfjob, run: str) -> int:
    found = eventually(lambda: tfjob.record(run)["supervisor"], "the supervisor notes its pid")
    return int(found["pid"])


def wait_for_state(tfjob: Tfjob, run: str, *states: str) -> None:
    eventually(lambda: tfjob.record(run)["state"] in states, f"{run} is {' or '.join(states)}")


def wait_for_line(tfjob: Tfjob, run: str, line: str, task: str = "main") -> None:
    log = tfjob.run_directory(run) / "logs" / f"{task}.log"
    eventually(lambda: log.exists() and line in log.read_text(), f"{line!r} in the log of {task}")


def until_told(tfjob: Tfjob) -> str:
    """A command that begins, and ends when there is a file `go`."""
    return f"echo begun; until [ -e {tfjob.directory}/go ]; do sleep 0.05; done"


def write_numbered(tfjob: Tfjob) -> None:
    """Write a job that goes on in the middle of its lines when there is a file `go`: it is not over before."""
    tfjob.write("job.yml", NUMBERED.format(directory=tfjob.directory))


def go(tfjob: Tfjob) -> None:
    (tfjob.directory / "go").touch()


def newest_run(tfjob: Tfjob) -> str:
    runs = tfjob.directory / ".tfjob" / "runs"
    named = eventually(
        lambda: [path.name for path in runs.glob("*") if not path.name.startswith(".")] if runs.is_dir() else [],
        "a run is recorded",
    )
    return str(named[0])


def test_a_killed_terminal_leaves_the_run_alone_and_logs_lose_and_repeat_nothing(tfjob: Tfjob) -> None:
    write_numbered(tfjob)
    terminal = tfjob.start("submit", "job.yml")
    run = newest_run(tfjob)
    wait_for_line(tfjob, run, "line 20")
    terminal.kill()
    terminal.communicate()
    go(tfjob)
    followed = tfjob("logs", "-f", run)
    assert followed.stdout.splitlines() == EXPECTED_LINES
    assert tfjob.record(run)["state"] == "Completed"


@pytest.mark.parametrize("command", ["show", "list", "logs"])
def test_a_killed_supervisor_is_replaced_by_the_next_command_and_the_tasks_go_on(tfjob: Tfjob, command: str) -> None:
    write_numbered(tfjob)
    run = tfjob.submit("job.yml")
    wait_for_line(tfjob, run, "line 5")
    first = supervisor_of(tfjob, run)
    kill(first)
    tfjob(command, *([] if command == "list" else [run]))
    go(tfjob)
    record = json.loads(tfjob("wait", run, "-o", "json").stdout)
    assert record["state"] == "Completed"
    assert record["supervisor"]["pid"] != first
    assert record["notes"][0].startswith(f"the supervisor (pid {first} on ")
    assert tfjob("logs", run).stdout.splitlines() == EXPECTED_LINES


def test_a_task_that_ends_while_nobody_watches_is_still_accounted_for(tfjob: Tfjob) -> None:
    tfjob.write("job.yml", f"name: alone\ncommand: {until_told(tfjob)}; echo kept > outputs/x; exit 5")
    run = tfjob.submit("job.yml")
    wait_for_line(tfjob, run, "begun")
    kill(supervisor_of(tfjob, run))
    go(tfjob)
    eventually(lambda: not processes_of(run), "the task ends")
    done = tfjob("wait", run, exit_code=1)
    assert "main on" in done.stdout
    record = tfjob.show(run)
    assert (record["failure"]["task"], record["failure"]["exit_code"]) == ("main", 5)
    assert record["outputs"] == [{"path": "x", "size_bytes": 5}]


def test_a_supervisor_and_its_tasks_killed_together_is_told_as_what_it_is(tfjob: Tfjob) -> None:
    tfjob.write("job.yml", "name: all\ncommand: echo begun; sleep 300")
    run = tfjob.submit("job.yml")
    wait_for_line(tfjob, run, "begun")
    kill(supervisor_of(tfjob, run))
    kill(*processes_of(run))
    tfjob("wait", run, exit_code=1)
    record = tfjob.show(run)
    assert record["state"] == "Failed"
    assert "ended without saying how" in record["failure"]["message"]


def test_a_restarted_machine_ends_the_runs_that_were_on_it(tfjob: Tfjob) -> None:
    tfjob.write("job.yml", "name: boot\ncommand: sleep 300")
    run = tfjob.submit("job.yml")
    wait_for_state(tfjob, run, "Running")
    kill(supervisor_of(tfjob, run))
    kill(*processes_of(run))
    file = tfjob.run_directory(run) / "record.json"
    file.write_text(file.read_text().replace(tfjob.record(run)["supervisor"]["boot_id"], "another-boot"))
    tfjob("wait", run, exit_code=5)
    assert "was restarted while the run was running" in tfjob.show(run)["failure"]["message"]


@pytest.mark.parametrize(("code", "state"), [(0, "Completed"), (3, "Failed")])
def test_a_run_that_had_ended_before_the_restart_ended_as_it_did(tfjob: Tfjob, code: int, state: str) -> None:
    tfjob.write("job.yml", f"name: boot\ncommand: {until_told(tfjob)}; exit {code}")
    run = tfjob.submit("job.yml")
    wait_for_line(tfjob, run, "begun")
    wait_for_state(tfjob, run, "Running")
    kill(supervisor_of(tfjob, run))
    go(tfjob)
    eventually(lambda: not processes_of(run), "the task ends")
    file = tfjob.run_directory(run) / "record.json"
    file.write_text(file.read_text().replace(tfjob.record(run)["supervisor"]["boot_id"], "another-boot"))
    tfjob("wait", run, exit_code=1 if code else 0)
    record = tfjob.show(run)
    assert (record["state"], record["tasks"][0]["exit_code"]) == (state, code)
    assert "its tasks had ended when the machine" in " ".join(record["notes"])


def test_a_run_of_another_host_is_left_to_it(tfjob: Tfjob) -> None:
    tfjob.write("job.yml", "name: far\ncommand: sleep 300")
    run = tfjob.submit("job.yml")
    wait_for_state(tfjob, run, "Running")
    pid = supervisor_of(tfjob, run)
    kill(pid)
    file = tfjob.run_directory(run) / "record.json"
    original = file.read_text()
    file.write_text(original.replace(f'"host": "{os.uname().nodename}"', '"host": "elsewhere"'))
    tfjob("show", run)
    time.sleep(0.5)
    assert tfjob.record(run)["supervisor"]["pid"] == pid
    file.write_text(original)
    tfjob("cancel", run)


def test_a_task_that_ignores_sigterm_does_not_hold_up_the_end(tfjob: Tfjob) -> None:
    tfjob.write(
        "job.yml",
        """
        name: stubborn
        command: |
          if [ $TFJOB_TASK_INDEX = 1 ]; then until [ -e ../worker-0/ready ]; do sleep 0.05; done; exit 9; fi
          trap '' TERM INT HUP
          touch ready
          while true; do sleep 1; done
        distribution: {type: tensorflow, worker_count: 2}
        limits: {grace_period_s: 1}
        """,
    )
    tfjob("submit", "job.yml", exit_code=1)
    record = tfjob.show()
    stubborn, failed = (datetime.fromisoformat(one["ended"]) for one in record["tasks"])
    assert (stubborn - failed).total_seconds() < 10  # the promise of the gang's end, not a speed
    assert (record["failure"]["task"], record["failure"]["exit_code"]) == ("worker-1", 9)
    assert record["tasks"][0]["signal"] == signal.SIGKILL


def test_a_killed_task_is_named_with_its_signal(tfjob: Tfjob) -> None:
    tfjob.write(
        "job.yml",
        """
        name: killed
        command: echo begun; if [ $TFJOB_TASK_INDEX = 0 ]; then sleep 300; fi; sleep 0.5; kill -9 $$
        distribution: {type: tensorflow, worker_count: 2}
        """,
    )
    done = tfjob("submit", "job.yml", exit_code=1)
    assert "worker-1 on" in done.stderr
    assert "was killed by signal 9 (SIGKILL)" in done.stderr
    assert tfjob.show()["failure"]["log_tail"] == ["begun"]


def test_a_worker_that_never_comes_to_the_rendezvous_is_named(tfjob: Tfjob) -> None:
    tfjob.write(
        "code/member.py",
        """
        import json, os, socket, time
        config = json.loads(os.environ["TF_CONFIG"])
        if config["task"]["index"] == 0:
            port = int(config["cluster"]["worker"][0].rpartition(":")[2])
            listener = socket.create_server(("127.0.0.1", port))
        time.sleep(300)
        """,
    )
    tfjob.write(
        "job.yml",
        """
        code: code
        script: member.py
        distribution: {type: tensorflow, worker_count: 2}
        limits: {rendezvous_timeout_s: 1, grace_period_s: 1}
        """,
    )
    done = tfjob("submit", "job.yml", exit_code=1)
    assert "worker-1 on" in done.stderr
    assert "did not come to the rendezvous within 1 s" in done.stderr


def test_no_process_survives_a_run_however_it_hides(tfjob: Tfjob) -> None:
    tfjob.write(
        "job.yml",
        """
        name: hiding
        command: |
          setsid sleep 301 &
          (setsid nohup sh -c 'trap "" TERM HUP; sleep 302 & sleep 303' >/dev/null 2>&1 &) &
          sleep 0.3; echo done
        """,
    )
    tfjob("submit", "job.yml")
    assert processes_of(tfjob.show()["id"]) == []


def test_a_run_longer_than_its_limit_is_ended(tfjob: Tfjob) -> None:
    tfjob.write("job.yml", "name: late\ncommand: sleep 300\nlimits: {timeout_s: 1, grace_period_s: 1}")
    done = tfjob("submit", "job.yml", exit_code=1)
    assert "took longer than limits.timeout_s = 1 s" in done.stderr


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    if os.geteuid() != 0:
        pytest.skip("a small disk of its own (mount -t tmpfs) needs root")
    mount = tmp_path / "disk"
    mount.mkdir()
    done = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=1m", "tmpfs", str(mount)], check=False)
    if done.returncode:
        pytest.skip("this machine does not let us mount a tmpfs")
    try:
        yield mount
    finally:
        subprocess.run(["umount", "-l", str(mount)], check=True)


@pytest.mark.parametrize("tolerant", [False, True], ids=["script-dies", "script-goes-on"])
def test_a_full_disk_ends_the_run_with_a_record_that_says_so(tfjob: Tfjob, small_disk: Path, tolerant: bool) -> None:
    onwards = "|| true" if tolerant else ""
    tfjob.write(
        "job.yml",
        f"""
        name: full
        command: |
          echo begun
          for i in $(seq 1 100); do head -c 20000 /dev/zero | tr '\\0' x {onwards}; sleep 0.01; done
          sleep 1
        """,
    )
    elsewhere = Tfjob(tfjob.directory, {**tfjob.environ, "TFJOB_WORKSPACE": str(small_disk)})
    tfjob("init", str(small_disk))
    elsewhere("submit", "job.yml", exit_code=0 if tolerant else 1)
    record = elsewhere.show()
    assert record["state"] == ("Completed" if tolerant else "Failed")
    if not tolerant:
        assert "the disk that holds the run directory is full" in record["failure"]["message"]
        assert record["failure"]["task"] == "main"
    assert "the disk that holds the run directory was full" in " ".join(record["notes"])
    assert processes_of(record["id"]) == []


def test_a_run_that_fills_the_disk_can_be_canceled(tfjob: Tfjob, small_disk: Path) -> None:
    tfjob.write("job.yml", "name: fill\ncommand: head -c 3000000 /dev/zero > outputs/big || true; sleep 300")
    elsewhere = Tfjob(tfjob.directory, {**tfjob.environ, "TFJOB_WORKSPACE": str(small_disk)})
    tfjob("init", str(small_disk))
    run = elsewhere.submit("job.yml")
    big = small_disk / ".tfjob" / "runs" / run / "outputs" / "big"
    eventually(lambda: big.exists() and os.statvfs(small_disk).f_bavail <= 1, "the disk is full")
    elsewhere("cancel", run)
    assert elsewhere.show(run)["state"] == "Canceled"
    assert processes_of(run) == []


def test_many_submits_in_the_same_second_are_as_many_runs(tfjob: Tfjob) -> None:
    tfjob.write("job.yml", "name: same\ncommand: echo $TFJOB_RUN_ID")
    tfjob("init")
    submits = [tfjob.start("submit", "job.yml") for _ in range(6)]
    printed = [submit.communicate(timeout=120)[0].strip() for submit in submits]
    assert [submit.returncode for submit in submits] == [0] * 6
    listed = json.loads(tfjob("list", "-o", "json").stdout)
    assert sorted(printed) == sorted(record["id"] for record in listed)
    assert len(set(printed)) == 6


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_without_a_terminal_an_interrupt_cancels(tfjob: Tfjob, number: signal.Signals) -> None:
    tfjob.write("job.yml", "name: ci\ncommand: echo begun; sleep 300")
    submit = tfjob.start("submit", "job.yml")
    run = newest_run(tfjob)
    wait_for_line(tfjob, run, "begun")
    submit.send_signal(number)
    _, stderr = submit.communicate(timeout=60)
    assert submit.returncode == 130, stderr
    assert tfjob.record(run)["state"] == "Canceled"
    assert number.name in tfjob.record(run)["failure"]["message"]
    assert processes_of(run) == []


def test_an_interrupt_can_be_told_to_detach(tfjob: Tfjob) -> None:
    write_numbered(tfjob)
    submit = tfjob.start("submit", "--on-interrupt", "detach", "job.yml")
    run = newest_run(tfjob)
    wait_for_line(tfjob, run, "line 5")
    submit.send_signal(signal.SIGTERM)
    _, stderr = submit.communicate(timeout=60)
    assert submit.returncode == 130
    assert f"tfjob cancel {run}" in stderr
    go(tfjob)
    tfjob("wait", run)


def test_ctrl_c_in_a_terminal_detaches(tfjob: Tfjob) -> None:
    write_numbered(tfjob)
    tfjob("init")
    script = textwrap.dedent("""
        import os, pty, sys
        pid, terminal = pty.fork()
        if pid == 0:
            os.execv(sys.argv[1], sys.argv[1:])
        seen = b""
        while b"line 9" not in seen:
            seen += os.read(terminal, 65536)
        os.write(terminal, b"\\x03")
        try:
            while data := os.read(terminal, 65536):
                seen += data
        except OSError:
            pass
        sys.stdout.buffer.write(seen)
        sys.exit(os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]))
    """)
    done = subprocess.run(
        [sys.executable, "-c", script, *PROGRAM, "submit", "job.yml"],
        cwd=tfjob.directory,
        env={**tfjob.environ, "TERM": "xterm"},
        capture_output=True,
        text=True,
        timeout=180,
        check=False,
    )
    assert done.returncode == 130, done.stdout + done.stderr
    assert "Detached; the run goes on." in done.stdout
    go(tfjob)
    run = newest_run(tfjob)
    tfjob("wait", run)
    assert tfjob("logs", run).stdout.splitlines() == EXPECTED_LINES


def test_cancel_while_the_environment_is_being_made(tfjob: Tfjob, tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as silent:  # an index that takes connections and never answers
        tfjob.write(
            "job.yml", "name: prep\ncommand: 'true'\nenvironment: {conda: {dependencies: [python, {pip: [six]}]}}"
        )
        url = f"http://127.0.0.1:{silent.getsockname()[1]}/simple"
        environ = {name: value for name, value in tfjob.environ.items() if not name.startswith("PIP_")}
        lonely = Tfjob(
            tfjob.directory,
            {**environ, "PIP_CONFIG_FILE": os.devnull, "PIP_INDEX_URL": url, "TFJOB_STORE": str(tmp_path / "store")},
        )
        run = lonely.submit("job.yml")
        eventually(lambda: b"solving" in _bytes(tfjob.run_directory(run) / "events.jsonl"), "it solves")
        lonely("cancel", run)
        record = tfjob.record(run)
        assert (record["state"], [phase["name"] for phase in record["phases"]]) == (
            "Canceled",
            ["Preparing", "Finalizing"],
        )
        assert not [pid for pid in Path("/proc").glob("[0-9]*/cmdline") if str(tmp_path).encode() in _bytes(pid)]


def _bytes(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError:
        return b""


@pytest.mark.xdist_group("gpu")  # all runs of this machine share the one that config.yml declares
def test_cancel_while_waiting_for_gpus(tfjob: Tfjob) -> None:
    tfjob("init")
    (tfjob.directory / ".tfjob" / "config.yml").write_text("local: {gpus: 1}\n")
    tfjob.write(
        "job.yml", "name: gpu\ncommand: echo GPUs $CUDA_VISIBLE_DEVICES; sleep 300\ncompute: {gpus_per_node: 1}"
    )
    first = tfjob.submit("job.yml")
    wait_for_line(tfjob, first, "GPUs 0")
    second = tfjob.submit("job.yml")
    wait_for_state(tfjob, second, "Scaling")
    events = tfjob.run_directory(second) / "events.jsonl"
    eventually(lambda: f"run {first} holds 1" in events.read_text(), "it says who holds the GPU")
    tfjob("cancel", second)
    assert tfjob.record(second)["state"] == "Canceled"
    third = tfjob.submit("job.yml", "--set", "limits.allocation_timeout_s=0.3")
    done = tfjob("wait", third, exit_code=5)
    assert "no room" in done.stdout
    tfjob("cancel", first)


@pytest.mark.xdist_group("gpu")  # all runs of this machine share the one that config.yml declares
def test_a_gpu_lease_outlives_a_killed_supervisor_and_not_the_run(tfjob: Tfjob) -> None:
    tfjob("init")
    (tfjob.directory / ".tfjob" / "config.yml").write_text("local: {gpus: 1}\n")
    tfjob.write("job.yml", f"name: gpu\ncommand: {until_told(tfjob)}\ncompute: {{gpus_per_node: 1}}")
    first = tfjob.submit("job.yml")
    wait_for_line(tfjob, first, "begun")
    kill(supervisor_of(tfjob, first))
    second = tfjob.submit("job.yml")
    wait_for_state(tfjob, second, "Scaling")
    events = tfjob.run_directory(second) / "events.jsonl"
    eventually(lambda: f"run {first} holds 1" in events.read_text(), "it says who holds the GPU")
    go(tfjob)
    tfjob("wait", second)
    assert "begun" in (tfjob.run_directory(second) / "logs" / "main.log").read_text()
    ended = json.loads((tfjob.run_directory(first) / "tasks" / "main" / "exit.json").read_text())["time"]
    started = json.loads((tfjob.run_directory(second) / "tasks" / "main" / "started.json").read_text())["time"]
    assert started >= ended
    tfjob("wait", first)


@pytest.mark.xdist_group("gpu")  # all runs of this machine share the one that config.yml declares
def test_a_supervisor_killed_while_it_waits_for_gpus_is_replaced(tfjob: Tfjob) -> None:
    tfjob("init")
    (tfjob.directory / ".tfjob" / "config.yml").write_text("local: {gpus: 1}\n")
    tfjob.write("first.yml", f"name: gpu\ncommand: {until_told(tfjob)}\ncompute: {{gpus_per_node: 1}}")
    tfjob.write("second.yml", "name: gpu\ncommand: 'true'\ncompute: {gpus_per_node: 1}")
    first = tfjob.submit("first.yml")
    wait_for_line(tfjob, first, "begun")
    second = tfjob.submit("second.yml")
    wait_for_state(tfjob, second, "Scaling")
    killed = supervisor_of(tfjob, second)
    kill(killed)
    tfjob("show", second)
    eventually(lambda: supervisor_of(tfjob, second) != killed, "another supervisor")
    go(tfjob)
    tfjob("wait", second)
    assert tfjob.record(second)["state"] == "Completed"
    tfjob("wait", first)


def test_a_submit_killed_before_its_run_is_named_leaves_no_run(tfjob: Tfjob) -> None:
    tfjob("init")
    (tfjob.directory / ".tfjob" / "runs" / ".new-cut").mkdir()
    assert tfjob("list", "-o", "json").stdout.strip() == "[]"


def test_work_written_beside_outputs_is_kept_and_told(tfjob: Tfjob) -> None:
    tfjob.write("code/train.py", "open('model.h5', 'w').write('weights'); open('outputs/log.txt', 'w').write('x')")
    tfjob.write("job.yml", "code: code\nscript: train.py")
    done = tfjob("submit", "job.yml")
    assert "1 file written outside of ./outputs" in done.stderr
    record = tfjob.show()
    assert record["left_in_work"] == ["work/main/model.h5"]
    assert (Path(record["dir"]) / "work/main/model.h5").read_text() == "weights"
    assert [one["path"] for one in record["outputs"]] == ["log.txt"]
    assert not (Path(record["dir"]) / "work/main/train.py").exists()


def test_secrets_reach_the_task_and_no_file(tfjob: Tfjob) -> None:
    tfjob.write("job.yml", "name: quiet\ncommand: test ${#TOKEN} = 19\nsecrets: [TOKEN]")
    holder = Tfjob(tfjob.directory, {**tfjob.environ, "TOKEN": "hunter2-very-secret"})
    holder("submit", "job.yml")
    tfjob("submit", "job.yml", exit_code=2)
    for file in (tfjob.directory / ".tfjob").rglob("*"):
        assert not file.is_file() or b"hunter2" not in file.read_bytes()


def test_a_script_that_writes_into_a_mounted_dataset_is_told_on(tfjob: Tfjob) -> None:
    tfjob.write("data/a.txt", "original")
    tfjob.write("job.yml", "name: d\ncommand: echo spoiled > ${{ dataset.d }}/a.txt\ndataset: {d: {paths: [data]}}")
    tfjob("submit", "job.yml")
    assert tfjob.show()["notes"][0].startswith("dataset d was changed while the run went on: ")
    tfjob("rerun", "latest", exit_code=4)
    assert "dataset d has changed since the job was planned: " in tfjob.show()["failure"]["message"]
    assert tfjob.show()["notes"] == []
    tfjob("submit", "job.yml", "--set", "dataset.d.mode=download")
    assert tfjob.show()["notes"] == []


def test_a_dead_supervisors_run_can_be_canceled(tfjob: Tfjob) -> None:
    tfjob.write("job.yml", "name: orphan\ncommand: echo begun; sleep 300")
    run = tfjob.submit("job.yml")
    wait_for_line(tfjob, run, "begun")
    kill(supervisor_of(tfjob, run))
    tfjob("cancel", run)
    assert tfjob.record(run)["state"] == "Canceled"


def test_the_code_of_a_run_can_be_read_where_it_ran(tfjob: Tfjob) -> None:
    tfjob.write("code/train.py", "raise SystemExit(2)")
    tfjob.write("job.yml", "code: code\nscript: train.py")
    tfjob("submit", "job.yml", exit_code=1)
    assert (Path(tfjob.show()["dir"]) / "code" / "train.py").read_text() == "raise SystemExit(2)"


def test_a_supervisor_killed_at_its_last_words_is_not_the_start_of_another_run(tfjob: Tfjob) -> None:
    tfjob.write("job.yml", "name: last\ncommand: echo ran >> outputs/log.txt; exit 3")
    tfjob("submit", "job.yml", exit_code=1)
    over = tfjob.show()
    eventually(lambda: has_ended(over["supervisor"]["pid"]), "the end of its supervisor")
    file = tfjob.run_directory(over["id"]) / "record.json"
    file.write_text(json.dumps({**over, "state": "Finalizing", "ended": None, "outputs": []}))
    events = tfjob.run_directory(over["id"]) / "events.jsonl"
    events.write_text(
        "".join(line for line in events.read_text().splitlines(keepends=True) if '"state": "F' not in line)
    )
    tfjob("wait", over["id"], exit_code=1)
    record = tfjob.show()
    assert (record["state"], record["failure"]) == ("Failed", over["failure"])
    assert record["outputs"] == [{"path": "log.txt", "size_bytes": 4}]


def test_a_submit_that_is_following_replaces_a_dead_supervisor_itself(tfjob: Tfjob) -> None:
    write_numbered(tfjob)
    submit = tfjob.start("submit", "job.yml")
    run = newest_run(tfjob)
    wait_for_line(tfjob, run, "line 5")
    kill(supervisor_of(tfjob, run))
    go(tfjob)
    stdout, stderr = submit.communicate(timeout=180)
    assert submit.returncode == 0, stderr
    assert stdout.splitlines() == EXPECTED_LINES
    assert "another took over" in stderr


def test_a_worker_that_fails_because_its_chief_has_finished_spoils_nothing(tfjob: Tfjob) -> None:
    tfjob.write(
        "job.yml",
        """
        name: done
        command: |
          if [ $TFJOB_TASK_TYPE = chief ]; then
            until [ -e ../../tasks/worker-0/exit.json ]; do sleep 0.05; done; sleep 0.2; exit 0
          fi
          if [ $TFJOB_TASK_TYPE = worker ]; then exit 1; fi
          sleep 300
        distribution: {type: tensorflow, worker_count: 1, parameter_server_count: 1}
        """,
    )
    tfjob("submit", "job.yml")
    assert tfjob.show()["state"] == "Completed"


@pytest.mark.xdist_group("gpu")  # all runs of this machine share the one that config.yml declares
def test_a_recovered_run_keeps_what_its_own_shell_gave_it(tfjob: Tfjob) -> None:
    tfjob("init")
    (tfjob.directory / ".tfjob" / "config.yml").write_text("local: {gpus: 1}\n")
    tfjob.write("first.yml", f"name: first\ncommand: {until_told(tfjob)}\ncompute: {{gpus_per_node: 1}}")
    tfjob.write("second.yml", "name: second\ncommand: echo $PATH $TZ\ncompute: {gpus_per_node: 1}")
    first = tfjob.submit("first.yml")
    wait_for_line(tfjob, first, "begun")
    shell = Tfjob(tfjob.directory, {**tfjob.environ, "PATH": f"{tfjob.environ['PATH']}:/own", "TZ": "Asia/Tokyo"})
    second = shell.submit("second.yml")
    wait_for_state(tfjob, second, "Scaling")
    kill(supervisor_of(tfjob, second))
    go(tfjob)
    tfjob("wait", second)
    tfjob("wait", first)
    assert tfjob("logs", second).stdout.endswith(":/own Asia/Tokyo\n")


@pytest.mark.xdist_group("gpu")  # all runs of this machine share the one that config.yml declares
def test_a_recovered_run_without_its_secrets_says_so(tfjob: Tfjob) -> None:
    tfjob("init")
    (tfjob.directory / ".tfjob" / "config.yml").write_text("local: {gpus: 1}\n")
    tfjob.write("first.yml", "name: first\ncommand: echo begun; sleep 300\ncompute: {gpus_per_node: 1}")
    tfjob.write("second.yml", "name: second\ncommand: 'true'\ncompute: {gpus_per_node: 1}\nsecrets: [TOKEN]")
    first = tfjob.submit("first.yml")
    wait_for_line(tfjob, first, "begun")
    second = Tfjob(tfjob.directory, {**tfjob.environ, "TOKEN": "x"}).submit("second.yml")
    wait_for_state(tfjob, second, "Scaling")
    kill(supervisor_of(tfjob, second))
    done = tfjob("wait", second, exit_code=4)
    assert "the secrets TOKEN went with the supervisor that died" in done.stdout
    tfjob("cancel", first)


def test_a_supervisor_that_can_not_even_begin_is_recorded_and_not_started_for_ever(tfjob: Tfjob) -> None:
    tfjob.write("job.yml", "name: broken\ncommand: echo begun; sleep 300")
    run = tfjob.submit("job.yml")
    wait_for_line(tfjob, run, "begun")
    kill(supervisor_of(tfjob, run))
    (tfjob.directory / ".tfjob" / "config.yml").write_text("stor: /nowhere\n")
    tfjob("wait", run, exit_code=1)
    assert "config.yml:1:1: stor" in tfjob.record(run)["failure"]["message"]
    assert processes_of(run) == []


def test_another_users_run_is_not_taken_over(tfjob: Tfjob) -> None:
    if os.geteuid() != 0:
        pytest.skip("giving a run to another user needs root")
    tfjob.write("job.yml", "name: theirs\ncommand: echo begun; sleep 300")
    run = tfjob.submit("job.yml")
    wait_for_line(tfjob, run, "begun")
    pid = supervisor_of(tfjob, run)
    os.chown(tfjob.run_directory(run), 1234, 1234)
    kill(pid)
    tfjob("list")
    time.sleep(0.5)
    assert tfjob.record(run)["supervisor"]["pid"] == pid
    os.chown(tfjob.run_directory(run), 0, 0)
    tfjob("cancel", run)
