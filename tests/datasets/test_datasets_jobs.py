"""Datasets in jobs, as people use them: the real command line, a real server, runs that read what was fetched."""

from __future__ import annotations

import hashlib
import json
import os
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from datasets.test_datasets_workers import children
from support import Tfjob, eventually, has_file_of, openers
from web_server import Hang, Held, Status, WebServer

from tfjob.datasets.cache import Cache


@pytest.fixture
def job(tfjob: Tfjob, tmp_path: Path) -> Tfjob:
    """The command line with a store of its own: what other tests fetched is not there."""
    return Tfjob(tfjob.directory, {**tfjob.environ, "TFJOB_STORE": str(tmp_path / "store")})


def write(job: Tfjob, dataset: str, command: str = "cat ${{ dataset.d }}/*") -> None:
    job.write("job.yml", f"name: reads\ncommand: {json.dumps(command)}\ndataset: {{{dataset}}}\n")


def fetches(web: WebServer, path: str) -> int:
    """How often the content of a file was sent: not asked for conditionally, nor for its first byte alone."""
    return sum("If-None-Match" not in headers and headers.get("Range") != "bytes=0-0" for headers in web.asked(path))


def objects(job: Tfjob) -> list[Path]:
    return list((Path(job.environ["TFJOB_STORE"]) / "datasets" / "objects").glob("*/*"))


@pytest.mark.parametrize("mode", ["mount", "download"])
def test_a_job_reads_what_addresses_hold(job: Tfjob, web: WebServer, mode: str) -> None:
    urls = [web.put("a.txt", b"one "), web.put("deep/b.txt", b"two "), web.put("name%20of%20c.txt", b"three")]
    write(
        job,
        f"d: {{paths: {json.dumps(urls)}, mode: {mode}}}",
        "ls $TFJOB_DATASET_D; cat ${{ dataset.d }}/*; test -w ${{ dataset.d }}/a.txt && echo writable",
    )
    done = job("submit", "job.yml", exit_code=None)
    assert "a.txt\nb.txt\nname of c.txt\none two three" in done.stdout
    assert len(objects(job)) == 3
    (record,) = job.show()["datasets"]
    assert record["name"] == "d"
    assert record["file_count"] == 3
    assert record["size_bytes"] == 13


def test_a_download_can_be_written_and_the_cache_stays_as_it_is(job: Tfjob, web: WebServer) -> None:
    url = web.put("a.txt", b"one")
    write(job, f"d: {{paths: {url}, mode: download}}", "echo two >> ${{ dataset.d }}/a.txt; cat ${{ dataset.d }}/a.txt")
    assert "onetwo" in job("submit", "job.yml").stdout
    assert [path.read_bytes() for path in objects(job)] == [b"one"]


def test_one_file_and_several_datasets(job: Tfjob, web: WebServer) -> None:
    (job.directory / "local").mkdir()
    (job.directory / "local" / "l.txt").write_text("local ")
    url, other = web.put("a.txt", b"web "), web.put("b.txt", b"both")
    write(
        job,
        f"one: {{paths: {url}, type: file}}, two: {{paths: [local, {other}]}}",
        "cat ${{ dataset.one }} $TFJOB_DATASET_TWO/l.txt $TFJOB_DATASET_TWO/b.txt",
    )
    assert "web local both" in job("submit", "job.yml").stdout


def test_a_registered_dataset_goes_by_name_and_version(job: Tfjob, web: WebServer) -> None:
    url = web.put("a.txt", b"first")
    job("dataset", "create", "--name", "words", "--path", url, "--description", "A word")
    write(job, "d: words")
    assert "first" in job("submit", "job.yml").stdout
    (record,) = job.show()["datasets"]
    assert record["registered"] == "words@1"
    shown = json.loads(job("dataset", "show", "words", "-o", "json").stdout)
    assert shown["runs"] == [job.show()["id"]]
    (listed,) = json.loads(job("dataset", "files", "words", "-o", "json").stdout)
    assert listed == {
        "path": "a.txt",
        "size_bytes": 5,
        "source": url,
        "sha256": hashlib.sha256(b"first").hexdigest(),
    }


