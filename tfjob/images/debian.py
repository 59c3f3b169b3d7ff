"""A root file system of Debian's packages, from where apt on this machine is told to take them.

Only ``debootstrap`` or ``mmdebstrap`` is started; nothing here knows a mirror by name.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from tfjob.environments import processes
from tfjob.errors import PreparationError

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

__all__ = ["BASE_PACKAGES", "AptSource", "apt_source", "bootstrap"]

# What a base image for jobs needs: a Python to start from, SSH for jobs of several nodes, certificates for downloads.
BASE_PACKAGES = ("ca-certificates", "openssh-client", "openssh-server", "python3", "python3-venv")
# debootstrap tells its steps on stdout; its words are wanted where those of the other programs are.
_TO_STDERR = ("/bin/sh", "-c", 'exec "$@" >&2', "sh")
_HOST_KEYS = "ssh_host_*"


@dataclass(frozen=True)
class AptSource:
    """Where Debian's packages come from: the address of a mirror and the suite, such as ``bookworm``."""

    address: str
    suite: str


def apt_source(suite: str | None = None) -> AptSource:
    """Return the source that apt is configured with for a suite; without one, for the release this machine runs.

    Raises PreparationError when there is no apt, or none of its sources has the suite.
    """
    wanted = suite or _codename()
    command = ["apt-get", "indextargets", "--format", "$(REPO_URI)|$(RELEASE)|$(COMPONENT)", "Identifier: Packages"]
    try:
        listed = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    except (OSError, subprocess.CalledProcessError) as error:
        raise PreparationError(
            "apt, which knows where Debian's packages come from, does not work here",
            "Make the base image on a Debian machine, or give a root file system as a tarball.",
        ) from error
    found = [line.split("|") for line in listed.splitlines() if line.count("|") == 2]
    for address, release, component in found:
        if release == wanted and component == "main":
            return AptSource(address, wanted)
    suites = sorted({release for _, release, component in found if component == "main"})
    has = f"; it has {', '.join(suites)}" if suites else ""
    raise PreparationError(
        f"apt on this machine has no source for the Debian release `{wanted}`{has}",
        "Choose one it has with `--suite`, or add the release to apt's sources.",
    )


def bootstrap(
    into: Path, *, suite: str | None, packages: Sequence[str], log: Callable[[str], None], holds: int | None = None
) -> None:
    """Make the tarball `into` of a minimal Debian with `packages` and their dependencies, without SSH host keys.

    `holds` is a lock's descriptor that the program inherits. Raises PreparationError when it cannot be made; then
    there is no tarball.
    """
    source = apt_source(suite)
    lines: list[str] = []

    def take(line: str) -> None:
        lines.append(line)
        log(line)

    with tempfile.TemporaryDirectory(prefix=".debian-", dir=into.parent) as work, Path(os.devnull).open() as nothing:
        made = Path(work) / "root.tar"
        for command in _commands(source, packages, Path(work), made):
            environment = {**os.environ, "LC_ALL": "C.UTF-8", "DEBIAN_FRONTEND": "noninteractive"}
            descriptor = nothing.fileno() if holds is None else holds
            code = processes.run(
                [*_TO_STDERR, *command], environment=environment, cwd=into.parent, on_line=take, holds=descriptor
            )
            if code:
                said = next((line for line in reversed(lines) if line.startswith(("E:", "W:"))), "")
                raise PreparationError(
                    f"a Debian `{source.suite}` could not be made: {Path(command[0]).name} ended with {code}"
                    + (f"\n  {said}" if said else ""),
                    "Its words are in the log. apt must be able to install from its sources (`apt-get update`).",
                )
        made.replace(into)


def _commands(source: AptSource, packages: Sequence[str], work: Path, made: Path) -> list[list[str]]:
    """Return the programs to start one after the other, the last of which makes the tarball `made`."""
    include = [f"--include={','.join(packages)}"] if packages else []
    root = str(work / "root")
    if program := shutil.which("mmdebstrap"):
        hook = f'--customize-hook=rm -f "$1"/etc/ssh/{_HOST_KEYS}'
        return [[program, "--variant=minbase", *include, hook, source.suite, str(made), source.address]]
    if program := shutil.which("debootstrap", path=f"{os.environ.get('PATH', os.defpath)}:/usr/sbin:/sbin"):
        if os.geteuid() != 0:
            raise PreparationError(
                "debootstrap needs root to make a base image",
                "Run it as root, or install mmdebstrap, which does not: `apt-get install mmdebstrap`.",
            )
        leave = [f"--exclude=./etc/ssh/{_HOST_KEYS}", "--exclude=./var/cache/apt/archives/*.deb"]
        archive = ["tar", "--numeric-owner", "--sort=name", *leave, "-C", root, "-cf", str(made), "."]
        return [[program, "--variant=minbase", *include, source.suite, root, source.address], archive]
    raise PreparationError(
        "neither mmdebstrap nor debootstrap is installed, which make a Debian from its packages",
        "Install one: `apt-get install mmdebstrap`. Or give a root file system as a tarball.",
    )


def _codename() -> str:
    """Return the name of the Debian release this machine runs."""
    try:
        lines = Path("/etc/os-release").read_text(encoding="utf-8").splitlines()
    except OSError:
        lines = []
    values = dict(line.split("=", 1) for line in lines if "=" in line)
    return values.get("VERSION_CODENAME", "").strip('"') or "stable"
