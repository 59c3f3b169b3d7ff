"""Object stores and file servers: a real S3-compatible server and a real sshd, both on loopback."""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from docker_parts import program
from support import Tfjob, eventually, free_ports
from web_server import WebServer, web_server

from tfjob.datasets import sftp, stores
from tfjob.datasets.cache import Cache
from tfjob.datasets.fetch import fetch
from tfjob.datasets.sftp import sftp_file_system
from tfjob.datasets.stores import _blocks, list_store
from tfjob.datasets.wanted import Settings, Wanted
from tfjob.datasets.web import Transient
from tfjob.errors import PreparationError

SETTINGS = Settings(tries=2, pause_s=0.01)

pytestmark = pytest.mark.xdist_group("stores")


@pytest.fixture(scope="module")
def s3() -> Iterator[str]:
    """The address of an S3-compatible server."""
    pytest.importorskip("moto.server", reason="moto is missing: pip install 'moto[server]'")
    from moto.server import ThreadedMotoServer  # noqa: PLC0415  # 2 s, and it may be missing

    server = ThreadedMotoServer("127.0.0.1", port=0, verbose=False)
    server.start()
    host, port = server.get_host_and_port()
    yield f"http://{host}:{port}"
    server.stop()


@pytest.fixture
def cloud(tfjob: Tfjob, tmp_path: Path, s3: str) -> Tfjob:
    """The command line with credentials for the server, and an empty bucket."""
    environ = {
        **tfjob.environ,
        "TFJOB_STORE": str(tmp_path / "store"),
        "AWS_ENDPOINT_URL": s3,
        "AWS_ACCESS_KEY_ID": "key",
        "AWS_SECRET_ACCESS_KEY": "hidden",
        "AWS_DEFAULT_REGION": "us-east-1",
    }
    return Tfjob(tfjob.directory, environ)


def put(s3: str, bucket: str, **objects: bytes) -> None:
    import boto3  # noqa: PLC0415  # it comes with moto

    client = boto3.client(
        "s3",
        endpoint_url=s3,
        aws_access_key_id="key",
        aws_secret_access_key=os.urandom(4).hex(),
        region_name="us-east-1",
    )
    client.create_bucket(Bucket=bucket)
    for name, content in objects.items():
        client.put_object(Bucket=bucket, Key=name.replace("__", "/"), Body=content)


def write(job: Tfjob, paths: str, command: str) -> None:
    job.write("job.yml", f"name: reads\ncommand: {command}\ndataset: {{d: {{paths: {paths}}}}}\n")


def test_objects_of_s3_keep_their_tree(cloud: Tfjob, s3: str) -> None:
    big = os.urandom(9 << 20)
    named = {"data__deep__c #1?%20": b"named"}
    put(s3, "one", data__a=b"a", data__deep__b=b"bb", data__deep__big=big, other=b"x", **named)
    cloud.write(
        "job.yml",
        """\
        command: cd ${{ dataset.d }}; find . -type f | sort; sha256sum deep/big; cat deep/c*%20; ls ${{ dataset.e }}
        dataset:
          d: {paths: s3://one/data}
          e: {paths: ["s3://one/data/deep/b*", s3://one/other]}
        """,
    )
    lines = cloud("submit", "job.yml").stdout.splitlines()
    assert lines[:4] == ["./a", "./deep/b", "./deep/big", "./deep/c #1?%20"]
    assert lines[4].split()[0] == hashlib.sha256(big).hexdigest()
    assert lines[5:8] == ["namedb", "big", "other"]
    record, _ = cloud.show()["datasets"]
    assert (record["file_count"], record["size_bytes"]) == (4, 8 + len(big))


