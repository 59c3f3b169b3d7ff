"""A checked tree → the `JobSpec` it asks for. What is not given has the default of the schema."""

from __future__ import annotations

import os
import re
from typing import TYPE_CHECKING, Any

from tfjob.spec import conda
from tfjob.spec.data_paths import absolute_paths
from tfjob.spec.files import absolute
from tfjob.spec.job import (
    ComputeSpec,
    ContainerSpec,
    DatasetSpec,
    DistributionSpec,
    EnvironmentSpec,
    JobSpec,
    LimitsSpec,
    OutputSpec,
    OutputsSpec,
    RetriesSpec,
)
from tfjob.spec.schema import default
from tfjob.spec.tree import MapNode, Node, ScalarNode
from tfjob.spec.view import View

if TYPE_CHECKING:
    from pathlib import Path

__all__ = ["build", "name_from"]


def build(root: Node, *, stem: str, base_dir: Path, conda_data: dict[str, Any] | None) -> JobSpec:
    """Return what the tree `root`, which has no problems, asks for.

    `stem` is the file's name less its ending, `base_dir` where relative paths are from, `conda_data` the content of the
    file that ``environment.conda_file`` names.
    """
    view = View(root)
    name = view.text("name") or name_from(stem)
    code = view.text("code")
    return JobSpec(
        name=name,
        display_name=view.text("display_name") or name,
        experiment=view.text("experiment") or name,
        description=_text(view, "description"),
        tags=view.pairs("tags"),
        properties=view.pairs("properties"),
        code=None if code is None else absolute(base_dir, code),
        script=view.text("script"),
        arguments=tuple(node.text for _, node in view.texts("arguments")),
        command=view.text("command"),
        dataset=tuple((name, _dataset(view, name, base_dir)) for name in view.entries("dataset")),
        environment=_environment(view, base_dir, conda_data),
        compute=_compute(view),
        distribution=_distribution(view),
        environment_variables=view.pairs("environment_variables"),
        secrets=tuple(dict.fromkeys(node.text for _, node in view.texts("secrets"))),
        outputs=_outputs(view),
        limits=_limits(view),
        retries=_retries(view),
        base_dir=base_dir,
    )


def name_from(stem: str) -> str:
    """Return a valid name of a job that is like `stem`.

    >>> name_from("my job (1)")
    'my-job-1'
    """
    name = re.sub(r"[^A-Za-z0-9_.-]+", "-", stem).strip("-_.")[:63]
    return name or "job"


def _text(view: View, *where: str) -> str:
    return view.text(*where) or ""


def _given(value: Any) -> Any:
    """Return a value that a checked file always has."""
    if value is None:
        raise AssertionError("a checked job file lacks a value that has a default")
    return value


def _dataset(view: View, name: str, base_dir: Path) -> DatasetSpec:
    where = ("dataset", name)
    node = view.node(*where)
    if isinstance(node, ScalarNode):
        return DatasetSpec(name=node.text)
    paths = absolute_paths(view.root, (*where, "paths"), base_dir)
    return DatasetSpec(
        name=view.text(*where, "name"),
        paths=tuple(path for path, _ in paths),
        sha256=tuple((path, sha256) for path, sha256 in paths if sha256),
        type=_given(view.text(*where, "type")),
        mode=_given(view.text(*where, "mode")),
    )


def _environment(view: View, base_dir: Path, conda_data: dict[str, Any] | None) -> EnvironmentSpec:
    section = view.node("environment")
    if isinstance(section, ScalarNode):
        return EnvironmentSpec(name=section.text)

    def path(key: str) -> Path | None:
        text = view.text("environment", key)
        return None if text is None else absolute(base_dir, text)

    inline = view.node("environment", "conda")
    image = view.text("environment", "image")
    has_packages = isinstance(inline, MapNode) or view.has("environment", "conda_file")
    return EnvironmentSpec(
        conda=conda.content(inline) if isinstance(inline, MapNode) else conda_data,
        conda_file=path("conda_file"),
        base=image if image and has_packages else _given(view.text("environment", "base")),
        dockerfile=path("dockerfile"),
        build_context=path("build_context"),
        build_arguments=view.pairs("environment", "build_arguments"),
        image=None if has_packages else image,
        name=view.text("environment", "name"),
    )


def _compute(view: View) -> ComputeSpec:
    node = view.node("compute", "docker_args")
    if isinstance(node, ScalarNode):
        import shlex  # noqa: PLC0415  # 5 ms, rarely needed

        docker_args = tuple(shlex.split(node.text))
    else:
        docker_args = tuple(item.text for _, item in view.texts("compute", "docker_args"))
    return ComputeSpec(
        target=_given(view.text("compute", "target")),
        runtime=_given(view.text("compute", "runtime")),
        node_count=_given(view.count("compute", "node_count")),
        max_node_count=view.count("compute", "max_node_count"),
        gpus_per_node=_given(view.count("compute", "gpus_per_node")),
        node_type=view.text("compute", "node_type"),
        priority=_given(view.text("compute", "priority")),
        container=ContainerSpec(
            shm_size=_given(view.text("compute", "shm_size")),
            docker_args=docker_args,
            packages=_given(view.text("compute", "container_packages")),
        ),
        properties=view.pairs("compute", "properties"),
    )


def _distribution(view: View) -> DistributionSpec:
    return DistributionSpec(
        type=_given(view.text("distribution", "type")),
        process_count_per_node=view.count("distribution", "process_count_per_node"),
        worker_count=view.count("distribution", "worker_count"),
        parameter_server_count=_given(view.count("distribution", "parameter_server_count")),
        evaluator=_given(view.flag("distribution", "evaluator")),
    )


def _outputs(view: View) -> OutputsSpec:

    named = []
    for name in view.entries("outputs", "named"):
        where = ("outputs", "named", name)
        kind = _given(view.text(*where, "type"))
        named.append((name, OutputSpec(type=kind, description=_text(view, *where, "description"))))
    keep = tuple(os.path.normpath(node.text) for _, node in view.texts("outputs", "keep"))
    if not view.has("outputs", "keep"):
        keep = tuple(default("outputs", "keep"))
    return OutputsSpec(keep=tuple(dict.fromkeys(keep)), named=tuple(named))


def _limits(view: View) -> LimitsSpec:
    timeout, allocation = view.number("limits", "timeout_s"), view.number("limits", "allocation_timeout_s")
    return LimitsSpec(
        timeout_s=None if timeout is None else float(timeout),
        rendezvous_timeout_s=float(_given(view.number("limits", "rendezvous_timeout_s"))),
        allocation_timeout_s=None if allocation is None else float(allocation),
        grace_period_s=float(_given(view.number("limits", "grace_period_s"))),
    )


def _retries(view: View) -> RetriesSpec:
    reasons: Any = [node.text for _, node in view.texts("retries", "on")]
    if not view.has("retries", "on"):
        reasons = default("retries", "on")
    return RetriesSpec(_given(view.count("retries", "max")), tuple(dict.fromkeys(reasons)))
