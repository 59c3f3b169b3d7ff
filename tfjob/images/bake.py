"""Images made from prefixes: a base image, a layer for each big package, and nothing that the engine has already.

The archive that the engine loads leaves out every layer that one of its images has in the same place, so an environment
in which one package changed costs little more than that package.
"""

from __future__ import annotations

import contextlib
import hashlib
import itertools
import json
import os
import shutil
import tarfile
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tfjob.environments.prefix import MARKER, read_json
from tfjob.errors import PreparationError
from tfjob.images.added import SSH, added
from tfjob.images.base import DEFAULT_PATH, base_image
from tfjob.images.build import build
from tfjob.images.engine import connected, find_image, find_or_pull, messages
from tfjob.images.layers import Layer, LayerDigest, archive, digest, layers_of
from tfjob.images.push import push
from tfjob.version import __version__

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping, Sequence

    from docker import DockerClient

    from tfjob.dockerapi.api import DockerApi
    from tfjob.environments.prefix import Prefix
    from tfjob.images.base import BaseImage

__all__ = [
    "LOCK_NAME",
    "Bake",
    "Baked",
    "bake",
    "bake_image",
    "build",
    "find_or_pull",
    "image_archive",
    "made_of",
    "push",
    "shared_layers",
]

# The lock of an environment, in its folder in the image.
LOCK_NAME = "environment.lock"
_REPOSITORY = "tfjob/env"
# Docker's limit is 127; some are left for those who build on such an image.
_LAYERS_MAX = 110
_IMAGES_LOOKED_AT = 40
_KEPT = ("User", "ExposedPorts", "Env", "Entrypoint", "Cmd", "Volumes", "WorkingDir", "Labels", "StopSignal", "Shell")
# Less than this on the engine's disk is none.
_FEW_BYTES = 64 << 20
_NO_TIME = "1970-01-01T00:00:00Z"


@dataclass(frozen=True)
class Bake:
    """What a baked image is made of: its configuration, its layers from the bottom, of which the lowest are the `base` image's."""

    tag: str
    base: str
    config: bytes
    chain: tuple[str, ...]
    below: int
    layers: tuple[tuple[Layer, LayerDigest], ...]

    @property
    def image(self) -> str:
        """The id of the image that this makes: the digest of its configuration."""
        return f"sha256:{hashlib.sha256(self.config).hexdigest()}"


@dataclass(frozen=True)
class Baked:
    """A baked image: its id and tag, how many bytes and layers it has, and how many of them were sent to the engine."""

    image: str
    tag: str
    size_bytes: int = 0
    sent_bytes: int = 0
    layers: int = 0
    sent_layers: int = 0


def bake(
    prefix: Prefix,
    base: BaseImage,
    *,
    store_root: Path,
    log: Callable[[str], None],
    progress: Callable[[str], None],
    ssh: bool = True,
) -> str:
    """Return the id of the image with the prefix at ``/opt/env``; see `bake_image`."""
    return bake_image(prefix, base, store_root=store_root, log=log, progress=progress, ssh=ssh).image


def bake_image(
    prefix: Prefix,
    base: BaseImage,
    *,
    store_root: Path,
    log: Callable[[str], None],
    progress: Callable[[str], None],
    ssh: bool = True,
) -> Baked:
    """Make the image ``tfjob/env:KEY`` of a prefix and its base image; one that is there is found in milliseconds.

    `ssh` says whether it must have an SSH server and client (for jobs of several nodes): they are added to a base that
    has none. Raises PreparationError when it cannot be made, TargetError when no engine answers.
    """
    tag = f"{_REPOSITORY}:{prefix.key}"
    about = _about(prefix, base, store_root)
    found = find_image(tag)
    if found is not None:
        labels = (found.get("Config") or {}).get("Labels") or {}
        same = all(labels.get(name) == about[name] for name in ("tfjob.key", "tfjob.lock", "tfjob.base"))
        if same and (not ssh or labels.get("tfjob.ssh") == "yes"):
            return Baked(str(found["Id"]), tag, int(found.get("Size", 0)), layers=len(found["RootFS"]["Layers"]))
    with _files_explained(tag):
        made_of = _made_of(prefix, base, about, store_root=store_root, ssh=ssh, log=log, progress=progress)
    from docker.errors import APIError  # noqa: PLC0415  # 100 ms that only those who use an engine should pay

    layers = made_of.layers
    doing = f"take the image {tag}"
    with _files_explained(tag), connected(doing, patient=True) as client:
        has = max(_shared(client, made_of.chain), made_of.below)
        new = layers[has - made_of.below :]
        sent = sum(one.size_bytes for _, one in new)
        log(f"{len(new)} of {len(layers)} layers are new to the engine, {sent / 1e6:.1f} MB")
        try:
            _load(client, image_archive(made_of, has, progress), doing, log=log, progress=progress)
        except (PreparationError, APIError):
            if has == made_of.below or has <= _shared(client, made_of.chain):
                raise
            log("images that had some of the layers were removed meanwhile: all of them are sent")
            new, sent = layers, sum(one.size_bytes for _, one in layers)
            _load(client, image_archive(made_of, made_of.below, progress), doing, log=log, progress=progress)
    made = find_image(tag)
    if made is None:
        raise PreparationError(f"the image {tag} was removed while it was made", "Submit again.")
    parent = find_image(made_of.base) or {}
    total = int(parent.get("Size", 0)) + sum(one.size_bytes for _, one in layers)
    return Baked(str(made["Id"]), tag, total, sent, len(layers), len(new))


