"""What a node keeps for later runs, and what of it goes: trees of files that no run has used for longest, never one that is used.

A run says on the node what it uses before it looks whether that is there: by a volume ``tfjob-uses-RUN``, which counts as
long as the run lives, as its claims do. Who removes a tree takes away its name first, so that nobody finds it any more, and
then looks who uses it. Of a run that begins to use a tree and of one that removes it, at least one sees the other. A volume
that a container has is not removed by the engine anyway.

When a run ends, it notes by a volume ``tfjob-used-DIGEST-NUMBER`` that it had the tree: engines don't say when a volume was used.
"""

from __future__ import annotations

import time
from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import Any, Final

from tfjob.dockerapi.api import DockerApi, RefusalError
from tfjob.engines.claimed import created, living_runs, name_of_run
from tfjob.engines.cluster.leases import RunKey

__all__ = [
    "TREE",
    "KeptTree",
    "kept_trees",
    "make_room",
    "note_use",
    "remove_tree",
    "short",
    "tree_labels",
    "use",
    "used_images",
]

TREE: Final = "tfjob.tree"
"""The label of trees: the name of the volume that has the files."""

_BYTES: Final = "tfjob.bytes"
_USES: Final = "tfjob.uses"
_IMAGE: Final = "tfjob.image"
_USED: Final = "tfjob.used"
_TIMEOUT_S: Final = 60.0
_REMOVE_S: Final = 600.0
"""For data of very many files: an engine answers when the last is gone."""
_DIGITS: Final = 40


@dataclass(frozen=True)
class KeptTree:
    """A tree on a node: its digest as names have it, the volume with the files, and when a run had it last by the engine's clock.

    `is_found` says whether runs find it by its digest; one that they do not was sent in part, or somebody has removed its name.
    """

    digest: str
    volume: str
    size_bytes: int
    last_used: float
    is_found: bool
    marks: tuple[str, ...] = ()

    @property
    def name(self) -> str:
        """The volume by which runs find it."""
        return f"tfjob-tree-{self.digest}"


def short(digest: str) -> str:
    """A tree's digest as it stands in the names of volumes."""
    return digest[:_DIGITS]


def tree_labels(volume: str, size_bytes: int) -> dict[str, str]:
    """The labels of a volume that has, or will have, the files of a tree."""
    return {TREE: volume, _BYTES: str(size_bytes)}


def use(api: DockerApi, key: RunKey, image: str, digests: Iterable[str]) -> None:
    """Say that a run uses an image and trees: for as long as it lives, or until it lets go of everything."""
    labels = {**key.labels, _IMAGE: image, _USES: ",".join(map(short, digests))}
    api.make_volume(
        f"tfjob-uses-{key.name}-{time.time_ns()}", labels, _TIMEOUT_S
    )  # a young one, whoever said it before


def note_use(api: DockerApi, key: RunKey) -> None:
    """Note that a run has had its trees until now. It lets go of them with its claims."""
    volumes = api.volumes({}, _TIMEOUT_S)
    own = [one for one in volumes if _USES in _labels(one) and name_of_run(_labels(one)) == key.name]
    there = {one["Name"] for one in volumes}
    for digest in {one for volume in own for one in _listed(volume)}:
        if f"tfjob-tree-{digest}" in there:
            before = [one["Name"] for one in volumes if _labels(one).get(_USED) == digest]
            api.make_volume(f"tfjob-used-{digest}-{time.time_ns()}", {_USED: digest}, _TIMEOUT_S)
            for name in before:
                _remove(api, name)


def kept_trees(api: DockerApi) -> list[KeptTree]:
    """The trees of a node, the one used last at the end."""
    volumes = api.volumes({}, _TIMEOUT_S)
    there = {one["Name"]: one for one in volumes if TREE in _labels(one)}
    names = {_labels(one)[TREE]: name for name, one in there.items() if _labels(one)[TREE] != name}
    marks: dict[str, list[dict[str, Any]]] = {}
    for one in volumes:
        if _USED in _labels(one):
            marks.setdefault(_labels(one)[_USED], []).append(one)
    found = []
    for name, one in there.items():
        if _labels(one)[TREE] != name:
            continue
        digest = short(name.removeprefix("tfjob-tree-"))
        own = marks.get(digest, [])
        found.append(
            KeptTree(
                digest,
                name,
                int(_labels(one).get(_BYTES, 0)),
                max(map(created, [one, *own])),
                names.get(name) == f"tfjob-tree-{digest}",
                tuple(mark["Name"] for mark in own),
            )
        )
    return sorted(found, key=lambda tree: (tree.is_found, tree.last_used))


def make_room(api: DockerApi, needed_bytes: int, limit_bytes: float) -> list[KeptTree]:
    """Remove trees until the node has at most `limit_bytes` of them once `needed_bytes` have come; returns those that are gone.

    What no run has used for longest goes first, and never what a run uses: there may be more than the limit. What the engine
    does not remove it keeps.
    """
    gone: list[KeptTree] = []
    with suppress(RefusalError):
        trees = kept_trees(api)
        total = sum(tree.size_bytes for tree in trees) + needed_bytes
        for tree in trees:
            if tree.is_found and total <= limit_bytes:
                break
            if remove_tree(api, tree):
                total -= tree.size_bytes
                gone.append(tree)
    return gone


def remove_tree(api: DockerApi, tree: KeptTree) -> bool:
    """Remove a tree, if no run uses it. Returns whether it is gone."""
    if tree.is_found:
        _remove(api, tree.name)
    if not _is_used(api, tree.digest) and _remove(api, tree.volume):
        for mark in tree.marks:
            _remove(api, mark)
        return True
    if tree.is_found:
        api.make_volume(tree.name, {TREE: tree.volume}, _TIMEOUT_S)
    return False


def used_images(api: DockerApi) -> set[str]:
    """The images of runs that live: containers have them, or will have."""
    return {_labels(one).get(_IMAGE, "") for one in _uses_of_living(api)}


def _is_used(api: DockerApi, digest: str) -> bool:
    return any(digest in _listed(one) for one in _uses_of_living(api))


def _uses_of_living(api: DockerApi) -> Sequence[dict[str, Any]]:
    volumes = api.volumes({"tfjob.run": ""}, _TIMEOUT_S)
    uses = [one for one in volumes if _USES in _labels(one)]
    if not uses:
        return ()
    living = living_runs(api.with_labels({"tfjob.run": ""}, _TIMEOUT_S), volumes, api.clock(_TIMEOUT_S))
    return [one for one in uses if name_of_run(_labels(one)) in living]


def _listed(volume: Mapping[str, Any]) -> list[str]:
    return [one for one in _labels(volume).get(_USES, "").split(",") if one]


def _labels(volume: Mapping[str, Any]) -> dict[str, str]:
    found: dict[str, str] = volume.get("Labels") or {}
    return found


def _remove(api: DockerApi, name: str) -> bool:
    """Remove a volume; returns whether it is gone. One that a container has stays."""
    try:
        api.remove_volume(name, _REMOVE_S)
    except RefusalError as error:
        return error.status == 404
    return True
