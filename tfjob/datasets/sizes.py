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
    with ThreadPoolExecutor(max(1, min(settings.connections, len(addresses)))) as pool:
        sizes = dict(zip(addresses, pool.map(lambda one: _size(one, settings), addresses), strict=True))
    found = {address: size for address, size in sizes.items() if size is not None}
    return found if len(found) == len(sizes) else None


def _size(address: str, settings: Settings) -> int | None:
    """Ask for the first byte: an address that is signed for GET may refuse HEAD."""
    try:
        with closing(Session(settings.timeout_s)) as session:
            answer = session.request("GET", address, {"Range": "bytes=0-0"})
            if answer.status == 200:
                return answer.length
            whole = _WHOLE.fullmatch(answer.header("content-range"))
            return int(whole[1]) if whole else None
    except (PreparationError, Transient):
        return None
