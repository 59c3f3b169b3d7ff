"""Arguments and options that several commands share."""

from __future__ import annotations

from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer

__all__ = [
    "Detach",
    "DocumentOutput",
    "Format",
    "JobFile",
    "OnInterrupt",
    "OnInterruptOption",
    "RunName",
    "Set",
    "TableFormat",
    "TableOutput",
    "TargetName",
    "complete_dataset",
    "complete_environment",
    "complete_target",
]


class Format(StrEnum):
    """Documents: what a program reads."""

    json = "json"
    yaml = "yaml"


class TableFormat(StrEnum):
    """Tables for people, documents for programs."""

    table = "table"
    json = "json"
    yaml = "yaml"


class OnInterrupt(StrEnum):
    """What Ctrl-C, SIGINT or SIGTERM do to the run that is being followed."""

    auto = "auto"
    detach = "detach"
    cancel = "cancel"


def _complete_run(incomplete: str) -> list[str]:
    """Run ids for the shell's completion."""
    from tfjob.workspace import find_workspace  # noqa: PLC0415  # only when the shell asks

    workspace = find_workspace()
    if workspace is None:
        return []
    ids = (path.name for path in workspace.runs.iterdir() if not path.name.startswith("."))
    return sorted(name for name in (*ids, "latest") if name.startswith(incomplete))


def complete_environment(incomplete: str) -> list[str]:
    """Names of environments for the shell's completion."""
    from tfjob.environments.registered import entries  # noqa: PLC0415  # only when the shell asks
    from tfjob.workspace import find_workspace  # noqa: PLC0415

    workspace = find_workspace()
    names = (entry.name for entry in entries(workspace.environments if workspace else None))
    return sorted(name for name in names if name.startswith(incomplete))


def complete_target(incomplete: str) -> list[str]:
    """Names of compute targets for the shell's completion."""
    from tfjob.targets.registered import Targets  # noqa: PLC0415  # only when the shell asks
    from tfjob.workspace import find_workspace  # noqa: PLC0415

    workspace = find_workspace()
    names = ("local", *Targets(workspace.compute if workspace else None).names())
    return sorted(name for name in names if name.startswith(incomplete))


def complete_dataset(incomplete: str) -> list[str]:
    """Names of datasets for the shell's completion."""
    from tfjob.datasets.registered import assets  # noqa: PLC0415  # only when the shell asks
    from tfjob.workspace import find_workspace  # noqa: PLC0415

    workspace = find_workspace()
    names = assets(workspace.datasets).names() if workspace else ()
    return [name for name in names if name.startswith(incomplete)]


JobFile = Annotated[Path, typer.Argument(metavar="FILE", help="The job file; - is stdin.", show_default=False)]
RunName = Annotated[
    str,
    typer.Argument(
        metavar="RUN",
        help="A run's id, the start of it, or `latest`.",
        show_default=False,
        autocompletion=_complete_run,
    ),
]
TargetName = Annotated[
    str,
    typer.Argument(metavar="TARGET", help="Its name.", show_default=False, autocompletion=complete_target),
]
Set = Annotated[
    list[str] | None,
    typer.Option(
        "--set",
        metavar="KEY=VALUE",
        help="Override a value of the file, such as compute.node_count=2 or arguments[3]=128.",
        show_default=False,
    ),
]
Detach = Annotated[bool, typer.Option("--detach", "-d", help="Return once the run is recorded, and print its id.")]
OnInterruptOption = Annotated[
    OnInterrupt,
    typer.Option(help="What Ctrl-C or SIGTERM does to the run. auto: detach on a terminal, cancel without one (CI)."),
]
DocumentOutput = Annotated[
    Format | None, typer.Option("--output", "-o", help="Print one document on stdout.", show_default=False)
]
TableOutput = Annotated[TableFormat, typer.Option("--output", "-o", help="How to print it.")]
