"""HDFS: a real NameNode and DataNode, on loopback."""

from __future__ import annotations

import hashlib
import os
import signal
import socket
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from hdfs_parts import Hdfs, hdfs
from support import Tfjob

from tfjob.datasets import hdfs as our_hdfs
from tfjob.datasets.stores import _blocks, list_store
from tfjob.datasets.wanted import Wanted
from tfjob.errors import PreparationError

pytestmark = pytest.mark.xdist_group("stores")

BIG = os.urandom(9 << 20)  # more than one block of ours


@pytest.fixture(scope="module")
def lab(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Hdfs]:
    with hdfs(tmp_path_factory.mktemp("hdfs")) as lab:
        yield lab


@pytest.fixture
def job(tfjob: Tfjob, tmp_path: Path) -> Tfjob:
    return Tfjob(tfjob.directory, {**tfjob.environ, "TFJOB_STORE": str(tmp_path / "store")})


def write(job: Tfjob, address: str, command: str = "ls $TFJOB_DATASET_D") -> None:
    job.write("job.yml", f"command: {command}\ndataset: {{d: {{paths: ['{address}']}}}}\n")


def test_files_of_hdfs_keep_their_tree(job: Tfjob, lab: Hdfs) -> None:
    lab.put(
        {"/tree/a": b"a", "/tree/deep/b": b"bb", "/tree/deep/big": BIG, "/tree/deep/b #1?%": b"named", "/other": b"x"}
    )
    job.write(
        "job.yml",
        f"""\
        command: cd ${{{{ dataset.d }}}}; find . -type f | sort; sha256sum deep/big; cat deep/b*%; ls ${{{{ dataset.e }}}}
        dataset:
          d: {{paths: "hdfs://{lab.place}/tree", mode: download}}
          e: {{paths: ["hdfs://lab/tree/deep/bi*", "hdfs:///other"]}}
        """,
    )
    job.environ["HADOOP_CONF_DIR"] = str(lab.configuration)
    lines = job("submit", "job.yml").stdout.splitlines()
    assert lines[:4] == ["./a", "./deep/b", "./deep/b #1?%", "./deep/big"]
    assert lines[4].split()[0] == hashlib.sha256(BIG).hexdigest()
    assert lines[5:7] == ["namedbig", "other"]
    record, _ = job.show()["datasets"]
    assert (record["file_count"], record["size_bytes"]) == (4, 8 + len(BIG))


def test_a_registered_dataset_of_hdfs_does_not_change(job: Tfjob, lab: Hdfs, tmp_path: Path) -> None:
    lab.put({"/words/a": b"a", "/words/b": b"b"})
    job("dataset", "create", "--name", "words", "--path", f"hdfs://{lab.place}/words")
    listed = job("dataset", "files", "words").stdout
    assert f"hdfs://{lab.place}/words/b" in listed
    job("dataset", "download", "words", "--to", str(tmp_path / "here"))
    assert (tmp_path / "here" / "b").read_text() == "b"
    lab.put({"/words/b": b"c", "/words/c": b"c"})
    job.write("job.yml", "command: cat $TFJOB_DATASET_D/*\ndataset: {d: words}\n")
    failed = job("submit", "job.yml", exit_code=4).stderr
    assert "words@1 has changed since it was registered: b was written to, c is new" in failed
    assert "words@2" in job("dataset", "create", "--name", "words", "--refresh").stdout
    assert "acc" in job("submit", "job.yml").stdout


def test_what_hdfs_can_not_give_is_told(job: Tfjob, lab: Hdfs) -> None:
    lab.put({"/some/a": b"a", "/some/closed/b": b"b"})
    lab.client.set_permission("/some/closed", 0o700)
    job.environ["HADOOP_USER_NAME"] = "somebody"
    write(job, f"hdfs://{lab.place}/some/nothing")
    assert f"there is no file hdfs://{lab.place}/some/nothing" in job("submit", "job.yml", exit_code=4).stderr
    write(job, f"hdfs://{lab.place}/some")  # of which a part can be listed
    failed = job("submit", "job.yml", exit_code=4).stderr
    assert f"the store does not give hdfs://{lab.place}/some to us: Permission denied: user=somebody" in failed
    write(job, "hdfs://nobody/a")
    failed = job("submit", "job.yml", exit_code=4).stderr
    assert "no file of Hadoop's says where the name service nobody is" in failed
    assert "hdfs://nobody:8020/PATH" in failed