def test_a_version_never_changes(job: Tfjob, web: WebServer) -> None:
    url = web.put("a.txt", b"first")
    job("dataset", "create", "--name", "words", "--path", url)
    write(job, "d: words")
    first = job("submit", "job.yml")
    assert "first" in first.stdout
    run = job.show()["id"]
    web.put("a.txt", b"other")
    failed = job("submit", "job.yml", exit_code=4)
    assert "a.txt has changed since words@1 was registered" in failed.stderr
    assert "tfjob dataset create --name words@1 --refresh" in failed.stderr
    assert "Registered words@2" in job("dataset", "create", "--name", "words", "--refresh").stdout
    assert "other" in job("submit", "job.yml").stdout
    assert "first" in job("rerun", run).stdout
    assert job.show()["datasets"][0]["registered"] == "words@1"


def test_a_version_that_was_never_used_does_not_change_either(job: Tfjob, web: WebServer) -> None:
    url = web.put("a.txt", b"first")
    job("dataset", "create", "--name", "words", "--path", url)
    web.put("a.txt", b"other")
    write(job, "d: words")
    assert "has changed since words@1 was registered" in job("submit", "job.yml", exit_code=4).stderr


def test_registered_files_of_this_machine_do_not_change_either(job: Tfjob) -> None:
    file = job.write("data/a.txt", "first")
    job("dataset", "create", "--name", "words", "--path", "data")
    write(job, "d: words")
    assert "first" in job("submit", "job.yml").stdout
    file.write_text("longer than before")
    failed = job("submit", "job.yml", exit_code=4).stderr
    assert "words@1 has changed since it was registered: a.txt has 18 bytes where it had 5" in failed
    assert "words@2" in job("dataset", "create", "--name", "words", "--refresh").stdout


def test_a_rerun_uses_what_the_run_used(job: Tfjob, web: WebServer) -> None:
    url = web.put("a.txt", b"first")
    write(job, f"d: {{paths: {url}}}")
    job("submit", "job.yml")
    first = job.show()
    web.put("a.txt", b"other")
    assert "first" in job("rerun", first["id"]).stdout
    assert job.show()["datasets"] == first["datasets"]
    job("dataset", "cache", "--prune")
    for content in (b"other", b"longer"):
        web.put("a.txt", content)
        gone = job("rerun", first["id"], exit_code=4).stderr
        assert f"what run {first['id']} read as dataset d is neither in the cache nor at its address any more" in gone


def test_a_sum_is_checked(job: Tfjob, web: WebServer) -> None:
    good = hashlib.sha256(b"first").hexdigest()
    url = web.put("a.txt", b"first")
    write(job, f"d: {{paths: [{{path: {url}, sha256: {good}}}]}}")
    assert "first" in job("submit", "job.yml").stdout
    assert "first" in job("submit", "job.yml").stdout
    assert len(web.requests) == 1
    write(job, f"d: {{paths: [{{path: {url}, sha256: {'f' * 64}}}]}}")
    assert f"and {'f' * 64} is asked for" in job("submit", "job.yml", exit_code=4).stderr


def test_what_can_not_be_had_ends_the_run_with_4_and_its_own_words(job: Tfjob, web: WebServer) -> None:
    job.write(".tfjob/config.yml", "datasets: {timeout_s: 30}\n")
    (job.directory / ".tfjob" / "runs").mkdir()
    write(job, f"d: {{paths: [{web.put('a.txt', b'', Status(403))}]}}")
    assert "(403 Forbidden)" in job("submit", "job.yml", exit_code=4).stderr
    record = job.show()
    assert record["state"] == "Failed"
    assert [phase["name"] for phase in record["phases"]] == ["Preparing", "Finalizing"]
    assert objects(job) == []