def test_an_object_whose_key_leads_out_of_the_dataset_is_refused(cloud: Tfjob, s3: str, tmp_path: Path) -> None:
    put(s3, "outside", **{"a__b__ok.txt": b"ok", "a__b__..__..__victim": b"bad", "odd__a____b": b"x"})
    write(cloud, "s3://outside/a/b", "ls")
    failed = cloud("submit", "job.yml", exit_code=4).stderr
    assert (
        "'s3://outside/a/b/../../victim' can't be a file of a dataset: its name there, '../../victim', has a" in failed
    )
    for path in ("s3://outside/a/b", "s3://outside/a/b/*"):
        failed = cloud("dataset", "create", "--name", "words", "--path", path, exit_code=4).stderr
        assert "can't be a file of a dataset" in failed
    write(cloud, "s3://outside/a/b/ok*", "cat ${{ dataset.d }}/ok.txt")
    assert "ok" in cloud("submit", "job.yml").stdout
    write(cloud, "s3://outside/odd", "ls")
    assert "its name there, 'a//b', has a part that is empty" in cloud("submit", "job.yml", exit_code=4).stderr
    assert not list(tmp_path.rglob("victim"))


@pytest.mark.parametrize("laid", [True, False])
def test_a_listing_that_was_registered_with_such_a_key_is_refused(tfjob: Tfjob, web: WebServer, laid: bool) -> None:
    """As an earlier tfjob did."""
    address = web.put("a.bin", b"content")
    tfjob("init")
    tfjob("dataset", "create", "--name", "words", "--path", address)
    tfjob("dataset", "download", "words", "--to", "out")
    registry = tfjob.directory / ".tfjob" / "datasets"
    if laid:
        tfjob.write("job.yml", "command: ls $TFJOB_DATASET_D\ndataset: {d: words}\n")
        assert "a.bin" in tfjob("submit", "job.yml").stdout
        assert list(registry.glob(".laid/*"))
    for path in (*registry.glob(".listings/*"), *registry.glob(".laid/*")):
        path.write_text(path.read_text().replace('"a.bin"', '"../victim"'))
    failed = tfjob("dataset", "download", "words", "--to", "out", exit_code=4).stderr
    assert f"'{address}' can't be a file of a dataset: its name there, '../victim', has a part" in failed
    assert not list(tfjob.directory.rglob("victim"))


def test_a_registered_dataset_of_s3_does_not_change(cloud: Tfjob, s3: str) -> None:
    put(s3, "two", data__a=b"a", data__b=b"b")
    cloud("dataset", "create", "--name", "words", "--path", "s3://two/data")
    cloud.write("job.yml", "command: cat $TFJOB_DATASET_D/*\ndataset: {d: words}\n")
    assert "ab" in cloud("submit", "job.yml").stdout
    put(s3, "two", data__b=b"c")
    put(s3, "two", data__c=b"c")
    failed = cloud("submit", "job.yml", exit_code=4).stderr
    assert "words@1 has changed since it was registered: b was written to, c is new" in failed
    assert "words@2" in cloud("dataset", "create", "--name", "words", "--refresh").stdout


@pytest.fixture
def bucket(s3: str, monkeypatch: pytest.MonkeyPatch) -> str:
    """The server, for what is fetched in this process."""
    for name, value in (("ENDPOINT_URL", s3), ("ACCESS_KEY_ID", "key"), ("SECRET_ACCESS_KEY", "hidden")):
        monkeypatch.setenv(f"AWS_{name}", value)
    monkeypatch.setenv("AWS_DEFAULT_REGION", "us-east-1")
    return s3


@pytest.mark.parametrize("size", [4, 9 << 20])
@pytest.mark.parametrize("of", ["words@1", "dataset d"])
def test_an_object_that_was_replaced_since_it_was_listed_is_refused(
    bucket: str, cache: Cache, size: int, of: str
) -> None:
    name = f"replaced{size}{len(of)}"
    put(bucket, name, a=b"o" * size)
    (listed,) = list_store(f"s3://{name}/a")
    put(bucket, name, a=b"n" * size)
    since = "words@1 was registered" if "@" in of else "it was looked at for dataset d"
    refused(cache, Wanted(listed.source, size, listed.mark, of), f"has changed since {since}: its server called it")
    put(bucket, name, a=b"longer" * size)
    refused(
        cache, Wanted(listed.source, size, listed.mark, of), f"has changed since {since}: it had {size} bytes and has"
    )
    put(bucket, name, a=b"o" * size)
    with cache.filling():
        known = fetch([Wanted(listed.source, size, listed.mark, of)], cache, SETTINGS, lambda _: None).known
    assert known[listed.source].sha256 == hashlib.sha256(b"o" * size).hexdigest()


