"""Trees of files on nodes, by what they are made of: code and datasets, sent once to each node, read by any run there.

A tree is a volume. It is filled under a name of its own run; a second volume, ``tfjob-tree-DIGEST``, then says in its
labels which one has it. Making that is atomic: of two runs that send the same at once, one is found by both.
"""

from __future__ import annotations

import os
import stat
import tarfile
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import Final, NamedTuple

from tfjob.dockerapi.api import DockerApi, RefusalError
from tfjob.engines.cluster.at_once import at_once, patiently, try_at_once
from tfjob.engines.cluster.broadcast import broadcast
from tfjob.engines.cluster.kept import TREE, make_room, short, tree_labels
from tfjob.engines.cluster.leases import RunKey
from tfjob.engines.cluster.refusals import taking
from tfjob.errors import PreparationError

__all__ = [
    "PLACE",
    "Remote",
    "Tree",
    "archive",
    "forget_unfinished",
    "on_node",
    "send_trees",
    "settle",
    "tree_of_directory",
    "tree_of_outputs",
    "volumes_of_trees",
]

PLACE: Final = "/tree"
"""Where the containers that fill a tree have it."""

_CHUNK_BYTES: Final = 1 << 20
_BLOCK_BYTES: Final = 512
_PATIENT_S: Final = 24 * 3600.0
_TIMEOUT_S: Final = 60.0


class Remote(NamedTuple):
    """Where a file of a tree comes from: its address, its name in the tree, its bytes (-1: not known) and its SHA-256."""

    address: str
    name: str
    size: int
    sha256: str


@dataclass(frozen=True)
class Tree:
    """Files by name: (absolute path here, name in the tree). `digest` says what they are, `what` it in words.

    `remote` has all files of a tree that nodes may fetch by themselves; then the paths here may lead nowhere yet.
    """

    digest: str
    what: str
    files: tuple[tuple[str, str], ...]
    size_bytes: int = 0
    remote: tuple[Remote, ...] = ()

    @property
    def name(self) -> str:
        """Its name in the nodes' engines."""
        return f"tfjob-tree-{short(self.digest)}"


def tree_of_directory(digest: str, what: str, directory: str) -> Tree:
    """The tree of all files and links below a directory of this machine."""
    files: list[tuple[str, str]] = []
    total = 0
    for parent, names, others in os.walk(directory):
        links = [name for name in names if os.path.islink(os.path.join(parent, name))]
        empty = [] if names or others or parent == directory else [parent]
        for path in [*(os.path.join(parent, name) for name in (*others, *links)), *empty]:
            files.append((path, os.path.relpath(path, directory)))
            total += os.lstat(path).st_size
    return Tree(digest, what, tuple(sorted(files, key=lambda one: one[1])), total)


def tree_of_outputs(directory: str) -> Tree:
    """The tree of a run's outputs, each directory before what is in it: they have an owner, too."""
    tree = tree_of_directory("", "the outputs", directory)
    there = [os.path.join(parent, name) for parent, names, _ in os.walk(directory) for name in names]
    directories = [(path, os.path.relpath(path, directory)) for path in there if not os.path.islink(path)]
    files = dict([*sorted(directories, key=lambda one: one[1]), *tree.files])
    return Tree("", tree.what, tuple(files.items()), tree.size_bytes)


def volumes_of_trees(api: DockerApi) -> frozenset[str]:
    """The volumes of a node that have trees, in whole or in part."""
    return frozenset(one["Name"] for one in api.volumes({TREE: ""}, _TIMEOUT_S))


def on_node(api: DockerApi, trees: Sequence[Tree]) -> dict[str, str]:
    """Which of the trees a node has: the volume of each, by digest."""
    if not trees:
        return {}
    there = {one["Name"]: one["Labels"][TREE] for one in api.volumes({TREE: ""}, _TIMEOUT_S)}
    found = {}
    for tree in trees:
        volume = there.get(tree.name)
        if volume in there:
            found[tree.digest] = str(volume)
        elif volume is not None:  # somebody has removed what it names
            with suppress(RefusalError):
                api.remove_volume(tree.name, _TIMEOUT_S)
    return found


def forget_unfinished(api: DockerApi, key: RunKey) -> None:
    """Remove what a run has begun to send to a node and has not finished."""
    there = {one["Name"]: one["Labels"][TREE] for one in api.volumes({TREE: ""}, _TIMEOUT_S)}
    finished = {there[name] for name in there if there[name] != name}
    for name in there:
        if name.endswith(f"-{key.name}") and name not in finished:
            with suppress(RefusalError):
                api.remove_volume(name, _TIMEOUT_S)


