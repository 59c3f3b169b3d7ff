"""What a task's container is: the body of the Docker Engine's call to make it. Pure; nothing is asked or started here.

Limits (ulimit) are the engine's own. NVIDIA's advice to lift `memlock` is for InfiniBand between nodes, and an engine
that may not lift it starts no container: who needs it says so in `docker_args`.

Secrets are among the container's variables. Whoever can read them there, by `docker inspect` or in the engine's own
directory, may use the engine's socket or is root, and so could read the memory of every process. They are in no label,
argument or file of tfjob's, and the engine forgets them when the container is removed, at the end of its run.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any, Final

from tfjob import entrypoint
from tfjob.engines.base import Allocation, Mount, Prepared
from tfjob.engines.inherited import travelling_environment
from tfjob.engines.marked import MARKER
from tfjob.engines.reports import Entrypoint
from tfjob.engines.submitter import Submitter
from tfjob.planning.plan import Plan, TaskPlan
from tfjob.rundir import RunDirectory
from tfjob.spec.docker_arguments import DockerArguments, parse, size_bytes
from tfjob.targets.target import Gpu

__all__ = [
    "LOG_DRIVER",
    "Shape",
    "bind_mount",
    "container_of",
    "device_request",
    "labels",
    "name_of",
    "numbered_from_zero",
]

ENTRYPOINT_FILE: Final = "/opt/tfjob/entrypoint.py"
_CERTIFICATES: Final = "/opt/tfjob/certificates"
_CERTIFICATE_VARIABLES: Final = ("SSL_CERT_FILE", "REQUESTS_CA_BUNDLE", "CURL_CA_BUNDLE")
LOG_DRIVER: Final = {"Type": "json-file", "Config": {"max-size": "1m", "max-file": "1"}}
"""What a container's first process says is kept, but not much: tasks have logs of their own."""


@dataclass(frozen=True)
class Shape:
    """What the containers of a run have in common.

    `options` are the engine's security options; `mounts` what is mounted beside the run directory and the entrypoint.
    """

    plan: Plan
    run: RunDirectory
    prepared: Prepared
    submitter: Submitter
    environ: Mapping[str, str]
    options: frozenset[str] = frozenset()
    mounts: tuple[Mount, ...] = ()
    gpus: tuple[Gpu, ...] = field(default_factory=tuple)

    @property
    def entrypoint(self) -> Entrypoint:
        """How a task's entrypoint is started in a container."""
        return Entrypoint(self.prepared.python or "python3", ENTRYPOINT_FILE)


def name_of(run: RunDirectory, task: str) -> str:
    """The name of a task's container."""
    return f"tfjob-{run.id}-{task}"


def labels(run: RunDirectory) -> dict[str, str]:
    """What all containers of a run bear, and no other's: two workspaces may each have a run of one name."""
    return {"tfjob.run": run.id, "tfjob.directory": str(run.path)}


def numbered_from_zero(allocation: Allocation, plan: Plan) -> Allocation:
    """The allocation as tasks see it: in a container its GPUs are numbered from 0, ranks share those of their launcher."""
    gpus = {task.name: tuple(range(len(allocation.gpus.get(task.name, ())))) for task in plan.tasks}
    return Allocation(allocation.nodes, gpus, allocation.ports, allocation.leases)