def test_an_object_that_is_replaced_while_it_comes_is_refused(
    bucket: str, cache: Cache, monkeypatch: pytest.MonkeyPatch
) -> None:
    put(bucket, "meanwhile", a=b"o" * (20 << 20))
    (listed,) = list_store("s3://meanwhile/a")

    def blocks(files: Any, path: str, start: int, wanted: Wanted) -> Iterator[bytes]:
        came = _blocks(files, path, start, wanted)
        yield next(came)
        put(bucket, "meanwhile", a=b"n" * (20 << 20))
        yield from came

    monkeypatch.setattr(stores, "_blocks", blocks)
    wanted = Wanted(listed.source, listed.size, listed.mark, "words@1")
    refused(cache, wanted, "has changed since words@1 was registered: its server called it")


def test_what_came_of_an_object_is_not_gone_on_from_with_another(bucket: str, cache: Cache) -> None:
    size = 20 << 20
    put(bucket, "broken", a=b"o" * size)
    (listed,) = list_store("s3://broken/a")
    wanted = Wanted(listed.source, size, listed.mark, "words@1")
    part = Path(cache.partial(listed.source))

    def leave_part() -> None:
        part.write_bytes(b"o" * (9 << 20))
        part.with_name(f"{part.name}.json").write_text(json.dumps({"source": listed.source, "tag": listed.mark[4:]}))

    with cache.filling():
        leave_part()
        found = fetch([wanted], cache, SETTINGS, lambda _: None)
        assert found.known[listed.source].sha256 == hashlib.sha256(b"o" * size).hexdigest()
        assert found.received_bytes == 11 << 20
        shutil.rmtree(cache.root / "objects")
        (cache.root / "objects").mkdir()
        leave_part()
    put(bucket, "broken", a=b"n" * size)
    refused(cache, wanted, "has changed since words@1 was registered: its server called it")
    assert not part.exists() or not part.stat().st_size


def test_small_objects_cost_two_requests_each(bucket: str, cache: Cache, caplog: pytest.LogCaptureFixture) -> None:
    put(bucket, "small", a=b"a", b=b"", c=b"ccc")
    listed = list_store("s3://small")
    caplog.clear()
    with cache.filling(), caplog.at_level("INFO", "werkzeug"):
        fetch([Wanted(one.source, one.size, one.mark, "d@1") for one in listed], cache, SETTINGS, lambda _: None)
    asked = [line.message.partition('"')[2].split()[0] for line in caplog.records if line.name == "werkzeug"]
    assert sorted(asked) == ["GET"] * 3 + ["HEAD"] * 3


def refused(cache: Cache, wanted: Wanted, why: str) -> None:
    """It can't be fetched, the first try says why, and nothing of it is kept."""
    with cache.filling(), pytest.raises(PreparationError) as caught:
        fetch([wanted], cache, SETTINGS, lambda _: None)
    assert why in caught.value.message
    assert (
        not cache.index.known([wanted.source])
        or cache.index.known([wanted.source])[wanted.source].tag == wanted.mark[4:]
    )
    assert not [path for path in (cache.root / "objects").rglob("*") if path.is_file()]


def test_what_a_store_can_not_give_is_told(cloud: Tfjob, s3: str) -> None:
    put(s3, "three", a=b"a")
    write(cloud, "s3://three/nothing", "ls")
    assert "there is no file s3://three/nothing" in cloud("submit", "job.yml", exit_code=4).stderr
    cloud.environ["AWS_ENDPOINT_URL"] = "http://127.0.0.1:9"
    cloud.environ["AWS_MAX_ATTEMPTS"] = "1"
    write(cloud, "s3://three/a", "ls")
    assert "s3://three/a can't be read: the store can't be reached" in cloud("submit", "job.yml", exit_code=4).stderr


def test_a_missing_package_is_named_with_what_to_install(tfjob: Tfjob, tmp_path: Path) -> None:
    (tmp_path / "without" / "gcsfs").mkdir(parents=True)
    (tmp_path / "without" / "gcsfs" / "__init__.py").write_text("raise ImportError('no gcsfs here')\n")
    job = Tfjob(tfjob.directory, {**tfjob.environ, "PYTHONPATH": str(tmp_path / "without")})
    write(job, "gs://bucket/a", "ls")
    failed = job("submit", "job.yml", exit_code=4).stderr
    assert "gs:// needs gcsfs, which tfjob's Python does not have" in failed
    assert "pip install 'tfjob[gs]'" in failed


