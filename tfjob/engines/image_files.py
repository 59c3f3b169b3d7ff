"""The accounts of an image, completed by the submitter's: a container that runs as a user must know that user's name."""

from __future__ import annotations

import io
import json
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Final

from tfjob.dockerapi.api import DockerApi, RefusalError
from tfjob.durable import replace_json
from tfjob.engines.base import Mount
from tfjob.engines.container import Shape, labels

__all__ = ["accounts"]

_FILES: Final = ("passwd", "group")


def accounts(shape: Shape, api: DockerApi, cache: Path | None) -> Shape:
    """The shape with /etc/passwd and /etc/group of the image mounted, each with what the submitter needs in it.

    Root has an account in every image. The files are read from the image once, if there is a `cache` to keep them.
    """
    if shape.submitter.uid == 0 or "rootless" in shape.options:
        return shape
    directory = shape.run.path / "accounts"
    directory.mkdir(exist_ok=True)
    of_image = _read(shape, api, cache)
    complete = {"passwd": shape.submitter.passwd(of_image["passwd"]), "group": shape.submitter.group(of_image["group"])}
    for name, text in complete.items():
        (directory / name).write_text(text, encoding="utf-8")
        (directory / name).chmod(0o644)
    mounts = tuple(Mount(str(directory / name), f"/etc/{name}") for name in _FILES)
    return replace(shape, mounts=(*shape.mounts, *mounts))


def _read(shape: Shape, api: DockerApi, cache: Path | None) -> dict[str, str]:
    image = shape.prepared.image or ""
    kept = cache / f"{image.removeprefix('sha256:')}.json" if cache and image.startswith("sha256:") else None
    if kept is not None:
        with suppress(OSError, ValueError):
            found = json.loads(kept.read_bytes())
            return {name: str(found[name]) for name in _FILES}
    container = api.create("", {"Image": image, "Entrypoint": ["-"], "Cmd": [], "Labels": labels(shape.run)})
    try:
        found = {name: _text(api, container, f"/etc/{name}") for name in _FILES}
    finally:
        api.remove(container)
    if kept is not None:
        with suppress(OSError):
            kept.parent.mkdir(parents=True, exist_ok=True)
            replace_json(kept, found, force=False)
    return found


def _text(api: DockerApi, container: str, path: str) -> str:
    import tarfile  # noqa: PLC0415  # 10 ms that only the first run of an image pays

    try:
        archive = api.file(container, path)
    except RefusalError:  # it has none
        return ""
    with tarfile.open(fileobj=io.BytesIO(archive)) as tar:
        member = next((tar.extractfile(one) for one in tar if one.isfile()), None)
        return member.read().decode(errors="replace") if member else ""
