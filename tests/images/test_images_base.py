from __future__ import annotations

import contextlib
import io
import json
import os
import signal
import socket
import tarfile
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from docker_parts import BARE, own_engine
from docker_parts import base_image as own_base
from image_parts import Client, containers, gone, program, uv_environment
from support import REPOSITORY, eventually

from tfjob.environments.place import Place
from tfjob.environments.uv import find_uv
from tfjob.errors import PreparationError, TargetError
from tfjob.images.added import SSH, added
from tfjob.images.base import BaseImage, base_image
from tfjob.images.container import run_in_container
from tfjob.images.engine import connected, find_image, find_or_pull, is_here
from tfjob.images.mounts import mounts_for, passed_on

if TYPE_CHECKING:
    from environment_parts import Packages

pytestmark = [pytest.mark.real, pytest.mark.root]

KEEPS = """
import sys
from pathlib import Path
from tfjob.images.base import base_image
from tfjob.environments.processes import interruptible
store = Path(sys.argv[2])
base = base_image(sys.argv[1], store_root=store, log=print, progress=print)
with interruptible():
    base.run(["sh", "-c", "while :; do date +%s%N >beats; sleep 0.1; done"],
        environment={}, cwd=store, on_line=print, holds=0)
"""


def run(base: BaseImage, *command: str, environment: dict[str, str] | None = None, stdin: str = "") -> tuple[int, str]:
    lines: list[str] = []
    code = base.run(
        command, environment=environment or {}, cwd=base.store_root, on_line=lines.append, holds=0, stdin=stdin
    )
    return code, "\n".join(lines)


def test_an_image_is_looked_into_once(base: BaseImage, test_base: str, store_root: Path) -> None:
    assert base.platform.startswith("linux-")
    assert "glibc2." in base.platform
    assert [one.cache_tag for one in base.interpreters] == ["cpython-311"]
    assert {"sshd", "ssh", "bash", "tar", "apt-get"} <= base.tools
    assert base.identity == base.image
    assert base.image.startswith("sha256:")
    place: Place = base
    assert str(place.final(Path("/any"))) == "/opt/env"
    assert place.virtual_packages["__glibc"] == base.platform.rpartition("glibc")[2]
    assert "__cuda" not in place.virtual_packages
    known = place.identity_of(base.interpreters[0])
    assert place.has(json.loads(json.dumps(known)))
    assert not place.has({**known, "image": "sha256:another"})

    (kept,) = (store_root / "bases").iterdir()
    kept.write_text(kept.read_text(encoding="utf-8").replace(base.system, "changed by the test"), encoding="utf-8")
    again = base_image(test_base, store_root=store_root, log=print, progress=lambda _: pytest.fail("looked again"))
    assert again == replace(base, system="changed by the test")


def test_an_image_without_python_and_ssh(bare_base: str, store_root: Path) -> None:
    bare = base_image(bare_base, store_root=store_root, log=print, progress=print)
    assert bare.interpreters == ()
    assert not {"ssh", "sshd"} & bare.tools


def test_cuda_is_what_the_image_says(client: Client, test_base: str, store_root: Path) -> None:
    text = f"FROM {test_base}\nENV CUDA_VERSION=12.4.1 PATH=/usr/local/cuda/bin:/usr/bin:/bin\nUSER 1000\n"
    client.images.build(fileobj=io.BytesIO(text.encode()), tag="tfjob-test/cuda:latest")
    base = base_image("tfjob-test/cuda:latest", store_root=store_root, log=print, progress=print)
    assert base.virtual_packages["__cuda"] == "12.4"
    assert base.search_path == "/usr/local/cuda/bin:/usr/bin:/bin"
    assert base.user == "1000"


def test_an_image_with_musl_is_refused(client: Client, bare_base: str, store_root: Path) -> None:
    text = f"FROM {bare_base}\nRUN touch /lib/ld-musl-x86_64.so.1\n"
    client.images.build(fileobj=io.BytesIO(text.encode()), tag="tfjob-test/musl:latest", network_mode="host")
    with pytest.raises(PreparationError, match="musl") as caught:
        base_image("tfjob-test/musl:latest", store_root=store_root, log=print, progress=print)
    assert "glibc" in caught.value.hint


def test_an_image_without_a_shell_is_refused(client: Client, store_root: Path) -> None:
    data = io.BytesIO()
    with tarfile.open(fileobj=data, mode="w") as archive:
        archive.addfile(tarfile.TarInfo("etc/nothing"))
    client.api.import_image_from_data(data.getvalue(), repository="tfjob-test/empty", tag="latest")
    with pytest.raises(PreparationError, match="no shell"):
        base_image("tfjob-test/empty:latest", store_root=store_root, log=print, progress=print)


