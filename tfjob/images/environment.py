"""An environment as containers use it: the image they start from, and what is mounted into it.

Three kinds: packages on a base image (mounted from this machine's store, or baked into an image), a user's Dockerfile,
and a finished image, which is used as it is.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from tfjob.environments.lock import Lock
from tfjob.environments.resolved import DockerfileSource
from tfjob.environments.store import Store
from tfjob.errors import PreparationError

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from tfjob.environments.definition import Definition
    from tfjob.environments.prefix import Prefix
    from tfjob.images.bake import Bake, Baked
    from tfjob.images.base import BaseImage
    from tfjob.values import Pairs

__all__ = [
    "ContainerEnvironment",
    "build_dockerfile",
    "packages_on_base",
    "require_unchanged",
    "use_image",
    "use_kept_image",
]

_DEFAULT_PATH = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"


@dataclass(frozen=True)
class ContainerEnvironment:
    """What a container needs: an image (its id), the PATH in it, a Python for tfjob's entrypoint, and a prefix to mount.

    `prefix` is None where the image has all there is. `mount` says whether it is mounted; a baked image has it inside,
    `baked` says how it was made, `bake` what of, for other engines.
    """

    image: str
    path: str
    python: str
    prefix: Prefix | None = None
    mount: bool = False
    baked: Baked | None = None
    bake: Callable[[], Bake] | None = None


def packages_on_base(
    definition: Definition,
    base: str,
    *,
    store: Path,
    lock: str | None,
    packages: Literal["mounted", "baked"],
    log: Callable[[str], None],
    progress: Callable[[str], None],
) -> ContainerEnvironment:
    """Make the packages of a definition for the image `base`, and, baked, an image of both.

    Raises PreparationError when something cannot be made, TargetError when no Docker Engine answers.
    """
    from tfjob.images.base import base_image  # noqa: PLC0415  # docker only for those who use containers

    place = base_image(_locked_base(lock) or base, store_root=store, log=log, progress=progress)
    keeper = Store(store)
    prefix = keeper.find(definition, place, lock) or keeper.prepare(
        definition, place, lock=lock, log=log, progress=progress
    )
    path = f"{prefix.final}/bin:{place.search_path or _DEFAULT_PATH}"
    python = f"{prefix.final}/bin/python"
    if packages == "mounted":
        return ContainerEnvironment(place.image, path, python, prefix, mount=True)
    from tfjob.images.bake import bake_image, made_of  # noqa: PLC0415

    baked = bake_image(prefix, place, store_root=store, log=log, progress=progress)
    bake = partial(made_of, prefix, place, store_root=store, log=_unheard, progress=_unheard)
    return ContainerEnvironment(baked.image, path, python, prefix, baked=baked, bake=bake)


def _unheard(_line: str) -> None:
    """Take the place of a log that is closed by the time."""


def _locked_base(lock: str | None) -> str | None:
    """The very image that a lock was made for, if it can be had again: by its digest, or because the engine has it."""
    from tfjob.images.engine import find_image  # noqa: PLC0415

    named = Lock.parse(lock).base if lock is not None else None
    return named if named is not None and ("@" in named or find_image(named) is not None) else None


def build_dockerfile(
    dockerfile: Path,
    context: Path,
    arguments: Mapping[str, str],
    *,
    store: Path,
    log: Callable[[str], None],
    progress: Callable[[str], None],
) -> ContainerEnvironment:
    """Build a user's Dockerfile, or find the image it was built to before."""
    from tfjob.images.bake import build  # noqa: PLC0415

    image = build(dockerfile, context, arguments, store_root=store, log=log, progress=progress)
    return _finished(
        _look_into(image, store, log, progress, called=f"the image of {dockerfile}"), f"the image of {dockerfile}"
    )


def require_unchanged(dockerfile: Path, digest: str, context: Path, arguments: Pairs) -> None:
    """Raise PreparationError when a Dockerfile says something else than when the job was planned."""
    try:
        text = dockerfile.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise PreparationError(
            f"the Dockerfile {dockerfile} cannot be read any more: {error}", "Put it back, and submit the job again."
        ) from error
    if DockerfileSource(dockerfile, context, arguments, text).digest() != digest:
        raise PreparationError(
            f"the Dockerfile {dockerfile} has changed since the job was planned", "Submit the job again."
        )


def use_image(
    reference: str, *, store: Path, log: Callable[[str], None], progress: Callable[[str], None]
) -> ContainerEnvironment:
    """Use a finished image as it is: its own PATH, its own packages."""
    return _finished(
        _look_into(reference, store, log, progress, called=f"the image {reference}"), f"the image {reference}"
    )


def use_kept_image(
    image: str, *, store: Path, log: Callable[[str], None], progress: Callable[[str], None]
) -> ContainerEnvironment:
    """Use the very image, by its id, that an earlier run used. Raises PreparationError when the engine has it no more."""
    from tfjob.images.engine import find_image  # noqa: PLC0415

    if find_image(image) is None:
        raise PreparationError(
            f"the Docker Engine no longer has the image that the run used ({image.removeprefix('sha256:')[:12]})",
            "Submit the job file instead: the image is built or pulled anew.",
        )
    return use_image(image, store=store, log=log, progress=progress)


def _look_into(
    reference: str, store: Path, log: Callable[[str], None], progress: Callable[[str], None], *, called: str
) -> BaseImage:
    """An image that nothing is made for: any will do."""
    from tfjob.images.base import base_image  # noqa: PLC0415

    return base_image(reference, store_root=store, log=log, progress=progress, for_packages=False, called=called)


def _finished(image: BaseImage, what: str) -> ContainerEnvironment:
    python = image.interpreters[0].path if image.interpreters else None
    if python is None:
        raise PreparationError(
            f"{what} has no Python from 3.8, which starts and watches the command in it",
            "Install one in the image (`apt-get install python3`), or give the packages by `conda:` and the image as `base:`.",
        )
    return ContainerEnvironment(image.image, image.search_path or _DEFAULT_PATH, str(python))