@pytest.fixture(scope="module")
def sshd(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Path, int]]:
    """A home directory whose ~/.ssh knows the host `box`, an sshd on loopback, and its port."""
    sshd = program("sshd", "openssh-server")
    if os.geteuid():
        pytest.skip("needs root: sshd lets others in only as themselves")
    pytest.importorskip("paramiko", reason="paramiko is missing: pip install paramiko")
    home = tmp_path_factory.mktemp("home")
    ssh = home / ".ssh"
    ssh.mkdir(mode=0o700)
    for name in ("host", "id_ed25519"):
        subprocess.run(["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", ssh / name], check=True)
    shutil.copy(ssh / "id_ed25519.pub", ssh / "authorized_keys")
    [port] = free_ports(1)
    (home / "sshd_config").write_text(
        f"ListenAddress 127.0.0.1\nPort {port}\nHostKey {ssh}/host\nAuthorizedKeysFile {ssh}/authorized_keys\n"
        f"StrictModes no\nPermitRootLogin prohibit-password\nUsePAM no\nPidFile {home}/sshd.pid\nSubsystem sftp internal-sftp\n"
    )
    Path("/run/sshd").mkdir(exist_ok=True)
    as_others = ["setpriv", "--bounding-set", "-dac_override,-dac_read_search"]  # whom modes of files keep out
    process = subprocess.Popen(
        [*as_others, sshd, "-D", "-e", "-f", home / "sshd_config"],
        stderr=(home / "sshd.log").open("wb"),
        stdin=subprocess.DEVNULL,
    )
    try:
        eventually(lambda: process.poll() is None and _listens(port), "sshd listens")
        yield home, port
    finally:
        process.terminate()
        process.wait(60)


@pytest.fixture
def box(tfjob: Tfjob, tmp_path: Path, sshd: tuple[Path, int]) -> Tfjob:
    home, port = sshd
    key = (home / ".ssh" / "host.pub").read_text().split()
    (home / ".ssh" / "known_hosts").write_text(f"[127.0.0.1]:{port} {key[0]} {key[1]}\n")
    (home / ".ssh" / "config").write_text(
        f"Host box\n  HostName 127.0.0.1\n  Port {port}\n  User root\n  IdentityFile {home}/.ssh/id_ed25519\n"
    )
    return Tfjob(
        tfjob.directory,
        {**tfjob.environ, "TFJOB_STORE": str(tmp_path / "store"), "HOME": str(home), "SSH_AUTH_SOCK": ""},
    )


def test_files_of_a_server_come_by_sftp(box: Tfjob, tmp_path: Path) -> None:
    (tmp_path / "there" / "deep").mkdir(parents=True)
    (tmp_path / "there" / "a").write_text("a")
    big = os.urandom(9 << 20)
    (tmp_path / "there" / "deep" / "b").write_bytes(big)
    (tmp_path / "there" / "deep" / "c #1?%20").write_text("named")
    write(box, f"sftp://box{tmp_path}/there", "(cd ${{ dataset.d }}; cat deep/c*%20 a; sha256sum deep/b)")
    assert f"nameda{hashlib.sha256(big).hexdigest()}" in box("submit", "job.yml").stdout
    (tmp_path / "there" / "a").write_text("changed")
    there = f"sftp://box{tmp_path}/there"
    write(box, f"['{there}/?', '{there}/deep/b']", "(cd ${{ dataset.d }}; cat a; sha256sum b)")
    assert f"changed{hashlib.sha256(big).hexdigest()}" in box("submit", "job.yml").stdout


def test_what_is_no_ssh_server_is_told_without_a_traceback(box: Tfjob) -> None:
    with web_server() as web:
        place = web.address.removeprefix("http://")
        write(box, f"sftp://{place}/a", "ls")
        failed = box("submit", "job.yml", exit_code=4).stderr
    assert failed.splitlines()[0].startswith("tfjob: the host 127.0.0.1 can't be reached by ssh: ")


