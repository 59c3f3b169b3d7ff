"""NCCL: the network by which the GPUs of several nodes reach each other."""

from __future__ import annotations

__all__ = ["nccl_interface"]


def nccl_interface(node: int) -> tuple[str, str]:
    """The variable by which a task on `node` finds its peers: by itself NCCL takes the first interface there is.

    Source: NCCL's documentation, "Environment Variables", NCCL_SOCKET_IFNAME; after ``=`` the name is exact.
    """
    return "NCCL_SOCKET_IFNAME", f"=${{{{ node.{node}.interface }}}}"
