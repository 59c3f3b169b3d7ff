"""Commands for datasets by name: dataset create, list, show, files, delete."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from tfjob.cli.escaping import in_line, in_lines
from tfjob.cli.options import TableFormat, TableOutput, complete_dataset
from tfjob.cli.output import colored, plural, print_document, print_table, size
from tfjob.errors import UsageError
from tfjob.workspace import Workspace, find_workspace, make_workspace, open_workspace

if TYPE_CHECKING:
    from tfjob.assets import Entry
    from tfjob.datasets.wanted import Settings

__all__ = ["DatasetName", "create", "delete", "files", "list_datasets", "settings_of", "show"]

DatasetName = Annotated[
    str,
    typer.Argument(
        metavar="NAME", help="Its name, or name@version.", show_default=False, autocompletion=complete_dataset
    ),
]


def create(
    *,
    file: Annotated[
        Path | None, typer.Option("--file", "-f", metavar="FILE", help="A dataset file.", show_default=False)
    ] = None,
    name: Annotated[
        str | None, typer.Option(help="Its name. [default: the one in the file]", show_default=False)
    ] = None,
    paths: Annotated[
        list[str] | None,
        typer.Option(
            "--path",
            metavar="PATH",
            help="A file, directory, glob or address; can be repeated.",
            show_default=False,
        ),
    ] = None,
    paths_from: Annotated[
        Path | None,
        typer.Option(
            "--paths-from",
            metavar="FILE",
            help="A text file with a path or an address on each line, for thousands of them.",
            show_default=False,
        ),
    ] = None,
    description: Annotated[str | None, typer.Option(help="What the data is.", show_default=False)] = None,
    version: Annotated[
        str | None, typer.Option("--version", help="The version to give it. [default: counted up]", show_default=False)
    ] = None,
    new_version: Annotated[bool, typer.Option("--new-version", help="Keep it beside the versions there are.")] = False,
    refresh: Annotated[
        bool,
        typer.Option(
            "--refresh",
            help="A new version of the paths registered under --name (NAME or NAME@VERSION), if their content changed.",
        ),
    ] = False,
    output: TableOutput = TableFormat.table,
) -> None:
    """Register files under a name and a version. Nothing is copied; unchanged, it makes no new version."""
    from tfjob.datasets import registered  # noqa: PLC0415  # YAML and schemas are for commands that need them

    if refresh:
        if name is None or file is not None or paths or paths_from is not None:
            raise UsageError("--refresh looks at registered paths again", "Give it with --name NAME alone.")
        workspace = open_workspace()
        entry = registered.refresh(name, workspace.datasets, settings_of(workspace))
    else:
        asked = _asked(file, [*(paths or []), *(_lines(paths_from) if paths_from is not None else [])])
        workspace = find_workspace() or make_workspace(Path.cwd())[0]
        entry = registered.register(
            registered.Asked(
                asked.paths,
                asked.sha256,
                name or asked.name,
                version or asked.version,
                asked.description if description is None else description,
                asked.tags,
            ),
            workspace.datasets,
            settings_of(workspace),
            new_version=new_version,
        )
    if output is not TableFormat.table:
        print_document(_document(entry), output)
        return
    held = f"{plural(entry.content['file_count'], 'file')}, {size(entry.content['size_bytes'])}"
    print(f"{'Registered' if entry.is_new else 'Unchanged:'} {entry.full_name}  ({held})")


def list_datasets(
    all_versions: Annotated[bool, typer.Option("--all", help="Every version, not just the latest.")] = False,
    output: TableOutput = TableFormat.table,
) -> None:
    """List the datasets registered in this workspace."""
    from tfjob.datasets.registered import assets  # noqa: PLC0415  # only for this

    workspace = find_workspace()
    found = assets(workspace.datasets).list(all_versions=all_versions) if workspace else ()
    if output is not TableFormat.table:
        print_document([_document(entry) for entry in found], output)
        return
    if not found:
        print(
            "No datasets yet. Register one: tfjob dataset create --name NAME --path PATH",
            file=sys.stderr,
        )
        return
    rows = [
        (
            one.name,
            one.version,
            str(one.content["file_count"]),
            size(one.content["size_bytes"]),
            one.created[:10],
            one.description,
        )
        for one in found
    ]
    print_table(("NAME", "VERSION", "FILES", "SIZE", "CREATED", "DESCRIPTION"), rows, fits=True)


def show(dataset: DatasetName, output: TableOutput = TableFormat.table) -> None:
    """Show a dataset: its paths, versions, size and digest, and the runs that used it."""
    from tfjob.datasets.registered import assets, content_of  # noqa: PLC0415  # only for this

    workspace = open_workspace()
    registry = assets(workspace.datasets)
    entry = registry.find(dataset)
    versions = registry.versions(entry.name)
    runs = _runs_of(workspace, entry.full_name)
    if output is not TableFormat.table:
        more = {"versions": [one.version for one in versions], "runs": [run["id"] for run in runs]}
        print_document({**_document(entry), **more}, output)
        return
    print(colored(entry.full_name, "bold", sys.stdout))
    content = entry.content
    contents = content_of(entry, workspace.datasets)
    facts = [
        ("description", entry.description),
        ("tags", ", ".join(f"{key}={value}" for key, value in entry.tags)),
        ("created", f"{entry.created[:19].replace('T', ' ')} UTC"),
        ("holds", f"{plural(content['file_count'], 'file')}, {size(content['size_bytes'])}"),
        ("digest", content["listing"]),
        ("fetched", f"{plural(len(contents), 'file')}, kept by their SHA-256" if contents else ""),
        ("versions", ", ".join(one.version for one in reversed(versions))),
    ]
    for key, text in facts:
        if text:
            print(f"  {key.ljust(11)} {in_lines(text)}")
    for number, one in enumerate(content["paths"]):
        sum_of = f"  sha256 {one['sha256']}" if "sha256" in one else ""
        print(f"  {('' if number else 'paths').ljust(11)} {in_line(one['path'])}{sum_of}")
    if runs:
        print()
        rows = [(run["id"], run["state"], run["created"][:19].replace("T", " ")) for run in runs]
        print_table(("RUN", "STATE", "CREATED (UTC)"), rows)


def files(dataset: DatasetName, output: TableOutput = TableFormat.table) -> None:
    """List the files of a dataset, by their paths in it, as they were registered."""
    from tfjob.datasets.registered import assets, content_of, listed  # noqa: PLC0415  # only for this

    workspace = open_workspace()
    entry = assets(workspace.datasets).find(dataset)
    contents = content_of(entry, workspace.datasets)
    rows = []
    for source, name, held, _ in listed(entry, workspace.datasets):
        known = contents.get(source)
        rows.append((name, known[0] if known else held, source, known[1] if known else None))
    if output is not TableFormat.table:
        keys = ("path", "size_bytes", "source", "sha256")
        print_document([dict(zip(keys, row, strict=True)) for row in rows], output)
        return
    shown = [(name, size(held) if held >= 0 else "unknown", source) for name, held, source, _ in rows]
    print_table(("PATH", "SIZE", "SOURCE"), shown)


def delete(
    dataset: DatasetName,
    all_versions: Annotated[bool, typer.Option("--all-versions", help="Every version of the name.")] = False,
) -> None:
    """Take a version of a dataset out of the list. Its files stay; runs that used it can be run again."""
    from tfjob.assets import split_name  # noqa: PLC0415
    from tfjob.datasets.registered import assets  # noqa: PLC0415

    workspace = open_workspace()
    registry = assets(workspace.datasets)
    name, version = split_name(dataset)
    entry = registry.find(dataset)
    known = registry.versions(name)
    if version is None and len(known) > 1 and not all_versions:
        raise UsageError(
            f"{name} has {len(known)} versions: {', '.join(one.version for one in known)}",
            f"Name one, {known[-1].full_name}, or all of them with --all-versions.",
        )
    for one in known if version is None else (entry,):
        using = [run["id"] for run in _runs_of(workspace, one.full_name) if not run.get("ended")]
        if using:
            raise UsageError(
                f"{one.full_name} is used by {', '.join(using)}, not over yet",
                f"Wait for its end (tfjob wait {using[0]}), or cancel it.",
            )
    for one in registry.remove(name if version is None else entry.full_name):
        print(f"Deleted {one.full_name}")


def settings_of(workspace: Workspace) -> Settings:
    """How files are fetched in this workspace."""
    from tfjob.datasets.wanted import Settings  # noqa: PLC0415  # only where files are

    return Settings(connections=workspace.config.connections, timeout_s=workspace.config.timeout_s)


def _asked(file: Path | None, paths: list[str]) -> Any:
    from tfjob.spec.dataset_file import load, of_arguments  # noqa: PLC0415  # YAML and schemas

    if (file is None) == (not paths):
        raise UsageError(
            "a dataset is registered from a file or from paths" + (", and both were given" if file else ""),
            "Give --file FILE, or --name NAME and --path PATH, which can be repeated.",
        )
    return load(file) if file is not None else of_arguments(paths, Path.cwd())


def _lines(file: Path) -> list[str]:
    try:
        lines = file.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        reason = getattr(error, "strerror", None) or error
        raise UsageError(f"{file} cannot be read: {reason}", "Give a text file with a path on each line.") from None
    found = [line.strip() for line in lines if line.strip() and not line.startswith("#")]
    if not found:
        raise UsageError(f"{file} names no path", "Give a text file with a path on each line.")
    return found


def _runs_of(workspace: Workspace, full_name: str) -> list[dict[str, Any]]:
    """The records of the runs that used a version, the newest first."""
    from tfjob.runs.find import list_summaries  # noqa: PLC0415  # only for this

    documents = [one.document for one in list_summaries(workspace)]
    return [
        one for one in documents if any(dataset.get("registered") == full_name for dataset in one.get("datasets") or ())
    ]


def _document(entry: Entry) -> dict[str, Any]:
    from tfjob.values import encode  # noqa: PLC0415

    document: dict[str, Any] = encode(entry)
    document.pop("is_new", None)
    return {"full_name": entry.full_name, **document}
