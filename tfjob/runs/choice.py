"""Which engine runs a Plan: the Plan says so, by its target and its runtime. Engines are loaded where they are needed."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from tfjob.engines.base import Engine
from tfjob.planning.plan import Plan
from tfjob.targets.definition import SlurmDefinition
from tfjob.targets.local import local_target
from tfjob.workspace import Workspace

if TYPE_CHECKING:
    from tfjob.engines.cluster.logins import Logins
    from tfjob.engines.slurm.elsewhere import ElsewhereEngine

__all__ = ["engine_elsewhere", "engine_of"]


def engine_of(
    plan: Plan,
    workspace: Workspace,
    environ: Mapping[str, str],
    *,
    soon: bool = False,
    logins: Logins | None = None,
) -> Engine:
    """The engine for `plan`. `environ` is what the submitting shell had: tasks inherit from it, and it names Docker Engines.

    `soon`: room is asked for soon, so nodes of other machines are reached from now on, while the rest is loaded and prepared.
    `logins` were begun before that, perhaps for another target.
    """
    if plan.cluster is not None:
        from tfjob.dockerapi.open_files import allow_many  # noqa: PLC0415  # only for those who have several machines
        from tfjob.engines.cluster.nodes import Reaching  # noqa: PLC0415  # a login takes longer than to load the rest

        allow_many()  # this process starts no task itself
        config = workspace.config
        with_gpus = plan.gpus_per_node > 0
        engines = logins.engines(plan.cluster) if logins is not None else {}
        begun = logins.begun if engines and logins is not None else None
        reaching = Reaching(plan.cluster, environ, with_gpus=with_gpus, engines=engines, begun=begun) if soon else None
        from tfjob.datasets.cache import Cache  # noqa: PLC0415  # the same
        from tfjob.datasets.wanted import Settings  # noqa: PLC0415  # the same
        from tfjob.engines.cluster.engine import ClusterEngine  # noqa: PLC0415  # only for those who have several machines

        return ClusterEngine(
            plan.cluster,
            environ=environ,
            snapshots=workspace.snapshots,
            runs=workspace.runs,
            cache=Cache(config.dataset_cache),
            settings=Settings(connections=config.connections, timeout_s=config.timeout_s),
            with_gpus=with_gpus,
            reaching=reaching,
        )
    if logins is not None:
        logins.leave()
    if plan.slurm is not None and plan.slurm.login is not None:
        return engine_elsewhere(plan.slurm, workspace, environ)
    if plan.slurm is not None:
        from tfjob.engines.slurm.engine import SlurmEngine  # noqa: PLC0415  # only for its targets

        store = Path(plan.slurm.directory) / "store" if plan.slurm.directory else workspace.config.store
        return SlurmEngine(environ=environ, cache=workspace.root / "cache", images=store / "images")
    target = local_target(
        declared_gpus=workspace.config.local_gpus if plan.gpus_per_node else 0,
        cuda_visible_devices=environ.get("CUDA_VISIBLE_DEVICES"),
    )
    if plan.runtime == "docker":
        from tfjob.engines.docker import DockerEngine  # noqa: PLC0415  # 100 ms that only containers need

        return DockerEngine(target.nodes[0], environ=environ, cache=workspace.config.store / "accounts")
    from tfjob.engines.process import ProcessEngine  # noqa: PLC0415  # the same for processes

    return ProcessEngine(target.nodes[0], environ=environ)


def engine_elsewhere(target: SlurmDefinition, workspace: Workspace, environ: Mapping[str, str]) -> ElsewhereEngine:
    """The engine of a Slurm cluster that is used by way of a login node."""
    from tfjob.datasets.cache import Cache  # noqa: PLC0415  # the same
    from tfjob.engines.slurm.elsewhere import ElsewhereEngine  # noqa: PLC0415  # only for its targets

    datasets = Cache(workspace.config.dataset_cache)
    return ElsewhereEngine(target, environ=environ, cache=workspace.root / "cache", datasets=datasets)
