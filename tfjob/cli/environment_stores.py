"""Commands for what environments are made of and kept in: env prune, env base."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from tfjob.cli.building import building
from tfjob.cli.options import TableFormat, TableOutput
from tfjob.cli.output import plural, print_document, print_table, size
from tfjob.workspace import default_config, find_workspace

if TYPE_CHECKING:
    from tfjob.environments.store import Store
    from tfjob.images.prune import PrunedImages
    from tfjob.workspace import Workspace

__all__ = ["create_base", "prune"]


def prune(
    unused_days: Annotated[
        float, typer.Option("--unused-days", min=0, help="Free what nobody has used for so many days.")
    ] = 30.0,
    images: Annotated[bool, typer.Option("--images", help="Also the images that were baked of them.")] = False,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Free nothing; say what would be freed.")] = False,
    output: TableOutput = TableFormat.table,
) -> None:
    """Free the disk of environments that no run has used for a while; they are built again when they are needed."""
    from tfjob.environments import pruning  # noqa: PLC0415  # only for this
    from tfjob.environments.store import Store  # noqa: PLC0415

    workspace = find_workspace()
    store = Store((workspace.config if workspace else default_config()).store)
    stores = (store, *(Store(root) for root in _of_targets(workspace) if root != store.root))
    keep, keep_images = _in_use(workspace)
    before = [one for each in stores for one in pruning.usage(each)]
    pruned = {
        each.root: pruning.prune(each, unused_days=unused_days, dry_run=dry_run, keep=keep, keep_images=keep_images)
        for each in stores
    }
    freed = {each.root / "prefixes" / key for each in stores for key in pruned[each.root].prefixes}
    baked = _prune_images(store, unused_days, dry_run) if images else None
    if output is not TableFormat.table:
        stored = [
            {
                "key": one.key,
                "path": str(one.path),
                "size_bytes": one.size_bytes,
                "own_bytes": one.own_bytes,
                "last_used": one.last_used.isoformat(),
                "freed": one.path in freed,
            }
            for one in before
        ]
        document = {
            "freed_bytes": sum(one.freed_bytes for one in pruned.values()),
            "dry_run": dry_run,
            "prefixes": stored,
        }
        if baked is not None:
            document["images"] = {"freed_bytes": baked.freed_bytes, "removed": list(baked.tags)}
        print_document(document, output)
        return
    if before:
        rows = [
            (
                one.key[:12],
                one.python_version,
                str(one.packages),
                size(one.size_bytes),
                size(one.own_bytes),
                one.last_used.strftime("%Y-%m-%d %H:%M"),
                ("would be freed" if dry_run else "freed") if one.path in freed else "kept",
            )
            for one in before
        ]
        print_table(("ENVIRONMENT", "PYTHON", "PACKAGES", "SIZE", "ITS OWN", "LAST USED (UTC)", ""), rows)
    verb = "Would free" if dry_run else "Freed"
    for root, gone in pruned.items():
        print(f"{verb} {size(gone.freed_bytes)} in {root}: {plural(len(gone.prefixes), 'environment')}")
    if baked is not None:
        room = "" if dry_run else f", {size(baked.freed_bytes)}"
        print(f"{verb} {plural(len(baked.tags), 'image')} of the Docker Engine{room}")


def create_base(
    name: Annotated[str, typer.Argument(metavar="NAME", help="What to call the image.", show_default=False)],
    source: Annotated[
        Path | None,
        typer.Option(
            "--from",
            metavar="TARBALL",
            help="A root file system, or an image that `docker save` wrote. [default: Debian's packages]",
            show_default=False,
        ),
    ] = None,
    suite: Annotated[
        str | None,
        typer.Option(help="The Debian release, such as bookworm. [default: this machine's]", show_default=False),
    ] = None,
    package: Annotated[
        list[str] | None,
        typer.Option("--package", help="One more Debian package; can be repeated.", show_default=False),
    ] = None,
) -> None:
    """Make a base image where none can be pulled: of Debian's packages, as apt here gets them, or from a tarball."""
    from tfjob.images.create import create  # noqa: PLC0415  # only for this

    with building("Making the base image") as screen:
        image = create(
            name, source=source, suite=suite, packages=package or (), log=screen.log, progress=screen.progress
        )
    print(f"{name}  {image}")
    print(f"  use it    environment: {{base: {name}, …}}, or `images: {{cpu: {name}}}` in the workspace's config.yml")


def _prune_images(store: Store, unused_days: float, dry_run: bool) -> PrunedImages:
    from tfjob.images.prune import prune_images  # noqa: PLC0415  # only where it is asked for

    return prune_images(store, unused_days=unused_days, dry_run=dry_run)


def _of_targets(workspace: Workspace | None) -> list[Path]:
    """The stores that Slurm targets with a `directory` have there, as far as this user may write them.

    What is kept for a target that is used from elsewhere is not among them: its runs are not known here (`tfjob compute clean`).
    """
    from tfjob.targets.definition import SlurmDefinition  # noqa: PLC0415  # only for this
    from tfjob.targets.registered import Targets  # noqa: PLC0415

    targets = Targets(workspace.compute if workspace else None)
    definitions = [targets.get(name).definition for name in targets.names()]
    slurm = [one for one in definitions if isinstance(one, SlurmDefinition) and one.login is None]
    found = [one.directory for one in slurm if one.directory]
    stores = [Path(directory) / "store" for directory in dict.fromkeys(found)]
    return [store for store in stores if os.access(store, os.W_OK)]


def _in_use(workspace: Workspace | None) -> tuple[frozenset[str], frozenset[Path]]:
    """The environments of this workspace's runs that are not over, and the images of those on Slurm.

    Runs of other workspaces hold their environments by a lock; that nodes use an image is noted by its time.
    """
    from tfjob.engines.slurm.archive import image_directory  # noqa: PLC0415  # only for this
    from tfjob.rundir import RunDirectory  # noqa: PLC0415
    from tfjob.runs.find import list_summaries  # noqa: PLC0415

    if workspace is None:
        return frozenset(), frozenset()
    live = [one for one in list_summaries(workspace) if not one.document.get("ended")]
    images = (image_directory(RunDirectory(workspace.runs / one.id)) for one in live)
    keys = (one.document.get("environment_key") for one in live)
    return frozenset(str(key) for key in keys if key), frozenset(one for one in images if one)
