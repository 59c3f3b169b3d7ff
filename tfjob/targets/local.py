"""The target `local`: this machine, one node."""

from __future__ import annotations

import platform

from tfjob.targets.gpus import probe_gpus, visible
from tfjob.targets.target import Gpu, Node, Target

__all__ = ["LOCAL", "local_target"]

LOCAL = "local"


def local_target(*, declared_gpus: int | None = None, cuda_visible_devices: str | None = None) -> Target:
    """This machine as it is now. `declared_gpus` (from the workspace's config) stands in for the live probe."""
    if declared_gpus is not None:
        gpus = tuple(Gpu(index, f"declared-{index}", "declared") for index in range(declared_gpus))
        note, driver = "The workspace's config.yml declares the GPUs of this machine (local.gpus).", ""
    else:
        probe = probe_gpus()
        gpus, note, driver = probe.gpus, probe.note, probe.driver
    seen = visible(gpus, cuda_visible_devices)
    if len(seen) < len(gpus):
        note = f"CUDA_VISIBLE_DEVICES={cuda_visible_devices} in this shell shows {len(seen)} of {len(gpus)} GPUs."
    return Target(LOCAL, "local", (Node(platform.node() or LOCAL, "127.0.0.1", seen, note, driver),))
