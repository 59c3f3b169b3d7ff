"""The one container a run has on each of its nodes: the body of the call that makes it, and the files put into it. Pure."""

from __future__ import annotations

import io
import json
import os
import tarfile
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any, Final

from tfjob import entrypoint
from tfjob.engines import run_files
from tfjob.engines.base import Prepared
from tfjob.engines.cluster import agent, agent_files, agent_prepare, agent_system, agent_tasks
from tfjob.engines.cluster.leases import RunKey
from tfjob.engines.container import LOG_DRIVER, bind_mount, device_request
from tfjob.engines.inherited import travelling_environment
from tfjob.engines.marked import MARKER
from tfjob.engines.reports import Entrypoint
from tfjob.engines.submitter import Submitter
from tfjob.planning.plan import Plan
from tfjob.rundir import RunDirectory
from tfjob.spec.docker_arguments import parse, size_bytes
from tfjob.targets.target import Gpu

__all__ = [
    "AGENT",
    "ENTRYPOINT",
    "KEEP",
    "TREES",
    "UNPACK",
    "Place",
    "archive_of",
    "body_of",
    "bundle_of",
    "inside",
    "name_of",
    "node_labels",
]

PROGRAMS: Final = "/opt/tfjob"
AGENT: Final = f"{PROGRAMS}/agent.py"
ENTRYPOINT: Final = f"{PROGRAMS}/entrypoint.py"
TREES: Final = "/tfjob/trees"
_DIRECTORIES: Final = ("logs", "logs/user", "outputs", "tasks", "work", "datasets", "ssh")

KEEP: Final = """\
import os, signal, sys
ends = {signal.SIGTERM, signal.SIGINT}
signal.pthread_sigmask(signal.SIG_BLOCK, ends)
signal.sigwait(ends)
os.execv(sys.executable, [sys.executable, "-I", "-S"] + sys.argv[1:])
"""
"""The container's main process: it waits to be told to end, then becomes the program that its arguments say."""

UNPACK: Final = """\
import json, os, sys
left, bundle = int(sys.argv[1]), b""
while left > len(bundle):
    more = os.read(0, left - len(bundle))
    if not more:
        sys.exit("the connection ended too early")
    bundle += more
bundle = json.loads(bundle.decode())
try:
    for path, mode in bundle["directories"]:
        os.makedirs(path, mode, exist_ok=True)
    for path, text in bundle["programs"]:
        with open(path + ".new", "w", encoding="utf-8") as file:
            file.write(text)
        os.rename(path + ".new", path)
except OSError as error:
    print(json.dumps({"kind": "problem", "message": str(error)}))
    sys.exit(1)
sys.argv = sys.argv[2:]
with open(sys.argv[0], encoding="utf-8") as file:
    program = compile(file.read(), sys.argv[0], "exec", 0, True)
exec(program, {"__name__": "__main__", "__file__": sys.argv[0]})
"""
"""A program that makes what `bundle_of` says, which comes over its stdin, and then becomes that of its other arguments.

Its first argument is the bundle's length in bytes. It is quicker than the engine's own way to put files into a container.
"""


@dataclass(frozen=True)
class Place:
    """What a node's container has that others may not: its number, its GPUs, and what is mounted in it.

    `volumes` are trees of files that lie on the node: (volume, path in the container). `binds` are directories that all nodes share.
    """

    index: int
    gpus: tuple[Gpu, ...] = ()
    volumes: tuple[tuple[str, str], ...] = ()
    binds: tuple[tuple[str, bool], ...] = ()


_MODULES: Final = (
    (agent, AGENT),
    (agent_files, f"{PROGRAMS}/agent_files.py"),
    (agent_prepare, f"{PROGRAMS}/agent_prepare.py"),
    (agent_system, f"{PROGRAMS}/agent_system.py"),
    (agent_tasks, f"{PROGRAMS}/agent_tasks.py"),
    (run_files, f"{PROGRAMS}/run_files.py"),
    (entrypoint, ENTRYPOINT),
)


def inside(run: RunDirectory) -> RunDirectory:
    """The run's directory as containers know it: no path of this machine is assumed on nodes."""
    return RunDirectory(Path("/tfjob") / run.id)


def name_of(key: RunKey, attempt: int, index: int) -> str:
    """The name of the container on the run's node `index`."""
    return f"tfjob-{key.name}-{attempt}-{index}"


def node_labels(key: RunKey, attempt: int, place: Place) -> dict[str, str]:
    """What tells a run's container from all others, and what it has of its node."""
    gpus = ",".join(str(gpu.index) for gpu in place.gpus)
    return {**key.labels, "tfjob.attempt": str(attempt), "tfjob.node": str(place.index), "tfjob.gpus": gpus}


