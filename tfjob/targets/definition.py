"""What a compute target is made of, as its file says: nodes with Docker Engines, or a Slurm cluster. Frozen values, no I/O.

The target `local` has no definition: it is this machine, as it is found.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from tfjob.values import Pairs

__all__ = ["ClusterDefinition", "NodeDefinition", "SlurmDefinition"]


@dataclass(frozen=True)
class NodeDefinition:
    """One machine with a Docker Engine.

    `engine` is how the engine is reached: ``ssh://user@host:port``, ``tcp://host:port`` (with `tls`, the directory of ca.pem,
    cert.pem and key.pem), ``unix:///path``, ``context:NAME`` of Docker's own configuration, or ``local``. `address` is where
    other nodes reach it (None: what the engine's address says). `gpus` is a declared number, None where they are asked for live.
    """

    name: str
    engine: str
    address: str | None = None
    gpus: int | None = None
    labels: Pairs = ()
    tls: str | None = None


@dataclass(frozen=True)
class ClusterDefinition:
    """Several machines with Docker Engines, used together.

    `least_nodes` must answer for the target to be used at all; no job gets more than `most_nodes`. `wait_s` is how long a node
    is waited for that does not answer at once, `node_lost_s` how long a node of a running job may be silent before it counts
    as lost, `merge_interval_s` how often outputs are brought home while a job runs. `kept_limit_gib` is how much code and data a node
    keeps for later runs. `shared` are directories that all nodes and this machine have at the same path.
    """

    name: str
    nodes: tuple[NodeDefinition, ...]
    least_nodes: int = 0
    most_nodes: int | None = None
    wait_s: float = 60.0
    node_lost_s: float = 30.0
    merge_interval_s: float = 30.0
    kept_limit_gib: float = 100.0
    shared: tuple[str, ...] = ()
    description: str = ""
    kind: Literal["docker"] = "docker"


@dataclass(frozen=True)
class SlurmDefinition:
    """A Slurm cluster, used from a login node (`login` None: this machine is one) or from elsewhere by ssh (``ssh://user@host``).

    `directory` is on the file system that all nodes share, for what a run needs there when this machine does not share it.
    `runtime` is how containers run: one of them, or auto for the first that the site has. `sbatch_options` are passed on as
    they are (``--exclusive``, ``--reservation=x``). `kept_limit_gib` is how much is kept below `directory` for later runs, where
    there is a login.
    """

    name: str
    login: str | None = None
    directory: str | None = None
    partition: str | None = None
    account: str | None = None
    qos: str | None = None
    constraint: str | None = None
    runtime: Literal["auto", "pyxis", "apptainer", "podman", "docker", "none"] = "auto"
    sbatch_options: tuple[str, ...] = ()
    setup: tuple[str, ...] = ()
    kept_limit_gib: float = 100.0
    description: str = ""
    kind: Literal["slurm"] = "slurm"
