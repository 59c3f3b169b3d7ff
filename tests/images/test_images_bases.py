from __future__ import annotations

import gzip
import io
import os
import secrets
import shutil
import socket
import subprocess
import tarfile
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import pytest
from docker_parts import BARE, BASE, CannotRunError, install, tarball
from image_parts import Client, output_of
from support import eventually, free_ports

from tfjob.errors import PreparationError, TargetError, UsageError
from tfjob.images import debian
from tfjob.images.base import base_image
from tfjob.images.create import create
from tfjob.images.debian import apt_source
from tfjob.images.engine import find_image, find_or_pull
from tfjob.images.push import push

pytestmark = [pytest.mark.real, pytest.mark.root]


def quiet(_: str) -> None:
    """Take no notice."""


def test_a_base_from_a_root_file_system(bare_base: str, client: Client, tmp_path: Path) -> None:
    assert bare_base
    packed = tmp_path / "root.tar.gz"
    with tarball(BARE).open("rb") as plain, gzip.open(packed, "wb", compresslevel=1) as file:
        shutil.copyfileobj(plain, file)
    image = create("tfjob-test/from-root:1", source=packed, log=quiet, progress=quiet)
    assert output_of(client, image, "sh", "-c", ". /etc/os-release; echo $ID") == "debian"
    client.images.remove("tfjob-test/from-root:1")


def test_a_base_from_a_saved_image(bare_base: str, client: Client, tmp_path: Path) -> None:
    text = f"FROM {bare_base}\nENV FROM=saved\n"
    made, _ = client.images.build(fileobj=io.BytesIO(text.encode()), tag="tfjob-test/saved:1")
    saved = tmp_path / "image.tar"
    with saved.open("wb") as file:
        for chunk in client.images.get("tfjob-test/saved:1").save(named=True):
            file.write(chunk)
    client.images.remove("tfjob-test/saved:1")
    image = create("tfjob-test/loaded", source=saved, log=quiet, progress=quiet)
    assert image == made.id
    found = find_image("tfjob-test/loaded:latest")
    assert found is not None
    assert "FROM=saved" in found["Config"]["Env"]
    for tag in found["RepoTags"]:
        client.images.remove(tag)


