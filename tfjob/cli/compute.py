"""Commands for compute targets: compute list, show, create, update, delete."""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from tfjob.cli.options import TableFormat, TableOutput, TargetName
from tfjob.cli.output import colored, plural, print_document, print_table
from tfjob.errors import UsageError
from tfjob.workspace import Workspace, default_config, find_workspace, make_workspace, open_workspace

if TYPE_CHECKING:
    from tfjob.targets.definition import ClusterDefinition, SlurmDefinition
    from tfjob.targets.registered import Registered, Targets
    from tfjob.targets.target import Target

__all__ = ["create", "delete", "list_targets", "show", "update"]

File = Annotated[
    Path,
    typer.Option("--file", "-f", metavar="FILE", help="The target file: kind, nodes and more.", show_default=False),
]
OptionalName = Annotated[
    str | None,
    typer.Argument(metavar="NAME", help="Its name. [default: the one in the file]", show_default=False),
]


def list_targets(output: TableOutput = TableFormat.table) -> None:
    """List the compute targets of this workspace. `local`, this machine, is always there."""
    workspace = find_workspace()
    targets = _targets(workspace)
    found = [targets.get(name) for name in targets.names()]
    here = _local(workspace)
    if output is not TableFormat.table:
        print_document([_local_document(here), *map(_document, found)], output)
        return
    rows = [("local", "local", "1", str(len(here.nodes[0].gpus)), "This machine")]
    rows += [(one.definition.name, *_row(one.definition), one.definition.description) for one in found]
    print_table(("NAME", "KIND", "NODES", "GPUS", "DESCRIPTION"), rows, fits=True)


def show(target: TargetName, output: TableOutput = TableFormat.table) -> None:
    """Show a compute target as it is defined. `tfjob compute test` says what its nodes are like now."""
    workspace = find_workspace()
    if target == "local":
        here = _local(workspace)
        if output is not TableFormat.table:
            print_document(_local_document(here), output)
            return
        node = here.nodes[0]
        print(colored("local", "bold", sys.stdout))
        _print_rows((("kind", "local"), ("node", node.name), ("GPUs", str(len(node.gpus))), ("note", node.gpu_note)))
        return
    found = _targets(workspace).get(target)
    runs = _going_on(workspace, target)
    if output is not TableFormat.table:
        print_document({**_document(found), "runs": runs}, output)
        return
    print(colored(target, "bold", sys.stdout))
    _print_rows((*_facts(found), ("runs now", ", ".join(runs))))
    _print_nodes(found.definition)


def create(name: OptionalName = None, *, file: File, output: TableOutput = TableFormat.table) -> None:
    """Create a compute target from a file; one that is there with the same content is found."""
    from tfjob.targets.file import load  # noqa: PLC0415  # YAML and schemas are for commands that need them

    definition = load(file, name=name)
    made = _targets(find_workspace() or make_workspace(Path.cwd())[0]).create(definition)
    if output is not TableFormat.table:
        print_document(_document(made), output)
    elif made.is_new:
        print(f"Created {definition.name}: {_size(definition)}")
    else:
        print(f"Unchanged: {definition.name}")


def update(name: OptionalName = None, *, file: File, output: TableOutput = TableFormat.table) -> None:
    """Change a compute target to what a file says. Runs go on with the definition they were submitted with."""
    from tfjob.targets.file import load  # noqa: PLC0415  # YAML and schemas are for commands that need them

    definition = load(file, name=name)
    made, changes = _targets(open_workspace()).update(definition)
    if output is not TableFormat.table:
        print_document(_document(made), output)
    elif made.is_changed:
        print(f"Updated {definition.name}:{changes}")
    else:
        print(f"Unchanged: {definition.name}")


def delete(target: TargetName) -> None:
    """Forget a compute target. Nothing happens to its nodes; it is refused while a run of this workspace uses them."""
    if target == "local":
        raise UsageError("local can't be deleted: it is this machine, and always there")
    workspace = open_workspace()
    runs = _going_on(workspace, target)
    if runs:
        raise UsageError(
            f"{plural(len(runs), 'run')} of this workspace {'uses' if len(runs) == 1 else 'use'} the compute target "
            f"{target}: {', '.join(runs)}",
            f"Wait for {'it' if len(runs) == 1 else 'them'}, or cancel: tfjob cancel {runs[0]}",
        )
    _targets(workspace).delete(target)
    print(f"Deleted {target}")


