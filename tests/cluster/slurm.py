"""Slurm on the nodes of a test cluster: a controller on a node of its own, a slurmd on each, stand-in GPUs as its GRES.

Jobs see this machine's files at their own paths, as on a site with a shared file system. Containers of the nodes' Docker
Engines do not: they see `Cluster.shared`.
"""

from __future__ import annotations

import fcntl
import os
import shutil
import signal
import subprocess
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from cluster import network
from cluster.layout import GPUS, HEAD, Layout
from docker_parts import CannotRunError, install, locked, signalled, wait_for

if TYPE_CHECKING:
    from collections.abc import Mapping

    from cluster.node import Node

__all__ = ["CLIENTS", "Slurm", "find_slurm"]

CLIENTS = ("sbatch", "squeue", "scontrol", "scancel", "sinfo", "srun", "salloc", "sacct", "sacctmgr", "sstat", "sdiag")
PACKAGES = {"slurmctld": "slurmctld", "slurmd": "slurmd", "sbatch": "slurm-client", "munged": "munge"}
READY_S = 90
STOP_S = 3
CPUS = 16
MEMORY_MIB = 64000
CLOUD = {"cloud1": 6828, "cloud2": 6829}  # the ports of their slurmd, on the head node
# What a test waits for is short, as a lost node, which is known in 15 s; but for the time that a job has to say how it ends.
OPTIONS = {
    "ClusterName": "tfjob",
    "SlurmUser": "root",
    "SlurmdUser": "root",
    "AuthType": "auth/munge",
    "CredType": "cred/munge",
    "StateSaveLocation": "/run/lab/slurm/state",
    "SlurmdSpoolDir": "/run/lab/slurm/spool/%n",
    "SlurmctldPidFile": "/run/slurmctld.pid",
    "SlurmdPidFile": "/run/slurmd-%n.pid",
    "SlurmctldLogFile": "/run/lab/slurm/log/slurmctld.log",
    "SlurmdLogFile": "/run/lab/slurm/log/slurmd-%n.log",
    "ProctrackType": "proctrack/linuxproc",
    "TaskPlugin": "task/none",
    "JobAcctGatherType": "jobacct_gather/none",
    "AccountingStorageType": "accounting_storage/none",
    "JobCompType": "jobcomp/filetxt",
    "JobCompLoc": "/run/lab/slurm/log/jobcomp.txt",
    "SelectType": "select/cons_tres",
    "SelectTypeParameters": "CR_Core",
    "SchedulerType": "sched/backfill",
    "SchedulerParameters": "sched_min_interval=100000,batch_sched_delay=0,bf_interval=1",
    "SlurmdParameters": "config_overrides",
    "MpiDefault": "none",
    "ReturnToService": "2",
    "SlurmdTimeout": "5",
    "KillWait": "10",
    "MinJobAge": "3600",
    "MessageTimeout": "5",
    "GresTypes": "gpu",
    "PreemptType": "preempt/partition_prio",
    "PreemptMode": "REQUEUE",
    "PrivateData": "cloud",  # nodes that are not there are shown: idle~
    "ResumeProgram": "/run/lab/bin/slurm-resume",
    "SuspendProgram": "/run/lab/bin/slurm-suspend",
    "ResumeTimeout": "60",
    "SuspendTimeout": "5",
    "SuspendTime": "2",
}


