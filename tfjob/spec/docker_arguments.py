"""More arguments of `docker run` for a job's containers: which are passed on, and as which fields of the Docker Engine's API.

Source of both sides: Docker's documentation, "docker container run" and "Docker Engine API", operation ContainerCreate.
Nothing here asks an engine: what only it can know (a device that is not there) it says itself.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any, Final, NamedTuple

from tfjob.spec.nearest import nearest

__all__ = ["ArgumentProblem", "DockerArguments", "parse", "problems", "size_bytes"]

_SIZE: Final = re.compile(r"(\d+(?:\.\d+)?) ?([kmgtp]?)i?b?", re.IGNORECASE)
_NAME: Final = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]*")
_VARIABLE: Final = re.compile(r"[^=\s]+=.*", re.DOTALL)
_PROPAGATION: Final = ("private", "rprivate", "shared", "rshared", "slave", "rslave")
_UNCONFINED: Final = ("seccomp=unconfined", "systempaths=unconfined")


class ArgumentProblem(NamedTuple):
    """One thing wrong: `place` is the argument's index in the list, `message` what was found and what is allowed."""

    place: int
    message: str
    hint: str = ""


@dataclass(frozen=True)
class DockerArguments:
    """What the arguments come to: fields of the API's HostConfig, and what goes beside tfjob's own of the same kind.

    `mounts` are the API's Mount objects, `ulimits` its Ulimit objects by name.
    """

    host: dict[str, Any] = field(default_factory=dict)
    mounts: tuple[dict[str, Any], ...] = ()
    environment: tuple[str, ...] = ()
    labels: dict[str, str] = field(default_factory=dict)
    ulimits: dict[str, dict[str, Any]] = field(default_factory=dict)


def parse(arguments: tuple[str, ...]) -> DockerArguments:
    """The arguments as fields of the API. Raises ValueError for those that `problems` names."""
    found = _Found()
    for index, problem in _read(arguments, found):
        raise ValueError(f"{arguments[index]}: {problem[0]}")
    return DockerArguments(found.host, tuple(found.mounts), tuple(found.environment), found.labels, found.ulimits)


def problems(arguments: tuple[str, ...]) -> list[ArgumentProblem]:
    """Everything that keeps the arguments from being passed on, in their order."""
    return [ArgumentProblem(index, *problem) for index, problem in _read(arguments, _Found())]


def size_bytes(text: str) -> int:
    """A size as Docker writes it (``512m``, ``2g``, ``1.5GiB``; powers of 1024) in bytes. Raises ValueError."""
    match = _SIZE.fullmatch(text)
    if match is None:
        raise ValueError("a number with b, k, m or g, such as 2g, is allowed")
    return int(float(match[1]) * 1024 ** " kmgtp".index(match[2].lower() or " "))


class _Found:
    """What has been read so far."""

    def __init__(self) -> None:
        self.host: dict[str, Any] = {}
        self.mounts: list[dict[str, Any]] = []
        self.environment: list[str] = []
        self.labels: dict[str, str] = {}
        self.ulimits: dict[str, dict[str, Any]] = {}

    def add(self, name: str, value: Any) -> None:
        """Add to one of HostConfig's lists."""
        self.host.setdefault(name, []).append(value)

    def put(self, name: str, key: str, value: str) -> None:
        """Add to one of HostConfig's mappings."""
        self.host.setdefault(name, {})[key] = value


_Take = Callable[[_Found, str], None]


def _list(name: str) -> _Take:
    return lambda found, value: found.add(name, value)


def _field(name: str, convert: Callable[[str], Any] = str) -> _Take:
    def take(found: _Found, value: str) -> None:
        found.host[name] = convert(value)

    return take


def _mapping(name: str, separator: str = "=") -> _Take:
    def take(found: _Found, value: str) -> None:
        key, equals, rest = value.partition(separator)
        if not key or (not equals and separator == "="):
            raise ValueError(f"NAME{separator}VALUE is allowed")
        found.put(name, key, rest)

    return take


def _one_of(*allowed: str) -> Callable[[str], str]:
    def convert(value: str) -> str:
        if value not in allowed:
            raise ValueError(f"{' or '.join(allowed)} is allowed")
        return value

    return convert


def _whole(value: str) -> int:
    if not re.fullmatch(r"-?\d+", value):
        raise ValueError("a whole number is allowed")
    return int(value)


def _nano(value: str) -> int:
    if not re.fullmatch(r"\d*\.?\d+", value):
        raise ValueError("a number of processors, such as 1.5, is allowed")
    return int(float(value) * 1e9)


def _swap(value: str) -> int:
    return -1 if value == "-1" else size_bytes(value)


def _device(found: _Found, value: str) -> None:
    host, _, rest = value.partition(":")
    inside, _, access = rest.partition(":")
    if inside and not inside.startswith("/") and not access:  # /dev/x:rw
        inside, access = "", inside
    if not host.startswith("/") or not set(access) <= set("rwm"):
        raise ValueError("/dev/NAME, /dev/NAME:/dev/NAME or /dev/NAME:/dev/NAME:rwm is allowed")
    found.add("Devices", {"PathOnHost": host, "PathInContainer": inside or host, "CgroupPermissions": access or "rwm"})