def test_a_file_of_a_server_whose_name_is_none_for_a_dataset_is_refused(
    box: Tfjob, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HOME", box.environ["HOME"])
    monkeypatch.setenv("SSH_AUTH_SOCK", "")
    (tmp_path / "there" / "deep").mkdir(parents=True)
    (tmp_path / "there" / "deep" / "a").write_text("a")
    for path in ("there", "there/", "there//", "/there", "there/deep/..", "there/./", "there/*"):
        assert [one.name for one in list_store(f"sftp://box{tmp_path}/{path}")] == ["deep/a"]
    (tmp_path / "there" / "deep" / "two\nlines").write_text("b")
    write(box, f"sftp://box{tmp_path}/there", "ls")
    failed = box("submit", "job.yml", exit_code=4).stderr
    assert "its name there, 'deep/two\\nlines', has a control character" in failed


def test_a_link_on_a_server_is_the_file_that_it_leads_to(box: Tfjob, tmp_path: Path) -> None:
    (tmp_path / "there" / "deep").mkdir(parents=True)
    (tmp_path / "far").write_text("what a link leads to")
    (tmp_path / "there" / "deep" / "link").symlink_to("../../far")
    for path in ("there", "there/*", "there/deep/l*"):
        write(box, f"sftp://box{tmp_path}/{path}", "find ${{ dataset.d }}/ -name link -exec cat {} +")
        assert "what a link leads to" in box("submit", "job.yml").stdout
    (tmp_path / "there" / "up").symlink_to("..")
    write(box, f"sftp://box{tmp_path}/there", "ls")
    assert f"'{tmp_path}/there/up' is a link to a directory" in box("submit", "job.yml", exit_code=4).stderr
    (tmp_path / "there" / "up").unlink()
    (tmp_path / "there" / "up").symlink_to("gone")
    assert f"'{tmp_path}/there/up' is a link to nothing" in box("submit", "job.yml", exit_code=4).stderr


def test_a_file_of_a_server_that_was_written_to_since_it_was_listed_is_refused(
    box: Tfjob, tmp_path: Path, cache: Cache, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HOME", box.environ["HOME"])
    monkeypatch.setenv("SSH_AUTH_SOCK", "")
    (tmp_path / "a").write_text("a")
    (listed,) = list_store(f"sftp://box{tmp_path}/a")
    (tmp_path / "a").write_text("b")
    os.utime(tmp_path / "a", (1, 1))
    refused(cache, Wanted(listed.source, 1, listed.mark, "words@1"), "has changed since words@1 was registered")


def test_a_lost_connection_to_a_server_is_made_again(
    box: Tfjob, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HOME", box.environ["HOME"])
    monkeypatch.setenv("SSH_AUTH_SOCK", "")
    (tmp_path / "a").write_text("a")
    address = f"sftp://box{tmp_path}/a"
    files, path = sftp_file_system(address)
    files.client.get_transport().sock.close()
    eventually(lambda: not files.client.get_transport().is_active(), "the loss is noticed")
    files, path = sftp_file_system(address)
    assert files.cat_file(path) == b"a"


def test_a_server_that_freezes_is_given_up_and_connected_to_again(
    box: Tfjob, tmp_path: Path, sshd: tuple[Path, int], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HOME", box.environ["HOME"])
    monkeypatch.setenv("SSH_AUTH_SOCK", "")
    (tmp_path / "a").write_bytes(content := os.urandom(24 << 20))
    address = f"sftp://box{tmp_path}/a"
    monkeypatch.setattr(sftp, "TIMEOUT_S", 20.0)  # for what is to succeed
    sftp_file_system(address)[0].client.close()  # an earlier test's
    files, path = sftp_file_system(address)
    wanted = Wanted(address, len(content), "", "d")
    blocks = _blocks(files, path, 0, wanted)
    frozen = _below(int((sshd[0] / "sshd.pid").read_text()))
    assert frozen
    assert next(blocks) == content[: 8 << 20]
    try:
        for pid in frozen:
            with contextlib.suppress(ProcessLookupError):  # of the connection that was closed
                os.kill(pid, signal.SIGSTOP)
        files.ftp.get_channel().settimeout(0.5)
        with pytest.raises(Transient, match="the host box has said nothing for 20 s"):
            list(blocks)
        assert not files.client.get_transport()
        files, path = sftp_file_system(address)
        assert b"".join(_blocks(files, path, 0, wanted)) == content
    finally:
        for pid in frozen:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)


def test_a_server_that_can_not_be_reached_just_now_is_tried_again(
    box: Tfjob, cache: Cache, sshd: tuple[Path, int], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HOME", box.environ["HOME"])
    monkeypatch.setenv("SSH_AUTH_SOCK", "")
    with socket.socket() as silent:  # nobody listens there
        silent.bind(("127.0.0.1", 0))
        wanted = Wanted(f"sftp://127.0.0.1:{silent.getsockname()[1]}/a", 1, "", "d")
        with cache.filling(), pytest.raises(PreparationError, match=r"reached by ssh: .* \(tried 2 times\)"):
            fetch([wanted], cache, Settings(tries=2, pause_s=0.01), lambda _: None)
    wanted = Wanted(f"sftp://localhost:{sshd[1]}/a", 1, "", "d")  # whose key stands there as 127.0.0.1's
    with cache.filling(), pytest.raises(PreparationError, match=r"its key is not in ~/\.ssh/known_hosts$"):
        fetch([wanted], cache, Settings(tries=2, pause_s=0.01), lambda _: None)


def test_a_directory_that_can_not_be_listed_is_told(box: Tfjob, tmp_path: Path) -> None:
    (tmp_path / "there" / "deep").mkdir(parents=True)
    (tmp_path / "there" / "a").write_text("a")
    (tmp_path / "there" / "deep").chmod(0)
    write(box, f"sftp://box{tmp_path}/there", "ls")
    assert f"the store does not give sftp://box{tmp_path}/there to us: " in box("submit", "job.yml", exit_code=4).stderr


def test_a_server_whose_key_is_not_known_is_refused(box: Tfjob, tmp_path: Path, sshd: tuple[Path, int]) -> None:
    write(box, f"sftp://box{tmp_path}/a", "ls")
    known = sshd[0] / ".ssh" / "known_hosts"
    other = (sshd[0] / ".ssh" / "id_ed25519.pub").read_text().split()
    known.write_text(known.read_text().rpartition(" ")[0] + f" {other[1]}\n")
    assert "the host box shows another key than the one" in box("submit", "job.yml", exit_code=4).stderr
    known.write_text("")
    failed = box("submit", "job.yml", exit_code=4).stderr
    assert "the host box can't be reached by ssh" in failed
    assert "Log in once and look at it: ssh box" in failed


def test_heavy_libraries_are_loaded_only_for_what_needs_them(tfjob: Tfjob) -> None:
    code = (
        "import sys, tfjob.submission, tfjob.runs.supervisor; print({'fsspec', 'paramiko', 'ssl'} & set(sys.modules))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=tfjob.directory)
    assert "fsspec" not in done.stdout
    assert "paramiko" not in done.stdout


def _below(pid: int) -> list[int]:
    """The processes that this one has started, and those that they have."""
    try:
        children = [int(one) for one in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]
    except (FileNotFoundError, ProcessLookupError):  # of a connection that was closed
        return []
    return [*children, *(one for child in children for one in _below(child))]


def _listens(port: int) -> bool:
    with socket.socket() as client:
        return client.connect_ex(("127.0.0.1", port)) == 0


def test_a_server_is_not_pressed_by_many_connections_at_once(
    box: Tfjob, sshd: tuple[Path, int], tmp_path: Path
) -> None:
    """Its default is to drop some of those that come when ten are not let in yet."""
    (there := tmp_path / "there").mkdir()
    for number in range(60):
        (there / f"{number}").write_bytes(b"x" * number)
    box("init")
    (box.directory / ".tfjob" / "config.yml").write_text("datasets: {connections: 40}\n")
    write(box, f"sftp://box{there}", "ls ${{ dataset.d }} | wc -l")
    assert "60" in box("submit", "job.yml").stdout
    assert "drop connection" not in (sshd[0] / "sshd.log").read_text()
