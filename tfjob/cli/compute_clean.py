"""`tfjob compute clean`: what runs that are over left on nodes, and, if that is wished, what nodes keep for later runs."""

from __future__ import annotations

import os
import sys
from typing import Annotated

import typer

from tfjob.cli.options import TableFormat, TableOutput, TargetName
from tfjob.cli.output import colored, print_document
from tfjob.errors import ExitCode, UsageError
from tfjob.workspace import open_workspace

__all__ = ["clean"]


def clean(
    target: TargetName,
    *,
    kept: Annotated[
        bool,
        typer.Option(
            "--kept",
            help="Remove as well what nodes keep for later runs and no run uses: code, data, images of environments.",
        ),
    ] = False,
    output: TableOutput = TableFormat.table,
) -> None:
    """Remove what this workspace's runs that are over left on a target. Ends with 5 if not all of it could be.

    On nodes with Docker these are containers and leases; on a Slurm cluster that has a login, the directories of runs, of which
    what the jobs wrote is brought home first. What can't be removed is told, with the reason. A run does this itself at its
    end, and the next one for what it finds; this is for a node that was away meanwhile.
    """
    from tfjob.targets.registered import Targets  # noqa: PLC0415  # not for `tfjob compute --help`

    workspace = open_workspace()
    definition = Targets(workspace.compute).get(target).definition if target != "local" else None
    if definition is not None and definition.kind == "slurm" and definition.login is not None:
        from tfjob.resolve import refuse_no_place  # noqa: PLC0415  # only for its kind of target
        from tfjob.runs.left import clean_elsewhere  # noqa: PLC0415  # the same

        refuse_no_place(definition)
        there = clean_elsewhere(definition, workspace, os.environ, kept=kept)
        cleaned = [(definition.login, there.removed, there.problem)]
    elif definition is not None and definition.kind == "docker":
        from tfjob.engines.cluster.clean import clean_target  # noqa: PLC0415  # the same

        found = clean_target(definition, workspace.runs, os.environ, kept=kept)
        cleaned = [(one.node, one.removed, one.problem) for one in found]
    else:
        raise UsageError(
            f"{target} has nothing to clean", "Name a target with Docker Engines, or a Slurm cluster that has a login."
        )
    if output is not TableFormat.table:
        nodes = [{"name": name, "removed": list(lines), "problem": problem or None} for name, lines, problem in cleaned]
        print_document({"name": target, "nodes": nodes}, output)
    else:
        for node, lines, problem in cleaned:
            name = colored(node, "bold", sys.stdout)
            for line in lines:
                print(f"{name}  removed the {line}")
            if problem:
                print(f"{name}  {colored(problem, 'red', sys.stdout)}")
            elif not lines:
                print(f"{name}  nothing was left")
    if any(problem for _, _, problem in cleaned):
        sys.exit(ExitCode.TARGET_FAILED)
