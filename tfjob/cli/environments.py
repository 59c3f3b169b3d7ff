"""Commands for environments by name: env list, show, create, clone, remove."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from tfjob.cli.options import TableFormat, TableOutput, complete_environment
from tfjob.cli.output import colored, print_document, print_table
from tfjob.errors import UsageError
from tfjob.workspace import find_workspace, make_workspace, open_workspace

if TYPE_CHECKING:
    from tfjob.assets import Entry

__all__ = ["clone", "create", "list_environments", "remove", "show"]

Name = Annotated[
    str,
    typer.Argument(
        metavar="NAME", help="Its name, or name@version.", show_default=False, autocompletion=complete_environment
    ),
]
Version = Annotated[
    str | None, typer.Option("--version", help="The version to give it. [default: counted up]", show_default=False)
]
NewVersion = Annotated[bool, typer.Option("--new-version", help="Keep it beside the versions there are.")]


def list_environments(
    all_versions: Annotated[bool, typer.Option("--all", help="Every version, not just the latest.")] = False,
    output: TableOutput = TableFormat.table,
) -> None:
    """List the environments registered in this workspace, and those that come with tfjob."""
    from tfjob.environments.registered import entries  # noqa: PLC0415  # YAML and schemas are for commands that need them

    workspace = find_workspace()
    found = entries(workspace.environments if workspace else None, all_versions=all_versions)
    if output is not TableFormat.table:
        print_document([_document(entry) for entry in found], output)
        return
    rows = [
        (one.name, one.version, _kind(one.content), one.created[:10] or "curated", one.description) for one in found
    ]
    print_table(("NAME", "VERSION", "KIND", "CREATED", "DESCRIPTION"), rows, fits=True)


def show(
    environment: Annotated[
        str,
        typer.Argument(
            metavar="ENVIRONMENT",
            help="A name, name@version, or a file: conda, environment or job.",
            show_default=False,
        ),
    ],
    output: TableOutput = TableFormat.table,
) -> None:
    """Show an environment: what is asked for, what it was locked to, and what of it is built on this machine."""
    from tfjob.cli.environment_facts import describe  # noqa: PLC0415  # only for this

    facts = describe(environment)
    if output is not TableFormat.table:
        print_document(facts.document, output)
        return
    print(colored(facts.title, "bold", sys.stdout))
    for name, text in facts.rows:
        print(f"  {name.ljust(10)} {text}")
    if facts.packages:
        print()
        print_table(("PACKAGE", "VERSION"), facts.packages)


def create(
    file: Annotated[
        Path,
        typer.Option("--file", "-f", metavar="FILE", help="A conda file or an environment file.", show_default=False),
    ],
    name: Annotated[
        str | None, typer.Option(help="Its name. [default: the one in the file]", show_default=False)
    ] = None,
    version: Version = None,
    new_version: NewVersion = False,
    output: TableOutput = TableFormat.table,
) -> None:
    """Register an environment from a file, under a name and a version. Unchanged, it makes no new version."""
    from tfjob.environments.registered import register  # noqa: PLC0415  # YAML and schemas are for commands that need them
    from tfjob.snapshot import scan, take  # noqa: PLC0415
    from tfjob.spec.environment_file import load  # noqa: PLC0415

    read = load(file)
    workspace = find_workspace() or make_workspace(Path.cwd())[0]

    def keep(context: Path) -> str:
        found = scan(context, workspace.config.snapshot_limit_mib, everything=True)
        take(found, workspace.snapshots)
        return found.digest

    entry = register(
        read, workspace.environments, keep_context=keep, name=name, version=version, new_version=new_version
    )
    _print_registered(entry, output)


def clone(
    environment: Name,
    name: Annotated[str, typer.Argument(metavar="NEW", help="The name of the copy.", show_default=False)],
    version: Version = None,
    new_version: NewVersion = False,
    output: TableOutput = TableFormat.table,
) -> None:
    """Register a copy of an environment, a curated one say, under another name."""
    from tfjob.environments import registered  # noqa: PLC0415  # YAML and schemas are for commands that need them

    workspace = find_workspace() or make_workspace(Path.cwd())[0]
    entry = registered.clone(environment, name, workspace.environments, version=version, new_version=new_version)
    _print_registered(entry, output)


def remove(
    environment: Name,
    all_versions: Annotated[bool, typer.Option("--all-versions", help="Every version of the name.")] = False,
) -> None:
    """Take a version of an environment out of the list. What it was built to stays until `tfjob env prune`."""
    from tfjob.assets import split_name  # noqa: PLC0415
    from tfjob.environments import registered  # noqa: PLC0415

    root = open_workspace().environments
    name, version = split_name(environment)
    known = [one.version for one in registered.entries(root, all_versions=True) if one.name == name and one.created]
    if version is None and len(known) > 1 and not all_versions:
        raise UsageError(
            f"{name} has {len(known)} versions: {', '.join(known)}",
            f"Name one, {name}@{known[-1]}, or all of them with --all-versions.",
        )
    for entry in registered.remove(environment, root):
        print(f"Removed {entry.full_name}")


def _print_registered(entry: Entry, output: TableFormat) -> None:
    if output is not TableFormat.table:
        print_document(_document(entry), output)
    elif entry.is_new:
        print(f"Registered {entry.full_name}")
    else:
        print(f"Unchanged: {entry.full_name}")


def _document(entry: Entry) -> dict[str, Any]:
    from tfjob.values import encode  # noqa: PLC0415

    document: dict[str, Any] = encode(entry)
    document.pop("is_new", None)
    return {"full_name": entry.full_name, **document}


def _kind(content: dict[str, Any]) -> str:
    if "image" in content:
        return "image"
    if "dockerfile" in content:
        return "Dockerfile"
    return "packages"
