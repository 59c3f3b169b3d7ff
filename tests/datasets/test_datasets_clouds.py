"""Google's and Azure's object stores: emulators that speak their protocols, on loopback."""

from __future__ import annotations

import base64
import fcntl
import hashlib
import importlib.util
import os
import shutil
import socket
import subprocess
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from urllib.request import urlopen

import pytest
from docker_parts import locked
from support import REPOSITORY, Tfjob, eventually, free_ports

from tfjob.datasets.cache import Cache
from tfjob.datasets.fetch import fetch
from tfjob.datasets.stores import _full, list_store, signed_address
from tfjob.datasets.wanted import Settings, Wanted
from tfjob.errors import PreparationError

pytestmark = pytest.mark.xdist_group("stores")

AZURITE = "azurite@3"
BIG = os.urandom(9 << 20)  # more than one block


@contextmanager
def _served(command: list[str | Path], port: int, directory: Path, environ: Mapping[str, str]) -> Iterator[None]:
    log = directory / "server.log"
    process = subprocess.Popen(command, cwd=directory, env=environ, stdout=log.open("wb"), stderr=subprocess.STDOUT)
    try:
        eventually(lambda: process.poll() is not None or _listens(port), "the emulator listens")
        if process.poll() is not None:
            pytest.fail(f"the emulator ended: {log.read_text()[-500:]}")
        yield
    finally:
        process.terminate()
        process.wait(60)


def _listens(port: int) -> bool:
    with socket.socket() as client:
        return client.connect_ex(("127.0.0.1", port)) == 0


@pytest.fixture(scope="module")
def google(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, str]]:
    """The variables that lead to an emulator with a bucket `data`."""
    program = Path(sys.executable).with_name("gcp-storage-emulator")
    if not program.exists() or importlib.util.find_spec("gcsfs") is None:
        pytest.skip("gcsfs or gcp-storage-emulator is missing: pip install gcsfs gcp-storage-emulator")
    [port], directory = free_ports(1), tmp_path_factory.mktemp("google")
    command: list[str | Path] = [
        program,
        "start",
        "--host",
        "127.0.0.1",
        "--port",
        str(port),
        "-M",
        "--default-bucket",
        "data",
    ]
    with _served(command, port, directory, os.environ):
        yield {"STORAGE_EMULATOR_HOST": f"http://127.0.0.1:{port}"}


@pytest.fixture(scope="module")
def azure(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, str]]:
    """The variables that lead to Azurite with an account of its own and a container `data`."""
    pytest.importorskip("adlfs", reason="adlfs is missing: pip install adlfs")
    program = _azurite()
    [port], directory = free_ports(1), tmp_path_factory.mktemp("azure")
    key = base64.b64encode(os.urandom(32)).decode()
    command: list[str | Path] = [
        program,
        "--inMemoryPersistence",
        "--silent",
        "--skipApiVersionCheck",
        "--disableTelemetry",
    ]
    command += ["--blobHost", "127.0.0.1", "--blobPort", str(port)]
    with _served(command, port, directory, {**os.environ, "AZURITE_ACCOUNTS": f"someone:{key}"}):
        place = f"http://127.0.0.1:{port}/someone"
        text = f"DefaultEndpointsProtocol=http;AccountName=someone;AccountKey={key};BlobEndpoint={place};"
        yield {"AZURE_STORAGE_CONNECTION_STRING": text}


def _azurite() -> Path:
    """The emulator, installed once into the checkout; skips with the reason where that can't be."""
    home = REPOSITORY / ".cache" / "azurite"
    program = home / "node_modules" / ".bin" / "azurite-blob"
    home.mkdir(parents=True, exist_ok=True)
    with locked(home / "lock", fcntl.LOCK_EX):
        if not program.exists():
            if shutil.which("npm") is None:
                pytest.skip("azurite is missing, and there is no npm to install it with")
            command = ["npm", "install", "--no-audit", "--no-fund", "--prefix", str(home), AZURITE]
            done = subprocess.run(command, check=False, capture_output=True, text=True, cwd=home)
            if done.returncode:
                pytest.skip(f"npm could not install azurite: {done.stderr.strip()[-300:]}")
    return program


@pytest.fixture
def cloud(tfjob: Tfjob, tmp_path: Path) -> Tfjob:
    return Tfjob(tfjob.directory, {**tfjob.environ, "TFJOB_STORE": str(tmp_path / "store")})


def put(scheme: str, files: Mapping[str, bytes]) -> None:
    """Put files into a store by its own library."""
    import fsspec.core  # noqa: PLC0415  # it may be missing

    store: Any = fsspec.core.url_to_fs(f"{scheme}://data")[0]
    if not store.exists("data"):
        store.mkdir("data")
    for name, content in files.items():
        store.pipe_file(f"data/{name}", content)


