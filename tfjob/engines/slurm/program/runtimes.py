"""The command lines of container runtimes on a node. Pure; standard library only; any Python from 3.8; imports nothing of tfjob.

In the order in which they are taken: enroot, which is what Pyxis runs; Apptainer; Podman; Docker. Each is told the same:
run one program in the image, on the node's network, with the run directory and what the job reads at their own paths, as the
user of the job, with the GPUs that Slurm gave it. Values of variables may be secrets. They go by the environment of the
runtime's own command, never by its arguments, which everybody on the node can read.

Sources: enroot's documentation ("start", "image-format", "standard-hooks"), apptainer-exec(1) and Apptainer's user guide
("GPU support", "Environment and metadata"), podman-run(1), Docker's documentation ("docker container run"), NVIDIA's ("Container
Device Interface").
"""

from __future__ import annotations

import os
import re

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

ORDER = ("pyxis", "apptainer", "podman", "docker")
PROGRAMS = {
    "pyxis": ("enroot",),
    "apptainer": ("apptainer", "singularity"),
    "podman": ("podman",),
    "docker": ("docker",),
}
CALLED = {"pyxis": "enroot", "apptainer": "Apptainer", "podman": "Podman", "docker": "Docker"}
FILES = {"pyxis": "image.sqsh", "apptainer": "image.sif", "podman": "image.tar", "docker": "image.tar"}
LABEL = "tfjob.slurm.run"  # holds the run's directory
PASSED_ON = ("SLURM", "GPU_DEVICE_ORDINAL", "ROCR_VISIBLE_DEVICES", "ZE_AFFINITY_MASK")  # how names begin
NVIDIA_FILES = ("/dev/nvidiactl", "/dev/nvidia-uvm", "/dev/nvidia-uvm-tools", "/dev/nvidia-modeset")


class Start:
    """What a node's container is made of: `spec` is the run's, the rest this node's.

    `image` is an id or a name for Podman and Docker, the name of an unpacked one for enroot, a file or a directory for
    Apptainer. `gpus`
    are the numbers of the machine's GPUs, `devices` the files and names by which Podman is given them.
    """

    def __init__(self, spec: dict[str, Any], **facts: Any) -> None:
        self.spec = spec
        self.program: str = facts["program"]
        self.image: str = facts["image"]
        self.name: str = facts["name"]
        self.run: str = facts["run"]
        self.inner: list[str] = facts["inner"]
        self.environ: dict[str, str] = facts["environ"]
        self.gpus: list[str] = facts["gpus"]
        self.devices: list[str] = facts.get("devices", [])
        self.is_user: bool = facts.get("is_user", False)


def command(runtime: str, start: Start) -> tuple[list[str], dict[str, str]]:
    """The command that runs the container and ends with it, and the variables to start that command with."""
    return {"pyxis": enroot, "apptainer": apptainer, "podman": podman, "docker": docker}[runtime](start)


def docker(start: Start) -> tuple[list[str], dict[str, str]]:
    """`docker run`. Containers are children of the engine: as the job's user, unless the engine is that user's own."""
    spec, gpus = start.spec, start.gpus
    own = binds([(source, target, True) for source, target in spec["accounts"]])
    options = oci(start, [*mounts(start), *own] if start.is_user else mounts(start))
    if start.is_user:
        who = spec["user"]
        options += ["--user={}:{}".format(who["uid"], who["gid"]), *(f"--group-add={g}" for g in who["groups"])]
        options += ["--env=HOME=" + who["home"], "--env=USER=" + who["name"], "--env=LOGNAME=" + who["name"]]
    else:
        options.append("--user=0:0")
    if gpus:
        options.append('--gpus="device={}"'.format(",".join(gpus)))
    return [start.program, "run", *options, *spec["arguments"], start.image, *start.inner[1:]], client(start)


def podman(start: Start) -> tuple[list[str], dict[str, str]]:
    """`podman run`. Rootless, its root is the job's user: what it writes is theirs, and no image must be copied for them."""
    options = [*oci(start, mounts(start)), "--user=0:0", "--uts=host", "--security-opt=label=disable"]
    options += ["--device=" + device for device in start.devices]
    return [start.program, "run", *options, *start.spec["arguments"], start.image, *start.inner[1:]], client(start)


def oci(start: Start, mounted: list[tuple[str, ...]]) -> list[str]:
    """What Docker and Podman are told alike. An entrypoint has no arguments of its own: they come after the image."""
    options = ["--rm", "--interactive", "--name=" + start.name, f"--label={LABEL}={start.run}", "--pull=never"]
    options += ["--network=host", "--workdir=/", "--shm-size=" + start.spec["shm_size"], "--no-healthcheck"]
    options += ["--entrypoint=" + start.inner[0], *("--mount=" + csv(bind) for bind in mounted)]
    return [*options, *("--env=" + name for name in sorted(passed(start)))]


