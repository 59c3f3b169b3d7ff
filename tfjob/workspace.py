"""The workspace: one directory, `.tfjob`, that holds runs and snapshots; found from the current folder upward.

::

    .tfjob/
      config.yml           a few settings, all optional
      runs/RUN/            one directory a run (see tfjob/rundir.py)
      snapshots/DIGEST/    source directories by content
      environments/        registered environments, by name and version
      compute/             compute targets, by name
      datasets/            registered datasets, by name and version
      workspace-id         a number by which engines on other machines tell this workspace's runs from others'
      .gitignore           keeps all of it out of version control

Environments, and data that was fetched, are large and the same for all workspaces: they are kept once per user, in `store`.

A workspace decides what runs and where files go, and a shared folder such as /tmp is above everybody's: one that
another user made is used only where TFJOB_WORKSPACE names it. What it holds is private: its directory is made for its owner alone.
"""

from __future__ import annotations

import os
import pwd
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

from tfjob.errors import NotFound, UsageError
from tfjob.spec.config import load_config

__all__ = ["DIRECTORY", "Config", "Workspace", "default_config", "find_workspace", "make_workspace", "open_workspace"]

DIRECTORY = ".tfjob"
SNAPSHOT_LIMIT_MIB = 500
CACHE_LIMIT_GIB = 100.0
CONNECTIONS = 16
TIMEOUT_S = 60.0
CPU_IMAGE = "python:3.11-slim-bookworm"
GPU_IMAGE = "nvidia/cuda:12.5.1-cudnn-runtime-ubuntu22.04"
_CONFIG = """\
# Settings of this workspace; all optional.

# Where environments and fetched data are kept (they are shared by all your workspaces). A relative path begins at the folder .tfjob is in.
# store: ~/.cache/tfjob

# This machine as a compute target.
# local:
#   gpus: 2                  # declare its GPUs instead of asking the driver

# The images that `base: cpu` and `base: gpu` stand for.
# images:
#   cpu: my-site/base:12

# Refuse source directories larger than this.
# snapshot_limit_mib: 500

# Data that is fetched: how much of it is kept, in GiB; files at once; how long to wait for an answer.
# datasets:
#   cache_limit_gib: 100
#   connections: 16
#   timeout_s: 60
"""


@dataclass(frozen=True)
class Config:
    """The workspace's settings, with their defaults."""

    store: Path
    local_gpus: int | None = None
    snapshot_limit_mib: int = SNAPSHOT_LIMIT_MIB
    cpu_image: str = CPU_IMAGE
    gpu_image: str = GPU_IMAGE
    cache_limit_gib: float = CACHE_LIMIT_GIB
    connections: int = CONNECTIONS
    timeout_s: float = TIMEOUT_S

    @property
    def dataset_cache(self) -> Path:
        """Where data that was fetched is kept."""
        return self.store / "datasets"

    def image(self, base: str) -> str:
        """The image that an environment's `base` names: one of the two names of this workspace, or an image itself."""
        return {"cpu": self.cpu_image, "gpu": self.gpu_image}.get(base, base)


@dataclass(frozen=True)
class Workspace:
    """An opened workspace. `root` is the `.tfjob` directory, absolute."""

    root: Path

    @property
    def runs(self) -> Path:
        """The directory of all runs."""
        return self.root / "runs"

    @property
    def environments(self) -> Path:
        """The directory of registered environments."""
        return self.root / "environments"

    @property
    def compute(self) -> Path:
        """The directory of compute targets."""
        return self.root / "compute"

    @property
    def datasets(self) -> Path:
        """The directory of registered datasets."""
        return self.root / "datasets"

    @property
    def snapshots(self) -> Path:
        """The directory of all snapshots."""
        return self.root / "snapshots"

    @cached_property
    def config(self) -> Config:
        """The settings in config.yml; read when first asked for. Raises InvalidFile with every problem of the file."""
        return _read_config(self.root / "config.yml")


