"""The GPUs of a node, asked for live: by its own nvidia-smi over ssh, by NVML here, or by nvidia-smi in a container."""

from __future__ import annotations

import platform
from collections.abc import Collection
from typing import TYPE_CHECKING, Final

from tfjob.dockerapi.api import RefusalError
from tfjob.dockerapi.ssh import SshTransport
from tfjob.targets.gpus import GpuProbe, probe_gpus
from tfjob.targets.node_shell import SshShell, container_shell, known_image
from tfjob.targets.target import Gpu, Node

if TYPE_CHECKING:
    from tfjob.dockerapi.api import DockerApi
    from tfjob.targets.definition import NodeDefinition
    from tfjob.targets.node_shell import NodeShell, Told

__all__ = ["ask_gpus", "declared_gpus", "is_this_machine", "probe_node"]

_QUERY: Final = "nvidia-smi --query-gpu=index,uuid,name,memory.total,driver_version --format=csv,noheader,nounits"
_TIMEOUT_S: Final = 30.0
_NOT_FOUND: Final = 127  # of sh, for a program that is not there


def probe_node(
    definition: NodeDefinition,
    api: DockerApi,
    *,
    address: str,
    images: Collection[str] = (),
    timeout_s: float = _TIMEOUT_S,
) -> Node:
    """Return the node as it is now: its GPUs, declared or asked for, and its driver. `address` is where peers reach it.

    `images` may be run on the node to ask for GPUs, where it is not reached by ssh. Raises TargetError when it does not
    answer.
    """
    if definition.gpus is not None:
        return Node(
            definition.name, address, declared_gpus(definition.gpus), "The target's definition declares the GPUs."
        )
    is_here = not isinstance(api.transport, SshTransport) and is_this_machine(api, api.info(timeout_s))
    try:
        probe = ask_gpus(api, images, is_here=is_here, timeout_s=timeout_s)
    except RefusalError as error:
        probe = GpuProbe((), note=f"Its engine gives no GPUs to containers: {error.message}")
    return Node(definition.name, address, probe.gpus, probe.note, probe.driver)


def declared_gpus(count: int) -> tuple[Gpu, ...]:
    """Return so many GPUs of which nothing is known but their number."""
    return tuple(Gpu(index, f"declared-{index}", "declared") for index in range(count))


def is_this_machine(api: DockerApi, info: dict[str, object]) -> bool:
    """Whether the engine runs on this machine: it is at a socket here and says that it has this machine's name."""
    return api.transport.is_local and info.get("Name") == platform.node()


def ask_gpus(api: DockerApi, images: Collection[str], *, is_here: bool, timeout_s: float = _TIMEOUT_S) -> GpuProbe:
    """Ask for the GPUs of the engine's machine. No driver is an answer, not an error; the note says why there is no GPU.

    Raises RefusalError where they are asked for in a container and the engine gives none to it.
    """
    if is_here:
        return probe_gpus()
    if isinstance(api.transport, SshTransport):
        return _told(SshShell(api.transport), timeout_s)
    image = known_image(api, images, timeout_s)
    if image is None:
        return GpuProbe(
            (), note="Its GPUs were not asked for: there is no image of tfjob's on it yet. Declare them: gpus: N."
        )
    with container_shell(api, image, gpus=True, timeout_s=timeout_s) as shell:
        return _told(shell, timeout_s)


def _told(shell: NodeShell, timeout_s: float) -> GpuProbe:
    """What nvidia-smi says. Source: nvidia-smi(1), --query-gpu; NVIDIA, "useful nvidia-smi queries"."""
    told = shell.run(_QUERY, timeout_s)
    if told.exit_code == _NOT_FOUND:
        return GpuProbe((), note="No NVIDIA driver was found there (no nvidia-smi on its PATH).")
    if told.exit_code != 0:
        return GpuProbe((), note=f"nvidia-smi there says: {_last_line(told)}")
    rows = [row for line in told.text.splitlines() if (row := _row(line)) is not None]
    driver = rows[0][1] if rows else ""
    return GpuProbe(tuple(gpu for gpu, _ in rows), driver, "" if rows else "nvidia-smi there reports no GPU.")


def _row(line: str) -> tuple[Gpu, str] | None:
    parts = [part.strip() for part in line.split(",")]
    if len(parts) < 5 or not parts[0].isdecimal():
        return None
    index, uuid, *name, memory, driver = parts
    # Where memory is not the GPU's own, nvidia-smi says [N/A].
    return Gpu(int(index), uuid, ", ".join(name), int(memory) if memory.isdecimal() else 0), driver


def _last_line(told: Told) -> str:
    lines = told.text.strip().splitlines()
    return lines[-1].strip() if lines else f"nothing (exit code {told.exit_code})"
