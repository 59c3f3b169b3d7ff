"""Commands for what datasets hold: dataset download, dataset cache."""

from __future__ import annotations

import filecmp
import os
import time
from pathlib import Path
from typing import Annotated

import typer

from tfjob.cli.building import building
from tfjob.cli.datasets import DatasetName, settings_of
from tfjob.cli.options import TableFormat, TableOutput
from tfjob.cli.output import plural, print_document, print_table, shown_path, size
from tfjob.errors import UsageError
from tfjob.workspace import default_config, find_workspace, open_workspace

__all__ = ["cache", "download"]

_NAME = 24
_GIB = 1 << 30


def download(
    dataset: DatasetName,
    to: Annotated[
        Path | None, typer.Option(help="Where to; made if it is not there. [default: ./NAME]", show_default=False)
    ] = None,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace files that are there and differ.")] = False,
) -> None:
    """Copy the files of a dataset to a directory; those behind addresses are fetched into the cache first."""
    from tfjob.datasets.cache import Cache  # noqa: PLC0415  # only for this
    from tfjob.datasets.export import export  # noqa: PLC0415
    from tfjob.datasets.registered import find_registered  # noqa: PLC0415

    workspace = open_workspace()
    found = find_registered(dataset, workspace.datasets)
    target = (to or Path(dataset.partition("@")[0])).absolute()
    if target.exists() and not target.is_dir():
        raise UsageError(f"{shown_path(target)} is there, and is no directory", "Name another with --to.")
    marks = found.marks or ("",) * len(found.files)
    differing = [
        name
        for (source, name, _), mark in zip(found.files, marks, strict=True)
        if not overwrite and (target / name).exists() and not _is_same(target / name, source, mark)
    ]
    if differing:
        raise UsageError(
            f"{plural(len(differing), 'file')} with other contents already in {shown_path(target)}, such as {differing[0]}; "
            "nothing was copied",
            "Name another directory with --to, or add --overwrite.",
        )
    with building(f"Fetching {found.registered}") as screen:
        total = export(
            found,
            target,
            Cache(workspace.config.dataset_cache),
            settings_of(workspace),
            registry=workspace.datasets,
            progress=screen.progress,
        )
    print(f"{plural(len(found.files), 'file')} ({size(total)}) in {shown_path(target)}")


def _is_same(there: Path, source: str, mark: str) -> bool:
    """Whether a file holds what the source of a dataset's file does; of one that was never fetched nobody knows it."""
    from tfjob.datasets.files import is_address  # noqa: PLC0415  # only for this
    from tfjob.durable import file_digest  # noqa: PLC0415

    if not there.is_file():
        return False
    kind, _, sha256 = mark.partition(":")
    try:
        if is_address(source):
            return kind in ("seen", "sha256") and file_digest(there) == sha256
        return filecmp.cmp(source, there, shallow=False)
    except OSError as error:
        path = shown_path(os.fsdecode(error.filename or there))
        raise UsageError(f"{path} can't be read: {error.strerror or error}") from error


def cache(
    prune: Annotated[bool, typer.Option("--prune", help="Free what no run uses.")] = False,
    keep_gib: Annotated[
        float | None,
        typer.Option(
            "--keep-gib",
            min=0,
            metavar="N",
            help="With --prune: keep so many GiB of what was used last. [default: 0]",
            show_default=False,
        ),
    ] = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="With --prune: free nothing; say what would be.")] = False,
    output: TableOutput = TableFormat.table,
) -> None:
    """Show what the cache of fetched data holds, or free it. What was freed is fetched again when it is needed."""
    from tfjob.datasets.cache import Cache  # noqa: PLC0415  # only for this
    from tfjob.datasets.eviction import evict, usage  # noqa: PLC0415

    if not prune and (dry_run or keep_gib is not None):
        given = "--dry-run" if dry_run else "--keep-gib"
        raise UsageError(f"{given} says how to free the cache, and --prune is missing", "Add --prune, or leave it out.")
    workspace = find_workspace()
    config = workspace.config if workspace else default_config()
    kept = Cache(config.dataset_cache)
    before = usage(kept)
    gone = evict(kept, limit_bytes=int((keep_gib or 0) * _GIB), dry_run=dry_run) if prune else None
    if output is not TableFormat.table:
        document = {
            "path": str(kept.root),
            "limit_gib": config.cache_limit_gib,
            "size_bytes": before.size_bytes,
            "object_count": before.object_count,
            "partial_bytes": before.partial_bytes,
            "trees": [
                {
                    "key": one.key,
                    "names": list(one.names),
                    "file_count": one.file_count,
                    "size_bytes": one.size_bytes,
                    "last_used": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(one.last_used)),
                    "used_by": list(one.used_by),
                    "freed": gone is not None and one.key in gone.trees,
                }
                for one in before.trees
            ],
        }
        if gone is not None:
            document |= {"freed_bytes": gone.freed_bytes, "dry_run": dry_run, "is_busy": gone.is_busy}
        print_document(document, output)
        return
    if before.trees:
        rows = [
            (
                _shown(one.names, one.file_count),
                str(one.file_count),
                size(one.size_bytes),
                time.strftime("%Y-%m-%d %H:%M", time.gmtime(one.last_used)),
                ", ".join(one.used_by) or ("freed" if gone is not None and one.key in gone.trees else ""),
            )
            for one in before.trees
        ]
        print_table(("FILES", "COUNT", "FETCHED", "LAST USED (UTC)", "USED BY"), rows)
    if gone is None:
        partial = f", and {size(before.partial_bytes)} of files half fetched" if before.partial_bytes else ""
        print(f"{plural(before.object_count, 'file')}, {size(before.size_bytes)}{partial} in {shown_path(kept.root)}")
        print(f"  limit     {config.cache_limit_gib:g} GiB; past that, what no run has used for longest goes")
    elif gone.is_busy:
        none = "Would free" if dry_run else "Freed"
        print(f"{none} nothing: files are being fetched just now. Try again later.")
    else:
        freed = f"{size(gone.freed_bytes)}: {plural(gone.object_count, 'file')}"
        print(f"{'Would free' if dry_run else 'Freed'} {freed} in {shown_path(kept.root)}")


def _shown(names: tuple[str, ...], file_count: int) -> str:
    """The first names of a dataset, short enough for a table."""
    shown = [name if len(name) <= _NAME else f"{name[: _NAME - 1]}…" for name in names]
    return ", ".join([*shown, *(["…"] if file_count > len(names) else [])])
