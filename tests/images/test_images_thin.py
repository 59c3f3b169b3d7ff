"""An image's archive without the layers that are known, in both of Docker's forms."""

from __future__ import annotations

import hashlib
import io
import tarfile

import pytest

from tfjob.images.thin import thinned

LAYERS = [bytes([number]) * (700 + number) for number in range(3)]
DIGESTS = [hashlib.sha256(layer).hexdigest() for layer in LAYERS]


def archive(*, is_oci: bool) -> io.BytesIO:
    made = io.BytesIO()
    with tarfile.open(fileobj=made, mode="w") as tar:
        for number, layer in enumerate(LAYERS):
            info = tarfile.TarInfo(f"blobs/sha256/{DIGESTS[number]}" if is_oci else f"v1-{number}/layer.tar")
            info.size = len(layer)
            tar.addfile(info, io.BytesIO(layer))
        link = tarfile.TarInfo("v1-3/layer.tar")
        link.type, link.linkname = tarfile.SYMTYPE, "../v1-0/layer.tar"
        tar.addfile(link)
        info = tarfile.TarInfo("manifest.json")
        info.size = 2
        tar.addfile(info, io.BytesIO(b"[]"))
    made.seek(0)
    return made


def contents(chunks: bytes) -> dict[str, bytes]:
    with tarfile.open(fileobj=io.BytesIO(chunks)) as tar:
        return {one.name: file.read() if (file := one.isreg() and tar.extractfile(one)) else b"" for one in tar}


@pytest.mark.parametrize("is_oci", [False, True])
def test_known_layers_are_left_out(is_oci: bool) -> None:
    whole = contents(archive(is_oci=is_oci).getvalue())
    assert contents(b"".join(thinned(archive(is_oci=is_oci), ()))) == whole
    left = contents(b"".join(thinned(archive(is_oci=is_oci), {f"sha256:{DIGESTS[1]}"})))
    gone = f"blobs/sha256/{DIGESTS[1]}" if is_oci else "v1-1/layer.tar"
    assert left == {name: content for name, content in whole.items() if name != gone}
