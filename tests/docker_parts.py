"""A Docker Engine of the tests' own, and base images for it: real ones, without a registry.

As a program, ``python tests/docker_parts.py up`` starts the engine and leaves it running, ``env`` prints what a shell
needs to use it (``eval "$(python tests/docker_parts.py env)"``), ``down`` ends it.

Everything is kept in ``.cache/docker``: the engine's data between sessions, the base images as tarballs, and locks.
Processes that use the engine hold ``users.lock``; whoever is the last to let go of it ends the engine. An engine that a
killed session left running is found by its pid and start time and used again.
"""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import io
import json
import os
import platform
import shutil
import signal
import socket
import subprocess
import sys
import tarfile
import tempfile
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
import set_up
from support import REPOSITORY

from tfjob.errors import PreparationError
from tfjob.images import debian

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

CannotRunError = set_up.CannotRunError
CACHE = REPOSITORY / ".cache" / "docker"
BASE = "tfjob-test/base:bookworm"
BARE = "tfjob-test/bare:bookworm"
# The engine has no bridge: its containers use the machine's own network, and nothing of the machine's is changed.
OPTIONS = ("--bridge=none", "--iptables=false", "--ip6tables=false", "--log-level=warn")
HOOK = "nvidia-container-runtime-hook"
START_S = 60
STOP_S = 40
IMAGES = {BASE: debian.BASE_PACKAGES, BARE: ("ca-certificates",)}


@dataclass
class Daemon:
    """One dockerd: `data` is its data root, `folder` a short one for its socket and what it needs while it runs."""

    data: Path
    folder: Path
    pid: int = 0
    started: str = ""
    options: Sequence[str] = field(default=OPTIONS)
    mounted: int = 0  # how often its data root was mounted before; it mounts it once more on itself

    @property
    def host(self) -> str:
        return f"unix://{self.folder}/docker.sock"

    @property
    def log(self) -> Path:
        return self.folder / "dockerd.log"

    @property
    def runs(self) -> bool:
        return self.pid > 0 and start_time(self.pid) == self.started

    @property
    def answers(self) -> bool:
        with socket.socket(socket.AF_UNIX) as connection:
            connection.settimeout(5)
            try:
                connection.connect(f"{self.folder}/docker.sock")
                connection.sendall(b"GET /_ping HTTP/1.0\r\n\r\n")
                return b" 200 " in connection.recv(64)
            except OSError:
                return False

    def start(self) -> None:
        """Start it and wait until it answers. Raises CannotRunError with what it said when it ends instead."""
        program = find_dockerd()
        self.mounted = mounts().count(str(self.data))
        # Docker takes requests for GPUs where a program of this name is; one that does nothing lets tests ask for GPUs.
        programs = self.folder / "bin"
        programs.mkdir(parents=True, exist_ok=True)
        self.folder.chmod(0o711)  # its socket is for those of its group
        self.data.mkdir(parents=True, exist_ok=True)
        hook = programs / HOOK
        hook.write_text("#!/bin/sh\nexit 0\n", encoding="utf-8")
        hook.chmod(0o755)
        environ = {**os.environ, "PATH": f"{programs}:/usr/local/sbin:/usr/sbin:/sbin:{os.environ.get('PATH', '')}"}
        places = [f"--data-root={self.data}", f"--exec-root={self.folder}/exec", f"--pidfile={self.folder}/docker.pid"]
        with self.log.open("ab") as log:
            process = subprocess.Popen(
                [program, *places, f"--host={self.host}", *self.options],
                env=environ,
                cwd=self.folder,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                start_new_session=True,
            )
        self.pid, self.started = process.pid, start_time(process.pid)
        deadline = time.monotonic() + START_S
        while not self.answers:
            if process.poll() is not None or time.monotonic() > deadline:
                self.kill()
                last = self.log.read_text(encoding="utf-8", errors="replace").splitlines()[-1:]
                raise CannotRunError(f"dockerd does not start here: {' '.join(last)[:300]}")
            time.sleep(0.05)

    def stop(self) -> None:
        """End it as its init system would; containers that still run are ended first, so that nothing is left."""
        if self.runs:
            signalled(self.pid, signal.SIGTERM)
            wait_for(lambda: not self.runs, STOP_S)
        self.kill()

    def kill(self) -> None:
        """End it by SIGKILL, with its containerd and every container: a power loss."""
        for pid in [*([self.pid] if self.runs else []), *self._parts()]:
            signalled(pid, signal.SIGKILL)
        wait_for(lambda: not self.runs, STOP_S)
        under = [place for place in mounts() if place.startswith((f"{self.folder}/", f"{self.data}/"))]
        own = [str(self.data)] * (mounts().count(str(self.data)) - self.mounted)
        for place in [*sorted(under, reverse=True), *own]:
            subprocess.run(["umount", "--lazy", place], check=False, capture_output=True)
        # As after a boot, nothing says that something runs.
        shutil.rmtree(self.folder / "exec", ignore_errors=True)
        for name in ("docker.pid", "docker.sock"):
            (self.folder / name).unlink(missing_ok=True)

    def kill_only_engine(self) -> None:
        """SIGKILL to dockerd alone; what it started goes on, until `kill`."""
        signalled(self.pid, signal.SIGKILL)
        wait_for(lambda: not self.runs, STOP_S)

    def _parts(self) -> list[int]:
        """Processes this dockerd started: its containerd, the shims (they name its own folder), and their children."""
        marker = f"{self.folder}/exec/".encode()
        shims = [pid for pid in pids() if pid != self.pid and marker in command_line(pid)]
        return [*(child for shim in shims for child in children(shim)), *shims]