def objects_keep_their_tree(cloud: Tfjob, scheme: str) -> None:
    """What any store must do: directories, globs, large objects; what changes, and what is not there, is told."""
    put(scheme, {"set/a": b"a", "set/deep/b": b"bb", "set/deep/big": BIG, "set/deep/c #1?%20": b"named", "other": b"x"})
    cloud.write(
        "job.yml",
        f"""\
        command: cd ${{{{ dataset.d }}}}; find . -type f | sort; sha256sum deep/big; cat deep/c*%20; ls ${{{{ dataset.e }}}}
        dataset:
          d: {{paths: "{scheme}://data/set"}}
          e: {{paths: ["{scheme}://data/set/deep/b*", "{scheme}://data/other"]}}
        """,
    )
    lines = cloud("submit", "job.yml").stdout.splitlines()
    assert lines[:4] == ["./a", "./deep/b", "./deep/big", "./deep/c #1?%20"]
    assert lines[4].split()[0] == hashlib.sha256(BIG).hexdigest()
    assert lines[5:8] == ["namedb", "big", "other"]
    before = {one.name: one.mark for one in list_store(f"{scheme}://data/set")}
    put(scheme, {"set/a": b"c"})
    after = {one.name: one.mark for one in list_store(f"{scheme}://data/set")}
    assert [name for name in after if after[name] != before[name]] == ["a"]
    cache = Cache(cloud.directory / "cache")
    listed = Wanted(f"{scheme}://data/set/a", 1, before["a"], "words@1")
    with cache.filling(), pytest.raises(PreparationError, match="has changed since words@1 was registered: its server"):
        fetch([listed], cache, Settings(tries=1), lambda _: None)
    with pytest.raises(PreparationError, match=f"there is no file {scheme}://data/nothing"):
        list_store(f"{scheme}://data/nothing")


def use(environ: Mapping[str, str], cloud: Tfjob, monkeypatch: pytest.MonkeyPatch) -> None:
    """Have the store's variables here, and in the shell that submits."""
    cloud.environ.update(environ)
    for name, value in environ.items():
        monkeypatch.setenv(name, value)


def test_objects_of_google(cloud: Tfjob, google: dict[str, str], monkeypatch: pytest.MonkeyPatch) -> None:
    use(google, cloud, monkeypatch)
    objects_keep_their_tree(cloud, "gs")
    assert signed_address("gs://data/other", 600) is None  # nobody has credentials here: nodes are sent the file


def test_objects_of_azure(cloud: Tfjob, azure: dict[str, str], monkeypatch: pytest.MonkeyPatch) -> None:
    use(azure, cloud, monkeypatch)
    objects_keep_their_tree(cloud, "az")
    assert {one.source for one in list_store("abfs://data/set/deep")} == {
        "abfs://data/set/deep/b",
        "abfs://data/set/deep/big",
        "abfs://data/set/deep/c #1?%20",
    }
    for place in ("data@someone.dfs.core.windows.net", "someone.dfs.core.windows.net/data"):
        (one,) = list_store(f"abfss://{place}/set/deep/c*")  # the connection string says where the account really is
        assert (one.source, one.name) == (f"abfss://{place}/set/deep/c #1?%20", "c #1?%20")
        with (cache := Cache(cloud.directory / "account")).filling():
            known = fetch([Wanted(one.source, one.size, one.mark, "d")], cache, Settings(tries=1), lambda _: None).known
        assert known[one.source].sha256 == hashlib.sha256(b"named").hexdigest()
    for name, content in (("other", b"x"), ("set/deep/c #1?%20", b"named")):
        address = signed_address(f"abfs://data/{name}", 600) or ""
        assert "sig=" in address
        with urlopen(address) as answer:  # noqa: S310  # of loopback
            assert answer.read() == content


@pytest.mark.parametrize("scheme", ["az", "abfs", "abfss"])
@pytest.mark.parametrize(
    ("place", "account"),
    [
        ("data@one.dfs.core.windows.net", {"account_name": "one"}),
        ("data@two.blob.core.windows.net", {"account_name": "two"}),
        ("one.dfs.core.windows.net/data", {"account_name": "one"}),
        ("data", {}),
    ],
)
@pytest.mark.parametrize("key", ["x.csv", "deep/x.csv", "deep/c #1%20"])
def test_a_file_of_azure_is_in_the_account_that_the_address_names(
    scheme: str, place: str, account: dict[str, str], key: str
) -> None:
    adlfs = pytest.importorskip("adlfs", reason="adlfs is missing: pip install adlfs")
    source = _full(f"{scheme}://{place}/deep*", f"data/{key}")
    assert source == f"{scheme}://{place}/{key}"
    assert adlfs.AzureBlobFileSystem._get_kwargs_from_urls(source) == account
    assert adlfs.AzureBlobFileSystem._strip_protocol(source) == f"data/{key}"