def send_trees(
    nodes: Sequence[tuple[str, DockerApi]],
    trees: Sequence[Tree],
    image: str,
    key: RunKey,
    told: Callable[[str], None],
    *,
    there: Sequence[Mapping[str, str]] | None = None,
    limit_bytes: float = float("inf"),
    fetch: Callable[[Tree, Sequence[tuple[str, DockerApi]]], Sequence[str | None]] | None = None,
) -> list[dict[str, str]]:
    """Bring every tree to every node that lacks it, to all at once; the volume of each tree, by digest, for each node.

    `there` is what `on_node` says of each node, where that has been asked already. `fetch` has nodes fetch a tree with
    `remote` files by themselves: the volume for each, None for one that is to be sent it.

    `image` is one that every node has. A node that would have more than `limit_bytes` of trees then removes those that no run
    has used for longest; the run must have said what it uses before. Raises PreparationError when a node can't take it,
    TargetError when it does not answer.
    """
    found = [dict(one) for one in there or at_once(lambda node: on_node(node[1], trees), list(nodes))]
    for tree in trees:
        lacking = [index for index, there in enumerate(found) if tree.digest not in there]
        if not lacking:
            continue
        names = ", ".join(nodes[index][0] for index in lacking)
        _make_room([nodes[index] for index in lacking], tree, limit_bytes, told)
        if tree.remote and fetch is not None:
            for index, volume in zip(lacking, fetch(tree, [nodes[index] for index in lacking]), strict=True):
                if volume is not None:
                    found[index][tree.digest] = volume
            lacking = [index for index in lacking if tree.digest not in found[index]]
            if not lacking:
                continue
            names = ", ".join(nodes[index][0] for index in lacking)
        told(f"sending {tree.what} to {names}: {len(tree.files)} files, {tree.size_bytes / 1e6:.1f} MB")
        volumes = _send(tree, [nodes[index] for index in lacking], image, key, told)
        for index, volume in zip(lacking, volumes, strict=True):
            found[index][tree.digest] = volume
    return found


def _make_room(nodes: list[tuple[str, DockerApi]], tree: Tree, limit_bytes: float, told: Callable[[str], None]) -> None:
    gone = patiently(
        lambda: at_once(lambda node: make_room(node[1], tree.size_bytes, limit_bytes), nodes), lambda: told("")
    )
    for (name, _), trees in zip(nodes, gone, strict=True):
        if freed_bytes := sum(one.size_bytes for one in trees):
            told(f"{name} has removed code and data that no run has used for longest: {freed_bytes / 1e6:.1f} MB")


def _send(
    tree: Tree, nodes: list[tuple[str, DockerApi]], image: str, key: RunKey, told: Callable[[str], None]
) -> list[str]:
    name = f"{tree.name}-{key.name}"
    body = {
        "Image": image,
        "Entrypoint": ["-"],
        "Cmd": [],
        "Labels": {**key.labels, "tfjob.fills": tree.digest},
        "NetworkDisabled": True,
        "HostConfig": {
            "NetworkMode": "none",
            "Mounts": [{"Type": "volume", "Source": name, "Target": PLACE, "VolumeOptions": {"NoCopy": True}}],
        },
    }

    def prepare(node: tuple[str, DockerApi]) -> str:
        with taking(node[0], tree.what):
            node[1].make_volume(name, tree_labels(name, tree.size_bytes), _TIMEOUT_S)
            return node[1].create("", body, _TIMEOUT_S)

    def receiver(node: tuple[str, DockerApi], container: str) -> Callable[[Iterator[bytes]], None]:
        def receive(chunks: Iterator[bytes]) -> None:
            with taking(node[0], tree.what):
                node[1].put(container, PLACE, chunks, _PATIENT_S)

        return receive

    containers = at_once(prepare, nodes)
    try:
        broadcast(
            archive(tree),
            [receiver(node, one) for node, one in zip(nodes, containers, strict=True)],
            lambda: told(""),
        )
    finally:
        made = list(zip(nodes, containers, strict=True))
        try_at_once(lambda one: one[0][1].remove(one[1], _TIMEOUT_S), made)  # one that hangs keeps no other waiting
    return at_once(lambda node: settle(node, tree, name), nodes)


def settle(node: tuple[str, DockerApi], tree: Tree, name: str) -> str:
    """Say that the tree is there; if another run was quicker, use what it sent."""
    with taking(node[0], tree.what):
        first = str(node[1].make_volume(tree.name, {TREE: name}, _TIMEOUT_S)["Labels"][TREE])
    if first != name:
        with suppress(RefusalError):
            node[1].remove_volume(name, _TIMEOUT_S)
    return first


def archive(tree: Tree, owner: tuple[int, int] = (0, 0)) -> Iterator[bytes]:
    """A tar archive of the tree, in pieces. Raises PreparationError when a file is gone or changes meanwhile."""
    buffer = bytearray()
    for path, name in tree.files:
        for piece in _member(path, name, tree, owner):
            buffer += piece
            if len(buffer) >= _CHUNK_BYTES:
                yield bytes(buffer)
                buffer.clear()
    yield bytes(buffer) + bytes(2 * _BLOCK_BYTES)


def _member(path: str, name: str, tree: Tree, owner: tuple[int, int]) -> Iterable[bytes]:
    info = tarfile.TarInfo(name)
    info.uid, info.gid = owner
    try:
        status = os.stat(path) if tree.what.startswith("dataset") else os.lstat(path)
        info.mtime = status.st_mtime
        info.mode = 0o755 if status.st_mode & 0o100 or stat.S_ISDIR(status.st_mode) else 0o644
        if stat.S_ISLNK(status.st_mode):
            info.type, info.linkname = tarfile.SYMTYPE, os.readlink(path)
            yield _header(info)
            return
        if stat.S_ISDIR(status.st_mode):
            info.type = tarfile.DIRTYPE
            yield _header(info)
            return
        info.size = left = status.st_size
        yield _header(info)
        with open(path, "rb") as file:
            while left:
                data = file.read(min(left, _CHUNK_BYTES))
                if not data:
                    raise PreparationError(f"{path} became shorter while it was sent", "Submit again.")
                left -= len(data)
                yield data
        yield bytes(-info.size % _BLOCK_BYTES)
    except OSError as error:
        raise PreparationError(f"{path} can't be read: {error.strerror}", f"It belongs to {tree.what}.") from error


def _header(info: tarfile.TarInfo) -> bytes:
    return info.tobuf(tarfile.PAX_FORMAT, "utf-8", "surrogateescape")
