"""What a Slurm cluster has, as its login node tells: `tfjob compute test` for targets of kind slurm.

No job is submitted to find out: what only a compute node knows, such as its own container runtime, is not told.
"""

from __future__ import annotations

import re
import shlex
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Final

from tfjob.dockerapi.reach import transport_to
from tfjob.dockerapi.ssh import SshTransport
from tfjob.errors import TargetError
from tfjob.spec.nearest import nearest
from tfjob.targets.definition import SlurmDefinition
from tfjob.targets.node_shell import LocalShell, NodeShell, SshShell
from tfjob.targets.report import Note

__all__ = ["Partition", "SlurmReport", "probe_slurm"]

_TIMEOUT_S: Final = 30.0
_NOT_FOUND: Final = 127  # of sh, for a program that is not there
_SINFO: Final = "sinfo --noheader --format='%P|%a|%l|%F|%G|%f'"
_GPU: Final = re.compile(r"gpu:(?:([A-Za-z0-9_.-]+):)?(\d+)")
_PROGRAMS: Final = {"apptainer": ("apptainer", "singularity"), "podman": ("podman",), "docker": ("docker",)}
_OF_ONE_MACHINE: Final = {"ext2/ext3", "xfs", "btrfs", "tmpfs", "overlayfs", "zfs", "ramfs"}  # as stat(1) calls them


@dataclass(frozen=True)
class Partition:
    """A partition as sinfo(1) tells it; `gpus` is what each node has, such as ``4 x a100``, ``time_limit`` Slurm's own text."""

    name: str
    is_default: bool
    state: str
    time_limit: str
    nodes: int
    idle: int
    gpus: str = ""
    features: str = ""


@dataclass(frozen=True)
class SlurmReport:
    """What was found of a Slurm cluster. `runtimes` are the container runtimes that its login node has."""

    name: str
    login: str
    version: str = ""
    partitions: tuple[Partition, ...] = ()
    runtimes: tuple[str, ...] = ()
    directory: str = ""
    file_system: str = ""
    notes: tuple[Note, ...] = ()

    @property
    def is_usable(self) -> bool:
        """Whether nothing stands in a job's way."""
        return not any(note.severity == "error" for note in self.notes)


def probe_slurm(
    definition: SlurmDefinition,
    *,
    workspace: str,
    progress: Callable[[str], None] = lambda _: None,
    environ: Mapping[str, str] | None = None,
) -> SlurmReport:
    """Ask the login node. `workspace` is the directory of this machine that jobs would be submitted from."""
    report = SlurmReport(definition.name, definition.login or "this machine")
    progress(f"asking {report.login}")
    transport = transport_to(definition.login, environ=environ) if definition.login else None
    shell: NodeShell = SshShell(transport) if isinstance(transport, SshTransport) else LocalShell()
    try:
        report = _asked(report, shell, definition, workspace)
    except TargetError as error:
        return replace(report, notes=(Note("error", error.message, error.hint),))
    finally:
        if isinstance(transport, SshTransport):
            transport.close()
    return replace(report, notes=(*report.notes, *_notes(report, definition)))


def _asked(report: SlurmReport, shell: NodeShell, definition: SlurmDefinition, workspace: str) -> SlurmReport:
    version = shell.run("sinfo --version", _TIMEOUT_S)
    if version.exit_code == _NOT_FOUND:
        message = f"{report.login} has no sinfo on its PATH: it is no login node"
        return replace(
            report, notes=(Note("error", message, "Set `login: ssh://USER@HOST` to one, or load Slurm's module."),)
        )
    listed = shell.run(_SINFO, _TIMEOUT_S)
    if listed.exit_code != 0:
        lines = listed.text.strip().splitlines() or ["nothing"]
        note = Note(
            "error", f"sinfo says: {lines[-1].removeprefix('sinfo: ')}", "Is slurmctld well? Try `sinfo` there."
        )
        return replace(report, notes=(note,))
    directory = definition.directory or (workspace if definition.login is None else "")
    kind = shell.run(f'{_nearest(directory)}; stat -f -c %T "$place"', _TIMEOUT_S) if directory else None
    return replace(
        report,
        version=(version.text.split() or [""])[-1],
        partitions=tuple(partition for line in listed.text.splitlines() if (partition := _partition(line)) is not None),
        runtimes=tuple(_runtimes(shell)),
        directory=directory,
        file_system=kind.text.strip() if kind is not None and kind.exit_code == 0 else "",
        notes=(
            *(_of_directory(shell, directory, report.login) if directory else ()),
            *(_of_programs(shell, report.login) if definition.login else ()),
        ),
    )