def test_a_run_can_be_canceled_while_it_fetches(job: Tfjob, web: WebServer) -> None:
    write(job, f"d: {{paths: {web.put('a.txt', b'content', Hang(3))}}}")
    run = job.submit("job.yml")
    eventually(lambda: web.asked("a.txt"), "it fetches")
    job("cancel", run)
    assert job.show(run)["state"] == "Canceled"
    assert objects(job) == []


def test_runs_that_want_the_same_at_once_fetch_it_once(job: Tfjob, web: WebServer) -> None:
    gate = threading.Event()
    url = web.put("big", os.urandom(2 << 20), Held(gate))
    write(job, f"d: {{paths: {url}}}", "wc -c ${{ dataset.d }}/big")
    job("init")
    partial = Cache(Path(job.environ["TFJOB_STORE"]) / "datasets").partial(url)
    with ThreadPoolExecutor(3) as pool:
        runs = [pool.submit(job, "submit", "job.yml") for _ in range(3)]
        try:
            eventually(lambda: openers(partial) == 3, "one fetches it, and the others wait for that")
        finally:
            gate.set()
        assert all(str(2 << 20) in one.result().stdout for one in runs)
    assert fetches(web, "big") == 1


def test_a_killed_supervisor_loses_nothing_of_what_came(job: Tfjob, web: WebServer) -> None:
    content = os.urandom(3 << 20)
    url = web.put("big", content, Hang(2 << 20), None)
    write(job, f"d: {{paths: {url}}}", "sha256sum ${{ dataset.d }}/big")
    run = job.submit("job.yml")
    partial = Path(job.environ["TFJOB_STORE"]) / "datasets" / "partial"
    eventually(lambda: has_file_of(partial, 2 << 20), "2 MiB came")
    os.kill(job.record(run)["supervisor"]["pid"], 9)
    assert hashlib.sha256(content).hexdigest() in job("logs", "-f", run).stdout
    assert web.asked("big")[-1]["Range"] == f"bytes={2 << 20}-"


def test_what_a_run_uses_is_not_evicted(job: Tfjob, web: WebServer) -> None:
    job("init")
    used, unused = web.put("a.txt", b"used"), web.put("b.txt", b"unused")
    write(job, f"d: {{paths: {unused}}}")
    job("submit", "job.yml")
    write(job, f"d: {{paths: {used}}}", "until test -e go; do sleep 0.05; done; cat ${{ dataset.d }}/a.txt")
    run = job.submit("job.yml")
    eventually(lambda: job.record(run)["state"] == "Running", "it runs")
    shown = json.loads(job("dataset", "cache", "-o", "json").stdout)
    assert sorted((tree["names"], tree["used_by"]) for tree in shown["trees"]) == [(["a.txt"], [run]), (["b.txt"], [])]
    table = job("dataset", "cache", "--prune").stdout
    assert [line.split()[0] for line in table.splitlines()[:3]] == ["FILES", "b.txt", "a.txt"]
    assert "Freed 6 B: 1 file" in table
    assert [path.read_bytes() for path in objects(job)] == [b"used"]
    (job.run_directory(run) / "work" / "main" / "go").touch()
    assert "used" in job("logs", "-f", run).stdout
    assert "Freed 4 B: 1 file" in job("dataset", "cache", "--prune").stdout
    assert objects(job) == []


def test_past_the_limit_what_was_used_last_stays(job: Tfjob, web: WebServer) -> None:
    job("init")
    job.write(".tfjob/config.yml", f"datasets: {{cache_limit_gib: {1.5 * 2**20 / 2**30}}}\n")
    for name in ("a", "b"):
        url = web.put(name, name.encode() * (1 << 20))
        job("dataset", "create", "--name", name, "--path", url)
        write(job, f"d: {name}")
        job("submit", "job.yml", exit_code=None)
    assert sorted(path.read_bytes()[:1] for path in objects(job)) == [b"b"]