def apptainer(start: Start) -> tuple[list[str], dict[str, str]]:
    """`apptainer exec`. It is a child of this program, as the job's user; it would bring home directory and variables along."""
    options = ["--cleanenv", "--no-home", "--writable-tmpfs", *(["--nv"] if start.gpus else [])]
    options += ["--mount=" + csv(bind) for bind in (*mounts(start), *binds(start.spec["given_mounts"]))]
    # What the user has set for commands that fetch images would remove the image here, once it is unpacked.
    environ = {name: value for name, value in start.environ.items() if not name.endswith("_DISABLE_CACHE")}
    inside = everything(start)
    if start.gpus:  # it has a way of its own to GPUs, by which all that Slurm shows are seen under their numbers
        inside["CUDA_VISIBLE_DEVICES"] = start.environ.get("CUDA_VISIBLE_DEVICES", "")
    for name, value in sorted(inside.items()):
        for prefix in ("APPTAINERENV_", "SINGULARITYENV_"):
            environ[prefix + name] = value
    for prefix in ("APPTAINER_", "SINGULARITY_"):
        environ[prefix + "NO_EVAL"] = "1"  # or a shell in the container would run what a value holds: $(...)
    return [start.program, "exec", *options, start.image, *start.inner], environ


def is_too_old(version: str) -> bool:
    """Whether what `apptainer --version` says is of one that has no NO_EVAL: Apptainer 1.1 and SingularityCE 3.10 brought it."""
    found = re.match(r"(apptainer|singularity)\S* version (\d+)\.(\d+)", version)
    least = {"apptainer": (1, 1), "singularity": (3, 10)}
    return found is not None and (int(found.group(2)), int(found.group(3))) < least[found.group(1)]


def enroot(start: Start) -> tuple[list[str], dict[str, str]]:
    """`enroot start` of an image that was unpacked. It has no command script: the program is run as it stands.

    Its mounts are lines of fstab(5) with colons in the place of spaces: a path with either can't be given, ValueError.
    """
    options = ["--rw"]
    wanted = ((start.run, start.run, False), *start.spec["mounts"], *start.spec["given_mounts"])
    for source, target, read_only in wanted:
        if set(source + target) & set(": \t\n"):
            raise ValueError(f"enroot can't mount {source}: there is a space or a colon in the path")
        options += ["--mount", f"{source}:{target}:none:x-create=auto,rbind,{'ro' if read_only else 'rw'}"]
    inside = everything(start)
    if start.gpus:
        inside.update(NVIDIA_VISIBLE_DEVICES=",".join(start.gpus), NVIDIA_DRIVER_CAPABILITIES="compute,utility")
    for name in sorted(inside):
        options += ["--env", name]
    return [start.program, "start", *options, start.image, *start.inner], {**start.environ, **inside}


def mounts(start: Start) -> list[tuple[str, ...]]:
    """What tfjob mounts: the run directory, and what the job reads."""
    return binds([(start.run, start.run, False), *start.spec["mounts"]])


def binds(wanted: list[Any]) -> list[tuple[str, ...]]:
    """Mounts in the words of `docker run --mount`."""
    found: list[tuple[str, ...]] = []
    for source, target, read_only in wanted:
        words = ("type=bind", "source=" + source, "target=" + target)
        found.append((*words, "readonly") if read_only else words)
    return found


def passed(start: Start) -> dict[str, str]:
    """The variables of the job that the container gets, and what tfjob says of its GPUs."""
    found = {name: value for name, value in start.environ.items() if name.startswith(PASSED_ON)}
    found.update((name, start.environ[name]) for name in start.spec["variables"] if name in start.environ)
    if start.gpus:
        found["CUDA_VISIBLE_DEVICES"] = ",".join(str(number) for number in range(len(start.gpus)))
    else:
        found.update(CUDA_VISIBLE_DEVICES="", NVIDIA_VISIBLE_DEVICES="void")  # images of NVIDIA's ask for all there are
    return found


def everything(start: Start) -> dict[str, str]:
    """The same for runtimes that know no arguments of `docker run`: with the variables among those."""
    found = passed(start)
    found.update(pair.split("=", 1) for pair in start.spec["environment"])
    return found


def client(start: Start) -> dict[str, str]:
    """The variables of Docker's and Podman's own command: they pass on by name what the container gets of them."""
    return {**start.environ, **passed(start)}


def csv(words: tuple[str, ...]) -> str:
    """Words as one line of CSV, which --mount is: a path may hold commas and quotes."""
    return ",".join('"{}"'.format(word.replace('"', '""')) if set(word) & set(',"\n') else word for word in words)


def devices(gpus: list[str]) -> list[str]:
    """What gives Podman the GPUs: their CDI names where the node describes them so, else their files."""
    for directory in ("/etc/cdi", "/var/run/cdi"):
        try:
            if any(name.startswith("nvidia") for name in os.listdir(directory)):
                return ["nvidia.com/gpu=" + gpu for gpu in gpus]
        except OSError:
            continue
    files = ["/dev/nvidia" + gpu for gpu in gpus]
    return [file for file in (*files, *(NVIDIA_FILES if gpus else ())) if os.path.exists(file)]


def gpus_of(environ: dict[str, str]) -> list[str]:
    """The machine's numbers of the GPUs that the job has here.

    Where Slurm hides the others from the job, CUDA_VISIBLE_DEVICES counts from 0; SLURM_STEP_GPUS does not (srun(1)).
    """
    text = environ.get("SLURM_STEP_GPUS") or environ.get("CUDA_VISIBLE_DEVICES") or ""
    return [gpu for gpu in text.split(",") if gpu and gpu != "NoDevFiles"]
