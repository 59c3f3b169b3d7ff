"""A base image with an SSH server and client, which jobs of several nodes start their processes by."""

from __future__ import annotations

import io
import os
from typing import TYPE_CHECKING

from tfjob.environments.docker_engine import connected, find_image, refusal
from tfjob.errors import PreparationError

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from tfjob.environments.docker_base import BaseImage

__all__ = ["INSTALL", "NO_KEYS", "has_ssh", "proxies", "with_ssh"]

# How the package manager of an image installs an SSH server and client; the first it has is used.
INSTALL = {
    "apt-get": "apt-get update && DEBIAN_FRONTEND=noninteractive apt-get install -y --no-install-recommends "
    "openssh-server openssh-client && rm -rf /var/lib/apt/lists/*",
    "dnf": "dnf install -y openssh-server openssh-clients && dnf clean all",
    "microdnf": "microdnf install -y openssh-server openssh-clients && microdnf clean all",
    "yum": "yum install -y openssh-server openssh-clients && yum clean all",
    "zypper": "zypper --non-interactive install openssh && zypper clean",
}
# Each container makes keys of its own: keys in an image would be everybody's.
NO_KEYS = "rm -f /etc/ssh/ssh_host_* && mkdir -p /run/sshd && chmod 0755 /run/sshd"
_PROXIES = ("http_proxy", "https_proxy", "ftp_proxy", "no_proxy", "all_proxy")


def has_ssh(base: BaseImage) -> bool:
    """Whether an image has an SSH server and client of its own."""
    return {"sshd", "ssh"} <= base.tools


def with_ssh(base: BaseImage, *, log: Callable[[str], None], progress: Callable[[str], None]) -> str:
    """Return the id of the base image with an SSH server and client: itself when it has them, else one more layer.

    The layer is made once for a base image, by its own package manager. Raises PreparationError when that fails.
    """
    if has_ssh(base):
        return base.image
    tag = f"tfjob/base:{base.image.rpartition(':')[2][:12]}"
    found = find_image(tag)
    if found is not None and (found.get("Config") or {}).get("Labels", {}).get("tfjob.base") == base.image:
        return str(found["Id"])
    tool = next((one for one in INSTALL if one in base.tools), None)
    if tool is None:
        raise PreparationError(
            f"{base.name} has no SSH server and no package manager that tfjob knows to install one",
            "Choose a base image with an SSH server and client, or with apt-get, dnf, yum or zypper.",
        )
    progress(f"adding an SSH server to {base.reference}")
    lines = [f"FROM {base.image.rpartition(':')[2]}", "USER 0", f"RUN {INSTALL[tool]} && {NO_KEYS}"]
    lines += [f"USER {base.user}"] if base.user else []
    lines += [f'LABEL tfjob.base="{base.image}"']
    doing = f"add an SSH server to {base.reference}"
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
    made = find_image(tag)
    if made is None:
        raise refusal("the image was removed while it was made", doing)
    return str(made["Id"])


def proxies(environ: Mapping[str, str]) -> dict[str, str]:
    """Return the proxies of this shell; Docker passes them to build steps and keeps them out of the image."""
    names = [name for one in _PROXIES for name in (one, one.upper())]
    return {name: environ[name] for name in names if environ.get(name)}


def _failed(error: str, doing: str, said: list[str]) -> PreparationError:
    failure = refusal(error, doing)
    last = [line.strip() for line in said if line.strip().startswith(("E:", "Err", "Error"))][-2:]
    hint = "The image's package manager must reach its packages from a container; or use a base image that has SSH."
    return PreparationError("\n  ".join([failure.message, *last]), failure.hint or hint)
