"""What tests of the test cluster itself need."""

from __future__ import annotations

from cluster_parts import docker_cluster, node_base, nodes
from slurm_parts import slurm, slurm_cluster, slurm_nodes

__all__ = ["docker_cluster", "node_base", "nodes", "slurm", "slurm_cluster", "slurm_nodes"]