def container_of(task: TaskPlan, shape: Shape, allocation: Allocation) -> dict[str, Any]:
    """The body of the call that makes the container of a task that the engine starts."""
    plan, run = shape.plan, shape.run
    arguments = parse(plan.container.docker_args if plan.container else ())
    given = [gpu for gpu in shape.gpus if gpu.index in _gpus_of(task, plan, allocation)]
    certificates = _certificates(shape.environ)
    pem: dict[str, str] = dict(certificates.values())
    mounts = (
        Mount(str(run.path), str(run.path), read_only=False),
        Mount(os.path.realpath(entrypoint.__file__), ENTRYPOINT_FILE),
        *shape.prepared.mounts,
        *shape.mounts,
        *(Mount(source, target) for source, target in pem.items()),
    )
    return {
        "Image": shape.prepared.image,
        "Entrypoint": shape.entrypoint.argv(run, task.name),
        "Cmd": [],
        "Env": [*_variables(shape, certificates, has_gpus=bool(given)), *arguments.environment],
        "User": "0:0" if "rootless" in shape.options else shape.submitter.user,
        "WorkingDir": "/",
        "StopSignal": "SIGTERM",
        "Healthcheck": {"Test": ["NONE"]},
        "Labels": {
            **arguments.labels,
            **labels(run),
            "tfjob.task": task.name,
            # For runs of a target of several nodes that has this machine as one: see engines/cluster/leases.py.
            **({"tfjob.gpus": ",".join(str(gpu.index) for gpu in given)} if given else {}),
        },
        "HostConfig": _host(shape, arguments, mounts, given),
    }


def _host(shape: Shape, arguments: DockerArguments, mounts: Iterable[Mount], gpus: list[Gpu]) -> dict[str, Any]:
    rootless = "rootless" in shape.options
    groups = [] if rootless else [str(gid) for gid, _ in shape.submitter.groups]
    groups += arguments.host.get("GroupAdd", [])
    return {
        "NetworkMode": "host",
        "Init": True,
        "ShmSize": size_bytes(shape.plan.container.shm_size if shape.plan.container else "2g"),
        "LogConfig": LOG_DRIVER,
        # A container's users as this machine's: those that the engine shifts could not write to the run directory.
        **({"UsernsMode": "host"} if "userns" in shape.options else {}),
        **({"DeviceRequests": [device_request(gpus)]} if gpus else {}),
        **arguments.host,
        "GroupAdd": groups,
        "Mounts": [*map(bind_mount, mounts), *arguments.mounts],
        "Ulimits": list(arguments.ulimits.values()),
    }


def bind_mount(mount: Mount) -> dict[str, Any]:
    """A mount as the Docker Engine's API wants it."""
    return {"Type": "bind", "Source": mount.source, "Target": mount.target, "ReadOnly": mount.read_only}


def device_request(gpus: Iterable[Gpu]) -> dict[str, Any]:
    """The GPUs by UUID, which no change of their order can mistake; by number those that config.yml declares."""
    names = [str(gpu.index) if gpu.uuid.startswith("declared-") else gpu.uuid for gpu in gpus]
    return {"DeviceIDs": names, "Capabilities": [["gpu"]]}


def _gpus_of(task: TaskPlan, plan: Plan, allocation: Allocation) -> set[int]:
    """The GPUs a container needs: the task's own, and a launcher's those of what it starts."""
    tasks = [other.name for other in plan.tasks if other.launched] if task == plan.launcher else [task.name]
    return {index for name in tasks for index in allocation.gpus.get(name, ())}


def _variables(shape: Shape, certificates: Mapping[str, tuple[str, str]], *, has_gpus: bool) -> list[str]:
    who = shape.submitter
    variables = {
        **({"HOME": who.home} if who.home and "rootless" not in shape.options else {}),
        "USER": who.name,
        "LOGNAME": who.name,
        **{name: target for name, (_, target) in certificates.items()},
        **travelling_environment(shape.environ, shape.plan.secrets),
        MARKER: shape.run.id,
        # Images of NVIDIA's ask for all GPUs; where its runtime is the engine's default they would get them.
        **({} if has_gpus else {"NVIDIA_VISIBLE_DEVICES": "void"}),
    }
    return [f"{name}={value}" for name, value in variables.items()]


def _certificates(environ: Mapping[str, str]) -> dict[str, tuple[str, str]]:
    """The certificate files that the shell names: variable → (the file here, where the container finds it)."""
    found = {name: os.path.realpath(environ[name]) for name in _CERTIFICATE_VARIABLES if environ.get(name)}
    files = {file: f"{_CERTIFICATES}/{number}.pem" for number, file in enumerate(dict.fromkeys(found.values()))}
    return {name: (file, files[file]) for name, file in found.items() if os.path.isfile(file)}