def _partition(line: str) -> Partition | None:
    """Read one line of sinfo: a partition, or the nodes of one that are alike. Source: sinfo(1), --format."""
    parts = line.strip().split("|")
    counts = parts[3].split("/") if len(parts) == 6 else ()
    if len(counts) != 4 or not all(count.isdecimal() for count in counts):
        return None
    name, state, limit, _, gres, features = parts
    gpus = ", ".join(f"{count} x {model}" if model else count for model, count in _GPU.findall(gres))
    shown = "" if features == "(null)" else features
    return Partition(name.rstrip("*"), name.endswith("*"), state, limit, int(counts[3]), int(counts[1]), gpus, shown)


def _runtimes(shell: NodeShell) -> Iterator[str]:
    """What runs containers, in the order in which tfjob takes it."""
    pyxis = "command -v enroot || srun --help | grep -q -e --container-image"
    if shell.run(pyxis, _TIMEOUT_S).exit_code == 0:
        yield "pyxis"
    for name, programs in _PROGRAMS.items():
        if shell.run(" || ".join(f"command -v {program}" for program in programs), _TIMEOUT_S).exit_code == 0:
            yield name


def _of_directory(shell: NodeShell, directory: str, login: str) -> Iterator[Note]:
    if shell.run(f'{_nearest(directory)}; test -d "$place" && test -w "$place"', _TIMEOUT_S).exit_code != 0:
        yield Note("error", f"{directory} can't be written on {login}", "Set `directory` to one that is yours there.")


def _of_programs(shell: NodeShell, login: str) -> Iterator[Note]:
    """What sends a run's files there, and brings them home."""
    for program in ("python3", "tar"):
        if shell.run(f"command -v {program}", _TIMEOUT_S).exit_code != 0:
            yield Note(
                "error", f"{login} has no {program}, which jobs from here need there", "Ask for it to be installed."
            )
        elif program == "python3" and (fault := _python_fault(shell)):
            yield Note("error", f"python3 on {login} {fault}", "Ask for one that is 3.8 or newer.")


def _python_fault(shell: NodeShell) -> str:
    """What is wrong with a python3 that jobs from here can't use; nothing of one that will do."""
    said = shell.run("""python3 -E -s -S -c 'import sys; print("python %d %d" % sys.version_info[:2])'""", _TIMEOUT_S)
    found = re.search(r"^python (\d+) (\d+)$", said.text, re.MULTILINE)
    if found is None or said.exit_code:
        return "does not start"
    return f"is Python {found[1]}.{found[2]}" if (int(found[1]), int(found[2])) < (3, 8) else ""


def _nearest(directory: str) -> str:
    """Shell for the variable `place`: the directory, or the nearest above it that is there. Asking makes nothing."""
    return f'place={shlex.quote(directory)}; while [ ! -e "$place" ]; do place=$(dirname "$place"); done'


def _notes(report: SlurmReport, definition: SlurmDefinition) -> Iterator[Note]:
    if not report.version or not report.partitions:
        return
    names = list(dict.fromkeys(partition.name for partition in report.partitions))
    for wanted in (definition.partition or "").split(","):
        of_it = [partition for partition in report.partitions if partition.name == wanted]
        if wanted and not of_it:
            guess = nearest(wanted, names)
            hint = f"Did you mean {guess}?" if guess else f"There are {', '.join(names)}."
            yield Note("error", f"there is no partition {wanted}", hint)
        elif of_it and of_it[0].state != "up":
            yield Note("error", f"the partition {wanted} is {of_it[0].state}", "Ask who looks after the cluster.")
    if not definition.partition and not any(partition.is_default for partition in report.partitions):
        yield Note("error", "the cluster has no default partition", f"Set `partition` to one of {', '.join(names)}.")
    if definition.runtime not in ("auto", "none", *report.runtimes):
        message = f"{report.login} has no {definition.runtime}; jobs in containers need it on the nodes"
        yield Note("warning", message, "Set `runtime` to what the nodes have.")
    elif definition.runtime == "auto" and not report.runtimes:
        yield Note(
            "note", f"no container runtime was found on {report.login}; jobs with an image need one on the nodes"
        )
    if not report.directory:
        message = "no directory is set that the nodes share, and this machine is no login node"
        yield Note("warning", message, "Set `directory` to one on the cluster's shared file system.")
    elif report.file_system in _OF_ONE_MACHINE:
        message = f"{report.directory} is on {report.file_system}, which machines seldom share; all nodes must see it"
        yield Note(
            "warning", message, "Set `directory`, or submit from a directory on the cluster's shared file system."
        )
