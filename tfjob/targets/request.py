"""What a job asks of a target that is not this machine: the definition narrowed to it, and what can never be refused. Pure."""

from __future__ import annotations

from dataclasses import replace
from pathlib import PurePath
from typing import TYPE_CHECKING

from tfjob.errors import TargetError, UsageError
from tfjob.spec.nearest import nearest
from tfjob.targets.address import address_of
from tfjob.targets.definition import ClusterDefinition, NodeDefinition, SlurmDefinition
from tfjob.targets.target import Gpu, Node, Target

if TYPE_CHECKING:
    from tfjob.values import Pairs

__all__ = ["defined_target", "narrowed", "refuse_what_never_fits", "shares"]

_TYPE = "type"  # the label that compute.node_type means
_SLURM_PROPERTIES = ("partition", "account", "qos", "constraint")


def narrowed(
    definition: ClusterDefinition | SlurmDefinition, *, node_type: str | None, priority: str, properties: Pairs
) -> ClusterDefinition | SlurmDefinition:
    """Return the part of a target that a job may use: its nodes of a type; in Slurm, with the job's own settings.

    Raises TargetError where no node is of the type, and UsageError for settings that the target does not have.
    """
    allowed = _SLURM_PROPERTIES if isinstance(definition, SlurmDefinition) else ()
    for name, _ in properties:
        if name not in allowed:
            has = f"{', '.join(allowed[:-1])} and {allowed[-1]} are allowed" if allowed else "it has no settings"
            raise UsageError(
                f"compute.properties has {name}, and target {definition.name} is of kind {definition.kind}: {has}",
                f"Did you mean {guess}?" if (guess := nearest(name, allowed)) else "Remove it.",
            )
    if isinstance(definition, SlurmDefinition):
        return _narrowed_slurm(definition, node_type, priority, dict(properties))
    if node_type is None:
        return definition
    nodes = tuple(node for node in definition.nodes if dict(node.labels).get(_TYPE) == node_type)
    if not nodes:
        raise _no_such_type(definition, node_type)
    return replace(definition, nodes=nodes, least_nodes=min(definition.least_nodes, len(nodes)))


def _narrowed_slurm(
    definition: SlurmDefinition, node_type: str | None, priority: str, settings: dict[str, str]
) -> SlurmDefinition:
    found = replace(
        definition,
        partition=settings.get("partition", definition.partition),
        account=settings.get("account", definition.account),
        qos=settings.get("qos", definition.qos),
        constraint=settings.get("constraint", definition.constraint),
    )
    if node_type is not None:
        both = f"({found.constraint})&{node_type}" if found.constraint else node_type
        found = replace(found, constraint=both)
    if priority == "low":  # sbatch(1): without a number, --nice lowers it by 100
        found = replace(found, sbatch_options=(*found.sbatch_options, "--nice"))
    return found


def _no_such_type(definition: ClusterDefinition, node_type: str) -> TargetError:
    types = sorted({value for node in definition.nodes for key, value in node.labels if key == _TYPE})
    if not types:
        hint = f"None of its nodes has the label {_TYPE}: add labels: {{{_TYPE}: {node_type}}} to those that are."
    else:
        guess = nearest(node_type, types)
        hint = f"Did you mean {guess}?" if guess else f"Its nodes are of the types {', '.join(types)}."
    return TargetError(f"target {definition.name} has no node of the type {node_type}", hint)


def refuse_what_never_fits(definition: ClusterDefinition, node_count: int, gpus_per_node: int) -> None:
    """Raise TargetError for more nodes than a job gets there, and for more GPUs than enough of its nodes have.

    Only declared GPUs are counted here: nodes that declare none are asked when the run looks for room.
    """
    there = len(definition.nodes)
    if node_count > there:
        raise TargetError(
            f"the job asks for {_count(node_count, 'node')}; target {definition.name} has {there}",
            f"Set `compute.node_count` to at most {there}.",
        )
    most = definition.most_nodes
    if most is not None and node_count > most:
        raise TargetError(
            f"the job asks for {_count(node_count, 'node')}; target {definition.name} gives a job at most {most}",
            f"Set `compute.node_count` to at most {most}, or raise most_nodes of the target.",
        )
    enough = [node for node in definition.nodes if node.gpus is None or node.gpus >= gpus_per_node]
    if len(enough) >= node_count:
        return
    declared = ", ".join(f"{node.name} has {node.gpus}" for node in definition.nodes[:8] if node.gpus is not None)
    many = f"; {len(enough)} of its nodes {'has' if len(enough) == 1 else 'have'} so many" if enough else ""
    asked = f"{_count(gpus_per_node, 'GPU')} per node" + (f" on {node_count} nodes" if node_count > 1 else "")
    raise TargetError(
        f"the job asks for {asked}; target {definition.name} declares fewer: {declared}{many}",
        f"Set `compute.gpus_per_node` to at most {_most_gpus(definition.nodes, node_count)}.",
    )


def _most_gpus(nodes: tuple[NodeDefinition, ...], node_count: int) -> int:
    """Return how many GPUs the best `node_count` nodes have at least; all of them declare some."""
    return sorted((node.gpus or 0 for node in nodes), reverse=True)[node_count - 1]


def defined_target(definition: ClusterDefinition | SlurmDefinition) -> Target:
    """Return the target as a plan sees it: nobody has asked its nodes anything yet."""
    if isinstance(definition, SlurmDefinition):
        return Target(definition.name, "slurm", (), slurm=definition)
    return Target(definition.name, "docker", tuple(map(_node, definition.nodes)), cluster=definition)


def _node(node: NodeDefinition) -> Node:
    gpus = tuple(Gpu(index, f"declared-{index}", "declared") for index in range(node.gpus or 0))
    return Node(node.name, node.address or address_of(node.engine).host or node.name, gpus)


def shares(definition: ClusterDefinition, path: PurePath) -> bool:
    """Return whether all nodes of a cluster have `path` as this machine has it."""
    return any(path.is_relative_to(directory) for directory in definition.shared)


def _count(number: int, noun: str) -> str:
    return f"{number} {noun}" if number == 1 else f"{number} {noun}s"
