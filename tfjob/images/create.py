"""Base images without a registry: from a root file system, from what ``docker save`` wrote, or of Debian's packages."""

from __future__ import annotations

import re
import tarfile
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING

from tfjob.environments.processes import interruptible
from tfjob.errors import PreparationError, UsageError
from tfjob.images.debian import BASE_PACKAGES, apt_source, bootstrap
from tfjob.images.engine import connected, find_image, messages, repository_and_tag

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

__all__ = ["create"]

_NAME = re.compile(r"[a-z0-9]+([._/:-]+[a-zA-Z0-9]+)*")
_MEMBERS_LOOKED_AT = 200
_ARCHIVE_MEMBERS = frozenset({"manifest.json", "oci-layout", "index.json", "repositories", "blobs"})
_LAYER = re.compile(r"[0-9a-f]{64}(\.json|/.*)?")
_ROOT_FOLDERS = frozenset({"bin", "usr", "etc", "lib"})


def create(
    name: str,
    *,
    source: Path | None = None,
    suite: str | None = None,
    packages: Sequence[str] = (),
    log: Callable[[str], None],
    progress: Callable[[str], None],
) -> str:
    """Make the base image `name` and return its id; one of that name is replaced.

    `source` is a tarball: a root file system, or an image that ``docker save`` wrote. Without one, the image is made of
    Debian's packages: of the release `suite` (that of this machine if None), from where apt here takes them, with Python,
    SSH and certificates and, besides, `packages`.

    Raises UsageError for a name that cannot be or a file that is no such tarball, PreparationError when the image cannot
    be made, TargetError when no engine answers.
    """
    if not _NAME.fullmatch(name):
        raise UsageError(
            f"`{name}` cannot be the name of an image",
            "Use lower-case letters and digits, such as `site/base:bookworm`.",
        )
    if source is not None and (suite or packages):
        raise UsageError(
            "a tarball is taken as it is: `suite` and packages are for images of Debian's packages",
            "Leave out the tarball, or the others.",
        )
    find_image(name)  # an engine that does not answer is better known before minutes of work
    with interruptible():
        if source is not None:
            _from_tarball(name, source, log=log, progress=progress)
        else:
            with tempfile.TemporaryDirectory(prefix="tfjob-base-") as work:
                made = Path(work) / "root.tar"
                release = apt_source(suite).suite
                progress(f"making a Debian {release} of its packages")
                wanted = dict.fromkeys([*BASE_PACKAGES, *packages])
                bootstrap(made, suite=release, packages=list(wanted), log=log)
                _import(name, made, progress=progress)
    found = find_image(name)
    if found is None:
        raise PreparationError(f"the image {name} was removed while it was made", "Try again.")
    return str(found["Id"])


def _from_tarball(name: str, source: Path, *, log: Callable[[str], None], progress: Callable[[str], None]) -> None:
    """Import a root file system or load an image archive, whichever the tarball is."""
    if _is_archive(source):
        _load(name, source, log=log, progress=progress)
    else:
        _import(name, source, progress=progress)


def _is_archive(source: Path) -> bool:
    """Whether a tarball is an image that was saved. Raises UsageError when it is neither that nor a root file system."""
    try:
        with tarfile.open(source, "r|*") as archive:
            seen: set[str] = set()
            for number, member in enumerate(archive):
                top = member.name.removeprefix("./").partition("/")[0]
                if top in _ARCHIVE_MEMBERS or _LAYER.fullmatch(member.name):
                    return True
                seen.add(top)
                if seen & _ROOT_FOLDERS or number > _MEMBERS_LOOKED_AT:
                    break
    except FileNotFoundError as error:
        raise UsageError(f"there is no file {source}", "Name a tarball of a root file system.") from error
    except (tarfile.TarError, EOFError, OSError) as error:
        raise UsageError(
            f"{source} cannot be read as a tarball: {error}", "It may be packed by gzip, bzip2 or xz, or not at all."
        ) from error
    if not seen & _ROOT_FOLDERS:
        raise UsageError(
            f"{source} holds neither a root file system (no bin, usr, etc at its top) nor a saved image",
            "Make it with `tar -C ROOT -cf FILE .`, or with `docker save IMAGE -o FILE`.",
        )
    return False


def _import(name: str, source: Path, *, progress: Callable[[str], None]) -> None:
    """Make a root file system an image of one layer."""
    repository, tag = repository_and_tag(name)
    progress(f"importing {source.name} as {name}")
    with connected(f"import {source}", patient=True) as client:
        client.api.import_image_from_file(str(source), repository=repository, tag=tag)


def _load(name: str, source: Path, *, log: Callable[[str], None], progress: Callable[[str], None]) -> None:
    """Load a saved image and give it its name."""
    repository, tag = repository_and_tag(name)
    progress(f"loading {source.name}")
    doing = f"load {source}"
    loaded = ""
    with connected(doing, patient=True) as client, source.open("rb") as data:
        for message in messages(client.api.load_image(data, quiet=False), doing):  # type: ignore[no-untyped-call]
            if text := str(message.get("stream", "")).strip():
                log(text)
                match = re.search(r"Loaded image(?: ID)?: (\S+)", text)
                loaded = match[1] if match else loaded
            elif message.get("status"):
                progress(f"loading {source.name}: {message['so far']}")
        if not loaded:
            raise PreparationError(
                f"the Docker Engine found no image in {source}", "Save it anew: `docker save IMAGE`."
            )
        client.api.tag(loaded, repository, tag)