def _environment(found: _Found, value: str) -> None:
    if not _VARIABLE.fullmatch(value):
        raise ValueError("NAME=VALUE is allowed; a value of your shell's is passed on by `secrets`")
    if value.startswith(("TFJOB_", "TF_CONFIG=", "CUDA_VISIBLE_DEVICES=")):
        raise ValueError(
            "what tfjob sets itself is not; names other than TF_CONFIG, CUDA_VISIBLE_DEVICES and TFJOB_* are"
        )
    found.environment.append(value)


def _label(found: _Found, value: str) -> None:
    key, _, rest = value.partition("=")
    if not key or key.startswith("tfjob."):
        raise ValueError("NAME or NAME=VALUE is allowed, and no name that starts with tfjob.")
    found.labels[key] = rest


def _host_entry(found: _Found, value: str) -> None:
    if ":" not in value and "=" not in value:
        raise ValueError("NAME:ADDRESS is allowed")
    found.add("ExtraHosts", value.replace("=", ":", 1) if "=" in value else value)


def _security(found: _Found, value: str) -> None:
    key = re.split("[=:]", value, maxsplit=1)[0]
    if value == "systempaths=unconfined":
        found.host["MaskedPaths"] = found.host["ReadonlyPaths"] = []  # as Docker's own command line does
    elif value in _UNCONFINED or key in {"apparmor", "label", "no-new-privileges"}:
        found.add("SecurityOpt", value)
    else:
        raise ValueError(f"apparmor=…, label=…, no-new-privileges, {' or '.join(_UNCONFINED)} is allowed")


def _ulimit(found: _Found, value: str) -> None:
    match = re.fullmatch(r"([a-z]+)=(-1|\d+)(?::(-1|\d+))?", value)
    if match is None:
        raise ValueError("NAME=SOFT or NAME=SOFT:HARD, such as memlock=-1, is allowed")
    soft = int(match[2])
    found.ulimits[match[1]] = {"Name": match[1], "Soft": soft, "Hard": int(match[3] or soft)}


def _volume(found: _Found, value: str) -> None:
    source, _, rest = value.partition(":")
    target, _, options = rest.partition(":")
    if not target.startswith("/"):
        raise ValueError(
            "SOURCE:TARGET or SOURCE:TARGET:ro is allowed, each an absolute path (or SOURCE a volume's name)"
        )
    mount = _mount_of("bind" if source.startswith("/") else "volume", source, target)
    for option in filter(None, options.split(",")):
        if option in _PROPAGATION and mount["Type"] == "bind":
            mount["BindOptions"] = {"Propagation": option}
        elif option in {"ro", "rw"}:
            mount["ReadOnly"] = option == "ro"
        else:
            raise ValueError(
                f"{option} is not known after the target; ro, rw or one of {', '.join(_PROPAGATION)} is allowed"
            )
    found.mounts.append(mount)


def _mount(found: _Found, value: str) -> None:
    words = dict(word.partition("=")[::2] for word in value.split(","))
    kind = words.pop("type", "volume")
    source = words.pop("source", "") or words.pop("src", "")
    target = words.pop("target", "") or words.pop("destination", "") or words.pop("dst", "")
    only = [words.pop(name) for name in ("readonly", "ro") if name in words]
    if words or kind not in {"bind", "volume", "tmpfs"} or not target.startswith("/") or not set(only) <= {"", "true"}:
        raise ValueError("type=bind|volume|tmpfs,source=…,target=/…,readonly is allowed")
    found.mounts.append({**_mount_of(kind, source, target), **({"ReadOnly": True} if only else {})})


def _mount_of(kind: str, source: str, target: str) -> dict[str, Any]:
    if kind == "bind" and not source.startswith("/"):
        raise ValueError("an absolute path is allowed as the source")
    if kind == "volume" and source and not _NAME.fullmatch(source):
        raise ValueError("an absolute path, or the name of a volume, is allowed as the source")
    return {"Type": kind, "Target": target, **({"Source": source} if source else {})}


