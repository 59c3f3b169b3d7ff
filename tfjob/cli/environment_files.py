"""Commands that write environments down for people who build by hand: env dockerfile, env save."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from tfjob.cli.building import building
from tfjob.cli.environment_builds import Runtime, What, asked_for, place_of
from tfjob.cli.output import shown_path
from tfjob.errors import UsageError

if TYPE_CHECKING:
    from tfjob.environments.resolved import ResolvedEnvironment

__all__ = ["dockerfile", "save"]


def dockerfile(environment: What) -> None:
    """Print a Dockerfile that makes what tfjob bakes. `tfjob env save` writes it with the files it needs."""
    print(_files(environment)["Dockerfile"], end="")


def save(
    environment: What,
    to: Annotated[
        Path, typer.Option("--to", metavar="DIRECTORY", help="A new or empty directory.", show_default=False)
    ],
) -> None:
    """Write everything that rebuilds an environment by hand: conda file, lock, Dockerfile, README."""
    from tfjob.durable import replace_text  # noqa: PLC0415

    if to.exists() and (not to.is_dir() or any(to.iterdir())):
        raise UsageError(f"{to} is there already and is not an empty directory", "Name another one: --to DIRECTORY.")
    files = _files(environment)
    to.mkdir(parents=True, exist_ok=True)
    for name, text in files.items():
        replace_text(to / name, text)
    print(f"{shown_path(str(to.absolute()))}: {', '.join(sorted(files))}")


def _files(environment: str) -> dict[str, str]:
    """The files by their names. Packages are locked first, for the environment's base image, if they are not yet."""
    asked, store = asked_for(environment)
    asked.require_fresh_lock()
    if asked.image is not None:
        return {"Dockerfile": f"FROM {asked.image}\n"}
    if asked.dockerfile is not None:
        return {"Dockerfile": asked.dockerfile.text}
    return _packages(asked, store)


def _packages(asked: ResolvedEnvironment, store: Path) -> dict[str, str]:
    from tfjob.environments.lock import Lock  # noqa: PLC0415
    from tfjob.environments.store import Store  # noqa: PLC0415
    from tfjob.images.dockerfile import files  # noqa: PLC0415

    assert asked.definition is not None  # noqa: S101  # what is neither image nor Dockerfile has packages
    if asked.lock is not None:
        lock = Lock.parse(asked.lock)
    else:
        with building("Locking") as screen:
            place = place_of(asked, Runtime.docker, store, screen)
            lock = Store(store).solve(asked.definition, place, log=screen.log, progress=screen.progress)
    return files(lock, asked.base or "", definition=asked.definition)
