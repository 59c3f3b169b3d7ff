"""Images on nodes: pulled there from a registry, or sent from this machine's engine to all that lack them at once."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from typing import TYPE_CHECKING, Final

from tfjob.dockerapi.api import DockerApi, RefusalError
from tfjob.engines.cluster.at_once import at_once, patiently
from tfjob.engines.cluster.broadcast import broadcast
from tfjob.engines.cluster.refusals import taking
from tfjob.errors import PreparationError, TargetError

if TYPE_CHECKING:
    from tfjob.images.bake import Bake

__all__ = ["has_image", "send_image"]

_PATIENT_S: Final = 24 * 3600.0
_CHUNK_BYTES: Final = 1 << 20
_TIMEOUT_S: Final = 60.0
_SAY_S: Final = 1.0

Nodes = Sequence[tuple[str, DockerApi]]
Told = Callable[[str], None]


def has_image(api: DockerApi, image: str) -> bool:
    """Whether a node has an image."""
    return api.image(image, _TIMEOUT_S) is not None


def send_image(image: str, nodes: Nodes, here: DockerApi, told: Told, bake: Callable[[], Bake] | None = None) -> None:
    """Bring the image (an id) to those of the nodes that lack it.

    An image that was baked here is sent by its layers, those that a node has left out; `bake` says how it is made.
    Raises PreparationError when a node can't take it, TargetError when it does not answer.
    """
    lacking = _lacking(image, nodes)
    if not lacking:
        return
    made_of = bake() if bake is not None else None
    if made_of is not None and made_of.image == image:
        _send_baked(made_of, lacking, here, told)
    else:  # or it was baked of an environment that was made anew meanwhile: alike, and another image
        _send_whole(image, lacking, here, told)
    for name, _ in _lacking(image, lacking):
        raise PreparationError(
            f"{name} has taken the image {image}, and does not know it", "Is its Docker Engine very old?"
        )


def _lacking(image: str, nodes: Nodes) -> list[tuple[str, DockerApi]]:
    there = at_once(lambda node: has_image(node[1], image), list(nodes))
    return [node for node, has in zip(nodes, there, strict=True) if not has]


def _send_baked(bake: Bake, nodes: Nodes, here: DockerApi, told: Told) -> None:
    from tfjob.images.bake import image_archive, shared_layers  # noqa: PLC0415  # where there is something to send

    without_base = _lacking(bake.base, nodes)
    if without_base:
        _send_whole(bake.base, without_base, here, told)
    has = min(at_once(lambda node: shared_layers(node[1], bake.chain), list(nodes)))
    has = max(has, bake.below)

    said = time.monotonic()

    def tell(message: str) -> None:
        nonlocal said
        whose = "" if time.monotonic() - said < _SAY_S else f"image for {_names(nodes)}: {message}"
        said = time.monotonic() if whose else said
        told(whose)

    new = bake.layers[has - bake.below :]
    told(
        f"image for {_names(nodes)}: {len(new)} of {len(bake.layers)} layers to send, {sum(one.size_bytes for _, one in new) / 1e6:.0f} MB"
    )
    _send(image_archive(bake, has, tell), nodes, bake.tag, told)


def _send_whole(image: str, nodes: Nodes, here: DockerApi, told: Told) -> None:
    about = here.image(image, _TIMEOUT_S)
    if about is None:
        raise PreparationError(
            f"the image {image} is not in the Docker Engine at {here.address} any more", "Submit again."
        )
    digests = [str(one) for one in about.get("RepoDigests") or ()]
    if digests:
        nodes = _pull(digests[0], image, nodes, told)
        if not nodes:
            return
    from tfjob.images.bake import shared_layers  # noqa: PLC0415  # where there is something to send
    from tfjob.images.thin import thinned  # noqa: PLC0415

    chain = [str(one) for one in about["RootFS"]["Layers"]]
    known = set(chain[: min(at_once(lambda node: shared_layers(node[1], chain), list(nodes)))])
    total = f"{int(about.get('Size', 0)) / 1e6:.0f} MB"

    def chunks() -> Iterator[bytes]:
        sent, said = 0, time.monotonic()
        with here.saved([image], _PATIENT_S) as response:
            for data in thinned(response, known) if known else iter(lambda: response.read(_CHUNK_BYTES), b""):
                yield data
                sent += len(data)
                quiet = time.monotonic() - said < _SAY_S
                said = said if quiet else time.monotonic()
                told("" if quiet else f"image for {_names(nodes)}: sent {sent / 1e6:.0f} MB; it has {total}")

    told(f"image for {_names(nodes)}: {len(chain) - len(known)} of {len(chain)} layers to send; it has {total}")
    _send(chunks(), nodes, image, told)
    tags = [str(tag) for tag in about.get("RepoTags") or ()]
    if tags:
        repository, _, tag = tags[0].rpartition(":")
        at_once(lambda node: node[1].tag(str(about["Id"]), repository, tag, _TIMEOUT_S), list(nodes))


def _pull(reference: str, image: str, nodes: Nodes, told: Told) -> Nodes:
    """Have nodes pull an image that a registry has; those that can't, or get another one, are returned."""
    told(f"{_names(nodes)} pull{'s' if len(nodes) == 1 else ''} {reference.partition('@')[0]}")
    repository, _, digest = reference.partition("@")

    def pull(node: tuple[str, DockerApi]) -> bool:
        try:
            node[1].pull(repository, digest, "", lambda _message: None, _PATIENT_S)
        except (RefusalError, TargetError):
            return False
        return node[1].image(image, _TIMEOUT_S) is not None

    # `told` may raise to give up; the nodes go on, and have it for the next time.
    done = patiently(lambda: at_once(pull, list(nodes)), lambda: told(""))
    return [node for node, has in zip(nodes, done, strict=True) if not has]


def _send(chunks: Iterator[bytes], nodes: Nodes, what: str, told: Told) -> None:
    def receiver(node: tuple[str, DockerApi]) -> Callable[[Iterator[bytes]], None]:
        def receive(stream: Iterator[bytes]) -> None:
            with taking(node[0], f"the image {what}"):
                node[1].load(stream, lambda _message: None, _PATIENT_S)

        return receive

    broadcast(chunks, [receiver(node) for node in nodes], lambda: told(""))


def _names(nodes: Nodes) -> str:
    return ", ".join(name for name, _ in nodes)
