"""A virtual node: network, mount, process, host name and IPC namespaces of its own, an SSH server and a Docker Engine.

Nothing tells it from a machine but its kernel, its clock and the programs that it has from this machine's disk. It can
lose its power and its cable.
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import signal
import socket
import subprocess
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from cluster import network
from docker_parts import OPTIONS, CannotRunError, children, locked, signalled, start_time, wait_for

if TYPE_CHECKING:
    from cluster.layout import Layout

__all__ = ["Node", "remove_cgroups"]

SCRIPT = Path(__file__).with_name("node.sh")
PATH = "/run/lab/bin:/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
READY_S = 90
STOP_S = 20
EMPTY_S = 60
SSH_PORT = 22
PORT = 2375
PORT_TLS = 2376


@dataclass(frozen=True)
class Node:
    """One node of the cluster. What is known about its life is in its directory, so that every process sees the same."""

    layout: Layout
    name: str
    address: str
    has_tls: bool = False
    has_engine: bool = True

    @property
    def directory(self) -> Path:
        return self.layout.directory / "nodes" / self.name

    @property
    def ssh_url(self) -> str:
        """Its engine by SSH; the name is known from the cluster's `ssh_config`."""
        return f"ssh://root@{self.name}"

    @property
    def tcp_url(self) -> str:
        """Its engine by TCP; where `tls` is a directory, with the certificates in it."""
        return f"tcp://{self.address}:{PORT_TLS if self.has_tls else PORT}"

    @property
    def tls(self) -> Path | None:
        """The directory of ca.pem, cert.pem and key.pem for `tcp_url`; None where that has no TLS."""
        return self.layout.etc / "tls" if self.has_tls else None

    @property
    def docker_host(self) -> str:
        """Its engine as this machine reaches it without any network: a cut cable doesn't matter."""
        return f"unix://{self._socket}"

    @property
    def _socket(self) -> Path:
        return self.layout.sockets / self.name / "docker.sock"

    @property
    def _places(self) -> tuple[Path, Path, Path]:
        return self.layout.directory, self.layout.sockets, self.layout.repository

    @property
    def pid(self) -> int:
        """Its pid 1, as this machine numbers it; 0 when it is off."""
        try:
            state = json.loads((self.directory / "node.json").read_text(encoding="utf-8"))
        except (OSError, ValueError):
            return 0
        if not state["started"] or start_time(state["pid"]) != state["started"]:
            return 0
        return next(iter(children(state["pid"])), 0)

    @property
    def runs(self) -> bool:
        return self.pid > 0

    @property
    def is_plugged(self) -> bool:
        return network.is_plugged(self.layout, self.name)

    @property
    def answers(self) -> bool:
        """Its engine answers, and so does its SSH server."""
        has_engine = not self.has_engine or _engine_answers(self._socket)
        return has_engine and self.runs and _listens(self.pid, SSH_PORT)

    def boot(self, *, wait: bool = True) -> None:
        """Switch it on if it is off, with a plugged cable. Raises CannotRunError if it isn't ready in time."""
        with locked(self.layout.directory / f"{self.name}.lock", fcntl.LOCK_EX):
            if not self.runs:
                self._boot()
        if wait:
            self.wait_ready()

    def _boot(self) -> None:
        slurm = self.layout.slurm / "etc"
        for needed in (self.directory, self._socket.parent, slurm, self.layout.sockets / "munge"):
            needed.mkdir(parents=True, exist_ok=True)
        self._socket.unlink(missing_ok=True)
        (self.directory / "node.json").unlink(missing_ok=True)
        network.connect(self.layout, self.name, self.address)
        namespaces = ["--mount", "--uts", "--ipc", "--pid", "--fork", "--kill-child", "--mount-proc"]
        script = ["/bin/sh", str(SCRIPT), self.name, *map(str, self._places)]
        enter = ["nsenter", f"--net={network.NAMESPACES / self.layout.namespace(self.name)}", "unshare", *namespaces]
        with (self.directory / "boot.log").open("wb") as log:
            process = subprocess.Popen(
                [*enter, "/usr/bin/docker-init", "--", *script, *self._engine_options()],
                cwd="/",
                env={"PATH": PATH, "HOME": "/root", "LANG": "C.UTF-8"},
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                start_new_session=True,
            )
        state = {"pid": process.pid, "started": start_time(process.pid)}
        (self.directory / "node.json").write_text(json.dumps(state), encoding="utf-8")
        if not wait_for(lambda: process.poll() is not None or self.runs, STOP_S) or not self.runs:
            raise CannotRunError(f"{self.name} does not boot: {_last_line(self.directory / 'boot.log')}")

    def _engine_options(self) -> list[str]:
        if not self.has_engine:
            return []
        options = [*OPTIONS, "--data-root=/run/lab/node/docker", "--exec-root=/run/docker", "--pidfile=/run/docker.pid"]
        options += ["--config-file=/run/lab/etc/daemon.json", f"--cgroup-parent=/{self.layout.cgroup}/{self.name}"]
        options += [
            "--host=unix:///run/docker.sock",
            "--host=unix:///run/lab/socket/docker.sock",
            f"--host={self.tcp_url}",
        ]
        if self.has_tls:
            places = {"tlscacert": "ca", "tlscert": "server-cert", "tlskey": "server-key"}
            options += ["--tlsverify", *(f"--{option}=/run/lab/etc/tls/{file}.pem" for option, file in places.items())]
        else:
            options += ["--tls=false"]  # said in words: dockerd waits for 15 s where it isn't
        return options

    def wait_ready(self) -> None:
        """Wait until it answers. Raises CannotRunError, with what it said last, if it doesn't in time or ends."""
        wait_for(lambda: self.answers or not self.runs, READY_S)
        if not self.answers:
            logs = [_last_line(self.directory / name) for name in ("boot.log", "dockerd.log", "sshd.log")]
            raise CannotRunError(f"{self.name} is {'not ready' if self.runs else 'off again'}: {' / '.join(logs)}")

    def power_off(self) -> None:
        """Take its power: all that runs on it is gone at once, and nobody on the network is told."""
        with locked(self.layout.directory / f"{self.name}.lock", fcntl.LOCK_EX):
            if network.is_plugged(self.layout, self.name):
                self.cut_cable()  # the kernel would close its connections, as no machine without power does
            self._kill()

    def _kill(self) -> None:
        pid = self.pid
        if pid > 0:
            signalled(pid, signal.SIGKILL)
        wait_for(lambda: not self.runs, STOP_S)
        for left in network.occupants(self.layout, self.name):
            signalled(left, signal.SIGKILL)
        wait_for(lambda: not network.occupants(self.layout, self.name), STOP_S)
        self._socket.unlink(missing_ok=True)
        (self.directory / "node.json").unlink(missing_ok=True)
        remove_cgroups(f"{self.layout.cgroup}/{self.name}")

    def remove(self) -> None:
        """Take its power and its network; its disk stays, for the next time."""
        with locked(self.layout.directory / f"{self.name}.lock", fcntl.LOCK_EX):
            self._kill()
            network.disconnect(self.layout, self.name)

    def cut_cable(self) -> None:
        network.plug(self.layout, self.name, plugged=False)

    def plug_cable(self) -> None:
        network.plug(self.layout, self.name, plugged=True)

    def stop_engine(self) -> None:
        """End its Docker Engine by SIGKILL; the node and its containers go on."""
        self.exec(["sh", "-c", "kill -9 $(cat /run/docker.pid)"])
        wait_for(lambda: not _engine_answers(self._socket), STOP_S)

    def start_engine(self) -> None:
        """Start its Docker Engine again, after `stop_engine`."""
        self.exec(["/run/lab/bin/start-engine"])
        self.wait_ready()

    def set_gpus(self, count: int) -> None:
        """Let its nvidia-smi show so many GPUs; 0 for none. The fixture `nodes` sets it back."""
        (self.directory / "gpus").write_text(f"{count}\n", encoding="utf-8")

    def command(self, argv: Sequence[str]) -> list[str]:
        """The command line that runs `argv` on the node, as root and in `/`."""
        namespaces = ["--net", "--mount", "--uts", "--ipc", "--pid"]
        environ = ["env", "-i", f"PATH={PATH}", "HOME=/root", "LANG=C.UTF-8"]
        return ["nsenter", f"--target={self.pid}", *namespaces, "--", *environ, *argv]

    def exec(self, argv: Sequence[str], *, check: bool = True, timeout_s: float = 60) -> str:
        """Run a command on the node without any network; returns what it printed. With `check`, it must exit with 0."""
        done = subprocess.run(
            self.command(argv), check=False, capture_output=True, text=True, stdin=subprocess.DEVNULL, timeout=timeout_s
        )
        if check:
            assert done.returncode == 0, f"{self.name}: {argv}: exit {done.returncode}\n{done.stdout}\n{done.stderr}"
        return done.stdout

    def reset(self) -> None:
        """Bring it back to how a test wants to find it: on, plugged, without containers and volumes."""
        (self.directory / "gpus").unlink(missing_ok=True)
        if not self.is_plugged:
            if self.runs:
                self.plug_cable()
            else:
                self.boot(wait=False)
        if self.runs and not _engine_answers(self._socket):
            self.remove()
        self.boot()
        with self.client() as client:
            if not wait_for(lambda: _found_empty(client.api), EMPTY_S):
                raise CannotRunError(f"{self.name} keeps containers or volumes that can't be removed")

    def image_id(self, name: str) -> str:
        """The id of an image in its engine; empty if it has none of this name."""
        with self.client() as client:
            listed = client.images.list(name=name)
            return str(listed[0].id) if listed else ""

    def client(self) -> contextlib.closing[Any]:
        """A Docker client for its engine, by the socket that needs no network."""
        import docker  # noqa: PLC0415  # 100 ms that only the tests that use it should pay

        return contextlib.closing(docker.DockerClient(base_url=self.docker_host, timeout=120))