def test_a_base_of_debians_packages(
    test_base: str, client: Client, store_root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert test_base
    asked: list[Sequence[str]] = []

    def bootstrap(into: Path, *, suite: str | None, packages: Sequence[str], log: Callable[[str], None]) -> None:
        """The real one takes a minute, and has made the tests' own base when there was none."""
        asked.append([str(suite), *packages])
        log("made before")
        shutil.copyfile(tarball(BASE), into)

    monkeypatch.setattr("tfjob.images.create.bootstrap", bootstrap)
    lines: list[str] = []
    image = create("tfjob-test/debian:1", packages=["file"], log=lines.append, progress=quiet)
    assert asked == [[apt_source().suite, *debian.BASE_PACKAGES, "file"]]
    assert lines == ["made before"]
    base = base_image("tfjob-test/debian:1", store_root=store_root, log=quiet, progress=quiet)
    assert (base.image, bool(base.interpreters)) == (image, True)
    assert {"ssh", "sshd"} <= base.tools
    assert output_of(client, image, "sh", "-c", "ls /etc/ssh | grep -c ssh_host_ || true") == "0"
    client.images.remove("tfjob-test/debian:1")


@pytest.mark.usefixtures("docker_engine")
@pytest.mark.parametrize(
    ("make", "error", "said"),
    [
        (lambda _: {"source": Path("/no/such.tar")}, UsageError, "there is no file /no/such.tar"),
        (lambda folder: {"source": _file(folder, b"text")}, UsageError, "cannot be read as a tarball"),
        (lambda folder: {"source": _other(folder)}, UsageError, "neither a root file system"),
        (lambda folder: {"source": _file(folder, b""), "suite": "bookworm"}, UsageError, "a tarball is taken as it is"),
        (
            lambda _: {"suite": "no-such-release"},
            PreparationError,
            "no source for the Debian release `no-such-release`",
        ),
        (lambda _: {"packages": ["no-such-package-of-debian"]}, PreparationError, "could not be made"),
    ],
)
def test_what_cannot_be_a_base(
    make: Callable[[Path], dict[str, object]], error: type[Exception], said: str, tmp_path: Path
) -> None:
    with pytest.raises(error, match=said):
        create("tfjob-test/none:1", **make(tmp_path), log=quiet, progress=quiet)  # type: ignore[arg-type]
    assert find_image("tfjob-test/none:1") is None


def _file(folder: Path, data: bytes) -> Path:
    path = folder / "file"
    path.write_bytes(data)
    return path


def _other(folder: Path) -> Path:
    with tarfile.open(folder / "other.tar", "w") as archive:
        archive.addfile(tarfile.TarInfo("notes/file"))
    return folder / "other.tar"


@pytest.mark.usefixtures("docker_engine")
def test_a_name_that_no_image_can_have() -> None:
    with pytest.raises(UsageError, match="`Site Base` cannot be the name"):
        create("Site Base", log=quiet, progress=quiet)


def test_a_base_without_an_engine(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("DOCKER_HOST", f"unix://{tmp_path}/none.sock")
    with pytest.raises(TargetError):
        create("tfjob-test/none:1", log=quiet, progress=quiet)


def test_where_packages_come_from() -> None:
    source = apt_source()
    assert source.address.partition(":")[0] in {"http", "https", "file", "copy", "cdrom"}
    assert source.suite


@pytest.fixture
def registry(tmp_path: Path) -> Iterator[Callable[..., str]]:
    """Start a registry on a free port of this machine: ``registry()``, or ``registry(password=…)`` for user ``me``."""
    started: list[subprocess.Popen[bytes]] = []

    def start(password: str = "") -> str:
        try:
            for program, package in (("docker-registry", "docker-registry"), ("htpasswd", "apache2-utils")):
                if shutil.which(program) is None:
                    install(package)
        except CannotRunError as reason:
            pytest.skip(str(reason))
        [port] = free_ports(1)
        folder = tmp_path / f"registry-{port}"
        folder.mkdir()
        text = f"version: 0.1\nstorage: {{filesystem: {{rootdirectory: {folder}/data}}}}\nhttp: {{addr: '127.0.0.1:{port}'}}\n"
        if password:
            done = subprocess.run(["htpasswd", "-Bbn", "me", password], capture_output=True, check=True)
            (folder / "users").write_bytes(done.stdout)
            text += f"auth: {{htpasswd: {{realm: tests, path: {folder}/users}}}}\n"
        (folder / "config.yml").write_text(text, encoding="utf-8")
        with (folder / "log").open("wb") as log:
            command = ["docker-registry", "serve", str(folder / "config.yml")]
            started.append(subprocess.Popen(command, stdout=log, stderr=log))
        eventually(lambda: _listens(port), "the registry answers")
        return f"127.0.0.1:{port}"

    yield start
    for process in started:
        process.terminate()
        process.wait()


def _listens(port: int) -> bool:
    with socket.socket() as connection:
        return connection.connect_ex(("127.0.0.1", port)) == 0


def small_image(client: Client) -> str:
    data = io.BytesIO()
    with tarfile.open(fileobj=data, mode="w") as archive:
        member = tarfile.TarInfo("etc/file")
        content = secrets.token_bytes(100_000)
        member.size = len(content)
        archive.addfile(member, io.BytesIO(content))
    name = f"tfjob-test/small:{secrets.token_hex(4)}"
    repository, _, tag = name.partition(":")
    client.api.import_image_from_data(data.getvalue(), repository=repository, tag=tag)
    return name


def test_pushed_and_pulled_back(registry: Callable[..., str], client: Client) -> None:
    address = registry()
    name = small_image(client)
    image = client.images.get(name).id
    lines: list[str] = []
    steps: list[str] = []
    pushed = push(name, f"{address}/team/small:1", log=lines.append, progress=steps.append)
    assert pushed.startswith(f"{address}/team/small@sha256:")
    assert "1 of 1 layers" in steps[-1]
    assert lines
    again = push(name, f"{address}/team/small:2", log=print, progress=steps.append)
    assert again == pushed
    for tag in (name, f"{address}/team/small:1", f"{address}/team/small:2"):
        client.images.remove(tag)
    assert find_image(pushed) is None
    assert find_or_pull(pushed, log=lines.append, progress=steps.append) == image
    assert find_or_pull(f"{address}/team/small:1", log=lines.append, progress=steps.append) == image
    with pytest.raises(PreparationError, match="could not be pulled") as caught:
        find_or_pull(f"{address}/team/small:none", log=print, progress=print)
    assert "Check its name and tag" in caught.value.hint
    client.images.remove(image, force=True)


def test_credentials_are_docker_s_own(
    registry: Callable[..., str], client: Client, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    password = secrets.token_hex(8)
    address = registry(password=password)
    monkeypatch.setenv("DOCKER_CONFIG", str(tmp_path / "docker"))
    name = small_image(client)
    with pytest.raises(PreparationError, match="could not push") as caught:
        push(name, f"{address}/small:1", log=print, progress=print)
    assert f"docker login {address}" in caught.value.hint
    program = shutil.which("docker")
    if program is None:
        pytest.skip("no docker program to log in with")
    login = [program, "login", "--username", "me", "--password-stdin", address]
    subprocess.run(login, input=password.encode(), check=True, capture_output=True, env=dict(os.environ))
    assert push(name, f"{address}/small:1", log=print, progress=print).startswith(address)
    client.images.remove(client.images.get(name).id, force=True)


def test_a_registry_that_is_not_there(client: Client) -> None:
    name = small_image(client)
    with pytest.raises(PreparationError, match=r"could not push 127\.0\.0\.1:1/small:1") as caught:
        push(name, "127.0.0.1:1/small:1", log=print, progress=print)
    assert "registry runs" in caught.value.hint
    client.images.remove(client.images.get(name).id, force=True)
