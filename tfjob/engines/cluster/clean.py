"""What runs that are over left on nodes that could not be reached at their end: found by its labels, and removed.

If that is wished, what nodes keep for later runs, too: code, data, and images of environments.
"""

from __future__ import annotations

import hashlib
import os
import secrets
import threading
from collections.abc import Iterable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from tfjob.dockerapi.api import DockerApi, RefusalError
from tfjob.dockerapi.open_files import allow_many
from tfjob.dockerapi.reach import engine_at, engine_of_tools
from tfjob.engines.cluster.at_once import at_once
from tfjob.engines.cluster.kept import kept_trees, remove_tree, used_images
from tfjob.engines.cluster.leases import RunKey, Sight
from tfjob.errors import TargetError
from tfjob.rundir import RunDirectory
from tfjob.targets.definition import ClusterDefinition, NodeDefinition

__all__ = [
    "Cleaned",
    "clean_engine",
    "clean_kept",
    "clean_target",
    "is_left",
    "know_runs",
    "remove_left",
    "workspace_key",
]

_TIMEOUT_S: Final = 30.0
_REMOVE_S: Final = 600.0
"""For what may have very many files: an engine answers when the last is gone."""
_NUMBER: Final = "workspace-id"
_OVER: Final = ("Completed", "Failed", "Canceled")


def workspace_key(runs: Path) -> str:
    """What tells a workspace (by its directory of runs) from all others, on this machine and elsewhere.

    Machines may have the same name, and a workspace may be on a file system that several share: so it is a number drawn
    for the workspace, and with it the path, which a copy of the workspace has not.
    """
    with suppress(OSError):
        runs = runs.resolve()
    return hashlib.sha256(f"{_number(runs.parent / _NUMBER)}:{runs}".encode()).hexdigest()[:10]


def _number(file: Path) -> str:
    """The workspace's own number, drawn if it has none; this machine's name where none can be kept."""
    with suppress(OSError):
        if not file.exists():
            drawn = file.with_name(f".{_NUMBER}.{secrets.token_hex(8)}")
            drawn.write_text(secrets.token_hex(16), encoding="ascii")
            with suppress(FileExistsError):  # another process was quicker
                os.link(drawn, file)
            drawn.unlink()
        return file.read_text(encoding="ascii")
    return os.uname().nodename


_RUNS: dict[str, Path] = {}


def know_runs(runs: Path) -> str:
    """Remember where a workspace's runs are, and return its key."""
    key = workspace_key(runs)
    _RUNS[key] = runs
    return key


def is_left(labels: Mapping[str, str]) -> bool:
    """Whether a container or volume is of a run of a workspace we know that is over, or of an attempt that is."""
    runs = _RUNS.get(labels.get("tfjob.workspace", ""))
    if runs is None:
        return False
    run = RunDirectory(runs / labels["tfjob.run"])
    try:
        record = _record(run)
    except FileNotFoundError:
        return True
    except (OSError, ValueError):
        return False
    if record.get("state") in _OVER:
        return True
    attempt = labels.get("tfjob.attempt")
    return attempt is not None and int(attempt) <= run.restart_count  # one that ends may still bring its outputs home


def remove_left(key: RunKey, seen: Iterable[tuple[DockerApi, Sight]]) -> None:
    """Remove, in the background, what was seen of runs and attempts that are over."""
    for api, sight in seen:
        containers = _begin(api, [one["Id"] for one in sight.containers if _is_to_go(one, key)])
        volumes = _begin(api, [one["Name"] for one in sight.volumes if _is_to_go(one, key)])
        if containers or volumes:
            remover = threading.Thread(target=_remove, args=(api, containers, volumes), daemon=True)
            try:
                remover.start()
            except RuntimeError:  # no thread can be started now
                for name in (*containers, *volumes):
                    _end(api, name)


_GOING: set[tuple[str, str]] = set()
"""What is just being removed, as (engine, id): a container that can't be killed is seen at every look."""
_NOTING: Final = threading.Lock()


def _begin(api: DockerApi, names: Iterable[str]) -> list[str]:
    """Those of the names that nobody here is removing yet; they are noted as being removed."""
    with _NOTING:
        found = [name for name in names if (api.address, name) not in _GOING]
        _GOING.update((api.address, name) for name in found)
    return found


