"""Commands that write environments down for people who build by hand: env dockerfile, env save."""

from __future__ import annotations

import shutil
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
    files, _ = _files(environment)
    print(files["Dockerfile"], end="")


def save(
    environment: What,
    to: Annotated[
        Path, typer.Option("--to", metavar="DIRECTORY", help="A new or empty directory.", show_default=False)
    ],
) -> None:
    """Write everything that rebuilds an environment by hand: conda file, lock, Dockerfile, README, wheels of source packages."""
    from tfjob.durable import replace_text  # noqa: PLC0415

    if to.exists() and (not to.is_dir() or any(to.iterdir())):
        raise UsageError(f"{to} is there already and is not an empty directory", "Name another one: --to DIRECTORY.")
    files, wheels = _files(environment)
    to.mkdir(parents=True, exist_ok=True)
    for name, text in files.items():
        replace_text(to / name, text)
    for wheel in wheels:
        (to / "wheels").mkdir(exist_ok=True)
        shutil.copy(wheel, to / "wheels" / wheel.name)
    listed = sorted([*files, *(f"wheels/{wheel.name}" for wheel in wheels)])
    print(f"{shown_path(str(to.absolute()))}: {', '.join(listed)}")


def _files(environment: str) -> tuple[dict[str, str], list[Path]]:
    """The files by their names, and wheels that go with them.

    Packages are locked first, for the environment's base image, if they are not yet; source packages are built for it.
    """
    asked, store = asked_for(environment)
    asked.require_fresh_lock()
    if asked.image is not None:
        return {"Dockerfile": f"FROM {asked.image}\n"}, []
    if asked.dockerfile is not None:
        return {"Dockerfile": asked.dockerfile.text}, []
    return _packages(asked, store)


def _packages(asked: ResolvedEnvironment, store: Path) -> tuple[dict[str, str], list[Path]]:
    from tfjob.environments import recipes  # noqa: PLC0415
    from tfjob.environments.lock import Lock  # noqa: PLC0415
    from tfjob.environments.prefix import MARKER, read_json  # noqa: PLC0415
    from tfjob.environments.store import Store  # noqa: PLC0415
    from tfjob.images.dockerfile import files  # noqa: PLC0415

    definition = asked.definition
    assert definition is not None  # noqa: S101  # what is neither image nor Dockerfile has packages
    wheels: dict[str, Path] = {}
    with building("Preparing") as screen:
        lock = Lock.parse(asked.lock) if asked.lock is not None else None
        if lock is None or recipes.needed(lock.pip_packages, recipes.load()):
            place = place_of(asked, Runtime.docker, store, screen)
            log, progress = screen.log, screen.progress
            kept = Store(store).find(definition, place) if lock is None else None
            lock = lock or (Lock.read(kept.lock) if kept is not None else None)  # what was built is what is described
            lock = lock or Store(store).solve(definition, place, log=log, progress=progress)
            if recipes.needed(lock.pip_packages, recipes.load()):
                prefix = Store(store).prepare(definition, place, lock=lock.text, log=log, progress=progress)
                marker = read_json(prefix.path / MARKER) or {}
                wheels = {name: Path(path) for name, path in marker.get("wheels", {}).items()}
    return files(lock, asked.base or "", definition=definition, wheels=wheels), list(wheels.values())
