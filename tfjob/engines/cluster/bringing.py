"""What a run needs on its nodes before anything of it is started there: the image, the code and the data, each once a node."""

from __future__ import annotations

import threading
from collections.abc import Mapping, Sequence
from contextlib import nullcontext, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from tfjob.datasets.cache import Cache
from tfjob.datasets.files import SHA256
from tfjob.datasets.wanted import Settings, Wanted
from tfjob.dockerapi.api import DockerApi
from tfjob.durable import digest_of
from tfjob.engines.base import Prepared, Waiting
from tfjob.engines.cluster.at_once import at_once, try_at_once
from tfjob.engines.cluster.kept import use
from tfjob.engines.cluster.leases import Claims, RunKey
from tfjob.engines.cluster.refusals import taking
from tfjob.engines.cluster.room import Found
from tfjob.engines.cluster.shipping import has_image, send_image
from tfjob.engines.cluster.trees import Remote, Tree, on_node, send_trees, tree_of_directory, volumes_of_trees
from tfjob.engines.dataset_contents import contents, is_remote
from tfjob.errors import NodeLost
from tfjob.planning.plan import DatasetPlan, Plan
from tfjob.targets.definition import ClusterDefinition

__all__ = ["Bringing", "Site"]

_BEAT_S: Final = 15.0
_GIB: Final = 1 << 30


@dataclass(frozen=True)
class Site:
    """Where a run comes from and goes to: the target, the submitting shell's variables, code and data here, who has the images."""

    target: ClusterDefinition
    environ: Mapping[str, str]
    snapshots: Path
    cache: Cache
    images: DockerApi
    settings: Settings
    """How data is fetched: here, and by the nodes."""

    def shares(self, path: str) -> bool:
        """Whether the nodes have a path of this machine, on a file system that is declared to be shared."""
        return any(path == one or path.startswith(f"{one.rstrip('/')}/") for one in self.target.shared)


