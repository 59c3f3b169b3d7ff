"""What can go wrong with channels and conda packages: a clear error, nothing half-made left."""

from __future__ import annotations

import asyncio
import base64
import contextlib
import functools
import hashlib
import http.server
import json
import os
import random
import shutil
import signal
import socket
import subprocess
import sys
import threading
from pathlib import Path
from typing import TYPE_CHECKING, Any

import conda_channel
import pytest

from tfjob.environments import Definition, Prefix, conda
from tfjob.environments.conda_downloads import Downloads
from tfjob.environments.place import Machine
from tfjob.errors import ExitCode, Interrupted, PreparationError, UsageError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from environment_parts import Made, Packages

    MakesOn = Callable[[Path], Made]
    Mounts = Callable[[str], Path]

pytestmark = pytest.mark.real
pytest_plugins = ("environment_parts",)

CHILD = """
import sys
from pathlib import Path
from tfjob.environments import Definition, Store
from tfjob.environments.place import Machine
asked = Definition(packages=(sys.argv[2],), channels=(sys.argv[3],))
Store(Path(sys.argv[1])).prepare(asked, Machine(), log=lambda line: None, progress=lambda step: None)
"""


class Site(http.server.SimpleHTTPRequestHandler):
    """A channel on a web server: wants `login` if there is one, and stops in the middle of the file `stuck`."""

    login = ""
    stuck = ""
    reached = threading.Event()
    over = threading.Event()

    def do_GET(self) -> None:
        wanted = "Basic " + base64.b64encode(self.login.encode()).decode()
        if self.login and self.headers.get("Authorization") != wanted:
            self.send_response(401)
            self.send_header("WWW-Authenticate", 'Basic realm="channel"')
            self.end_headers()
        elif self.stuck and self.stuck in self.path:
            data = Path(self.translate_path(self.path)).read_bytes()
            self.send_response(200)
            self.send_header("Content-Length", str(len(data)))
            self.end_headers()
            self.wfile.write(data[: len(data) // 2])
            self.reached.set()
            self.over.wait(60)
        else:
            super().do_GET()

    def log_message(self, format: str, *args: Any) -> None:  # noqa: A002 (the name in the base class)
        """Say nothing."""


@contextlib.contextmanager
def served(folder: Path, login: str = "", stuck: str = "") -> Iterator[tuple[str, type[Site]]]:
    """Serve a folder by HTTP on this machine: its address, without the login, and the handler."""

    class OneSite(Site):
        reached, over = threading.Event(), threading.Event()

    site = OneSite
    site.login, site.stuck = login, stuck
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), functools.partial(site, directory=str(folder)))
    server.daemon_threads = True
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        yield f"127.0.0.1:{server.server_address[1]}", site
    finally:
        site.over.set()
        server.shutdown()
        server.server_close()


@pytest.fixture(scope="module")
def channel() -> Path:
    return conda_channel.channel()