def made_of(
    prefix: Prefix,
    base: BaseImage,
    *,
    store_root: Path,
    log: Callable[[str], None],
    progress: Callable[[str], None],
    ssh: bool = True,
) -> Bake:
    """Say what the image of a prefix is made of, for an engine that lacks it. See `bake_image`."""
    tag = f"{_REPOSITORY}:{prefix.key}"
    with _files_explained(tag):
        about = _about(prefix, base, store_root)
        return _made_of(prefix, base, about, store_root=store_root, ssh=ssh, log=log, progress=progress)


def _about(prefix: Prefix, base: BaseImage, store_root: Path) -> dict[str, str]:
    """Return the labels of the image of a prefix."""
    return {
        "tfjob.key": prefix.key,
        "tfjob.lock": hashlib.sha256(prefix.lock.read_bytes()).hexdigest(),
        "tfjob.version": __version__,
        "tfjob.base": base.image,
        "tfjob.store": store_name(store_root),
    }


def _made_of(
    prefix: Prefix,
    base: BaseImage,
    about: dict[str, str],
    *,
    store_root: Path,
    ssh: bool,
    log: Callable[[str], None],
    progress: Callable[[str], None],
) -> Bake:
    if ssh:
        image = added(base, SSH, log=log, progress=progress)
        base = base if image == base.image else base_image(image, store_root=store_root, log=log, progress=progress)
        about = {**about, "tfjob.ssh": "yes"}
    parent = find_image(base.image)
    if parent is None:
        raise PreparationError(f"{base.name} was removed from the Docker Engine meanwhile", "Submit again.")
    below: list[str] = list(parent["RootFS"]["Layers"])
    progress("cutting the environment into layers")
    lock = prefix.lock.read_bytes()
    layers = layers_of(prefix.path, prefix.final, {LOCK_NAME: lock}, at_most=_LAYERS_MAX - len(below))
    digests = [digest(layer, store_root / "layers") for layer in layers]
    pairs = tuple(zip(layers, digests, strict=True))
    config = _config(parent, prefix, base, about, pairs)
    chain = (*below, *(one.diff_id for one in digests))
    return Bake(f"{_REPOSITORY}:{prefix.key}", base.image, config, chain, len(below), pairs)


@contextlib.contextmanager
def _files_explained(tag: str) -> Iterator[None]:
    """Turn the errors of this machine's files into PreparationError; those of the engine's connection are others'."""
    try:
        yield
    except OSError as error:
        if error.filename is None:
            raise
        raise PreparationError(
            f"the image {tag} could not be made: {error.strerror}: {error.filename}",
            "Free space on that disk, or, if the environment was changed, submit again: it is made anew.",
        ) from error


def store_name(store_root: Path) -> str:
    """Return what tells the images of one store from those of others, and says nothing of where it is."""
    return hashlib.sha256(f"{os.uname().nodename}:{store_root.absolute()}".encode()).hexdigest()[:16]


def _config(
    parent: Mapping[str, Any],
    prefix: Prefix,
    base: BaseImage,
    about: Mapping[str, str],
    layers: Sequence[tuple[Layer, LayerDigest]],
) -> bytes:
    """Return the image's configuration: the base's with PATH and labels, and its list of layers."""
    inherited = parent.get("Config") or {}
    settings = {name: inherited[name] for name in _KEPT if inherited.get(name)}
    others = [one for one in settings.get("Env", []) if not one.startswith("PATH=")]
    settings["Env"] = [f"PATH={prefix.final}/bin:{base.search_path or DEFAULT_PATH}", *others]
    settings["Labels"] = {**(settings.get("Labels") or {}), **about}
    created = (read_json(prefix.path / MARKER) or {}).get("created") or _NO_TIME
    below = list(parent["RootFS"]["Layers"])
    history = [{"created": created, "created_by": f"layer of {base.image}"} for _ in below]
    history += [{"created": created, "created_by": f"tfjob: {layer.name}"} for layer, _ in layers]
    config = {
        "architecture": parent["Architecture"],
        "os": parent["Os"],
        "created": created,
        "config": settings,
        "rootfs": {"type": "layers", "diff_ids": [*below, *(one.diff_id for _, one in layers)]},
        "history": history,
    }
    return json.dumps(config, sort_keys=True).encode()