def test_who_writes_through_a_mount_is_told_and_the_cache_is_repaired(job: Tfjob, web: WebServer) -> None:
    url = web.put("a.txt", b"first")
    change = "chmod u+w ${{ dataset.d }}/a.txt; echo changed > ${{ dataset.d }}/a.txt"
    write(job, f"d: {{paths: {url}}}", change)
    job("submit", "job.yml", exit_code=None)
    assert any("was changed while the run went on: a.txt" in note for note in job.show()["notes"])
    write(job, f"d: {{paths: {url}}}")
    assert "first" in job("submit", "job.yml").stdout


def test_many_files_of_this_machine_are_one_link(job: Tfjob) -> None:
    for number in range(300):
        (job.directory / "data" / str(number % 7)).mkdir(parents=True, exist_ok=True)
        (job.directory / "data" / str(number % 7) / f"{number}.txt").write_text(f"{number}\n")
    write(
        job, "d: {paths: data}", "readlink ${{ dataset.d }}; touch ${{ dataset.d }}/added; rm ${{ dataset.d }}/3/10.txt"
    )
    assert job("submit", "job.yml").stdout.splitlines()[0] == f"{job.directory}/data"
    assert any("10.txt is gone" in note for note in job.show()["notes"])
    command = "readlink ${{ dataset.d }}; cat ${{ dataset.d }}/*/*.txt | sort -n | tail -1"
    write(job, "d: {paths: 'data/*/*.txt'}", command)
    done = [job("submit", "job.yml").stdout.splitlines() for _ in range(2)]
    assert done[0] == done[1]
    assert done[0][0].startswith(f"{job.environ['TFJOB_STORE']}/datasets/trees/")
    assert done[0][1] == "299"


def test_a_second_job_with_many_addresses_asks_nobody(job: Tfjob, web: WebServer) -> None:
    urls = [web.put(f"{number}.txt", b"%d\n" % number) for number in range(201)]
    (job.directory / "urls.txt").write_text("\n".join(urls))
    job("dataset", "create", "--name", "many", "--paths-from", "urls.txt")
    write(
        job,
        "d: many",
        "sort -n ${{ dataset.d }}/*.txt | tail -1; chmod u+w ${{ dataset.d }}/7.txt; echo x > ${{ dataset.d }}/7.txt",
    )
    assert "200" in job("submit", "job.yml").stdout
    assert any("7.txt was written to; it was taken out of the cache" in note for note in job.show()["notes"])
    asked = len(web.requests)
    show = "sort -n ${{ dataset.d }}/*.txt | tail -1; cat ${{ dataset.d }}/7.txt"
    write(job, "d: many", show)
    assert "200\n7\n" in job("submit", "job.yml").stdout
    asked = len(web.requests)
    write(job, "d: many", f"{show}; chmod u+w ${{{{ dataset.d }}}}/7.txt; echo x > ${{{{ dataset.d }}}}/7.txt")
    for _ in range(2):  # the first use of what is known, and the first of what was kept of that
        assert "200\n7\n" in job("submit", "job.yml").stdout
        assert any("7.txt was written to; it was taken out of the cache" in note for note in job.show()["notes"])
    assert len(web.requests) == asked + 1
    write(job, "d: many", show)
    assert "200\n7\n" in job("submit", "job.yml").stdout
    assert "200\n7\n" in job("submit", "job.yml").stdout
    assert len(web.requests) == asked + 2
    assert job.show()["datasets"][0]["registered"] == "many@1"


def test_a_supervisor_that_takes_over_starts_nobody_who_fetches(job: Tfjob, web: WebServer) -> None:
    urls = [web.put(f"{number}.txt", b"%d" % number) for number in range(310)]
    (job.directory / "urls.txt").write_text("\n".join(urls))
    job("dataset", "create", "--name", "many", "--paths-from", "urls.txt")
    write(job, "d: many", "sleep 300")
    run = job.submit("job.yml")
    eventually(lambda: job.record(run)["state"] == "Running", "the start")
    killed = job.record(run)["supervisor"]["pid"]
    assert children(killed) == []
    os.kill(killed, 9)
    job("show", run)
    eventually(lambda: "adopted" in str(job.record(run)["notes"]), "another supervisor")
    assert children(job.record(run)["supervisor"]["pid"]) == []
    job("cancel", run)
