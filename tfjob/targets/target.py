"""A compute target as found now: its nodes and their GPUs."""

from __future__ import annotations

from dataclasses import dataclass

from tfjob.targets.definition import ClusterDefinition, SlurmDefinition

__all__ = ["Gpu", "Node", "Target"]


@dataclass(frozen=True)
class Gpu:
    """One GPU. `index` is its number on the PCI bus, which is what CUDA_VISIBLE_DEVICES means with CUDA_DEVICE_ORDER=PCI_BUS_ID."""

    index: int
    uuid: str
    model: str = ""
    memory_mib: int = 0


@dataclass(frozen=True)
class Node:
    """One machine. `address` is where peers reach it; `gpu_note` says why there are fewer GPUs than one might think.

    `driver` is the version of its NVIDIA driver, empty where there is none or it was not asked.
    """

    name: str
    address: str
    gpus: tuple[Gpu, ...] = ()
    gpu_note: str = ""
    driver: str = ""


@dataclass(frozen=True)
class Target:
    """A named place where jobs run. `kind` is ``local``, ``docker`` or ``slurm``.

    The nodes of `local` are as found. Those of a cluster are as its definition says, for nobody asks them before a job has
    been submitted: a node's GPUs are the declared ones. Slurm names its nodes when it allocates them: there are none here.
    """

    name: str
    kind: str
    nodes: tuple[Node, ...]
    cluster: ClusterDefinition | None = None
    slurm: SlurmDefinition | None = None
