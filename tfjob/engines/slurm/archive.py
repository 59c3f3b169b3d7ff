"""An image on the file system that Slurm's nodes share: written once, by its content, as `docker save` does."""

from __future__ import annotations

import json
import os
import time
from collections.abc import Iterator
from hashlib import sha256
from pathlib import Path
from typing import Final

from tfjob.dockerapi.api import DockerApi, RefusalError
from tfjob.durable import NoLocksError, take_lock
from tfjob.engines.base import Waiting
from tfjob.errors import PreparationError
from tfjob.rundir import RunDirectory

__all__ = ["ARCHIVE", "image_directory", "keep_image", "saved_image"]

ARCHIVE: Final = "image.tar"
"""What an image's archive is called, in the directory of its own."""

_PATIENT_S: Final = 24 * 3600.0
_TIMEOUT_S: Final = 60.0
_CHUNK_BYTES: Final = 1 << 20
_SAY_S: Final = 1.0
_LOOK_S: Final = 0.2


def keep_image(image: str, images: Path, api: DockerApi, told: Waiting) -> Path:
    """The archive of an image (an id) of the Docker Engine, in a directory of its own under `images`; written if it is not there.

    What nodes make of it for their runtime is kept beside it. `told` hears how far it is, and raises to give up. Raises
    PreparationError when it can't be written.
    """
    directory = images / image.removeprefix("sha256:")
    archive = directory / ARCHIVE
    try:
        directory.mkdir(parents=True, exist_ok=True)
        while not archive.exists():
            try:
                lock = take_lock(directory / "archive.lock")
            except NoLocksError:  # each writes its own, and the last one's stays
                _write(image, archive, api, told, f".part-{os.uname().nodename}-{os.getpid()}")
                continue
            if lock is None:
                told(f"image {image.removeprefix('sha256:')[:12]}: another run writes it to {directory}")
                time.sleep(_LOOK_S)
                continue
            try:
                if not archive.exists():
                    _write(image, archive, api, told)
            finally:
                os.close(lock)
        os.utime(directory)
    except OSError as error:
        raise PreparationError(
            f"the image can't be written to {directory}, where the nodes shall find it: {error.strerror}",
            "The target's `directory`, or `store` in the workspace's config.yml, says where it goes.",
        ) from error
    return archive


def image_directory(run: RunDirectory) -> Path | None:
    """Where a run's nodes find or keep their image; None for one without containers on Slurm. See program/image.py."""
    try:
        container = json.loads((run.path / "slurm" / "gang.json").read_bytes())["container"]
        if container is None:
            return None
        if container["archive"]:
            return Path(container["directory"])
        return Path(container["directory"]) / ("named-" + sha256(container["reference"].encode()).hexdigest()[:32])
    except (OSError, ValueError, KeyError, TypeError):
        return None


def saved_image(image: str, api: DockerApi) -> tuple[int, Iterator[bytes]]:
    """An image (an id) as `docker save` writes it, in pieces; and its bytes, as the Docker Engine tells them.

    Raises PreparationError when the engine has it no more, or does not give it.
    """
    about = api.image(image, _TIMEOUT_S)
    if about is None:
        raise PreparationError(
            f"the image {image} is not in the Docker Engine at {api.address} any more", "Submit again."
        )
    return int(about.get("Size", 0)), _pieces(image, api)


def _pieces(image: str, api: DockerApi) -> Iterator[bytes]:
    try:
        with api.saved([image], _PATIENT_S) as response:
            while data := response.read(_CHUNK_BYTES):
                yield data
    except RefusalError as error:
        raise PreparationError(f"the Docker Engine at {api.address} did not give the image: {error.message}") from error


def _write(image: str, archive: Path, api: DockerApi, told: Waiting, ending: str = ".part") -> None:
    size_bytes, pieces = saved_image(image, api)
    part = archive.with_name(f"{ARCHIVE}{ending}")
    written, said = 0, time.monotonic()
    try:
        with part.open("wb") as file:
            for data in pieces:
                file.write(data)
                written += len(data)
                if time.monotonic() - said > _SAY_S:
                    said = time.monotonic()
                    told(f"image for the nodes: {written / 1e6:.0f} MB written; it has {size_bytes / 1e6:.0f} MB")
            file.flush()
            os.fsync(file.fileno())
        part.rename(archive)
    finally:
        part.unlink(missing_ok=True)
