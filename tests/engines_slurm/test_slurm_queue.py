"""One question for all runs, however many look."""

from __future__ import annotations

import json
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from engines_slurm.slurm_commands import calls, commands
from support import eventually

from tfjob.durable import replace_json
from tfjob.engines.slurm import queue
from tfjob.engines.slurm.client import CommandError, SlurmClient
from tfjob.engines.slurm.queue import Queue
from tfjob.errors import TargetError

JOBS = "\n".join(f"echo '{number}|RUNNING|2|gpu|10|ada|N/A|N/A|n[1-2]|a|b c'" for number in range(100))


def test_a_hundred_runs_ask_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(queue, "_PATIENCE_S", 60.0)
    client = commands(tmp_path / "bin", squeue=f"sleep 0.3\n{JOBS}")

    def look(number: int) -> str:
        found = Queue(client, tmp_path / "cache").job(str(number), 60)
        assert found is not None
        return found.reason

    with ThreadPoolExecutor(20) as pool:
        assert list(pool.map(look, range(100))) == ["a|b c"] * 100
    assert len(calls(tmp_path / "bin")) == 1


def test_an_answer_from_before_does_not_count(tmp_path: Path) -> None:
    asked = Queue(commands(tmp_path / "bin", squeue=JOBS), tmp_path / "cache")
    assert asked.job("1", 60) is not None
    time.sleep(0.01)
    now = time.time()
    assert asked.job("1", 60, now - 30) is not None
    assert len(calls(tmp_path / "bin")) == 1
    assert asked.job("1", 60, now) is not None
    assert len(calls(tmp_path / "bin")) == 2
    assert asked.job("1", 0) is not None
    assert len(calls(tmp_path / "bin")) == 3


def test_a_job_that_slurm_forgot_is_none(tmp_path: Path) -> None:
    assert Queue(commands(tmp_path / "bin", squeue=JOBS), tmp_path / "cache").job("1000", 60) is None


def test_a_damaged_answer_is_asked_for_again(tmp_path: Path) -> None:
    (tmp_path / "cache").mkdir()
    (tmp_path / "cache" / "slurm-mine.json").write_text("{")
    assert Queue(commands(tmp_path / "bin", squeue=JOBS), tmp_path / "cache").job("1", 60) is not None


def test_slurm_that_says_no_is_heard(tmp_path: Path) -> None:
    client = commands(
        tmp_path / "bin", squeue="echo 'squeue: error: slurm_load_jobs error: Unable to contact' >&2; exit 1"
    )
    with pytest.raises(TargetError, match="squeue failed: slurm_load_jobs error: Unable to contact"):
        Queue(client, tmp_path / "cache").job("1", 60)


def test_while_slurm_hangs_one_waits_for_it_and_the_others_go_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(queue, "_PATIENCE_S", 0.05)
    cache, go = tmp_path / "cache", tmp_path / "go"
    client = commands(tmp_path / "bin", squeue=f"until [ -e {go} ]; do sleep 0.05; done\necho busy >&2; exit 1")
    with ThreadPoolExecutor(1) as pool:
        first = pool.submit(Queue(client, cache).job, "1", 60)
        eventually(lambda: calls(tmp_path / "bin"), "the question")
        for _ in range(3):
            with pytest.raises(TargetError, match="Slurm has been asked for another run, and did not answer yet"):
                Queue(client, cache).job("1", 60)
        go.touch()
        with pytest.raises(TargetError, match="squeue failed: busy"):
            first.result()
    assert len(calls(tmp_path / "bin")) == 1


def test_that_slurm_did_not_answer_is_shared_for_a_while(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(queue, "_REST_S", 60.0)
    cache = tmp_path / "cache"
    client = commands(tmp_path / "bin", squeue="echo busy >&2; exit 1")
    for _ in range(3):
        with pytest.raises(TargetError, match="squeue failed: busy") as caught:
            Queue(client, cache).job("1", 60, time.time())
        assert caught.value.hint == "`tfjob compute test` shows what is the matter."
    assert len(calls(tmp_path / "bin")) == 1
    kept = json.loads((cache / "slurm-mine.json").read_text())
    replace_json(cache / "slurm-mine.json", {**kept, "time": kept["time"] - 100})
    commands(tmp_path / "bin", squeue=JOBS)
    assert Queue(client, cache).job("1", 60) is not None


def test_where_nothing_can_be_shared_everybody_asks(tmp_path: Path) -> None:
    (tmp_path / "cache").write_text("no directory")
    client = commands(tmp_path / "bin", squeue=JOBS)
    for _ in range(2):
        assert Queue(client, tmp_path / "cache").job("1", 60) is not None
    assert len(calls(tmp_path / "bin")) == 2


def test_a_machine_without_slurm_is_told(tmp_path: Path) -> None:
    client = SlurmClient({"PATH": str(tmp_path)})
    with pytest.raises(TargetError, match="sbatch is not on PATH") as caught:
        client.submit(tmp_path / "job.sh", {})
    assert "login node" in caught.value.hint


def test_commands_get_no_settings_of_the_shell(tmp_path: Path) -> None:
    client = commands(tmp_path / "bin", sbatch='env >"$0.env"; echo "Submitted" >&2; echo 42')
    assert client.submit(tmp_path / "job.sh", {"TOKEN": "secret"}) == "42"
    seen = (tmp_path / "bin" / "sbatch.env").read_text()
    assert "TOKEN=secret" in seen
    assert "SQUEUE_FORMAT" not in seen
    assert "X=y" not in seen
    assert calls(tmp_path / "bin") == [f"sbatch --parsable {tmp_path}/job.sh"]


def test_a_user_s_choice_of_cluster_is_not_handed_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SLURM_CLUSTERS", "other")
    client = commands(tmp_path / "bin", squeue='echo "$SLURM_CLUSTERS"')
    assert client.queue() == "\n"


def test_a_job_that_another_cluster_got_is_taken_back(tmp_path: Path) -> None:
    client = commands(tmp_path / "bin", sbatch='echo "42;other"', scancel="true")
    with pytest.raises(CommandError, match="gave the job to another cluster, other"):
        client.submit(tmp_path / "job.sh", {})
    assert calls(tmp_path / "bin")[1:] == ["scancel --clusters=other 42"]


@pytest.mark.parametrize("said", ["", "Submitted batch job 42"])
def test_an_answer_without_a_number_is_no_job_and_no_refusal(tmp_path: Path, said: str) -> None:
    client = commands(tmp_path / "bin", sbatch=f'echo "{said}"')
    with pytest.raises(TargetError, match="did not say the number of the job") as caught:
        client.submit(tmp_path / "job.sh", {})
    assert not isinstance(caught.value, CommandError)
