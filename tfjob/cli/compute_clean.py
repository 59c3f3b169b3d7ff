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
    """Remove containers and leases of this workspace's runs that are over. Ends with 5 if a node does not answer.

    A run does this itself at its end, and the next one for what it finds; this is for a node that was away meanwhile.
    """
    from tfjob.targets.registered import Targets  # noqa: PLC0415  # not for `tfjob compute --help`

    workspace = open_workspace()
    definition = Targets(workspace.compute).get(target).definition if target != "local" else None
    if definition is None or definition.kind != "docker":
        raise UsageError(f"{target} has no nodes with Docker Engines to clean", "Name a target of the kind docker.")
    from tfjob.engines.cluster.clean import clean_target  # noqa: PLC0415

    cleaned = clean_target(definition, workspace.runs, os.environ, kept=kept)
    if output is not TableFormat.table:
        nodes = [{"name": one.node, "removed": list(one.removed), "problem": one.problem or None} for one in cleaned]
        print_document({"name": target, "nodes": nodes}, output)
    else:
        for one in cleaned:
            name = colored(one.node, "bold", sys.stdout)
            for line in one.removed:
                print(f"{name}  removed the {line}")
            if one.problem:
                print(f"{name}  {colored(one.problem, 'red', sys.stdout)}")
            elif not one.removed:
                print(f"{name}  nothing was left")
    if any(one.problem for one in cleaned):
        sys.exit(ExitCode.TARGET_FAILED)