@dataclass(frozen=True)
class Slurm:
    """Slurm on a cluster's nodes. Its partitions:

    - ``gpu``, the default: all nodes, with 4 GPUs each;
    - ``urgent``: the same nodes; its jobs preempt those of ``gpu``, which are requeued after GraceTime (2 s) of SIGTERM;
    - ``cloud``: the node cloud1, which is made when a job wants it; the job runs up to 30 s later;
    - ``never``: the node cloud2, which is wanted and never comes up: given up, and the job requeued, after ResumeTimeout (20 s).
    """

    layout: Layout
    head: Node
    nodes: tuple[Node, ...]
    options: Mapping[str, str] = field(default_factory=dict)
    faults: list[str] = field(default_factory=list, compare=False)

    @property
    def directory(self) -> Path:
        return self.layout.slurm

    @property
    def programs(self) -> Path:
        """sbatch and its like, as on a login node, for the PATH of a test."""
        return self.directory / "bin"

    @property
    def environ(self) -> dict[str, str]:
        """An environment in which this machine is a login node."""
        return {**os.environ, "PATH": f"{self.programs}:{os.environ.get('PATH', os.defpath)}"}

    @property
    def login_url(self) -> str:
        """The login node by SSH; the name is known from the cluster's `ssh_config`."""
        return f"ssh://root@{HEAD}"

    @property
    def socket(self) -> Path:
        """Munge's, at the same path on every node and on this machine."""
        return self.layout.sockets / "munge" / "munge.socket"

    def config(self) -> str:
        """The text of slurm.conf: OPTIONS, changed by `options`; an option that is empty is left out."""
        head = f"{self.head.name}({self.head.address})"
        auth = {"SlurmctldHost": head, "AuthInfo": f"socket={self.socket},cred_expire=5"}
        lines = [f"{key}={value}" for key, value in {**OPTIONS, **auth, **self.options}.items() if value]
        size = f"CPUs={CPUS} RealMemory={MEMORY_MIB} Gres=gpu:{GPUS}"
        names = ",".join(node.name for node in self.nodes)
        lines += [f"SuspendExcNodes={names}"]
        lines += [f"NodeName={node.name} NodeAddr={node.address} {size}" for node in self.nodes]
        for name, port in CLOUD.items():
            lines += [f"NodeName={name} NodeAddr={self.head.address} Port={port} State=CLOUD {size}"]
        lines += [
            f"PartitionName=gpu Nodes={names} Default=YES MaxTime=INFINITE PriorityTier=1 GraceTime=2",
            f"PartitionName=urgent Nodes={names} MaxTime=INFINITE PriorityTier=2 PreemptMode=OFF",
            "PartitionName=cloud Nodes=cloud1 MaxTime=INFINITE",
            "PartitionName=never Nodes=cloud2 MaxTime=INFINITE ResumeTimeout=20",
        ]
        return "\n".join(lines) + "\n"

    def start(self) -> None:
        """Start what doesn't run of it, and wait until all nodes are idle. Raises CannotRunError when they don't get so.

        The nodes themselves must run. Other `options` than it was started with are taken up by a restart.
        """
        self._start()
        if not wait_for(self._is_idle, READY_S):
            last = (self.directory / "log" / "slurmctld.log").read_text(encoding="utf-8").splitlines()[-3:]
            raise CannotRunError(f"Slurm's nodes are not idle: {self.states()} {last}")

    def _start(self) -> None:
        with locked(self.layout.directory / "slurm.lock", fcntl.LOCK_EX):
            if not self.head.runs:  # the first start: not a controller that ended and comes back to its jobs
                self._forget()
            self._write()
            self.head.boot()
            if not self.head.is_plugged:
                self.head.plug_cable()
            self._start_munge()
            self._start_daemon(self.head, "slurmctld")
            if not wait_for(lambda: " is UP" in self.run("scontrol", "ping", check=False), READY_S):
                raise CannotRunError("slurmctld does not start")
            for node in self.nodes:
                self.start_node(node)

    def start_node(self, node: Node) -> None:
        """Start the slurmd of a node, as after a boot, if it doesn't run."""
        self._start_daemon(node, "slurmd")

    def stop_daemon(self, node: Node, name: str = "slurmd") -> None:
        """End slurmd, or the head node's slurmctld, by SIGKILL; jobs go on."""
        node.exec(["pkill", "-9", "-x", name], check=False)
        wait_for(lambda: not self._has(node, name), READY_S)

    def stop(self) -> None:
        """End all of Slurm with its jobs; the nodes stay, but for the head node."""
        if self.head.runs and self._has(self.head, "slurmctld"):
            self._cancel_all()
            wait_for(lambda: not self.run("squeue", "-h", check=False), STOP_S)
        with locked(self.layout.directory / "slurm.lock", fcntl.LOCK_EX):
            for node in self.nodes:
                if node.runs:
                    node.exec(["pkill", "-9", "-f", "^(/usr/sbin/)?slurm(d|stepd)( |:|$)"], check=False)
            self.head.remove()
            for pid in network.occupants(self.layout, "switch"):
                signalled(pid, signal.SIGKILL)
            self._forget()

    def run(self, *command: str, check: bool = True, timeout_s: float = 60) -> str:
        """Run a command as on a login node; returns what it printed."""
        done = subprocess.run(
            [str(self.programs / command[0]), *command[1:]],
            check=False,
            capture_output=True,
            text=True,
            stdin=subprocess.DEVNULL,
            timeout=timeout_s,
        )
        if check:
            assert done.returncode == 0, f"{command}: exit {done.returncode}\n{done.stdout}\n{done.stderr}"
        return done.stdout

    def states(self) -> dict[str, str]:
        """The state of each node, as sinfo says it: idle, mixed, down*, …"""
        listed = self.run("sinfo", "-N", "-h", "-o", "%N %T").splitlines()
        return dict(sorted((line.split()[0], line.split()[1]) for line in listed))

    def reset(self) -> None:
        """Bring it back to how a test wants to find it: no jobs, every node idle."""
        self._start()
        self._cancel_all()
        for name in CLOUD:
            state = self.run("scontrol", "--oneliner", "show", "node", name).partition("State=")[2].split()[0]
            if state.startswith("DOWN"):  # given up
                self._update(name, "RESUME")
            elif "POWERED_DOWN" not in state and "POWERING_DOWN" not in state:
                self._update(name, "POWER_DOWN_FORCE")
        if not wait_for(self._is_idle, 3):
            for state in ("DOWN", "RESUME"):  # a node that was lost with its jobs would be completing for long
                self._update(",".join(node.name for node in self.nodes), state)
            assert wait_for(self._is_idle, READY_S), self.states()

    def _cancel_all(self) -> None:
        if jobs := self.run("squeue", "-h", "-o", "%A").split():
            self.run("scancel", "--signal=KILL", "--full", *jobs, check=False)
            self.run("scancel", *jobs, check=False)

    def _update(self, nodes: str, state: str) -> None:
        self.run("scontrol", "update", f"nodename={nodes}", f"state={state}", "reason=test", check=False)

    def _forget(self) -> None:
        for name in ("state", "spool", "log"):
            shutil.rmtree(self.directory / name, ignore_errors=True)

    def _is_idle(self) -> bool:
        if self.run("squeue", "-h", "-p", "gpu,urgent", check=False):
            return False
        states = self.run("sinfo", "-N", "-h", "-p", "gpu", "-o", "%T", check=False).split()
        return states == ["idle"] * len(self.nodes)

    def _write(self) -> None:
        for name in ("etc", "bin", "state", "spool", "log", "dev"):
            (self.directory / name).mkdir(parents=True, exist_ok=True)
        etc = self.directory / "etc"
        (etc / "slurm.conf").write_text(self.config(), encoding="utf-8")
        devices = f"/run/lab/slurm/dev/nvidia[0-{GPUS - 1}]"
        names = ",".join([*(node.name for node in self.nodes), *CLOUD])
        (etc / "gres.conf").write_text(f"NodeName={names} Name=gpu File={devices}\n", encoding="utf-8")
        for number in range(GPUS):
            device = self.directory / "dev" / f"nvidia{number}"
            if not device.exists():
                os.mknod(device, 0o666 | 0o020000, os.makedev(1, 3))  # /dev/null in another's clothes
        for name in CLIENTS:
            wrapper = self.programs / name
            wrapper.write_text(self._wrapper(name), encoding="utf-8")
            wrapper.chmod(0o755)

    def _wrapper(self, name: str) -> str:
        """A program that enters the login node's network; jobs inherit the PATH, and are on the right network already."""
        namespace = network.NAMESPACES / self.layout.namespace(HEAD)
        return f"""#!/bin/sh
[ -e '{namespace}' ] || exec /usr/bin/{name} "$@"
export SLURM_CONF='{self.directory / "etc" / "slurm.conf"}'
exec nsenter --net='{namespace}' /usr/bin/{name} "$@"
"""

    def _start_munge(self) -> None:
        """One munged for all nodes: they have one kernel, which tells it whose process is at the other end of its socket."""
        if network.occupants(self.layout, "switch"):
            return
        directory = self.directory / "munge"
        directory.mkdir(mode=0o700, exist_ok=True)
        self.socket.parent.chmod(0o755)
        key = directory / "key"
        if not key.exists():
            key.write_bytes(os.urandom(1024))
            key.chmod(0o400)
        places = {"key-file": key, "socket": self.socket, "pid-file": directory / "pid", "log-file": directory / "log"}
        options = [f"--{option}={path}" for option, path in {**places, "seed-file": directory / "seed"}.items()]
        enter = ["nsenter", f"--net={network.NAMESPACES / self.layout.switch}"]
        done = subprocess.run(
            [*enter, "munged", *options, "--force"],
            check=False,
            capture_output=True,
            text=True,
            stdin=subprocess.DEVNULL,
        )
        if done.returncode != 0:
            raise CannotRunError(f"munged does not start: {done.stderr.strip()[-300:]}")
        if not wait_for(self.socket.is_socket, READY_S):
            raise CannotRunError("munged does not start")

    def _start_daemon(self, node: Node, name: str) -> None:
        if not self._has(node, name):
            node.exec(["/run/lab/bin/with-machine", name], timeout_s=READY_S)

    def _has(self, node: Node, name: str) -> bool:
        return bool(node.exec(["pgrep", "-x", name], check=False).strip())


def find_slurm() -> None:
    """Make sure that Slurm's programs are there. Raises CannotRunError with what is missing."""
    path = f"{os.environ.get('PATH', os.defpath)}:/usr/sbin:/sbin"
    missing = [package for program, package in PACKAGES.items() if shutil.which(program, path=path) is None]
    if missing:
        install(*missing)