def test_a_program_in_the_image(base: BaseImage, client: Client) -> None:
    assert run(base, "sh", "-c", "echo one >&2; echo two; exit 7") == (7, "one")
    assert run(base, "sh", "-c", "kill -TERM $$")[0] == -signal.SIGTERM
    assert run(base, "cat", "/no/such/file")[0] == 1
    assert run(base, "sh", "-c", "cat >&2", stdin="from stdin\nlast") == (0, "from stdin\nlast")
    code, said = run(base, "sh", "-c", "printf 'h\\303\\251' >&2; printf '\\377' >&2")
    assert (code, said) == (0, "hé\N{REPLACEMENT CHARACTER}")
    gone(client, os.getpid())
    assert not list(base.store_root.glob(".stdin*"))


def test_files_belong_to_who_runs_tfjob(base: BaseImage) -> None:
    assert run(base, "sh", "-c", "mkdir made && echo x >made/file && ln made/file made/link")[0] == 0
    file = base.store_root / "made" / "file"
    assert (file.stat().st_uid, file.stat().st_nlink) == (os.geteuid(), 2)


def test_variables_go_in_without_being_written_down(base: BaseImage, client: Client) -> None:
    inspected: list[str] = []
    before = containers(client, os.getpid())
    waits = "until [ -e seen ]; do sleep 0.05; done"

    def look(line: str) -> None:
        mine = set(containers(client, os.getpid())) - set(before)
        inspected.extend([line, *(json.dumps(client.api.inspect_container(one)) for one in mine)])
        (base.store_root / "seen").touch()

    value = "  a 'quoted' \\ value $HOME `id`"
    code = base.run(
        ["sh", "-c", f'echo "$UV_INDEX_URL" >&2; {waits}'],
        environment={"UV_INDEX_URL": value},
        cwd=base.store_root,
        on_line=look,
        holds=0,
    )
    assert code == 0
    assert inspected[0] == value
    assert len(inspected) > 1
    assert not [one for one in inspected[1:] if "quoted" in one]


def test_what_is_passed_on(base: BaseImage, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("CLOUD_SECRET", "of this shell")
    environment = {**os.environ, "HTTPS_PROXY": "http://proxy", "SET_BY_CALLER": "1", "LD_LIBRARY_PATH": "/x"}
    environment["PATH"] = f"{base.store_root}/prefix/bin:{os.environ['PATH']}"
    passed = passed_on(environment, "/usr/bin:/bin", base.store_root)
    assert "CLOUD_SECRET" not in passed
    assert (passed["HTTPS_PROXY"], passed["SET_BY_CALLER"], passed["LD_LIBRARY_PATH"]) == ("http://proxy", "1", "/x")
    assert passed["PATH"] == f"{base.store_root}/prefix/bin:/usr/bin:/bin"

    wheels, index, certificates = tmp_path / "wheels", tmp_path / "pypi" / "simple", tmp_path / "ca.pem"
    for folder in (wheels, index / "one"):
        folder.mkdir(parents=True)
    certificates.touch()
    wheel = tmp_path / "one-1.0-py3-none-any.whl"
    wheel.touch()
    (base.store_root / "options.in").write_text(f"--find-links {wheels}\none @ {wheel.as_uri()}\n", encoding="utf-8")
    told = {"UV_EXTRA_INDEX_URL": index.as_uri(), "SSL_CERT_FILE": str(certificates)}
    mounted = {
        one.path for one in mounts_for(told, ["uv", "--python", "/usr/bin/python3"], base.store_root, base.store_root)
    }
    assert {Path(find_uv()), REPOSITORY / "tfjob", certificates, wheels, wheel, index.parent} <= mounted
    assert Path("/usr/bin/python3") not in mounted


def test_uv_installs_in_the_image(base: BaseImage, packages: Packages) -> None:
    packages.wheel("one")
    environment = uv_environment(base.store_root, packages.folder)
    python = str(base.interpreters[0].path)
    assert run(base, find_uv(), "venv", "--relocatable", "--python", python, "env", environment=environment)[0] == 0
    code, said = run(
        base, find_uv(), "pip", "install", "--no-index", "--python", "env/bin/python", "one", environment=environment
    )
    assert code == 0, said
    (module,) = base.store_root.glob("env/lib/python3.11/site-packages/one/__init__.py")
    assert module.stat().st_nlink == 2, "it is a hard link to uv's cache"


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGKILL])
def test_a_container_ends_with_its_process(
    base: BaseImage, test_base: str, client: Client, number: signal.Signals
) -> None:
    process = program(KEEPS, test_base, str(base.store_root))
    beats = base.store_root / "beats"
    eventually(beats.exists, "the container works")
    process.send_signal(number)
    process.communicate(timeout=60)
    gone(client, process.pid)
    last = beats.read_text(encoding="ascii")
    run(base, "true")
    assert beats.read_text(encoding="ascii") == last, "something still writes"