class Bringing:
    """Brings what a run needs to the nodes that were found for it. `told` hears how far it is, and raises to give up."""

    def __init__(self, plan: Plan, key: RunKey, found: Found, site: Site, told: Waiting) -> None:
        self._plan = plan
        self._key = key
        self._found = found
        self._site = site
        self._told = told
        self.empty: list[tuple[str, str]] = []
        """Volumes that are no trees any more, with their nodes' names: to be removed once the run's containers are."""

    def trees(self) -> dict[str, Tree]:
        """What has to be on every node as files, by what it is for: ``code``, ``dataset NAME``."""
        trees = {}
        code = self._plan.code
        if code is not None and code.file_count and not self._site.shares(str(self._site.snapshots)):
            directory = str(self._site.snapshots / code.digest)
            trees["code"] = tree_of_directory(code.digest, "the code", directory)
        for dataset in self._plan.datasets:
            if not self._is_shared(dataset):
                trees[f"dataset {dataset.name}"] = _tree_of_dataset(dataset, self._site.cache)
        return trees

    def _is_shared(self, dataset: DatasetPlan) -> bool:
        return bool(dataset.files) and all(self._site.shares(source) for source, _, _ in dataset.files)

    def bring(self, trees: Mapping[str, Tree], prepared: Prepared) -> list[dict[str, str]]:
        """Bring image and trees to every node that lacks them; the volume of each tree, by digest, for each node."""
        nodes = [(node.definition.name, node.api) for node in self._found.nodes]
        image = prepared.image or ""
        wanted = list(trees.values())
        digests = [tree.digest for tree in wanted]

        def say(node: tuple[str, DockerApi]) -> None:
            with taking(node[0], "a run"):
                use(node[1], self._key, image, digests)

        def look(node: tuple[str, DockerApi]) -> tuple[bool, dict[str, str]]:
            there = on_node(node[1], wanted)
            return has_image(node[1], image), there

        at_once(say, nodes)  # before they are looked at: from now on nobody removes them
        seen = at_once(look, nodes)
        lacking = [node for node, (is_there, _) in zip(nodes, seen, strict=True) if not is_there]
        send_image(image, lacking, self._site.images, self._told, prepared.bake)
        limit_bytes = self._site.target.kept_limit_gib * _GIB

        def fetch(tree: Tree, lacking: Sequence[tuple[str, DockerApi]]) -> list[str | None]:
            return self._fetch(tree, lacking, prepared)

        with self._site.cache.filling() if any(tree.remote for tree in trees.values()) else nullcontext():
            return send_trees(
                nodes,
                wanted,
                image,
                self._key,
                self._told,
                there=None if lacking else [found for _, found in seen],  # others may have sent it beside an image
                limit_bytes=limit_bytes,
                fetch=fetch,
            )

    def _fetch(self, tree: Tree, lacking: Sequence[tuple[str, DockerApi]], prepared: Prepared) -> list[str | None]:
        """Have nodes fetch a tree; what is to be sent to those that can't (None) is then fetched here."""
        from tfjob.engines.cluster.fetching import (  # noqa: PLC0415  # 20 ms that most runs have no use for
            Fetching,
            Unreached,
            fetch_on_nodes,
        )

        fetching = Fetching(
            tree, prepared.image or "", prepared.python or "python3", self._key, self._site.settings, self._told
        )
        results = fetch_on_nodes(fetching, lacking)
        failed = [
            (name, result) for (name, _), result in zip(lacking, results, strict=True) if isinstance(result, Unreached)
        ]
        if failed:
            names = ", ".join(name for name, _ in failed)
            self._told(f"{names} can't fetch {tree.what} ({failed[0][1]}): it is fetched here and sent")
            self._fetch_here(tree)
        return [None if isinstance(result, Unreached) else result for result in results]

    def _fetch_here(self, tree: Tree) -> None:
        missing = [one for one in tree.remote if not self._site.cache.has(one.sha256, one.size)]
        if missing:
            from tfjob.datasets.fetch import fetch  # noqa: PLC0415  # only where it is needed

            wanted = [Wanted(one.address, one.size, f"{SHA256}{one.sha256}", tree.what) for one in missing]
            fetch(wanted, self._site.cache, self._site.settings, self._told)

    def keep_claims(self, done: threading.Event) -> None:
        """Say on every node that the run lives, for as long as nothing of it runs there."""
        claims = [Claims(node.api, self._key) for node in self._found.nodes]

        while not done.wait(_BEAT_S):
            with suppress(RuntimeError):  # no thread can be started now: perhaps the next time
                try_at_once(Claims.beat, claims)  # one that does not answer keeps no other waiting

    def require_claims(self) -> None:
        """See that the GPUs are still ours: this process may have slept while others took it for dead."""
        held = [(node, gpus) for node, gpus in zip(self._found.nodes, self._found.gpus, strict=True) if gpus]
        sights = at_once(lambda one: Claims(one[0].api, self._key).look(), held)
        for (node, gpus), sight in zip(held, sights, strict=True):
            if not set(gpus) <= sight.own or sight.contested:
                raise NodeLost(
                    f"the GPUs claimed on {node.definition.name} were taken by another run meanwhile",
                    "This machine slept, or could not reach the node for a minute. Submit again.",
                )

    def require_trees(self, trees: Mapping[str, Tree], volumes: Sequence[Mapping[str, str]]) -> None:
        """See that containers were given the trees: an engine makes an empty volume for one that was removed meanwhile."""
        nodes = self._found.nodes
        there = at_once(lambda node: volumes_of_trees(node.api), nodes)
        gone = []
        for node, found, wanted in zip(nodes, there, volumes, strict=True):
            lost = [tree for tree in trees.values() if wanted[tree.digest] not in found]
            self.empty += [(node.definition.name, wanted[tree.digest]) for tree in lost]
            gone += [f"{tree.what} on {node.definition.name}" for tree in lost]
        if gone:
            raise NodeLost(
                f"{' and '.join(gone)} {'was' if len(gone) == 1 else 'were'} removed for another run meanwhile",
                "This machine slept, or could not reach the node for a minute. Submit again.",
            )


def _tree_of_dataset(dataset: DatasetPlan, cache: Cache) -> Tree:
    found = list(contents(dataset, cache))
    digest = digest_of([[one.name, one.sha256] for one in found])
    files = tuple((one.source, one.name) for one in found)
    remote: tuple[Remote, ...] = ()
    if found and is_remote(dataset):
        sources = [source for source, _, _ in dataset.files]
        remote = tuple(
            Remote(source, one.name, one.size, one.sha256) for source, one in zip(sources, found, strict=True)
        )
    return Tree(digest, f"dataset {dataset.name}", files, sum(one.size for one in found), remote)
