"""A base image with programs it lacks: one more layer, made once by the image's own package manager."""

from __future__ import annotations

import io
import os
from dataclasses import dataclass
from typing import TYPE_CHECKING

from tfjob.durable import digest_of
from tfjob.environments.building import Building
from tfjob.errors import PreparationError
from tfjob.images.engine import connected, find_image, refusal

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from tfjob.images.base import BaseImage

__all__ = ["COMPILERS", "SSH", "Addition", "added", "proxies"]

_PROXIES = ("http_proxy", "https_proxy", "ftp_proxy", "no_proxy", "all_proxy")
_INSTALL = {
    "apt-get": "apt-get update && DEBIAN_FRONTEND=noninteractive apt-get install -y --no-install-recommends {packages} "
    "&& rm -rf /var/lib/apt/lists/*",
    "dnf": "dnf install -y {packages} && dnf clean all",
    "microdnf": "microdnf install -y {packages} && microdnf clean all",
    "yum": "yum install -y {packages} && yum clean all",
    "zypper": "zypper --non-interactive install {packages} && zypper clean",
}


@dataclass(frozen=True)
class Addition:
    """What may be added: in words; the programs it is recognised by; the packages by package manager; what comes after.

    `repository` is the name of the images that have it.
    """

    what: str
    repository: str
    programs: frozenset[str]
    packages: Mapping[str, str]
    after: str = "true"

    def install(self, manager: str) -> str:
        """Return the shell command that installs it by a package manager."""
        return _INSTALL[manager].format(packages=self.packages[manager])


SSH = Addition(
    what="an SSH server",
    repository="tfjob/base",
    programs=frozenset({"sshd", "ssh"}),
    packages={
        "apt-get": "openssh-server openssh-client",
        **dict.fromkeys(("dnf", "microdnf", "yum"), "openssh-server openssh-clients"),
        "zypper": "openssh",
    },
    # Each container makes keys of its own: keys in an image would be everybody's.
    after="rm -f /etc/ssh/ssh_host_* && mkdir -p /run/sshd && chmod 0755 /run/sshd",
)
COMPILERS = Addition(
    what="compilers",
    repository="tfjob/builder",
    programs=frozenset({"g++", "make"}),
    packages={
        "apt-get": "g++ make python3-dev",
        **dict.fromkeys(("dnf", "microdnf", "yum"), "gcc-c++ make python3-devel"),
        "zypper": "gcc-c++ make python3-devel",
    },
)


def added(base: BaseImage, addition: Addition, *, log: Callable[[str], None], progress: Callable[[str], None]) -> str:
    """Return the id of the base image with an addition: itself when it has the programs, else with one more layer.

    Raises PreparationError when the image's package manager is not known or fails.
    """
    if addition.programs <= base.tools:
        return base.image
    tag = f"{addition.repository}:{base.image.rpartition(':')[2][:12]}"
    found = _found(tag, base)
    if found is None:
        folder = base.store_root / "building"
        folder.mkdir(parents=True, exist_ok=True)
        # Two that install at once make two images: the first would lose its name, and could be pruned while it is used.
        with Building(folder).holding(digest_of([tag])[:32], progress):
            found = _found(tag, base) or _made(base, addition, tag, log=log, progress=progress)
    return found


def _found(tag: str, base: BaseImage) -> str | None:
    """Return the id of the image of that name, if it was made of this base."""
    found = find_image(tag) or {}
    labels = (found.get("Config") or {}).get("Labels") or {}
    return str(found["Id"]) if labels.get("tfjob.base") == base.image else None


def _made(
    base: BaseImage, addition: Addition, tag: str, *, log: Callable[[str], None], progress: Callable[[str], None]
) -> str:
    manager = next((one for one in _INSTALL if one in base.tools), None)
    if manager is None:
        listed = ", ".join(sorted(addition.programs))
        raise PreparationError(
            f"{base.name} has no {listed}, and no package manager that tfjob knows to install them",
            f"Choose a base image that has {listed}, or apt-get, dnf, yum or zypper.",
        )
    progress(f"adding {addition.what} to {base.reference}")
    lines = [f"FROM {base.image.rpartition(':')[2]}", "USER 0"]
    lines += [f"RUN {addition.install(manager)} && {addition.after}"]
    lines += [f"USER {base.user}"] if base.user else []
    lines += [f'LABEL tfjob.base="{base.image}"']
    _build(lines, tag, f"add {addition.what} to {base.reference}", log)
    made = find_image(tag)
    if made is None:
        raise refusal("the image was removed while it was made", f"add {addition.what} to {base.reference}")
    return str(made["Id"])


def proxies(environ: Mapping[str, str]) -> dict[str, str]:
    """Return the proxies of this shell; Docker passes them to build steps and keeps them out of the image."""
    names = [name for one in _PROXIES for name in (one, one.upper())]
    return {name: environ[name] for name in names if environ.get(name)}


def _build(lines: list[str], tag: str, doing: str, log: Callable[[str], None]) -> None:
    said: list[str] = []
    with connected(doing, patient=True) as client:
        stream = client.api.build(
            fileobj=io.BytesIO("\n".join(lines).encode()),
            tag=tag,
            rm=True,
            forcerm=True,
            network_mode="host",
            buildargs=proxies(os.environ),
            decode=True,
        )
        for message in stream:
            for line in str(message.get("stream", "")).splitlines():
                said.append(line)
                log(line)
            if error := message.get("error"):
                raise _failed(str(error), doing, said)


def _failed(error: str, doing: str, said: list[str]) -> PreparationError:
    failure = refusal(error, doing)
    last = [line.strip() for line in said if line.strip().startswith(("E:", "Err", "Error"))][-2:]
    hint = "The image's package manager must reach its packages from a container; or use a base image that has it."
    return PreparationError("\n  ".join([failure.message, *last]), failure.hint or hint)
