"""What a node refuses to take, told with its name and with what to do."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Final

from tfjob.dockerapi.api import RefusalError
from tfjob.errors import PreparationError

__all__ = ["MAKE_ROOM", "is_full", "taking"]

MAKE_ROOM: Final = (
    "Make room there: `tfjob compute clean TARGET --kept` removes what tfjob keeps for later runs; "
    "`docker system df` shows what else is there."
)


def is_full(message: str) -> bool:
    """Whether what an engine or a program said is that a disk is full, or a quota used up."""
    return any(words in message.lower() for words in ("no space left", "disk quota exceeded"))


@contextmanager
def taking(node: str, what: str) -> Iterator[None]:
    """Turn a refusal of the node's engine into PreparationError: it could not take `what`."""
    try:
        yield
    except RefusalError as error:
        raise PreparationError(
            f"{node} could not take {what}: {error.message}", MAKE_ROOM if is_full(error.message) else ""
        ) from error