def pids() -> list[int]:
    return [int(name) for name in os.listdir("/proc") if name.isdecimal()]


def command_line(pid: int) -> bytes:
    try:
        return Path(f"/proc/{pid}/cmdline").read_bytes()
    except OSError:
        return b""


def children(pid: int) -> list[int]:
    with contextlib.suppress(OSError, ValueError):
        return [int(one) for one in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]
    return []


def start_time(pid: int) -> str:
    """When a process started, in ticks; empty for one that is gone or a zombie."""
    try:
        fields = Path(f"/proc/{pid}/stat").read_text(encoding="utf-8").rpartition(")")[2].split()
    except OSError:
        return ""
    return "" if fields[0] in "ZX" else fields[19]


def signalled(pid: int, number: int) -> None:
    with contextlib.suppress(ProcessLookupError):
        os.kill(pid, number)
    with contextlib.suppress(ChildProcessError):
        os.waitpid(pid, os.WNOHANG)


def wait_for(condition: Callable[[], bool], seconds: float) -> bool:
    deadline = time.monotonic() + seconds
    while not condition():
        if time.monotonic() > deadline:
            return False
        time.sleep(0.02)
    return True


def mounts() -> list[str]:
    return [line.split()[1] for line in Path("/proc/self/mounts").read_text(encoding="utf-8").splitlines()]


def find_dockerd() -> str:
    """Return the path of dockerd, installed from Debian's packages if that can be. Raises CannotRunError if it cannot."""
    if os.geteuid() != 0:
        raise CannotRunError("a Docker Engine of the tests' own needs root")
    path = f"{os.environ.get('PATH', os.defpath)}:/usr/sbin:/sbin"
    if shutil.which("dockerd", path=path) is None:
        install("docker.io")
    found = shutil.which("dockerd", path=path)
    if found is None:
        raise CannotRunError("dockerd is not installed, and apt-get could not install docker.io")
    return found


def install(*packages: str) -> None:
    """Install Debian packages. Raises CannotRunError when apt is not there or cannot."""
    if os.geteuid() != 0:
        raise CannotRunError(f"{', '.join(packages)}: not installed, and installing needs root")
    if shutil.which("apt-get") is None:
        raise CannotRunError(f"{', '.join(packages)}: not installed, and there is no apt-get")
    environ = {**os.environ, "DEBIAN_FRONTEND": "noninteractive"}
    command = ["apt-get", "install", "-y", "--no-install-recommends", "-o", "DPkg::Lock::Timeout=300", *packages]
    with locked(CACHE / "apt.lock", fcntl.LOCK_EX):
        for before in ([], ["apt-get", "update"]):
            if before:
                subprocess.run(before, env=environ, check=False, capture_output=True)
            done = subprocess.run(command, env=environ, check=False, capture_output=True, text=True)
            if done.returncode == 0:
                return
    raise CannotRunError(f"apt-get could not install {', '.join(packages)}: {done.stderr.strip()[-300:]}")


