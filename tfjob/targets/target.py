"""A compute target as found now: its nodes and their GPUs."""

from __future__ import annotations

from dataclasses import dataclass

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
    """A named place where jobs run."""

    name: str
    kind: str
    nodes: tuple[Node, ...]