@pytest.fixture
def own(tmp_path: Path, channel: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A channel of the test's own with the Python of the shared one in it; one try is enough."""
    monkeypatch.setenv("CONDA_REMOTE_MAX_RETRIES", "1")
    folder = tmp_path / "channel"
    (folder / conda_channel.SUBDIR).mkdir(parents=True)
    for python in (channel / conda_channel.SUBDIR).glob("python-*"):
        os.link(python, folder / conda_channel.SUBDIR / python.name)
    return folder


def prepare(made: Made, *packages: str, channels: tuple[str, ...], pip: tuple[str, ...] = ()) -> Prefix:
    asked = Definition(packages=packages, channels=channels, requirements=pip)
    return made.store.prepare(asked, Machine(), log=made.log.append, progress=made.steps.append)


def failure(made: Made, *packages: str, channels: tuple[str, ...]) -> PreparationError:
    with pytest.raises(PreparationError) as caught:
        prepare(made, *packages, channels=channels)
    assert made.names("prefixes") == []
    assert made.names("building") == []
    assert caught.value.hint
    assert caught.value.exit_code == ExitCode.PREPARATION_FAILED
    return caught.value


def test_a_solve_that_cannot_work_says_who_asks_for_what(made: Made, channel: Path) -> None:
    error = failure(made, "greet=2", "old-greeter", channels=(channel.as_uri(),))
    assert error.message.startswith("the environment's conda packages could not be chosen for this machine.")
    assert "old-greeter" in error.message
    assert "greet <2" in error.message
    assert "Asked for: greet=2, old-greeter, python" in error.message
    assert f"Channels asked:\n    {channel.as_uri()}" in error.message
    assert error.hint == "`greet=2` is asked for too, and no greet is both: loosen one of them."


def test_a_package_that_is_not_there(made: Made, channel: Path) -> None:
    error = failure(made, "nosuch", channels=(channel.as_uri(),))
    assert "No candidates were found for nosuch" in error.message
    assert "name and version of nosuch" in error.hint


def test_a_build_that_wants_a_gpus_driver(made: Made, channel: Path) -> None:
    if "__cuda" in Machine().virtual_packages:
        pytest.skip("this machine has an NVIDIA driver")
    error = failure(made, "where * cuda*", channels=(channel.as_uri(),))
    assert "__cuda >=11.2" in error.message
    assert "`base: gpu`" in error.hint


def test_what_is_no_match_specification(made: Made, channel: Path) -> None:
    error = failure(made, "greet[version='2", channels=(channel.as_uri(),))
    assert "`greet[version='2` under `dependencies:` is not a conda package" in error.message


def test_a_path_too_long_for_programs(made_on: MakesOn, channel: Path, tmp_path: Path) -> None:
    made = made_on(tmp_path / ("long" * 30) / ("er" * 60))
    error = failure(made, "where", channels=(channel.as_uri(),))
    assert "bin/where" in error.message
    assert "put the store where its path is shorter" in error.hint


def test_a_folder_that_is_no_channel(made: Made, tmp_path: Path) -> None:
    error = failure(made, "greet", channels=((tmp_path / "none").as_uri(),))
    assert str(tmp_path / "none") in error.message
    assert "`repodata.json`" in error.hint
    with served(tmp_path) as (host, _):
        error = failure(made, "greet", channels=(f"http://{host}/none",))
    assert "`repodata.json`" in error.hint


def test_a_channel_that_does_not_answer(made: Made, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CONDA_REMOTE_MAX_RETRIES", "1")
    with socket.socket() as silent:
        silent.bind(("127.0.0.1", 0))
        port = silent.getsockname()[1]
        error = failure(made, "greet", channels=(f"http://127.0.0.1:{port}/main",))
        assert f"127.0.0.1:{port}" in error.message
        assert "Connection refused" in error.message
        monkeypatch.setenv("CONDA_REMOTE_READ_TIMEOUT_SECS", "1")
        silent.listen(8)
        error = failure(made, "greet", channels=(f"http://127.0.0.1:{port}/main",))
        assert "timed out" in error.message
        assert "Given up after" in error.message
        assert "CONDA_REMOTE_READ_TIMEOUT_SECS" in error.hint


def test_a_login_is_used_and_kept_nowhere(made: Made, packages: Packages, own: Path) -> None:
    conda_channel.package(own, "data", files={"share/data": "x"}, noarch="generic")
    conda_channel.index(own)
    packages.wheel("alpha")
    with served(own, login="someone:s3cret") as (host, _):
        error = failure(made, "data", channels=(f"http://someone:wr0ng@{host}",))
        assert "401" in error.message
        assert "wr0ng" not in error.message
        prefix = prepare(made, "data", channels=(f"http://someone:s3cret@{host}",), pip=("alpha",))
    assert host in prefix.lock.read_text()
    written = [path for folder in (prefix.path, made.store.root / "locks") for path in folder.rglob("*")]
    written += [*(made.store.root / "known").iterdir()]
    assert not [path for path in written if path.is_file() and b"s3cret" in path.read_bytes()]
    assert "s3cret" not in "".join(made.log + made.steps)


@pytest.mark.parametrize("by_network", [False, True])
def test_a_file_that_is_not_the_locked_one(made: Made, own: Path, by_network: bool) -> None:
    conda_channel.package(own, "data", files={"share/data": "x"}, noarch="generic")
    conda_channel.index(own)
    with served(own) as (host, _):
        asked = Definition(packages=("data",), channels=(f"http://{host}" if by_network else own.as_uri(),))
        lock = made.store.solve(asked, Machine(), log=made.log.append, progress=made.steps.append)
        conda_channel.package(own, "data", files={"share/data": "tampered"}, noarch="generic")
        with pytest.raises(PreparationError) as caught:
            made.store.prepare(asked, Machine(), lock=lock.text, log=made.log.append, progress=made.steps.append)
        assert "hash mismatch" in caught.value.message
        assert "data-1.0-0.conda" in caught.value.message
        assert "not the one that was locked" in caught.value.hint
        (own / "noarch" / "data-1.0-0.conda").unlink()
        with pytest.raises(PreparationError) as caught:
            made.store.prepare(asked, Machine(), lock=lock.text, log=made.log.append, progress=made.steps.append)
        assert "data-1.0-0.conda" in caught.value.message
        assert "Lock anew" in caught.value.hint
    assert made.names("prefixes") == made.names("building") == []


def noisy(own: Path, seed: int = 0) -> bytes:
    """Put a package into the channel whose file takes a while to come; return what is in it."""
    noise = random.Random(seed).randbytes(2_000_000)  # noqa: S311 (data that does not compress, no secret)
    conda_channel.package(own, "data", files={"share/data": noise}, noarch="generic")
    conda_channel.index(own)
    return noise


def test_a_download_that_stalls_is_given_up(made: Made, own: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    noise = noisy(own)
    with served(own, stuck="data-1.0") as (host, site):
        asked = Definition(packages=("data",), channels=(f"http://{host}",))
        lock = made.store.solve(asked, Machine(), log=made.log.append, progress=made.steps.append)
        monkeypatch.setenv("CONDA_REMOTE_READ_TIMEOUT_SECS", "1")  # for the download alone
        with pytest.raises(PreparationError) as caught:
            made.store.prepare(asked, Machine(), lock=lock.text, log=made.log.append, progress=made.steps.append)
        error = caught.value
        assert made.names("prefixes") == made.names("building") == []
        assert "the download stalled: given up after" in error.message
        assert "2 tries" in error.message
        assert "CONDA_REMOTE_READ_TIMEOUT_SECS" in error.hint
        monkeypatch.delenv("CONDA_REMOTE_READ_TIMEOUT_SECS")  # what is to come may take its time
        site.stuck = ""
        prefix = prepare(made, "data", channels=(f"http://{host}",))
    assert (prefix.path / "share" / "data").read_bytes() == noise
    assert not [name for name in made.names("conda/packages") if name.startswith(".data")]


def test_progress_of_downloads_is_told_now_and_then(monkeypatch: pytest.MonkeyPatch) -> None:
    told: list[str] = []
    downloads = Downloads({"data": 30_000_000}, told.append)
    entry = downloads.on_download_start(downloads.on_populate_cache_start(0, "data"))
    downloads.on_download_progress(entry, 12_000_000, None)
    downloads.tell()
    assert told == []
    monkeypatch.setattr("tfjob.environments.conda_downloads._TOLD_EACH_S", 0)
    downloads.tell()
    assert told == ["downloading conda packages: 12 of 30 MB"]
    assert downloads.stalled_s() >= 0
    downloads.on_download_completed(entry)
    assert downloads.stalled_s() == 0


def test_a_download_that_is_ended_does_not_leave_the_old_file_under_the_new_hash(
    made: Made, own: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    noisy(own)
    with served(own) as (host, site):
        prepare(made, "data", channels=(f"http://{host}",))
        noise = noisy(own, seed=1)
        shutil.rmtree(made.store.root / "conda" / "repodata")
        asked = Definition(packages=("data",), channels=(f"http://{host}/",))
        lock = made.store.solve(asked, Machine(), log=made.log.append, progress=made.steps.append)
        monkeypatch.setenv("CONDA_REMOTE_READ_TIMEOUT_SECS", "1")
        site.stuck = "data-1.0"
        with pytest.raises(PreparationError, match="stalled"):
            made.store.prepare(asked, Machine(), lock=lock.text, log=made.log.append, progress=made.steps.append)
        monkeypatch.delenv("CONDA_REMOTE_READ_TIMEOUT_SECS")  # what is to come may take its time
        site.stuck = ""
        prefix = made.store.prepare(asked, Machine(), lock=lock.text, log=made.log.append, progress=made.steps.append)
    assert (prefix.path / "share" / "data").read_bytes() == noise


def test_an_interrupt_is_heard_wherever_it_comes() -> None:
    async def work(*, waits: bool) -> str:
        asyncio.get_running_loop().call_soon(interrupt)  # not in the task: asyncio only logs what is raised there
        await asyncio.sleep(0)
        if waits:
            await asyncio.sleep(3600)
        return "done"

    def interrupt() -> None:
        raise Interrupted("ended by SIGTERM")

    for waits in (True, False):
        with pytest.raises(Interrupted, match="ended by SIGTERM"):
            conda._finished(work(waits=waits))


def test_a_lock_in_the_cache_is_no_package(made: Made, own: Path) -> None:
    noisy(own)
    asked = Definition(packages=("data",), channels=(own.as_uri(),))
    lock = made.store.solve(asked, Machine(), log=made.log.append, progress=made.steps.append)
    sha256 = next(record.sha256 for record in lock.conda_records if record.name == "data")
    (made.store.root / "conda" / "packages").mkdir(exist_ok=True)
    (made.store.root / "conda" / "packages" / "data-1.0-0.lock").write_bytes(bytes(8) + bytes.fromhex(sha256))
    noisy(own, seed=1)
    with pytest.raises(PreparationError, match="hash mismatch"):
        made.store.prepare(asked, Machine(), lock=lock.text, log=made.log.append, progress=made.steps.append)
    assert made.names("prefixes") == []


@pytest.mark.parametrize("by_network", [False, True])
def test_channels_that_name_no_sha256_are_told_apart(made: Made, own: Path, tmp_path: Path, by_network: bool) -> None:
    other = shutil.copytree(own, tmp_path / "other")
    for folder, content in ((own, "one"), (other, "other")):
        conda_channel.package(folder, "data", files={"share/data": content}, noarch="generic")
        conda_channel.index(folder)
        listed = json.loads((folder / "noarch" / "repodata.json").read_text())
        for record in listed["packages.conda"].values():
            del record["sha256"]
        (folder / "noarch" / "repodata.json").write_text(json.dumps(listed))
        (folder / "noarch" / "repodata.json.zst").unlink()
    with served(tmp_path) as (host, _):
        for folder, content in ((own, "one"), (other, "other")):
            channel = f"http://{host}/{folder.name}" if by_network else folder.as_uri()
            prefix = prepare(made, "data", channels=(channel,))
            assert (prefix.path / "share" / "data").read_text() == content
            digest = hashlib.sha256((folder / "noarch" / "data-1.0-0.conda").read_bytes()).hexdigest()
            assert digest in prefix.lock.read_text()
    assert len(made.names("prefixes")) == 2


def test_a_damaged_lock_builds_nothing(made: Made, channel: Path) -> None:
    asked = Definition(packages=("greet",), channels=(channel.as_uri(),))
    lock = made.store.solve(asked, Machine(), log=made.log.append, progress=made.steps.append)
    lines = lock.text.splitlines(keepends=True)
    lines.remove(next(line for line in lines if "greet-data" in line))
    with pytest.raises(UsageError, match="must be once in each"):
        made.store.prepare(asked, Machine(), lock="".join(lines), log=made.log.append, progress=made.steps.append)
    text = lock.text.replace("    subdir: noarch\n", "    subdir: [1]\n").replace("    size: ", "    size: x")
    with pytest.raises(UsageError, match="`conda` is no lock file of rattler: "):
        made.store.prepare(asked, Machine(), lock=text, log=made.log.append, progress=made.steps.append)
    assert made.names("prefixes") == made.names("known") == []


def test_a_page_that_is_no_channel(made: Made, tmp_path: Path) -> None:
    class Page(Site):
        def do_GET(self) -> None:
            self.send_response(200)
            self.end_headers()
            self.wfile.write(b"<html><body>Log in</body></html>")

    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Page)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    error = failure(made, "data", channels=(f"http://127.0.0.1:{server.server_address[1]}",))
    assert "is no channel (a login page?)" in error.hint
    server.shutdown()
    server.server_close()
    (tmp_path / "page" / "noarch").mkdir(parents=True)
    (tmp_path / "page" / "noarch" / "repodata.json").write_text("<html>")
    error = failure(made, "data", channels=((tmp_path / "page").as_uri(),))
    assert "is no channel (a login page?)" in error.hint


def test_only_a_disk_that_cannot_be_written_is_told_as_one(made: Made, made_on: MakesOn, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("x")
    error = failure(made_on(tmp_path / "file" / "store"), "data", channels=(tmp_path.as_uri(),))
    assert "Not a directory" in error.message
    assert "can write to" not in error.hint
    assert made.names("prefixes") == []


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM, signal.SIGINT])
def test_a_download_that_is_ended_is_no_package(made: Made, own: Path, number: signal.Signals) -> None:
    noise = random.Random(0).randbytes(2_000_000)  # noqa: S311 (data that does not compress, no secret)
    conda_channel.package(own, "data", files={"share/data": noise}, noarch="generic")
    conda_channel.index(own)
    with served(own, stuck="data-1.0") as (host, site):
        environment = {**os.environ, "PYTHONPATH": os.pathsep.join(path for path in sys.path if path)}
        command = [sys.executable, "-c", CHILD, str(made.store.root), "data", f"http://{host}"]
        process = subprocess.Popen(command, env=environment, stderr=subprocess.PIPE)
        assert site.reached.wait(60)
        process.send_signal(number)
        process.communicate(timeout=60)
        assert process.returncode
        assert made.names("prefixes") == []
        if number != signal.SIGKILL:
            assert made.names("building") == []
        site.stuck = ""
        site.over.set()
        prefix = prepare(made, "data", channels=(f"http://{host}",))
    assert (prefix.path / "share" / "data").read_bytes() == noise
    assert made.names("building") == []


@pytest.mark.root
def test_a_full_disk(made_on: MakesOn, own: Path, small_disk: Mounts) -> None:
    noise = random.Random(0).randbytes(90_000_000)  # noqa: S311 (data that does not compress, no secret)
    conda_channel.package(own, "data", files={"share/data": noise}, noarch="generic")
    conda_channel.index(own)
    made = made_on(small_disk("size=80m"))
    error = failure(made, "data", channels=(own.as_uri(),))
    assert "No space left on device" in error.message
    assert error.hint.startswith("Free space")
    small_disk("size=512m")
    assert prepare(made, "data", channels=(own.as_uri(),)).packages == 2


def test_a_store_whose_cache_was_emptied_is_whole(made: Made, channel: Path) -> None:
    prefix = prepare(made, "greet", channels=(channel.as_uri(),))
    shutil.rmtree(made.store.root / "conda")
    assert prepare(made, "greet", channels=(channel.as_uri(),)) == prefix
    assert prepare(made, "greet", "where", channels=(channel.as_uri(),)).packages == 4