@contextlib.contextmanager
def locked(path: Path, how: int) -> Iterator[int]:
    path.parent.mkdir(parents=True, exist_ok=True)
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
    try:
        fcntl.flock(descriptor, how)
        yield descriptor
    finally:
        os.close(descriptor)


def recorded() -> Daemon | None:
    """Return the shared engine as it was started last, whether it still runs or not."""
    try:
        state = json.loads((CACHE / "engine.json").read_text(encoding="utf-8"))
        return Daemon(CACHE / "data", Path(state["folder"]), state["pid"], state["started"])
    except (OSError, ValueError, KeyError):
        return None


def running() -> Daemon | None:
    """Return the shared engine if it runs."""
    daemon = recorded()
    return daemon if daemon is not None and daemon.runs else None


def is_well(daemon: Daemon) -> bool:
    """Whether it runs and answers, be it late: others may be at work with one that is only slow."""
    return daemon.runs and wait_for(lambda: daemon.answers, START_S)


def up(*, stays: bool = False) -> Daemon:
    """Return the shared engine, started if it is not running. With `stays` it runs until `down`."""
    with locked(CACHE / "engine.lock", fcntl.LOCK_EX):
        daemon = recorded()
        if daemon is None or not is_well(daemon):
            if daemon is not None:
                daemon.kill()
                shutil.rmtree(daemon.folder, ignore_errors=True)
            daemon = Daemon(CACHE / "data", Path(tempfile.mkdtemp(prefix="tfjob-docker-")))
            try:
                daemon.start()
            except CannotRunError:
                shutil.rmtree(daemon.folder, ignore_errors=True)
                raise
            state = {"pid": daemon.pid, "started": daemon.started, "folder": str(daemon.folder)}
            (CACHE / "engine.json").write_text(json.dumps(state), encoding="utf-8")
        if stays:
            (CACHE / "stays").touch()
        return daemon


def down(*, if_unused: bool = False) -> None:
    """End the shared engine; with `if_unused`, only where nobody holds it and nobody asked for it to stay."""
    with locked(CACHE / "engine.lock", fcntl.LOCK_EX):
        if if_unused and ((CACHE / "stays").exists() or not is_free(CACHE / "users.lock")):
            return
        (CACHE / "stays").unlink(missing_ok=True)
        daemon = running()
        if daemon is not None:
            daemon.stop()
            shutil.rmtree(daemon.folder, ignore_errors=True)
        (CACHE / "engine.json").unlink(missing_ok=True)


def is_free(path: Path) -> bool:
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        return False
    else:
        return True
    finally:
        os.close(descriptor)


@contextlib.contextmanager
def engine() -> Iterator[Daemon]:
    """Use the shared engine; the last user ends it. Raises CannotRunError when there can be none."""
    try:
        with locked(CACHE / "users.lock", fcntl.LOCK_SH):
            yield up()
    finally:
        down(if_unused=True)


@contextlib.contextmanager
def own_engine(data: Path, *, options: Sequence[str] = OPTIONS) -> Iterator[Daemon]:
    """Start an engine for one test that may be killed, filled up or cut off, with its data in `data`."""
    folder = Path(tempfile.mkdtemp(prefix="tfjob-docker-"))
    daemon = Daemon(data, folder, options=options)
    try:
        daemon.start()
        yield daemon
    finally:
        daemon.stop()
        shutil.rmtree(folder, ignore_errors=True)


def tarball(image: str) -> Path:
    """Return the root file system of a base image as a tarball, made if it is not there (half a minute)."""
    path = CACHE / (image.replace("/", "-").replace(":", "-") + ".tar")
    with locked(CACHE / "tarball.lock", fcntl.LOCK_EX):
        if not path.exists():
            if shutil.which("mmdebstrap") is None and shutil.which("debootstrap") is None:
                install("debootstrap")
            try:
                debian.bootstrap(path, suite=None, packages=IMAGES[image], log=lambda _line: None)
            except PreparationError as error:
                raise CannotRunError(str(error)) from error
    return path


