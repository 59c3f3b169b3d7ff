"""An image sent to a registry, with the credentials of Docker's own configuration."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

from tfjob.errors import PreparationError
from tfjob.images.engine import connected, messages, repository_and_tag

if TYPE_CHECKING:
    from collections.abc import Callable

__all__ = ["push"]

_LOGIN = re.compile(r"denied|unauthori[sz]ed|authentication required|no basic auth", re.IGNORECASE)
_PLAIN = re.compile(r"server gave HTTP response to HTTPS client", re.IGNORECASE)


def push(image: str, reference: str, *, log: Callable[[str], None], progress: Callable[[str], None]) -> str:
    """Send an image to a registry under `reference` (``registry.example/team/name:tag``); return its name with its digest.

    Layers that the registry has are not sent. Raises PreparationError, with what to do, when it is refused.
    """
    repository, tag = repository_and_tag(reference)
    doing = f"push {repository}:{tag}"
    digest = shown = ""
    states: dict[str, str] = {}  # layer → what was last said of it
    try:
        with connected(doing, patient=True) as client:
            client.api.tag(image, repository, tag)
            for message in messages(client.api.push(repository, tag=tag, stream=True, decode=True), doing):
                digest = (message.get("aux") or {}).get("Digest", digest)
                layer, status = str(message.get("id", "")), str(message.get("status", ""))
                # The engine repeats itself for every few KB: a line for each change of a layer is enough.
                if status and (not layer or states.get(layer) != status):
                    states[layer] = status
                    log(f"{layer} {status}".strip())
                if status and shown != message["so far"]:
                    shown = str(message["so far"])
                    progress(f"pushing {repository}:{tag}: {shown}")
    except PreparationError as error:
        raise PreparationError(error.message, error.hint or _hint(error.message, repository)) from error
    return f"{repository}@{digest}" if digest else f"{repository}:{tag}"


def _hint(said: str, repository: str) -> str:
    registry = repository.partition("/")[0]
    if _LOGIN.search(said):
        return f"Log in with an account that may write there: `docker login {registry}`."
    if _PLAIN.search(said):
        return f"The registry speaks plain HTTP: name it under `insecure-registries` in the engine's daemon.json ({registry})."
    return "Check the name, the network, and that the registry runs; `docker push` says the same. The image stays here."
