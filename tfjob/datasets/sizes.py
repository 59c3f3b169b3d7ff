"""How many bytes files of the web have, asked without fetching them."""

from __future__ import annotations

import re
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from typing import TYPE_CHECKING, Final

from tfjob.datasets.web import Session, Transient
from tfjob.errors import PreparationError
from tfjob.spec.addresses import is_web

if TYPE_CHECKING:
    from tfjob.datasets.wanted import Settings

__all__ = ["web_sizes"]

_WHOLE: Final = re.compile(r"bytes [\d*-]+/(\d+)")


def web_sizes(addresses: Sequence[str], settings: Settings) -> dict[str, int] | None:
    """The bytes of each; None if a server does not say, or can't be asked: whoever fetches them then tells why."""
    if not all(map(is_web, addresses)):
        return None
    count = max(1, min(settings.connections, len(addresses)))
    parts = [addresses[start::count] for start in range(count)]
    with ThreadPoolExecutor(count) as pool:
        found = list(pool.map(lambda part: _sizes(part, settings), parts))
    return None if None in found else {address: size for part in found if part for address, size in part.items()}


def _sizes(addresses: Sequence[str], settings: Settings) -> dict[str, int] | None:
    """Ask for the first byte of each: an address that is signed for GET may refuse HEAD."""
    sizes: dict[str, int] = {}
    with closing(Session(settings.timeout_s)) as session:
        for address in addresses:
            try:
                answer = session.request("GET", address, {"Range": "bytes=0-0"})
            except (PreparationError, Transient):
                return None
            whole = _WHOLE.fullmatch(answer.header("content-range"))
            size = answer.length if answer.status == 200 else int(whole[1]) if whole else None
            answer.skip()
            if size is None:
                return None
            sizes[address] = size
    return sizes
