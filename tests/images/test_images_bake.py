from __future__ import annotations

import hashlib
import io
import itertools
import json
import os
import secrets
import shutil
import tarfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from image_parts import Client, output_of
from support import eventually

from tfjob.environments.prefix import Prefix
from tfjob.environments.store import Store
from tfjob.errors import PreparationError
from tfjob.images import bake as bake_module
from tfjob.images.bake import bake, bake_image
from tfjob.images.base import BaseImage, base_image
from tfjob.images.engine import find_image
from tfjob.images.layers import archive, digest, layers_of
from tfjob.images.prune import prune_images

if TYPE_CHECKING:
    from environment_parts import Packages

pytestmark = [pytest.mark.real, pytest.mark.root]

MIB = 1 << 20


def text_of(size_bytes: int, seed: str) -> str:
    """Text that is nobody else's."""
    count = itertools.count()
    block = "".join(hashlib.sha256(f"{seed}{next(count)}".encode()).hexdigest() for _ in range(64))
    return (block * (size_bytes // len(block) + 1))[:size_bytes]


def package(packages: Packages, name: str, version: str = "1.0", size_bytes: int = 100) -> None:
    files = {f"{name}/__init__.py": f"VERSION = '{version}'\n", f"{name}/data.txt": text_of(size_bytes, name + version)}
    files[f"{name}-{version}.data/scripts/{name}-tool"] = f"#!python\nimport {name}; print({name}.VERSION)\n"
    packages.wheel(name, version, files)


@pytest.fixture
def realistic(packages: Packages) -> Packages:
    """A big package, some of middle size, many small ones: an environment as TensorFlow's is, at a tenth of its size."""
    package(packages, "giant", size_bytes=60 * MIB)
    for number in range(4):
        package(packages, f"middle{number}", size_bytes=(4 + number) * MIB)
    for number in range(12):
        package(packages, f"small{number}", size_bytes=20_000)
    package(packages, "small0", "2.0", size_bytes=20_000)
    return packages


def names() -> list[str]:
    return ["giant", *(f"middle{number}" for number in range(4)), *(f"small{number}" for number in range(12))]


@pytest.mark.usefixtures("realistic")
def test_a_changed_package_ships_little(
    prefix_of: Callable[..., Prefix], base: BaseImage, store_root: Path, client: Client
) -> None:
    keys = [secrets.token_hex(16), secrets.token_hex(16)]
    one = prefix_of(*names()[:5], "small0==1.0", *names()[6:], key=keys[0])
    first = bake_image(one, base, store_root=store_root, log=print, progress=print)
    assert 0 < first.sent_layers <= first.layers == 7
    found = json.loads(output_of(client, first.image, "giant-tool") and json.dumps(client.images.get(first.tag).attrs))
    assert found["Config"]["Env"][0].startswith("PATH=/opt/env/bin:/usr/local/sbin:")
    assert found["Config"]["Labels"]["tfjob.key"] == keys[0]
    assert (
        output_of(client, first.image, "cat", "/opt/env/environment.lock")
        == one.lock.read_text(encoding="utf-8").strip()
    )

    again = bake_image(one, base, store_root=store_root, log=print, progress=lambda _: pytest.fail("worked again"))
    assert again.size_bytes > 60 * MIB
    assert (again.image, again.sent_bytes) == (first.image, 0)

    changed = prefix_of(*names()[:5], "small0==2.0", *names()[6:], key=keys[1])
    second = bake_image(changed, base, store_root=store_root, log=print, progress=print)
    assert second.image != first.image
    assert 0 < second.sent_bytes <= 0.02 * second.size_bytes, second
    assert output_of(client, second.image, "small0-tool") == "2.0"
    assert output_of(client, first.image, "small0-tool") == "1.0"
    client.images.remove(first.tag)
    client.images.remove(second.tag)


def test_the_image_is_like_the_prefix(
    prefix_of: Callable[..., Prefix], base: BaseImage, store_root: Path, packages: Packages, client: Client
) -> None:
    package(packages, "one", size_bytes=3 * MIB)
    prefix = prefix_of("one")
    (prefix.path / "lib" / "link").symlink_to("../bin/python")
    (prefix.path / "empty" / "folder").mkdir(parents=True)
    long = prefix.path / "lib" / ("a" * 90) / ("b" * 90) / "naïve file"
    long.parent.mkdir(parents=True)
    long.write_text("long", encoding="utf-8")
    long.chmod(0o400)
    image = bake(prefix, base, store_root=store_root, log=print, progress=print)
    listing = "import os; print(sorted(os.path.relpath(os.path.join(f, n), '/opt/env') "
    listing += "for f, ds, fs in os.walk('/opt/env') for n in ds + fs))"
    inside = set(eval(output_of(client, image, "python", "-c", listing)))  # noqa: S307  # a list of names
    outside = {str(path.relative_to(prefix.path)) for path in prefix.path.rglob("*")}
    assert inside - outside == {"environment.lock"}
    assert outside <= inside
    printed = output_of(
        client, image, "sh", "-c",
        f"cd /opt/env; readlink lib/link bin/python; stat -c '%a %u:%g' bin/one-tool '{long.relative_to(prefix.path)}' bin; "
        "python -c 'import sys; print(sys.prefix, sys.version_info[:2])'; for one in python one-tool sshd; do command -v $one; done",
    )  # fmt: skip
    assert printed.splitlines() == [
        "../bin/python",
        str(base.interpreters[0].path),
        "755 0:0",
        "644 0:0",
        "755 0:0",
        "/opt/env (3, 11)",
        "/opt/env/bin/python",
        "/opt/env/bin/one-tool",
        "/usr/sbin/sshd",
    ]
    as_nobody = client.containers.run(image, ["one-tool"], remove=True, network_mode="host", user="65534:65534")
    assert as_nobody.decode().strip() == "1.0"
    client.images.remove(f"tfjob/env:{prefix.key}")


def test_nothing_of_this_shell_is_in_an_image(
    prefix_of: Callable[..., Prefix],
    base: BaseImage,
    packages: Packages,
    client: Client,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    token = "s3cret-" + os.urandom(8).hex()
    for name in ("PIP_EXTRA_INDEX_URL", "UV_EXTRA_INDEX_URL", "AWS_SECRET_ACCESS_KEY", "TFJOB_TOKEN"):
        monkeypatch.setenv(name, f"file:///{token}" if "URL" in name else token)
    package(packages, "one")
    prefix = prefix_of("one")
    bake(prefix, base, store_root=base.store_root, log=print, progress=print)
    saved = b"".join(client.images.get(f"tfjob/env:{prefix.key}").save())
    assert token.encode() not in saved
    assert not _keys(saved)
    client.images.remove(f"tfjob/env:{prefix.key}")


def _keys(saved: bytes) -> list[str]:
    found = []
    with tarfile.open(fileobj=io.BytesIO(saved)) as image:
        for layer in image:
            data = image.extractfile(layer) if layer.name.endswith("layer.tar") else None
            if data is not None:
                with tarfile.open(fileobj=data) as files:
                    found += [one.name for one in files if "ssh_host_" in one.name]
    return found


def test_a_base_without_ssh_gets_it(bare_base: str, store_root: Path, client: Client, tmp_path: Path) -> None:
    bare = base_image(bare_base, store_root=store_root, log=print, progress=print)
    path, lock = tmp_path / "prefix", tmp_path / "lock"
    path.mkdir()
    (path / "file").write_text("x", encoding="utf-8")
    lock.write_text("version: 1\n", encoding="utf-8")
    prefix = Prefix(path, secrets.token_hex(16), "3.11.2", 0, lock, Path("/opt/env"))
    without = bake(prefix, bare, store_root=store_root, log=print, progress=print, ssh=False)
    assert output_of(client, without, "sh", "-c", "command -v sshd || echo none") == "none"
    image = bake(prefix, bare, store_root=store_root, log=print, progress=print)
    assert (
        output_of(client, image, "sh", "-c", "command -v sshd; ls /etc/ssh | grep -c host_ || true")
        == "/usr/sbin/sshd\n0"
    )
    assert bake(prefix, bare, store_root=store_root, log=print, progress=print) == image
    client.images.remove(f"tfjob/env:{prefix.key}")


def test_layers_depend_on_content_only(tmp_path: Path) -> None:
    def tree(name: str, *, mode: int, time_s: int) -> Path:
        root = tmp_path / name
        site = root / "lib" / "python3.11" / "site-packages"
        info = site / "big-1.0.dist-info"
        info.mkdir(parents=True)
        (site / "big.py").write_text("x" * (3 * MIB), encoding="utf-8")
        (site / "__pycache__").mkdir()
        (site / "__pycache__" / "big.cpython-311.pyc").write_text("bytecode", encoding="utf-8")
        (site / "own.py").write_text("y", encoding="utf-8")
        (info / "RECORD").write_text("big.py,,\nbig-1.0.dist-info/RECORD,,\n", encoding="utf-8")
        (root / "conda-meta").mkdir()
        (root / "etc").mkdir()
        (root / "etc" / "of-conda").write_text("z", encoding="utf-8")
        meta = {"name": "tiny", "files": ["etc/of-conda"]}
        (root / "conda-meta" / "tiny-1-0.json").write_text(json.dumps(meta), encoding="utf-8")
        for path in root.rglob("*"):
            if path.is_file():
                path.chmod(mode)
            os.utime(path, (time_s, time_s))
        return root

    one, two = tree("one", mode=0o444, time_s=1_000_000_000), tree("two", mode=0o600, time_s=1_500_000_000)
    cut = [layers_of(root, Path("/opt/env"), {"environment.lock": b"lock"}, at_most=100) for root in (one, two)]
    assert [layer.name for layer in cut[0]] == ["big", "packages below 512 KiB", "the environment's own files"]
    paths = [[entry.path.rpartition("/")[2] for entry in layer.entries] for layer in cut[0]]
    assert [sorted(names) for names in paths] == [
        ["RECORD", "big.cpython-311.pyc", "big.py"],
        ["of-conda", "tiny-1-0.json"],
        ["environment.lock", "own.py"],
    ]
    assert [b"".join(archive(layer)) for layer in cut[0]] == [b"".join(archive(layer)) for layer in cut[1]]
    kept = tmp_path / "layers"
    digests = [digest(layer, kept) for layer in cut[0]]
    assert digests[0].diff_id == "sha256:" + hashlib.sha256(b"".join(archive(cut[0][0]))).hexdigest()
    assert digests[0].size_bytes == len(b"".join(archive(cut[0][0])))
    with tarfile.open(fileobj=io.BytesIO(b"".join(archive(cut[0][0])))) as files:
        assert files.getmember("opt/env/lib/python3.11/site-packages/big.py").mode == 0o644
    assert [digest(layer, kept) for layer in cut[0]] == digests
    few = layers_of(one, Path("/opt/env"), {}, at_most=3)
    assert [layer.name for layer in few] == [
        "packages below 2 MiB",
        "packages below 512 KiB",
        "the environment's own files",
    ]


def test_a_prefix_that_changes_while_it_is_sent(
    base: BaseImage, store_root: Path, tmp_path: Path, client: Client
) -> None:
    path, lock = tmp_path / "prefix", tmp_path / "lock"
    path.mkdir()
    file = path / "file"
    file.write_text("a" * 100, encoding="utf-8")
    lock.write_text("version: 1\n", encoding="utf-8")
    prefix = Prefix(path, secrets.token_hex(16), "3.11.2", 0, lock, Path("/opt/env"))

    def spoil(text: str) -> None:
        if text.startswith("sending"):
            file.write_text("b" * 10, encoding="utf-8")

    with pytest.raises((PreparationError, OSError), match=r"became shorter|changed while"):
        bake(prefix, base, store_root=store_root, log=print, progress=spoil)
    shutil.rmtree(store_root / "layers")
    file.write_text("a" * 100, encoding="utf-8")
    bake(prefix, base, store_root=store_root, log=print, progress=print)
    client.images.remove(f"tfjob/env:{prefix.key}")


def test_layers_that_are_pruned_while_an_image_is_sent_are_sent_too(
    prefix_of: Callable[..., Prefix],
    base: BaseImage,
    packages: Packages,
    client: Client,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    package(packages, "one", size_bytes=2 * MIB)
    prefix = prefix_of("one", key=secrets.token_hex(16))
    shared = bake_module._shared
    pruned = [lambda _client, chain: len(chain) - 1]  # what some image had, and no image has any more

    def count(client: Client, chain: Sequence[str]) -> int:
        return pruned.pop()(client, chain) if pruned else shared(client, chain)

    monkeypatch.setattr(bake_module, "_shared", count)
    baked = bake_image(prefix, base, store_root=base.store_root, log=print, progress=print)
    assert baked.sent_layers == baked.layers > 1
    assert output_of(client, baked.image, "one-tool") == "1.0"
    client.images.remove(baked.tag)


def test_images_of_environments_that_are_gone_are_pruned(
    prefix_of: Callable[..., Prefix], base: BaseImage, store_root: Path, client: Client, packages: Packages
) -> None:
    package(packages, "one", size_bytes=2 * MIB)
    prefix = prefix_of("one", key=secrets.token_hex(16))
    tag = bake_image(prefix, base, store_root=store_root, log=print, progress=print).tag
    store = Store(store_root)
    assert store.prefix(prefix.key) == prefix.path
    store.mark_used(prefix.key)
    assert tag not in prune_images(store, unused_days=1).tags
    prefix.path.rename(store_root / "gone")
    assert tag in prune_images(store, unused_days=1, dry_run=True).tags
    assert client.images.get(tag)
    assert tag in prune_images(store, unused_days=1).tags
    assert find_image(tag) is None

    def is_told_what_was_freed() -> bool:
        (store_root / "gone").rename(prefix.path)
        bake_image(prefix, base, store_root=store_root, log=print, progress=print)
        prefix.path.rename(store_root / "gone")
        return prune_images(store, unused_days=1).freed_bytes >= 2 * MIB

    eventually(is_told_what_was_freed, "no other test makes an image meanwhile")