def test_a_file_that_is_denied_is_told_when_it_is_fetched(job: Tfjob, lab: Hdfs) -> None:
    lab.put({"/listed/a": b"a"})
    lab.client.set_permission("/listed/a", 0o600)
    job.environ["HADOOP_USER_NAME"] = "somebody"
    write(job, f"hdfs://{lab.place}/listed")
    failed = job("submit", "job.yml", exit_code=4).stderr
    assert f"the store does not give hdfs://{lab.place}/listed/a to us: Permission denied: user=somebody" in failed


def test_a_server_that_is_not_there_or_hangs_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("hdfs_native", reason="hdfs-native is missing: pip install hdfs-native")
    monkeypatch.setitem(our_hdfs._SETTINGS, "dfs.client.failover.max.attempts", "1")
    with socket.socket() as other:
        other.bind(("127.0.0.1", 0))
        place = f"127.0.0.1:{other.getsockname()[1]}"
        with pytest.raises(PreparationError, match=f"hdfs://{place}/a can't be read: Connection refused"):
            list_store(f"hdfs://{place}/a")
        other.listen()
        monkeypatch.setattr(our_hdfs, "TIMEOUT_S", 0.2)
        with pytest.raises(PreparationError, match=f"hdfs://{place}/a can't be read: the NameNode has said nothing"):
            list_store(f"hdfs://{place}/a")


def test_who_waits_for_a_server_can_interrupt(job: Tfjob) -> None:
    pytest.importorskip("hdfs_native", reason="hdfs-native is missing: pip install hdfs-native")
    with socket.create_server(("127.0.0.1", 0)) as silent:
        silent.settimeout(60)
        write(job, f"hdfs://127.0.0.1:{silent.getsockname()[1]}/a")
        waiting = job.start("plan", "job.yml")
        with silent.accept()[0]:
            waiting.send_signal(signal.SIGINT)
            assert "interrupted" in waiting.communicate(timeout=60)[1]
    assert waiting.returncode == 130


def test_a_file_of_hdfs_is_gone_on_with(lab: Hdfs) -> None:
    lab.put({"/big": BIG})
    address = f"hdfs://{lab.place}/big"
    wanted = Wanted(address, len(BIG), "", "")
    files, path = our_hdfs.hdfs_file_system(address)
    start = (4 << 20) + 1
    assert b"".join(_blocks(files, path, start, wanted)) == BIG[start:]


def test_a_missing_client_is_named_with_what_to_install(tfjob: Tfjob, tmp_path: Path) -> None:
    (tmp_path / "without").mkdir()
    (tmp_path / "without" / "hdfs_native.py").write_text("raise ImportError('no hdfs_native here')\n")
    job = Tfjob(tfjob.directory, {**tfjob.environ, "PYTHONPATH": str(tmp_path / "without")})
    write(job, "hdfs://host:8020/a")
    failed = job("submit", "job.yml", exit_code=4).stderr
    assert "hdfs:// needs fsspec and hdfs-native, which tfjob's Python does not have" in failed
    assert "pip install 'tfjob[hdfs]'" in failed


def test_each_part_of_a_long_listing_is_waited_for_anew(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(our_hdfs, "TIMEOUT_S", 5.0)
    monkeypatch.setattr(our_hdfs, "_AT_ONCE", 2)
    hangs = threading.Event()

    def listing(ends: bool) -> Iterator[int]:
        for number in range(11):
            if ends and number % 2 == 0:
                time.sleep(0.9)  # six of them are longer than one wait
            yield number
        if not ends:
            hangs.wait(60)

    assert list(our_hdfs._answers(lambda: listing(ends=True))) == list(range(11))
    came: list[int] = []
    with pytest.raises(TimeoutError, match="the NameNode has said nothing for 5 s"):
        came.extend(our_hdfs._answers(lambda: listing(ends=False)))
    hangs.set()
    assert came == list(range(10))
