"""What the cache has already of what is to be fetched: what nobody needs to be asked about, and what takes no room any more."""

from __future__ import annotations

import os
import shutil
import time
from typing import TYPE_CHECKING, Final

from tfjob.datasets.index import Known
from tfjob.errors import PreparationError
from tfjob.spec.addresses import is_web

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

    from tfjob.datasets.cache import Cache
    from tfjob.datasets.wanted import Wanted

__all__ = ["HOUR_S", "at_hand", "refuse_full_disk"]

HOUR_S: Final = 3600.0
"""How long many web addresses are not asked again whether they have changed."""
_MB: Final = 1_000_000


def at_hand(  # noqa: PLR0911  # a table of what needs no asking
    wanted: Wanted, known: Known | None, cache: Cache, *, trust_recent: bool
) -> Known | None:
    """What the cache holds of an address, if nobody needs to be asked about it."""
    kind, _, expected = wanted.mark.partition(":")
    if kind == "sha256":
        if not cache.has(expected, wanted.size):
            return None
        size = wanted.size if wanted.size >= 0 else os.stat(cache.object(expected)).st_size
        return Known("", size, expected, 0)
    if known is None:
        return None
    if is_web(wanted.source):
        if not trust_recent or not 0 <= time.time() - known.checked < HOUR_S:
            return None
        if (kind == "seen" and known.sha256 != expected) or (kind == "tag" and known.tag != expected):
            return None
    elif kind == "seen" or not expected or known.tag != expected:
        return None
    return known if cache.has(known.sha256, known.size) else None


def refuse_full_disk(cache: Cache, missing: Iterable[Wanted], known: Mapping[str, Known]) -> None:
    """Say that the disk has no room for what is to come before any of it comes: without what is there, wholly or in part."""
    free = shutil.disk_usage(cache.root).free
    if sum(max(one.size, 0) for one in missing) <= free:
        return
    needed = sum(_to_come(one, known.get(one.source), cache) for one in missing)
    if needed > free:
        raise PreparationError(
            f"the data to fetch has {needed // _MB} MB, and the disk that holds {cache.root} has {free // _MB} MB free",
            "Free space there: tfjob dataset cache --prune; or name another `store` in the workspace's config.yml.",
        )


def _to_come(wanted: Wanted, known: Known | None, cache: Cache) -> int:
    """The bytes of a file that are not there yet, if it is what was promised, or else what it was."""
    kind, _, expected = wanted.mark.partition(":")
    sha256 = expected if kind in {"sha256", "seen"} else known.sha256 if known is not None else ""
    if sha256 and cache.has(sha256, wanted.size):
        return 0
    try:
        came = os.stat(cache.partial(wanted.source)).st_size
    except OSError:
        came = 0
    return max(wanted.size - came, 0)