def archive(image: str) -> Path:
    """Return a base image as ``docker load`` reads it. It has the same id in every engine, whenever it is loaded."""
    path = tarball(image).with_suffix(".image.tar")
    with locked(CACHE / "tarball.lock", fcntl.LOCK_EX):
        if not path.exists():
            layer = path.with_suffix("").with_suffix(".tar")
            with layer.open("rb") as opened:
                digest = hashlib.file_digest(opened, "sha256").hexdigest()
            config = {
                "architecture": {"x86_64": "amd64", "aarch64": "arm64"}[platform.machine()],
                "os": "linux",
                "created": "1970-01-01T00:00:00Z",
                "config": {},
                "rootfs": {"type": "layers", "diff_ids": [f"sha256:{digest}"]},
                "history": [{"created": "1970-01-01T00:00:00Z", "created_by": "debootstrap"}],
            }
            manifest = [{"Config": "config.json", "RepoTags": [image], "Layers": ["layer.tar"]}]
            unfinished = path.with_suffix(".unfinished")
            with tarfile.open(unfinished, "w") as tar:
                for name, value in {"config.json": config, "manifest.json": manifest}.items():
                    text = json.dumps(value).encode()
                    member = tarfile.TarInfo(name)
                    member.size = len(text)
                    tar.addfile(member, io.BytesIO(text))
                tar.add(layer, "layer.tar")
            unfinished.rename(path)
    return path


def load_image(host: str, image: str) -> None:
    """Put a base image into an engine if it is not there."""
    import docker  # noqa: PLC0415  # 100 ms that only the tests that use it should pay

    with contextlib.closing(docker.DockerClient(base_url=host, timeout=300)) as client:
        if not client.images.list(name=image):
            with archive(image).open("rb") as tar:
                client.images.load(tar)


def base_image(daemon: Daemon, image: str = BASE) -> str:
    """Put a base image into an engine if it is not there, and return its name."""
    with locked(CACHE / "import.lock", fcntl.LOCK_EX):
        load_image(daemon.host, image)
    return image


@pytest.fixture(scope="session")
def docker_daemon() -> Iterator[Daemon]:
    """The shared engine; skips, with the reason, where there can be none."""
    try:
        with engine() as daemon:
            yield daemon
    except CannotRunError as reason:
        pytest.skip(str(reason))


@pytest.fixture
def docker_engine(docker_daemon: Daemon, monkeypatch: pytest.MonkeyPatch) -> Daemon:
    """The shared engine as the one that DOCKER_HOST names."""
    monkeypatch.setenv("DOCKER_HOST", docker_daemon.host)
    for name in ("DOCKER_TLS_VERIFY", "DOCKER_CERT_PATH", "DOCKER_CONTEXT"):
        monkeypatch.delenv(name, raising=False)
    return docker_daemon


@pytest.fixture
def test_base(docker_engine: Daemon) -> str:
    """A base image with Python and SSH in the engine that DOCKER_HOST names."""
    return needed(lambda: base_image(docker_engine, BASE))


@pytest.fixture
def bare_base(docker_engine: Daemon) -> str:
    """A base image without Python and SSH in the engine that DOCKER_HOST names."""
    return needed(lambda: base_image(docker_engine, BARE))


def program(name: str, package: str) -> str:
    """Return the path of a program, installed with its Debian package if that can be; skips with the reason if it cannot."""
    path = f"{os.environ.get('PATH', os.defpath)}:/usr/sbin:/sbin"
    if shutil.which(name, path=path) is None:
        try:
            install(package)
        except CannotRunError as reason:
            pytest.skip(str(reason))
    return str(shutil.which(name, path=path))


def needed(make: Callable[[], str]) -> str:
    try:
        return make()
    except CannotRunError as reason:
        pytest.skip(str(reason))


def _up() -> None:
    daemon = up(stays=True)
    for image in IMAGES:
        base_image(daemon, image)


def _env() -> dict[str, str]:
    daemon = running()
    if daemon is None:
        raise set_up.NotRunningError("the engine")
    return {"DOCKER_HOST": daemon.host}


if __name__ == "__main__":
    sys.exit(set_up.set_up_program(_up, _env, down))