def _found_empty(api: Any) -> bool:
    """Whether an engine had neither containers nor volumes; it is told to remove what it had.

    It may be removing that already (``--rm``), or who made it may be, or make more: an end that is in progress is refused.
    """
    import docker  # noqa: PLC0415  # see Node.client

    containers, volumes = api.containers(all=True), api.volumes()["Volumes"] or ()
    for container in containers:
        with contextlib.suppress(docker.errors.APIError):
            api.remove_container(container["Id"], force=True, v=True)
    for volume in volumes:
        with contextlib.suppress(docker.errors.APIError):
            api.remove_volume(volume["Name"], force=True)
    return not containers and not volumes


def _engine_answers(path: Path) -> bool:
    with contextlib.suppress(OSError), socket.socket(socket.AF_UNIX) as connection:
        connection.settimeout(5)
        connection.connect(os.fspath(path))
        connection.sendall(b"GET /_ping HTTP/1.0\r\n\r\n")
        return b" 200 " in connection.recv(64)
    return False


def _listens(pid: int, port: int) -> bool:
    """Whether something listens on a TCP port in the network of this process."""
    with contextlib.suppress(OSError):
        rows = [line.split() for line in Path(f"/proc/{pid}/net/tcp").read_text(encoding="utf-8").splitlines()[1:]]
        return any(row[1].endswith(f":{port:04X}") and row[3] == "0A" for row in rows)
    return False


def _last_line(log: Path) -> str:
    with contextlib.suppress(OSError):
        return " ".join(log.read_text(encoding="utf-8", errors="replace").splitlines()[-1:])[:300]
    return ""


def remove_cgroups(name: str) -> None:
    """Remove the control groups that containers left when their node lost its power."""
    root = Path("/sys/fs/cgroup")
    for top in [root / name, *(controller / name for controller in root.iterdir() if controller.is_dir())]:
        for directory, _, _ in os.walk(top, topdown=False):
            with contextlib.suppress(OSError):
                Path(directory).rmdir()
