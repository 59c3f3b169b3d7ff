"""What every engine does, with real processes. An engine is added to ENGINES in engine_bench.py."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path

import pytest
from engines import engine_bench
from engines.engine_bench import Bench, task
from support import eventually, processes_of

from tfjob.engines.base import TaskStatus
from tfjob.entrypoint import stat_fields
from tfjob.errors import TargetError

MakeBench = Callable[..., Bench]
FOREVER = "while :; do sleep 0.05; done"


def ended(bench: Bench) -> dict[str, TaskStatus]:
    """Poll until every task has ended."""

    def poll() -> dict[str, TaskStatus] | None:
        statuses = bench.poll()
        return statuses if all(status.state == "ended" for status in statuses.values()) else None

    found: dict[str, TaskStatus] = eventually(poll, "the end of all tasks")
    return found


def started(bench: Bench) -> None:
    eventually(lambda: all(status.state == "running" for status in bench.poll().values()), "the start of all tasks")


def wrote(bench: Bench, name: str) -> str:
    file = bench.run.work("main") / name
    text: str = eventually(lambda: file.exists() and file.read_text(), f"the file {name}")
    return text


@pytest.fixture
def starter(engine_name: str, leases: Path) -> Iterator[Callable[[Bench], subprocess.Popen[str]]]:
    """Another process that starts a run, as a supervisor does."""
    processes: list[subprocess.Popen[str]] = []

    def starter(bench: Bench) -> subprocess.Popen[str]:
        command = [sys.executable, engine_bench.__file__, engine_name, str(bench.run.path), str(leases)]
        process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
        processes.append(process)
        assert process.stdout is not None
        assert process.stdout.readline() == "started\n"
        return process

    yield starter
    for process in processes:
        process.kill()
        process.communicate()


class TestHowATaskEnds:
    def test_well(self, bench: MakeBench) -> None:
        run = bench(task("echo hello; echo trouble >&2"))
        before = time.time()
        run.start()
        status = ended(run)["main"]
        assert (status.exit_code, status.signal, status.stopped, status.failed) == (0, None, False, False)
        assert status.started is not None
        assert status.time is not None
        assert before - 1 < status.started <= status.time < time.time() + 1
        assert run.log() == "hello\ntrouble\n"

    def test_with_an_exit_code(self, bench: MakeBench) -> None:
        wait = "until [ -e ../../tasks/b/exit.json ]; do sleep 0.02; done"  # an engine may end all when one fails
        run = bench(task(f"{wait}; exit 3", name="a"), task("true", name="b"))
        run.start()
        statuses = ended(run)
        assert list(statuses) == ["a", "b"]
        assert (statuses["a"].exit_code, statuses["a"].failed) == (3, True)
        assert (statuses["b"].exit_code, statuses["b"].failed) == (0, False)

    def test_by_a_signal(self, bench: MakeBench) -> None:
        run = bench(task("kill -KILL $$"))
        run.start()
        status = ended(run)["main"]
        assert (status.exit_code, status.signal, status.stopped, status.failed) == (None, signal.SIGKILL, False, True)

    @pytest.mark.parametrize(("command", "code"), [("no-such-program", 127), ("./not-executable", 126)])
    def test_before_it_began(self, bench: MakeBench, command: str, code: int) -> None:
        run = bench(task(command, "argument"))
        (run.run.work("main") / "not-executable").touch()
        run.start()
        assert ended(run)["main"].exit_code == code
        assert command in run.log()

    def test_with_its_log_whole_even_when_it_dies_at_once(self, bench: MakeBench) -> None:
        says = "import os, sys; sys.stdout.write('x' * 999_999 + '\\n'); sys.stdout.flush(); os.kill(os.getpid(), 9)"
        runs = [bench(task("python3", "-S", "-c", says)) for _ in range(3)]
        for run in runs:
            run.start()
        for run in runs:
            assert ended(run)["main"].signal == signal.SIGKILL
            assert len(run.log()) == 1_000_000


class TestRunning:
    def test_a_task_runs_until_it_ends(self, bench: MakeBench) -> None:
        run = bench(task("until [ -e go ]; do sleep 0.02; done"))
        run.start()
        started(run)
        status = run.poll()["main"]
        assert (status.state, status.exit_code, status.signal, status.time) == ("running", None, None, None)
        assert not status.failed
        (run.run.work("main") / "go").touch()
        assert ended(run)["main"].exit_code == 0

    def test_a_task_runs_in_its_own_working_directory(self, bench: MakeBench) -> None:
        run = bench(task("pwd; echo $PWD", name="a"), task("pwd; echo $PWD", name="b"))
        run.start()
        ended(run)
        for name in "ab":
            assert run.log(name).split() == [str(run.run.work(name))] * 2

    def test_a_task_reads_nothing(self, bench: MakeBench) -> None:
        run = bench(task("cat; echo end"))
        run.start()
        ended(run)
        assert run.log() == "end\n"

    def test_a_task_that_listens_on_its_port_has_come(self, bench: MakeBench) -> None:
        listens = (
            "import signal, socket, sys; server = socket.create_server(('127.0.0.1', int(sys.argv[1]))); signal.pause()"
        )
        run = bench(
            task("python3", "-S", "-c", listens, "${{ port.a }}", name="a", port="a"),
            task(FOREVER, name="b", port="b"),
        )
        run.start()
        eventually(lambda: run.poll()["a"].listening, "a listens")
        eventually(lambda: run.poll()["b"].state == "running", "b runs")
        assert not run.poll()["b"].listening

    def test_launched_tasks_are_started_by_the_launcher(self, bench: MakeBench, engine_name: str) -> None:
        codes = [0, 0 if engine_name == "slurm" else 1]  # there the job itself ends all when a rank fails
        ranks = [task(f"echo I am {n}; exit {code}", name=f"rank-{n}", launched=True) for n, code in enumerate(codes)]
        rank = '"${{ entrypoint.python }}" -I -S "${{ entrypoint.file }}" "${{ run.dir }}/tasks" rank'
        launcher = task(f"OMPI_COMM_WORLD_RANK=0 {rank} & OMPI_COMM_WORLD_RANK=1 {rank}; wait", name="launcher")
        run = bench(*ranks, launcher=launcher)
        run.start()
        statuses = ended(run)
        assert list(statuses) == ["rank-0", "rank-1", "launcher"]
        assert [status.exit_code for status in statuses.values()] == [*codes, 0]
        assert [run.log(f"rank-{number}") for number in range(2)] == ["I am 0\n", "I am 1\n"]


class TestStopping:
    def test_asks_first(self, bench: MakeBench) -> None:
        run = bench(task("trap 'echo saved; exit 9' TERM; echo ready >ready; " + FOREVER))
        run.start()
        wrote(run, "ready")
        run.stop()
        status = run.poll()["main"]
        assert (status.state, status.exit_code, status.stopped, status.failed) == ("ended", 9, True, False)
        assert "saved" in run.log()

    def test_leaves_nothing_however_tasks_resist(self, bench: MakeBench) -> None:
        resist = "trap '' TERM INT HUP; "
        run = bench(
            task(f"{resist} echo $$ >../main/stubborn; {FOREVER}", name="stubborn"),
            task(
                f"{resist} setsid -f bash -c \"trap '' TERM; echo \\$\\$ >away; {FOREVER}\"; "
                f"env -i setsid -f bash -c \"trap '' TERM; echo \\$\\$ >bare; {FOREVER}\"; "
                f"setsid bash -c \"trap '' TERM; (echo \\$BASHPID >grandchild; {FOREVER}) & wait\" & {FOREVER}"
            ),
            grace_s=0.3,
        )
        run.start()
        pids = [int(wrote(run, name)) for name in ("stubborn", "away", "bare", "grandchild")]
        assert all(map(run.lives, pids))
        run.stop()
        assert not any(map(run.lives, pids))
        assert processes_of(run.run.id) == []
        assert {status.state for status in run.poll().values()} == {"ended"}

    def test_can_be_done_again(self, bench: MakeBench) -> None:
        run = bench(task(FOREVER), task("true", name="done"))
        run.start()
        started_once = eventually(lambda: run.poll()["main"].state == "running", "the start")
        assert started_once
        run.stop()
        first = run.poll()
        run.stop()
        assert run.poll() == first

    def test_can_be_done_at_once(self, bench: MakeBench) -> None:
        run = bench(task(FOREVER))
        run.start()
        run.stop()
        status = run.poll()["main"]
        assert (status.state, status.stopped, status.failed) == ("ended", True, False)
        assert processes_of(run.run.id) == []

    def test_does_not_touch_another_run(self, bench: MakeBench) -> None:
        mine, other = bench(task(FOREVER)), bench(task(FOREVER))
        for run in (mine, other):
            run.start()
            started(run)
        mine.stop()
        assert other.poll()["main"].state == "running"

    def test_ends_what_a_task_that_is_over_left(self, bench: MakeBench) -> None:
        run = bench(task(f"setsid -f bash -c 'echo $$ >away; {FOREVER}'; until [ -s away ]; do sleep 0.02; done"))
        run.start()
        assert ended(run)["main"].exit_code == 0
        assert not run.lives(int(wrote(run, "away")))


@pytest.mark.parametrize("engine_name", ["process", "docker"])  # Slurm has room of its own; see engines_slurm
class TestRoom:
    def test_tasks_see_the_gpus_they_were_given(self, bench: MakeBench) -> None:
        run = bench(*(task("echo $CUDA_VISIBLE_DEVICES", name=name, gpus=1) for name in "ab"), gpus=2)
        run.start()
        ended(run)
        assert (run.log("a"), run.log("b")) == (run.gpus(3) + "\n", run.gpus(5) + "\n")
        assert run.allocation.gpus == {"a": (3,), "b": (5,)}

    def test_two_runs_never_share_a_gpu(self, bench: MakeBench) -> None:
        first, second = bench(task("true", gpus=1), gpus=1), bench(task("true", gpus=1), gpus=1)
        assert first.acquire().gpus == {"main": (3,)}
        assert second.acquire(0).gpus == {"main": (5,)}

    def test_ranks_see_all_gpus_of_their_node(self, bench: MakeBench) -> None:
        ranks = [task("true", name=f"rank-{number}", gpus=2, launched=True) for number in range(2)]
        run = bench(*ranks, launcher=task("true", name="launcher"), gpus=2)
        assert run.acquire().gpus == {"rank-0": (3, 5), "rank-1": (3, 5)}

    def test_no_room_in_time_says_who_has_it(self, bench: MakeBench) -> None:
        first, second = bench(task("true", gpus=2), gpus=2), bench(task("true", gpus=1), gpus=1)
        first.acquire()
        with pytest.raises(TargetError) as caught:
            second.acquire(0.3)
        expected = f"no room on here within 0.3 s: 1 GPUs asked for; run {first.run.id} holds 2"
        assert caught.value.message == expected
        assert "allocation_timeout_s" in caught.value.hint

    def test_room_is_for_all_or_for_none(self, bench: MakeBench) -> None:
        holder, large, small = (bench(task("true", gpus=number), gpus=number) for number in (1, 2, 1))
        holder.acquire()
        with pytest.raises(TargetError):
            large.acquire(0)
        assert small.acquire(0).gpus == {"main": (5,)}

    def test_who_waits_gets_the_room_once_it_is_free(self, bench: MakeBench) -> None:
        first, second = bench(task("true", gpus=2), gpus=2), bench(task("true", gpus=2), gpus=2)
        first.acquire()
        waiting, messages = threading.Event(), []

        def note(message: str) -> None:
            messages.append(message)
            waiting.set()

        with ThreadPoolExecutor(1) as pool:
            coming = pool.submit(second.acquire, 60, note)
            assert waiting.wait(60)
            first.release()
            assert coming.result(60).gpus == {"main": (3, 5)}
        assert messages[0] == f"waiting for 2 of 2 GPUs on here: run {first.run.id} holds 2"

    def test_who_came_first_is_served_first(self, bench: MakeBench) -> None:
        holder, large, small = (bench(task("true", gpus=number), gpus=number) for number in (1, 2, 1))
        holder.acquire()
        waiting = threading.Event()
        with ThreadPoolExecutor(1) as pool:
            coming = pool.submit(large.acquire, 60, lambda _: waiting.set())
            assert waiting.wait(60)
            with pytest.raises(TargetError):  # one GPU is free, and the large run before it is gathering
                small.acquire(0)
            holder.release()
            assert coming.result(60).gpus == {"main": (3, 5)}

    def test_runs_that_wait_for_several_gpus_do_not_block_one_another(self, bench: MakeBench) -> None:
        holders = [bench(task("true", gpus=1), gpus=1) for _ in range(2)]
        for holder in holders:
            holder.acquire()
        waiters, waiting = [bench(task("true", gpus=2), gpus=2) for _ in range(4)], threading.Barrier(5)

        def take_and_free(run: Bench) -> None:
            met = threading.Event()

            def wait(_message: str) -> None:
                if not met.is_set():
                    met.set()
                    waiting.wait(60)

            run.acquire(60, wait)
            run.release()

        with ThreadPoolExecutor(4) as pool:
            done = pool.map(take_and_free, waiters)
            waiting.wait(60)
            for holder in holders:
                holder.release()
                time.sleep(0.3)  # so that somebody gathers it
            assert list(done) == [None] * 4

    def test_who_gives_up_waiting_leaves_nothing_taken(self, bench: MakeBench) -> None:
        holder, large, small = (bench(task("true", gpus=number), gpus=number) for number in (1, 2, 1))
        holder.acquire()

        def give_up(_message: str) -> None:
            raise KeyboardInterrupt

        with pytest.raises(KeyboardInterrupt):
            large.acquire(60, give_up)
        assert small.acquire(0).gpus == {"main": (5,)}

    def test_gpus_are_held_until_the_last_process_of_the_run_ends(
        self, bench: MakeBench, starter: Callable[[Bench], subprocess.Popen[str]]
    ) -> None:
        run, other = bench(task(FOREVER, gpus=2), gpus=2), bench(task("true", gpus=1), gpus=1)
        process = starter(run)
        process.kill()
        process.wait()
        with pytest.raises(TargetError, match=f"run {run.run.id} holds 2"):
            other.acquire(0)
        run.handle = run.engine.adopt(run.plan, run.run)
        started(run)
        run.stop()
        assert other.acquire(0).gpus == {"main": (3,)}

    def test_runs_of_the_same_moment_get_different_ports(self, bench: MakeBench) -> None:
        runs = [bench(*(task("true", name=name, port=name) for name in "abc")) for _ in range(8)]
        with ThreadPoolExecutor(8) as pool:
            ports = [port for allocation in pool.map(Bench.acquire, runs) for port in allocation.ports.values()]
        assert len(set(ports)) == 24


class TestAdopting:
    def test_tasks_go_on_without_who_started_them(
        self, bench: MakeBench, starter: Callable[[Bench], subprocess.Popen[str]]
    ) -> None:
        run = bench(task("until [ -e go ]; do sleep 0.02; done; exit 4"), task("exit 0", name="quick"))
        process = starter(run)
        eventually((run.run.task("main") / "started.json").exists, "the start")
        process.kill()
        process.wait()
        run.handle = run.engine.adopt(run.plan, run.run)
        eventually(
            lambda: run.poll()["main"].state == "running", "main is seen to run"
        )  # some hear of it a moment later
        (run.run.work("main") / "go").touch()
        statuses = ended(run)
        assert [status.exit_code for status in statuses.values()] == [4, 0]
        assert all(status.started for status in statuses.values())

    def test_adopted_tasks_can_be_stopped(
        self, bench: MakeBench, starter: Callable[[Bench], subprocess.Popen[str]]
    ) -> None:
        run = bench(task("echo $$ >pid; trap 'exit 9' TERM; " + FOREVER))
        process = starter(run)
        pid = int(wrote(run, "pid"))
        process.kill()
        process.wait()
        run.handle = run.engine.adopt(run.plan, run.run)
        run.stop()
        assert run.poll()["main"].stopped
        assert not run.lives(pid)

    def test_a_task_that_was_killed_with_its_watcher_has_ended(
        self, bench: MakeBench, starter: Callable[[Bench], subprocess.Popen[str]], engine_name: str
    ) -> None:
        run = bench(task("echo $$ >pid; " + FOREVER))
        process = starter(run)
        wrote(run, "pid")
        process.kill()
        process.wait()
        pids = processes_of(run.run.id)
        if engine_name == "slurm":  # the watcher is a fork of the node's program, whose environment it shows
            pids = [*(int(fields[1]) for fields in map(stat_fields, pids) if fields), *pids]  # before it can tell
        for pid in pids:
            with suppress(ProcessLookupError):  # it ended with another of them
                os.kill(pid, signal.SIGKILL)
        run.handle = run.engine.adopt(run.plan, run.run)
        status = ended(run)["main"]
        assert status.failed
        assert status.note


class TestSecrets:
    def test_they_reach_the_task_and_are_written_nowhere(self, bench: MakeBench) -> None:
        environ = {**os.environ, "TOKEN": "hunter2-hunter2", "OTHER": "not-for-tasks"}
        run = bench(
            task("printf %s $TOKEN | rev; echo; echo other=$OTHER"),
            environ=environ,
            secrets=("TOKEN", "NOT_SET"),
        )
        run.start()
        ended(run)
        assert run.log() == "2retnuh-2retnuh\nother=\n"
        files = [path for path in run.run.path.rglob("*") if path.is_file()]
        assert {path.name for path in files} >= {"task.json", "plan.json", "exit.json", "main.log"}
        assert not [path for path in files if b"hunter2" in path.read_bytes()]

    def test_what_the_job_did_not_ask_for_stays_with_the_shell(self, bench: MakeBench) -> None:
        environ = {**os.environ, "PYTHONPATH": "/mine", "VIRTUAL_ENV": "/venv", "AWS_SECRET_KEY": "x", "LANG": "C"}
        run = bench(
            task("python3", "-S", "-c", "import os, json; print(json.dumps(dict(os.environ)))"), environ=environ
        )
        run.start()
        ended(run)
        seen = json.loads(run.log())
        assert not {"PYTHONPATH", "VIRTUAL_ENV", "AWS_SECRET_KEY"} & set(seen)
        assert seen["LANG"] == "C"
        assert seen["TFJOB_RUN_ID"] == run.run.id