def body_of(
    plan: Plan,
    run: RunDirectory,
    prepared: Prepared,
    place: Place,
    *,
    labels: Mapping[str, str],
    who: Submitter,
    environ: Mapping[str, str],
    options: frozenset[str],
) -> dict[str, Any]:
    """The body of the call that makes a node's container. `options` are the engine's security options."""
    rootless = "rootless" in options
    arguments = parse(plan.container.docker_args if plan.container else ())
    variables = {
        **({"HOME": who.home} if who.home and not rootless else {}),
        "USER": who.name,
        "LOGNAME": who.name,
        **travelling_environment(environ, plan.secrets),
        MARKER: run.id,
        # Images of NVIDIA's ask for all GPUs; where its runtime is the engine's default they would get them.
        **({} if place.gpus else {"NVIDIA_VISIBLE_DEVICES": "void"}),
    }
    volumes = [
        {"Type": "volume", "Source": name, "Target": target, "ReadOnly": True, "VolumeOptions": {"NoCopy": True}}
        for name, target in place.volumes
    ]
    binds = [{"Type": "bind", "Source": path, "Target": path, "ReadOnly": read_only} for path, read_only in place.binds]
    return {
        "Image": prepared.image,
        "Entrypoint": [prepared.python or "python3", "-I", "-S", "-c", KEEP, AGENT, "end", str(inside(run).path)],
        "Cmd": [],
        "Env": [*(f"{name}={value}" for name, value in variables.items()), *arguments.environment],
        "User": "0:0" if rootless else who.user,
        "WorkingDir": "/",
        "StopSignal": "SIGTERM",
        "Healthcheck": {"Test": ["NONE"]},
        "Labels": {**arguments.labels, **labels},
        "HostConfig": {
            "NetworkMode": "host",
            "Init": True,
            "ShmSize": size_bytes(plan.container.shm_size if plan.container else "2g"),
            "LogConfig": LOG_DRIVER,
            **({"UsernsMode": "host"} if "userns" in options else {}),
            **({"DeviceRequests": [device_request(place.gpus)]} if place.gpus else {}),
            **arguments.host,
            "Mounts": [*volumes, *binds, *map(bind_mount, prepared.mounts), *arguments.mounts],
            "Ulimits": list(arguments.ulimits.values()),
        },
    }


def entrypoint_of(prepared: Prepared) -> Entrypoint:
    """How a task's entrypoint is started in a node's container."""
    return Entrypoint(prepared.python or "python3", ENTRYPOINT)


def bundle_of(run: RunDirectory) -> bytes:
    """What `archive_of` has, for `UNPACK`: for containers whose user is root, and may make it where it belongs."""
    root = str(inside(run).path)
    directories = [(name, _mode(name)) for name in (PROGRAMS, root, *(f"{root}/{name}" for name in _DIRECTORIES))]
    programs = [(target, _program(module).decode()) for module, target in _MODULES]
    return json.dumps({"directories": directories, "programs": programs}).encode()


def archive_of(
    run: RunDirectory, who: Submitter, options: frozenset[str], accounts: Iterable[tuple[str, str]]
) -> bytes:
    """The archive that is unpacked at / of a container: tfjob's programs, the run's directory, and `accounts`.

    `accounts`: the files of /etc that are to be replaced, as (name, text).
    """
    uid, gid = (0, 0) if "rootless" in options else (who.uid, who.gid)
    buffer = io.BytesIO()
    root = inside(run).path.relative_to("/").as_posix()
    directories = ["tfjob", root, *(f"{root}/{name}" for name in _DIRECTORIES)]
    with tarfile.open(fileobj=buffer, mode="w", format=tarfile.PAX_FORMAT) as tar:
        for name in (PROGRAMS[1:],):
            tar.addfile(_directory(name, 0, 0, 0o755))
        for module, target in _MODULES:
            content = _program(module)
            tar.addfile(_file(target[1:], len(content), 0, 0, 0o755), io.BytesIO(content))
        for name in directories:
            tar.addfile(_directory(name, uid, gid, _mode(name)))
        for name, text in accounts:
            content = text.encode()
            tar.addfile(_file(f"etc/{name}", len(content), 0, 0, 0o644), io.BytesIO(content))
    return buffer.getvalue()


def _mode(directory: str) -> int:
    return 0o700 if directory.endswith("/ssh") else 0o755


def _program(module: ModuleType) -> bytes:
    return Path(os.path.realpath(str(module.__file__))).read_bytes()


def _directory(name: str, uid: int, gid: int, mode: int) -> tarfile.TarInfo:
    info = tarfile.TarInfo(name)
    info.type, info.mode, info.uid, info.gid = tarfile.DIRTYPE, mode, uid, gid
    return info


def _file(name: str, size: int, uid: int, gid: int, mode: int) -> tarfile.TarInfo:
    info = tarfile.TarInfo(name)
    info.size, info.mode, info.uid, info.gid = size, mode, uid, gid
    return info
