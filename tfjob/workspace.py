"""The workspace: one directory, `.tfjob`, that holds runs and snapshots; found from the current folder upward.

::

    .tfjob/
      config.yml           a few settings, all optional
      runs/RUN/            one directory a run (see tfjob/rundir.py)
      snapshots/DIGEST/    source directories by content
      .gitignore           keeps all of it out of version control

Environments are large and the same for all workspaces: they are kept once per user, in `store`.
"""

from __future__ import annotations

import os
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

from tfjob.errors import NotFound, UsageError
from tfjob.spec.config import load_config

__all__ = ["DIRECTORY", "Config", "Workspace", "default_config", "find_workspace", "make_workspace", "open_workspace"]

DIRECTORY = ".tfjob"
SNAPSHOT_LIMIT_MIB = 500
_CONFIG = """\
# Settings of this workspace; all optional.

# Where environments are kept (they are shared by all your workspaces).
# store: ~/.cache/tfjob

# This machine as a compute target.
# local:
#   gpus: 2                  # declare its GPUs instead of asking the driver

# Refuse source directories larger than this.
# snapshot_limit_mib: 500
"""


@dataclass(frozen=True)
class Config:
    """The workspace's settings, with their defaults."""

    store: Path
    local_gpus: int | None = None
    snapshot_limit_mib: int = SNAPSHOT_LIMIT_MIB


@dataclass(frozen=True)
class Workspace:
    """An opened workspace. `root` is the `.tfjob` directory, absolute."""

    root: Path

    @property
    def runs(self) -> Path:
        """The directory of all runs."""
        return self.root / "runs"

    @property
    def snapshots(self) -> Path:
        """The directory of all snapshots."""
        return self.root / "snapshots"

    @cached_property
    def config(self) -> Config:
        """The settings in config.yml; read when first asked for. Raises InvalidFile with every problem of the file."""
        return _read_config(self.root / "config.yml")


def find_workspace(start: Path | None = None) -> Workspace | None:
    """The workspace that TFJOB_WORKSPACE names, or the nearest one from `start` (the current folder) upward."""
    named = os.environ.get("TFJOB_WORKSPACE")
    if named:
        root = Path(named).expanduser().absolute()
        root = root if root.name == DIRECTORY else root / DIRECTORY
        if not (root / "runs").is_dir():
            raise NotFound(f"TFJOB_WORKSPACE names {named}, and there is no workspace", f"Make one: tfjob init {named}")
        return Workspace(root)
    here = (start or Path.cwd()).absolute()
    for directory in (here, *here.parents):
        root = directory / DIRECTORY
        if (root / "runs").is_dir():
            return Workspace(root)
    return None


def open_workspace(start: Path | None = None) -> Workspace:
    """The workspace of the current folder. Raises NotFound, saying how to make one."""
    found = find_workspace(start)
    if found is None:
        raise NotFound(
            f"there is no tfjob workspace in {(start or Path.cwd())} or above it",
            "Make one with `tfjob init`, or submit a job: that makes one too.",
        )
    return found


def make_workspace(parent: Path) -> tuple[Workspace, bool]:
    """Make a workspace in `parent`, or open the one that is there; the flag says whether it is new.

    Raises UsageError when the directory can't be written.
    """
    root = parent.absolute() / DIRECTORY
    try:
        is_new = not (root / "runs").is_dir()
        (root / "runs").mkdir(parents=True, exist_ok=True)
        for name, text in (("config.yml", _CONFIG), (".gitignore", "*\n")):
            if not (root / name).exists():
                (root / name).write_text(text, encoding="utf-8")
    except OSError as error:
        raise UsageError(f"a workspace can't be made in {parent}: {error.strerror}") from error
    return Workspace(root), is_new


def default_store() -> Path:
    """Where environments are kept if nothing else is said: the user's cache directory (XDG Base Directory Specification)."""
    named = os.environ.get("TFJOB_STORE")
    if named:
        return Path(named).expanduser().absolute()
    cache = os.environ.get("XDG_CACHE_HOME")
    return Path(cache) / "tfjob" if cache and os.path.isabs(cache) else Path.home() / ".cache" / "tfjob"


def default_config() -> Config:
    """The settings where there is no workspace."""
    return Config(store=default_store())


def _read_config(path: Path) -> Config:
    settings = load_config(path)
    store = settings.get("store")
    return Config(
        store=default_store() if store is None or "TFJOB_STORE" in os.environ else Path(store).expanduser().absolute(),
        local_gpus=settings.get("local", {}).get("gpus"),
        snapshot_limit_mib=settings.get("snapshot_limit_mib", SNAPSHOT_LIMIT_MIB),
    )
