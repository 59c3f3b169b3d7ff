"""Where a test cluster keeps things, and what its parts are called: all of it derived from the checkout's own path."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from pathlib import Path

from support import REPOSITORY

__all__ = ["GPUS", "HEAD", "LAYOUT", "SLURM_LAYOUT", "USER", "USER_ID", "Layout"]

GPUS = 4  # stand-in GPUs that each node has
HEAD = "head"  # Slurm's controller and login node
USER = "tfjob-user"  # on every node, beside root; in the group docker
USER_ID = 10077


@dataclass(frozen=True)
class Layout:
    """Names, addresses and directories of a cluster that belongs to one checkout: `name` tells its clusters apart.

    Two of them on one machine get different names and networks, so that both can run at the same time.
    """

    repository: Path
    name: str = "cluster"

    @property
    def tag(self) -> str:
        own = "" if self.name == "cluster" else f" {self.name}"
        return hashlib.sha256(f"{self.repository}{own}".encode()).hexdigest()[:8]

    @property
    def network(self) -> str:
        """The first three numbers of the private network, a /24 out of 10.64.0.0/10."""
        number = int(self.tag, 16)
        return f"10.{64 + number // 256 % 64}.{number % 256}"

    @property
    def machine_address(self) -> str:
        """Where the nodes reach this machine."""
        return f"{self.network}.1"

    @property
    def machine_interface(self) -> str:
        return f"tj-{self.tag}"  # an interface's name has 15 characters at most

    @property
    def switch(self) -> str:
        """The network namespace that holds the bridge."""
        return f"tfjob-{self.tag}-switch"

    def namespace(self, name: str) -> str:
        """The network namespace of a node."""
        return f"tfjob-{self.tag}-{name}"

    @property
    def head_address(self) -> str:
        """Slurm's controller and login node."""
        return f"{self.network}.10"

    def address(self, index: int) -> str:
        return f"{self.network}.{11 + index}"

    @property
    def cgroup(self) -> str:
        """The control group above those of all containers of the cluster."""
        return f"tfjob-{self.tag}"

    @property
    def directory(self) -> Path:
        return self.repository / ".cache" / self.name

    @property
    def sockets(self) -> Path:
        """Where the nodes' sockets are for this machine: the path of a socket has 107 characters at most."""
        return Path(f"/run/tfjob-{self.tag}")

    @property
    def etc(self) -> Path:
        """Keys, certificates and settings, made once."""
        return self.directory / "etc"

    @property
    def programs(self) -> Path:
        """What is on the PATH of every node, before the machine's own programs."""
        return self.directory / "bin"

    @property
    def slurm(self) -> Path:
        """Slurm's settings, state and logs, for all nodes."""
        return self.directory / "slurm"

    @property
    def shared(self) -> Path:
        """A directory that all nodes and this machine have at the same path."""
        return self.directory / "shared"


LAYOUT = Layout(REPOSITORY)
# The tests of Slurm have nodes of their own: what they break is not what the tests of Docker nodes use at the same time.
SLURM_LAYOUT = Layout(REPOSITORY, "slurm-cluster")
