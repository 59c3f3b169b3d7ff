"""What is asked: the job file as one frozen value.

A `JobSpec` has been read, checked and given its defaults; it names things (a dataset, an environment, a target) and
knows nothing of where they are. Strings may still hold expressions whose value only a run has
(``${{ dataset.x }}``, ``${{ run.id }}``); those of the submitting shell and of the file itself are already replaced.
The JSON Schema beside this file (`job.schema.json`) is the source of keys, types, defaults and their explanation.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

__all__ = [
    "ComputeSpec",
    "ContainerSpec",
    "DatasetSpec",
    "DistributionSpec",
    "EnvironmentSpec",
    "JobSpec",
    "LimitsSpec",
    "OutputSpec",
    "OutputsSpec",
    "RetriesSpec",
]


@dataclass(frozen=True)
class DatasetSpec:
    """One input of the job: a registered name, or paths given inline (absolute globs once loaded, or addresses).

    `sha256` are the sums that the content of some paths must have.
    """

    name: str | None = None
    paths: tuple[str, ...] = ()
    sha256: tuple[tuple[str, str], ...] = ()
    type: Literal["directory", "file"] = "directory"
    mode: Literal["mount", "download"] = "mount"


@dataclass(frozen=True)
class EnvironmentSpec:
    """The packages a job runs with: at most one of conda, dockerfile, image and name; none means the machine's own.

    `conda` is the conda specification as plain data (channels, dependencies), wherever it came from.
    """

    conda: dict[str, Any] | None = None
    conda_file: Path | None = None
    base: str = "cpu"
    dockerfile: Path | None = None
    build_context: Path | None = None
    build_arguments: tuple[tuple[str, str], ...] = ()
    image: str | None = None
    name: str | None = None


@dataclass(frozen=True)
class ContainerSpec:
    """How a container is started, where the job runs in one."""

    shm_size: str = "2g"
    docker_args: tuple[str, ...] = ()
    packages: Literal["mounted", "baked"] = "mounted"


@dataclass(frozen=True)
class ComputeSpec:
    """Where the job runs and how much of it it takes."""

    target: str = "local"
    runtime: Literal["auto", "process", "docker"] = "auto"
    node_count: int = 1
    max_node_count: int | None = None
    gpus_per_node: int = 0
    node_type: str | None = None
    priority: Literal["low", "normal"] = "normal"
    container: ContainerSpec = field(default_factory=ContainerSpec)
    properties: tuple[tuple[str, str], ...] = ()


@dataclass(frozen=True)
class DistributionSpec:
    """How the job's processes find each other."""

    type: Literal["none", "mpi", "tensorflow"] = "none"
    process_count_per_node: int | None = None
    worker_count: int | None = None
    parameter_server_count: int = 0
    evaluator: bool = False


@dataclass(frozen=True)
class OutputSpec:
    """One named output: a directory or a file of its own under the run's `outputs`, whose path an expression gives."""

    type: Literal["directory", "file"] = "directory"
    description: str = ""


@dataclass(frozen=True)
class OutputsSpec:
    """What is kept of the files a job writes: paths relative to its working directory, and named outputs."""

    keep: tuple[str, ...] = ("outputs",)
    named: tuple[tuple[str, OutputSpec], ...] = ()


@dataclass(frozen=True)
class LimitsSpec:
    """How long things may take, in seconds. `timeout_s` None means no limit; `allocation_timeout_s` None what is usual on the target."""

    timeout_s: float | None = None
    rendezvous_timeout_s: float = 120.0
    allocation_timeout_s: float | None = None
    grace_period_s: float = 5.0


@dataclass(frozen=True)
class RetriesSpec:
    """How often a run that failed starts again, at most, and for which reasons."""

    max: int = 0
    on: tuple[Literal["node_lost", "failure"], ...] = ("node_lost",)


@dataclass(frozen=True)
class JobSpec:
    """A job as asked. `base_dir` is the directory its relative paths were from; `source` the text of the file."""

    name: str
    experiment: str
    display_name: str = ""
    description: str = ""
    tags: tuple[tuple[str, str], ...] = ()
    properties: tuple[tuple[str, str], ...] = ()
    code: Path | None = None
    script: str | None = None
    arguments: tuple[str, ...] = ()
    command: str | None = None
    dataset: tuple[tuple[str, DatasetSpec], ...] = ()
    environment: EnvironmentSpec = field(default_factory=EnvironmentSpec)
    compute: ComputeSpec = field(default_factory=ComputeSpec)
    distribution: DistributionSpec = field(default_factory=DistributionSpec)
    environment_variables: tuple[tuple[str, str], ...] = ()
    secrets: tuple[str, ...] = ()
    outputs: OutputsSpec = field(default_factory=OutputsSpec)
    limits: LimitsSpec = field(default_factory=LimitsSpec)
    retries: RetriesSpec = field(default_factory=RetriesSpec)
    base_dir: Path = Path()
    file: Path | None = None
    source: str = ""
    overrides: tuple[str, ...] = ()