def find_workspace(start: Path | None = None) -> Workspace | None:
    """The workspace that TFJOB_WORKSPACE names, or the nearest one from `start` (the current folder) upward.

    Raises UsageError when the nearest one belongs to another user; one that is named may.
    """
    named = _named_root()
    if named:
        if not _is_there(named):
            name = os.environ["TFJOB_WORKSPACE"]
            raise NotFound(f"TFJOB_WORKSPACE names {name}, and there is no workspace", f"Make one: tfjob init {name}")
        return Workspace(named)
    here = (start or Path.cwd()).absolute()
    for directory in (here, *here.parents):
        root = directory / DIRECTORY
        if _is_there(root):
            _refuse_anothers(root, "make one of your own here: tfjob init" if directory != here else "")
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

    Raises UsageError when the directory can't be written, or the workspace there belongs to another user and is not named.
    """
    root = parent.absolute() / DIRECTORY
    try:
        if root.exists() and root != _named_root():
            _refuse_anothers(root, "make one in another folder: tfjob init DIRECTORY")
        is_new = not (root / "runs").is_dir()
        root.parent.mkdir(parents=True, exist_ok=True)
        root.mkdir(mode=0o700, exist_ok=True)
        (root / "runs").mkdir(exist_ok=True)
        for name, text in (("config.yml", _CONFIG), (".gitignore", "*\n")):
            if not (root / name).exists():
                (root / name).write_text(text, encoding="utf-8")
    except OSError as error:
        raise UsageError(f"a workspace can't be made in {parent}: {error.strerror}") from error
    return Workspace(root), is_new


def default_store() -> Path:
    """Where environments are kept if nothing else is said: the user's cache directory (XDG Base Directory Specification).

    Absolute, whoever asks: a run's supervisor is in another folder than the shell that submitted it.
    Raises UsageError when TFJOB_STORE is relative, or the user has no home directory.
    """
    named = os.environ.get("TFJOB_STORE")
    if named:
        store = _expanded(named, "TFJOB_STORE")
        if not store.is_absolute():
            raise UsageError(
                f"TFJOB_STORE is {named}, and would be another place in every folder", "Set it to an absolute path."
            )
        return store
    cache = os.environ.get("XDG_CACHE_HOME")
    if not (cache and os.path.isabs(cache)):
        cache = str(_home() / ".cache")
    return Path(cache) / "tfjob"


def default_config() -> Config:
    """The settings where there is no workspace."""
    return Config(store=default_store())


def _read_config(path: Path) -> Config:
    settings = load_config(path)
    named = settings.get("store")
    if named is None or os.environ.get("TFJOB_STORE"):
        store = default_store()
    else:
        store = Path(os.path.normpath(path.parent.parent / _expanded(named, f"store in {path}")))
    return Config(
        store=store,
        local_gpus=settings.get("local", {}).get("gpus"),
        snapshot_limit_mib=settings.get("snapshot_limit_mib", SNAPSHOT_LIMIT_MIB),
        cpu_image=settings.get("images", {}).get("cpu", CPU_IMAGE),
        gpu_image=settings.get("images", {}).get("gpu", GPU_IMAGE),
        cache_limit_gib=float(settings.get("datasets", {}).get("cache_limit_gib", CACHE_LIMIT_GIB)),
        connections=settings.get("datasets", {}).get("connections", CONNECTIONS),
        timeout_s=float(settings.get("datasets", {}).get("timeout_s", TIMEOUT_S)),
    )


def _home() -> Path:
    home = Path(os.path.expanduser("~"))  # as it is where neither HOME nor the list of users knows it
    if not home.is_absolute():
        raise UsageError(
            f"there is no home directory to keep environments in: HOME is {os.environ.get('HOME') or 'not set'}",
            "Set HOME, or TFJOB_STORE to the absolute path of a directory for environments.",
        )
    return home


def _expanded(named: str, what: str) -> Path:
    try:
        return Path(named).expanduser()
    except RuntimeError as error:
        raise UsageError(
            f"{what} is {named}, and the home directory it begins with is not known", "Write the whole path."
        ) from error


def _named_root() -> Path | None:
    named = os.environ.get("TFJOB_WORKSPACE")
    if not named:
        return None
    root = _expanded(named, "TFJOB_WORKSPACE").absolute()
    return root if root.name == DIRECTORY else root / DIRECTORY


def _is_there(root: Path) -> bool:
    try:
        return (root / "runs").is_dir()
    except PermissionError:  # another user's, made for that user alone
        return os.path.exists(root)


def _refuse_anothers(root: Path, otherwise: str) -> None:
    owner = root.stat().st_uid
    if owner == os.geteuid():
        return
    try:
        name = pwd.getpwuid(owner).pw_name
    except KeyError:
        name = f"the user with the number {owner}"
    raise UsageError(
        f"the workspace {root} belongs to {name}, who could make your jobs run other code",
        f"To use it on purpose, set TFJOB_WORKSPACE={root.parent}" + (f"; or {otherwise}" if otherwise else "") + ".",
    )
