"""Removing baked images whose environment nobody uses any more."""

from __future__ import annotations

import time
from dataclasses import dataclass
from typing import TYPE_CHECKING

from tfjob.images.bake import store_name
from tfjob.images.engine import connected

if TYPE_CHECKING:
    from docker import DockerClient

    from tfjob.environments.store import Store

__all__ = ["PrunedImages", "prune_images"]

_DAY_S = 86400
_BUSY = "disk usage operation is already running"
_BUSY_S = 600.0
_AGAIN_S = 0.5


@dataclass(frozen=True)
class PrunedImages:
    """The tags that were removed, or would be; the bytes the engine has back: layers that others share are not among them."""

    tags: tuple[str, ...]
    freed_bytes: int


def prune_images(store: Store, *, unused_days: float, dry_run: bool = False) -> PrunedImages:
    """Remove the images baked from prefixes of this store that are gone, or that nobody asked for in `unused_days` days.

    An image that a container uses stays. Raises TargetError when no engine answers.
    """
    from docker.errors import APIError  # noqa: PLC0415  # 100 ms, only for this

    before = time.time() - unused_days * _DAY_S
    removed = []
    with connected("look for unused images", patient=True) as client:
        held = _layers_bytes(client)
        for image in client.images.list(filters={"label": f"tfjob.store={store_name(store.root)}"}):
            key = str(image.labels.get("tfjob.key"))
            if store.prefix(key).exists() and store.last_used(key) > before:
                continue
            for tag in image.tags:
                if not tag.startswith("tfjob/env:"):  # a name that somebody gave it
                    continue
                try:
                    if not dry_run:
                        client.images.remove(tag)
                except APIError:  # a container uses it
                    continue
                removed.append(tag)
        freed = held - _layers_bytes(client)
    return PrunedImages(tuple(sorted(removed)), freed)


def _layers_bytes(client: DockerClient) -> int:
    """Return the bytes of all layers; waits where somebody else asks for them, which engines refuse a second time at once."""
    from docker.errors import APIError  # noqa: PLC0415  # 100 ms, only for this

    until = time.monotonic() + _BUSY_S
    while True:
        try:
            return int(client.df()["LayersSize"])
        except APIError as error:
            if _BUSY not in str(error.explanation or error) or time.monotonic() > until:
                raise
        time.sleep(_AGAIN_S)
