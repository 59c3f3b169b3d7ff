"""The archive of an image without the layers that whoever loads it has already, made of the whole one as it comes.

``docker load`` takes an archive that lacks a layer which the engine has in the same place. Engines of Docker 25 and later name
a layer's file by its digest; older ones do not, and so such a file is read to its end before anybody knows whether it is
sent. Sources: Docker image specification v1.2, "Combined Image JSON + Filesystem Changeset Format"; OCI image layout.
"""

from __future__ import annotations

import hashlib
import tarfile
import tempfile
from collections.abc import Collection, Iterator
from typing import IO, Final, cast

__all__ = ["thinned"]

_CHUNK_BYTES: Final = 1 << 20
_BLOCK_BYTES: Final = 512
_IN_MEMORY_BYTES: Final = 64 << 20
_BLOBS: Final = "blobs/sha256/"


def thinned(archive: IO[bytes], known: Collection[str]) -> Iterator[bytes]:
    """Give the archive without the layers whose digests (``sha256:…``, of their tar files) are `known`."""
    with tarfile.open(fileobj=archive, mode="r|") as whole:
        for member in whole:
            content = whole.extractfile(member) if member.isreg() else None
            if content is None:
                yield _header(member)
            elif member.name.startswith(_BLOBS):
                if f"sha256:{member.name.removeprefix(_BLOBS)}" not in known:
                    yield from _with_content(member, content)
            elif member.name.endswith("/layer.tar"):
                yield from _unless_known(member, content, known)
            else:
                yield from _with_content(member, content)
    yield bytes(2 * _BLOCK_BYTES)


def _unless_known(member: tarfile.TarInfo, content: IO[bytes], known: Collection[str]) -> Iterator[bytes]:
    digest = hashlib.sha256()
    with tempfile.SpooledTemporaryFile(_IN_MEMORY_BYTES) as kept:
        while data := content.read(_CHUNK_BYTES):
            digest.update(data)
            kept.write(data)
        if f"sha256:{digest.hexdigest()}" not in known:
            kept.seek(0)
            yield from _with_content(member, cast("IO[bytes]", kept))


def _with_content(member: tarfile.TarInfo, content: IO[bytes]) -> Iterator[bytes]:
    yield _header(member)
    while data := content.read(_CHUNK_BYTES):
        yield data
    yield bytes(-member.size % _BLOCK_BYTES)


def _header(member: tarfile.TarInfo) -> bytes:
    return member.tobuf(tarfile.PAX_FORMAT, "utf-8", "surrogateescape")