def test_what_a_crash_left_is_removed(base: BaseImage, client: Client, test_base: str) -> None:
    import docker  # noqa: PLC0415  # 100 ms that only these tests pay

    own = Path("/proc/sys/kernel/random/boot_id").read_text(encoding="ascii").strip()
    owner = f"{own} {os.readlink('/proc/self/ns/pid')} {os.getpid()} 1"  # this pid, started at another time
    left = client.containers.create(
        test_base, ["sleep", "1000"], network_mode="host", init=True, labels={"tfjob.owner": owner}
    )
    with contextlib.suppress(docker.errors.APIError):  # other tests, at the same engine, remove it too
        left.start()
    run(base, "true")
    # What removes it may be a test on another worker, which is about to.
    eventually(lambda: left.id not in containers(client, os.getpid()), "it is removed")


def test_an_engine_that_stops_under_a_program(
    base: BaseImage, store_root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert base.tools
    with own_engine(tmp_path / "data") as daemon:
        monkeypatch.setenv("DOCKER_HOST", daemon.host)
        other = base_image(own_base(daemon, BARE), store_root=store_root, log=print, progress=print)
        with pytest.raises(PreparationError, match=r"stopped answering while it was to run sh in tfjob-test/bare"):
            other.run(
                ["sh", "-c", "echo started >&2; sleep 300"],
                environment={},
                cwd=store_root,
                on_line=lambda _line: daemon.kill(),
                holds=0,
            )


def test_without_an_engine(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("DOCKER_HOST", f"unix://{tmp_path}/none.sock")
    calls: list[Callable[[], object]] = [lambda: find_image("debian"), _ping]
    for call in calls:
        with pytest.raises(TargetError, match=r"no Docker Engine answers at unix://.*none\.sock") as caught:
            call()
        assert "Is the Docker Engine running?" in caught.value.hint


def _ping() -> None:
    with connected() as client:
        client.ping()


def test_without_permission(monkeypatch: pytest.MonkeyPatch) -> None:
    path = Path("/tmp") / f"tfjob-test-{os.getpid()}.sock"
    with socket.socket(socket.AF_UNIX) as listening:
        listening.bind(str(path))
        listening.listen()
        path.chmod(0o600)
        monkeypatch.setenv("DOCKER_HOST", f"unix://{path}")
        try:
            calls: list[Callable[[], object]] = [lambda: find_image("debian"), _ping]
            for call in calls:
                said = as_nobody(call)
                assert "no permission to use the Docker Engine" in said
                assert "group `docker`" in said
        finally:
            path.unlink()


def as_nobody(call: Callable[[], object]) -> str:
    """Call it in a process of the user nobody, and return the error it raises."""
    import docker  # noqa: F401, PLC0415  # nobody may not be able to read it

    reads, writes = os.pipe()
    pid = os.fork()
    if pid == 0:
        os.setgroups([])
        os.setgid(65534)
        os.setuid(65534)
        try:
            call()
        except TargetError as error:
            os.write(writes, f"{error.message} {error.hint}".encode())
        finally:
            os._exit(0)
    os.close(writes)
    os.waitpid(pid, 0)
    with os.fdopen(reads, encoding="utf-8") as file:
        return file.read()


@pytest.mark.usefixtures("docker_engine")
def test_an_image_that_is_nowhere() -> None:
    with pytest.raises(
        PreparationError, match=r"has no image 127\.0\.0\.1:1/none:1, and it could not be pulled"
    ) as caught:
        find_or_pull("127.0.0.1:1/none:1", log=print, progress=print)
    assert "docker load" in caught.value.hint
    assert "tfjob env base create" in caught.value.hint


def test_an_engine_elsewhere_is_no_place_to_build(base: BaseImage, monkeypatch: pytest.MonkeyPatch) -> None:
    with connected() as client:
        assert is_here(client)
    monkeypatch.setenv("DOCKER_HOST", "tcp://127.0.0.1:1")
    with pytest.raises(TargetError, match="on another machine"):
        run(base, "true")


def test_ssh_is_added_where_it_is_missing(bare_base: str, base: BaseImage, store_root: Path) -> None:
    assert added(base, SSH, log=print, progress=print) == base.image
    bare = base_image(bare_base, store_root=store_root, log=print, progress=print)
    lines: list[str] = []
    image = added(bare, SSH, log=lines.append, progress=print)
    assert {"sshd", "ssh"} <= base_image(image, store_root=store_root, log=print, progress=print).tools
    # The image may be one that a test on another worker has made of the same base meanwhile.
    again = added(bare, SSH, log=print, progress=lambda _: pytest.fail("made again"))
    assert {"sshd", "ssh"} <= base_image(again, store_root=store_root, log=print, progress=print).tools
    keys: list[str] = []
    run_in_container(
        image, ["sh", "-c", "ls /etc/ssh"], doing="look", environment={}, on_line=print, on_output=keys.append
    )
    assert not [one for one in keys if one.startswith("ssh_host_")]