_VALUES: Final[dict[str, _Take]] = {
    "--add-host": _host_entry,
    "--cap-add": _list("CapAdd"),
    "--cap-drop": _list("CapDrop"),
    "--cgroup-parent": _field("CgroupParent"),
    "--cgroupns": _field("CgroupnsMode", _one_of("host", "private")),
    "--cpu-shares": _field("CpuShares", _whole),
    "--cpus": _field("NanoCpus", _nano),
    "--cpuset-cpus": _field("CpusetCpus"),
    "--cpuset-mems": _field("CpusetMems"),
    "--device": _device,
    "--device-cgroup-rule": _list("DeviceCgroupRules"),
    "--env": _environment,
    "--group-add": _list("GroupAdd"),
    "--ipc": _field("IpcMode", _one_of("host", "private", "shareable")),
    "--label": _label,
    "--memory": _field("Memory", size_bytes),
    "--memory-reservation": _field("MemoryReservation", size_bytes),
    "--memory-swap": _field("MemorySwap", _swap),
    "--memory-swappiness": _field("MemorySwappiness", _whole),
    "--mount": _mount,
    "--oom-score-adj": _field("OomScoreAdj", _whole),
    "--pids-limit": _field("PidsLimit", _whole),
    "--runtime": _field("Runtime"),
    "--security-opt": _security,
    "--storage-opt": _mapping("StorageOpt"),
    "--sysctl": _mapping("Sysctls"),
    "--tmpfs": _mapping("Tmpfs", ":"),
    "--ulimit": _ulimit,
    "--userns": _field("UsernsMode", _one_of("host")),
    "--volume": _volume,
}
_SWITCHES: Final = {"--privileged": "Privileged", "--read-only": "ReadonlyRootfs"}
_SHORT: Final = {"-c": "--cpu-shares", "-e": "--env", "-l": "--label", "-m": "--memory", "-v": "--volume"}
_OWN: Final = {
    "-d": "tfjob starts containers detached",
    "--detach": "tfjob starts containers detached",
    "-h": "containers have the machine's network and its name",
    "--hostname": "containers have the machine's network and its name",
    "-i": "tasks read nothing",
    "--interactive": "tasks read nothing",
    "-t": "tasks have no terminal",
    "--tty": "tasks have no terminal",
    "-p": "containers have the machine's network: every port is reached as it is",
    "--publish": "containers have the machine's network: every port is reached as it is",
    "-u": "containers run as the user who submits, so that outputs are theirs",
    "--user": "containers run as the user who submits, so that outputs are theirs",
    "-w": "a task starts in its copy of the code",
    "--workdir": "a task starts in its copy of the code",
    "--entrypoint": "tfjob puts its own program before the command",
    "--env-file": "environment_variables are given in the job file",
    "--gpus": "compute.gpus_per_node asks for GPUs, and no other run gets those",
    "--init": "tfjob always gives it",
    "--log-driver": "tfjob keeps the logs in the run directory",
    "--log-opt": "tfjob keeps the logs in the run directory",
    "--name": "tfjob names containers by run and task",
    "--net": "containers have the machine's network, by which tasks find each other",
    "--network": "containers have the machine's network, by which tasks find each other",
    "--pid": "tfjob ends a task by ending its container's processes",
    "--restart": "a task that ended has ended",
    "--rm": "tfjob removes containers when the run is over",
    "--shm-size": "compute.shm_size says it",
    "--stop-signal": "tfjob ends tasks by SIGTERM",
    "--stop-timeout": "limits.grace_period_s says it",
}


def _read(arguments: tuple[str, ...], found: _Found) -> Iterator[tuple[int, tuple[str, str]]]:
    """Read all arguments into `found`; yields the place of each that can't be taken, with the message and the hint."""
    index = 0
    while index < len(arguments):
        at, argument = index, arguments[index]
        index += 1
        flag, value = _split(argument)
        if flag in _SWITCHES:
            if value in {None, "true", "false"}:
                found.host[_SWITCHES[flag]] = value != "false"
            else:
                yield at, (f"found {argument}; {flag} or {flag}=false is allowed", "")
        elif flag in _VALUES:
            if value is None and index < len(arguments):
                value = arguments[index]
                index += 1
            if value is None:
                yield at, (f"found {argument} without a value", f"Write {flag}=VALUE.")
                continue
            try:
                _VALUES[flag](found, value)
            except ValueError as error:
                yield at, (f"found {flag} {value}; {error}", "")
        else:
            if (
                flag.startswith("-")
                and value is None
                and index < len(arguments)
                and not arguments[index].startswith("-")
            ):
                index += 1  # most likely its value: one problem is enough
            yield at, _refusal(flag)


def _split(argument: str) -> tuple[str, str | None]:
    """(flag, value): ``--flag=value``, ``-v=value``, ``-vvalue``; the value is None if it is the next argument."""
    if argument.startswith("--"):
        flag, equals, value = argument.partition("=")
        return flag, value if equals else None
    if argument[:1] == "-" and argument[:2] in _SHORT:
        rest = argument[2:]
        return _SHORT[argument[:2]], rest.removeprefix("=") if rest else None
    return argument, None


def _refusal(flag: str) -> tuple[str, str]:
    if flag in _OWN:
        return f"found {flag}, which tfjob does not pass on: {_OWN[flag]}", f"Remove {flag}."
    if not flag.startswith("-"):
        return (
            f"found {flag}, where an argument of `docker run` such as --cap-add is allowed",
            "The image is environment.image.",
        )
    allowed = sorted((*_VALUES, *_SWITCHES))
    meant = nearest(flag, allowed)
    message = (
        f"found {flag}, which tfjob does not pass on to containers; the common options of `docker run` are allowed"
    )
    return message, f"Did you mean {meant}?" if meant else f"These are {', '.join(allowed)}."