def _end(api: DockerApi, name: str) -> None:
    with _NOTING:
        _GOING.discard((api.address, name))


def _is_to_go(found: Mapping[str, Any], key: RunKey) -> bool:
    """Whether something is left. Of the run itself that can only be an attempt's: what has no attempt it has now."""
    labels = found["Labels"]
    return (labels["tfjob.run"] != key.id or "tfjob.attempt" in labels) and is_left(labels)


@dataclass(frozen=True)
class Cleaned:
    """What was removed from a node, a line each; `problem` says why it could not be looked at."""

    node: str
    removed: tuple[str, ...] = ()
    problem: str = ""


def clean_target(
    target: ClusterDefinition, runs: Path, environ: Mapping[str, str], *, kept: bool = False
) -> list[Cleaned]:
    """Remove what runs of a workspace that are over left on the nodes of a target; those that do not answer are told of.

    With `kept`, what nodes keep for later runs goes as well; but no image of this machine's own engine, which are its store's.
    """
    know_runs(runs)
    allow_many()
    own = _own_engine(environ) if kept else ()

    def clean(node: NodeDefinition) -> Cleaned:
        try:
            with engine_at(node.engine, tls=node.tls, environ=environ) as api:
                removed = clean_engine(api)
                if kept:
                    removed += clean_kept(api, with_images=_identity(api) != own)
                return Cleaned(node.name, tuple(removed))
        except (TargetError, RefusalError) as error:
            return Cleaned(node.name, problem=error.message)

    return at_once(clean, target.nodes)


def clean_engine(api: DockerApi) -> list[str]:
    """Remove from an engine what runs of known workspaces left, and the signs of life of runs that are dead; say what it was."""
    removed = []
    for container in api.with_labels({"tfjob.run": ""}, _TIMEOUT_S):
        if is_left(container["Labels"]):
            api.remove(container["Id"], _REMOVE_S)
            removed.append(f"container of run {container['Labels']['tfjob.run']}")
    for volume in api.volumes({"tfjob.run": ""}, _TIMEOUT_S):
        if is_left(volume["Labels"]):
            with suppress(RefusalError):  # it is in use
                api.remove_volume(volume["Name"], _REMOVE_S)
                removed.append(f"volume {volume['Name']} of run {volume['Labels']['tfjob.run']}")
    return removed


def clean_kept(api: DockerApi, *, with_images: bool = True) -> list[str]:
    """Remove from an engine the trees and, if wished, the images of environments that no run uses; say what it was."""
    trees = [tree for tree in kept_trees(api) if remove_tree(api, tree)]
    removed = [f"code or data of {tree.size_bytes / 1e6:.1f} MB that was kept" for tree in trees]
    images = [one for one in api.images(_TIMEOUT_S) if "tfjob.key" in (one.get("Labels") or {})] if with_images else []
    used = used_images(api) if images else set()
    for image in images:
        if image["Id"] not in used:
            with suppress(RefusalError):  # a container has it, or a user has given it another name
                api.remove_image(image["Id"], _REMOVE_S)
                removed.append(f"image {', '.join(image.get('RepoTags') or [image['Id']])}")
    return removed


def _own_engine(environ: Mapping[str, str]) -> tuple[str, ...]:
    """This machine's own engine, whose images are kept by its store; nothing where there is none."""
    with suppress(TargetError, RefusalError), engine_of_tools(environ) as api:
        return _identity(api)
    return ()


def _identity(api: DockerApi) -> tuple[str, ...]:
    """What tells an engine from others: not its ID alone, which copies of a machine have in common."""
    info = api.info(_TIMEOUT_S)
    return tuple(str(info.get(name)) for name in ("ID", "Name", "DockerRootDir"))


def _record(run: RunDirectory) -> dict[str, Any]:
    import json  # noqa: PLC0415  # only where something is left

    found: dict[str, Any] = json.loads(run.record.read_bytes())
    return found


def _remove(api: DockerApi, containers: list[str], volumes: list[str]) -> None:
    removals = [*((api.remove, one) for one in containers), *((api.remove_volume, one) for one in volumes)]
    try:
        for remove, name in removals:
            with suppress(TargetError, RefusalError, OSError):  # it is seen again
                remove(name, _REMOVE_S)
            _end(api, name)
    finally:
        for _, name in removals:
            _end(api, name)