def _shared(client: DockerClient, chain: Sequence[str]) -> int:
    """Return how many layers of the chain, from the bottom, some image of the engine has in the same order."""
    listed = client.api.images(filters={"label": "tfjob.key"})
    newest = sorted(listed, key=lambda one: int(one.get("Created", 0)), reverse=True)[:_IMAGES_LOOKED_AT]
    most = 0
    for one in newest:
        found = find_image(one["Id"])
        theirs = found["RootFS"]["Layers"] if found is not None else []
        same = itertools.takewhile(lambda pair: pair[0] == pair[1], zip(theirs, chain, strict=False))
        most = max(most, sum(1 for _ in same))
    return most


def shared_layers(api: DockerApi, chain: Sequence[str]) -> int:
    """Return how many layers of the chain, from the bottom, some image of that engine has in the same order."""
    newest = sorted(api.images(), key=lambda one: int(one.get("Created", 0)), reverse=True)[:_IMAGES_LOOKED_AT]
    most = 0
    for one in newest:
        theirs = (api.image(one["Id"]) or {}).get("RootFS", {}).get("Layers") or []
        same = itertools.takewhile(lambda pair: pair[0] == pair[1], zip(theirs, chain, strict=False))
        most = max(most, sum(1 for _ in same))
    return most


def image_archive(bake: Bake, has: int, progress: Callable[[str], None]) -> Iterator[bytes]:
    """Give the archive that ``docker load`` takes, without the first `has` layers, which the engine has already."""
    config, tag, chain = bake.config, bake.tag, bake.chain
    new = bake.layers[has - bake.below :]
    name = f"{hashlib.sha256(config).hexdigest()}.json"
    files = [f"{one.rpartition(':')[2]}/layer.tar" for one in chain]
    manifest = json.dumps([{"Config": name, "RepoTags": [tag], "Layers": files}]).encode()
    for path, content in ((name, config), ("manifest.json", manifest)):
        yield _member(path, len(content)) + content + bytes(-len(content) % 512)
    total = sum(one.size_bytes for _, one in new)
    sent = 0
    for number, (layer, its) in enumerate(new, 1):
        progress(f"sending layer {number} of {len(new)}: {layer.name}, {its.size_bytes / 1e6:.0f} MB")
        yield _member(f"{its.diff_id.rpartition(':')[2]}/layer.tar", its.size_bytes)
        size_bytes = 0
        for chunk in archive(layer):
            size_bytes += len(chunk)
            yield chunk
        if size_bytes != its.size_bytes:
            raise PreparationError(
                f"the files of {layer.name} changed while they were sent to the Docker Engine", "Submit again."
            )
        yield bytes(-size_bytes % 512)
        sent += size_bytes
        progress(f"sent {sent / 1e6:.0f} of {total / 1e6:.0f} MB")
    yield bytes(1024)


def _member(path: str, size_bytes: int) -> bytes:
    info = tarfile.TarInfo(path)
    info.size = size_bytes
    return info.tobuf(tarfile.PAX_FORMAT)


def _load(
    client: DockerClient,
    data: Iterator[bytes],
    doing: str,
    *,
    log: Callable[[str], None],
    progress: Callable[[str], None],
) -> None:
    """Have the engine load an image archive. Raises PreparationError when it does not."""
    from requests.exceptions import ConnectionError as BrokenOff  # noqa: PLC0415

    try:
        answers = client.api.load_image(data, quiet=False)  # type: ignore[no-untyped-call]
        for message in messages(answers, doing):
            if text := str(message.get("stream", "")).strip():
                log(text)
            elif message.get("status"):
                progress(f"the engine loads: {message['so far']}")
    except BrokenOff as error:
        # An engine that has no room closes the connection in the middle of the archive; why is lost with it.
        folder = str(client.info().get("DockerRootDir", ""))
        if Path(folder).is_dir() and shutil.disk_usage(folder).free < _FEW_BYTES:
            raise PreparationError(
                f"the Docker Engine could not {doing}: no space left on device ({folder})",
                "Free space there (`docker system df`, `docker image prune`) and submit again.",
            ) from error
        raise