def _targets(workspace: Workspace | None) -> Targets:
    from tfjob.targets.registered import Targets  # noqa: PLC0415  # not for `tfjob compute --help`

    return Targets(workspace.compute if workspace else None)


def _local(workspace: Workspace | None) -> Target:
    from tfjob.targets.local import local_target  # noqa: PLC0415  # only where it is shown

    config = workspace.config if workspace else default_config()
    return local_target(declared_gpus=config.local_gpus, cuda_visible_devices=os.environ.get("CUDA_VISIBLE_DEVICES"))


def _going_on(workspace: Workspace | None, target: str) -> list[str]:
    """The ids of runs that are not over and were submitted to the target, the newest first."""
    from tfjob.runs.find import OVER, list_summaries  # noqa: PLC0415  # only where runs matter

    summaries = list_summaries(workspace) if workspace else []
    return [one.id for one in summaries if one.state not in OVER and one.document.get("target") == target]


def _local_document(here: Target) -> dict[str, Any]:
    from tfjob.values import encode  # noqa: PLC0415

    return {"name": here.name, "kind": here.kind, "nodes": encode(here.nodes)}


def _document(found: Registered) -> dict[str, Any]:
    from tfjob.values import encode  # noqa: PLC0415

    return {**encode(found.definition), "created": found.created, "updated": found.updated}


def _row(definition: ClusterDefinition | SlurmDefinition) -> tuple[str, str, str]:
    """Kind, number of nodes and number of GPUs, as far as they are known without asking."""
    if definition.kind == "slurm":
        return definition.kind, "", ""
    declared = [node.gpus for node in definition.nodes]
    known = sum(gpus or 0 for gpus in declared)
    return definition.kind, str(len(definition.nodes)), str(known) if None not in declared else "asked live"


def _size(definition: ClusterDefinition | SlurmDefinition) -> str:
    if definition.kind == "slurm":
        return f"Slurm from {definition.login or 'this machine'}"
    return plural(len(definition.nodes), "node")


def _facts(found: Registered) -> list[tuple[str, str]]:
    definition = found.definition
    facts = [("kind", definition.kind), ("description", definition.description)]
    if definition.kind == "docker":
        most = definition.most_nodes or len(definition.nodes)
        facts += [
            ("nodes", f"{len(definition.nodes)}; a job gets at most {most}"),
            ("least", f"{plural(definition.least_nodes, 'node')} must answer" if definition.least_nodes else ""),
            ("wait", f"{definition.wait_s:g} s for a node that does not answer at once"),
            ("node lost", f"after {definition.node_lost_s:g} s of silence"),
            ("outputs", f"brought home every {definition.merge_interval_s:g} s"),
            ("kept", f"at most {definition.kept_limit_gib:g} GiB of code and data on each node"),
            ("shared", ", ".join(definition.shared)),
        ]
    else:
        facts += [
            ("login", definition.login or "this machine"),
            ("directory", definition.directory or ""),
            ("partition", definition.partition or "the cluster's default"),
            ("account", definition.account or ""),
            ("qos", definition.qos or ""),
            ("constraint", definition.constraint or ""),
            ("runtime", definition.runtime),
            ("sbatch", " ".join(definition.sbatch_options)),
            ("set-up", "; ".join(definition.setup)),
            ("kept", f"at most {definition.kept_limit_gib:g} GiB for later runs" if definition.login else ""),
        ]
    return [*facts, ("created", found.created[:10]), ("updated", found.updated[:10])]


def _print_rows(rows: tuple[tuple[str, str], ...]) -> None:
    for name, text in rows:
        if text:
            print(f"  {name.ljust(11)} {text}")


def _print_nodes(definition: ClusterDefinition | SlurmDefinition) -> None:
    if definition.kind != "docker":
        return
    rows = [
        (
            node.name,
            node.engine,
            node.address or "",
            "asked live" if node.gpus is None else str(node.gpus),
            ", ".join(f"{key}={value}" for key, value in node.labels),
        )
        for node in definition.nodes
    ]
    heads = ("NODE", "ENGINE", "ADDRESS", "GPUS", "LABELS")
    kept = [column for column in range(len(heads)) if column in (0, 1, 3) or any(row[column] for row in rows)]
    print()
    print_table([heads[column] for column in kept], [[row[column] for column in kept] for row in rows])
