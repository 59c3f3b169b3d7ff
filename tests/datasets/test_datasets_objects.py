"""Objects made of contents in memory: whole or not at all, whatever the file system can do and whatever was there before."""

from __future__ import annotations

import errno
import hashlib
import os
import resource
import struct
from collections.abc import Iterator
from pathlib import Path

import pytest

from tfjob.datasets import objects as module
from tfjob.datasets.cache import OBJECT_TIME_NS, Cache
from tfjob.datasets.objects import Objects

BODY = b"content"
_OWNER, _GROUP, _OTHERS = 1, 4, 32  # as entries of an ACL name them
SHA256 = hashlib.sha256(BODY).hexdigest()


@pytest.fixture
def umask() -> Iterator[None]:
    """A umask that lets nobody else read, and back to what it was: `Objects` takes it to 0."""
    before = os.umask(0o077)
    yield
    os.umask(before)


@pytest.fixture
def root(cache: Cache, umask: None, monkeypatch: pytest.MonkeyPatch) -> Path:  # noqa: ARG001  # for what it does
    with cache.filling():
        monkeypatch.chdir(cache.root)
    return cache.root


@pytest.fixture(params=["nameless", "refused", "no proc"])
def way(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """How objects are made: without a name first, or with one, because the system refuses the former or has no /proc."""
    if request.param == "refused":
        monkeypatch.setattr(module, "_NAMELESS", os.O_RDONLY | os.O_TMPFILE)  # it says EINVAL to that
    if request.param == "no proc":
        monkeypatch.setattr(module, "_OWN_FILES", "/nowhere")
    return str(request.param)


def made(root: Path) -> list[Path]:
    """The object, if it is whole and nothing else is there."""
    assert list((root / "partial").iterdir()) == []
    for path in root.glob("objects/*/*"):
        status = path.stat()
        assert [path.name, path.read_bytes()] == [SHA256, BODY]
        assert [status.st_mode & 0o777, status.st_mtime_ns, status.st_nlink] == [0o444, OBJECT_TIME_NS, 1]
    return list(root.glob("objects/*/*"))


def test_all_may_read_them_and_directories_are_as_the_user_wants(root: Path, way: str) -> None:
    objects = Objects(OBJECT_TIME_NS)
    objects.keep(SHA256, BODY)
    assert len(made(root)) == 1
    assert (root / "objects" / SHA256[:2]).stat().st_mode & 0o777 == 0o700
    empty = hashlib.sha256().hexdigest()
    objects.keep(empty, b"")
    assert Path(Cache(root).object(empty)).stat().st_size == 0
    assert objects.keep == (objects._keep_nameless if way == "nameless" else objects._keep_named)


@pytest.mark.usefixtures("way")
def test_all_may_read_them_whatever_their_directory_says(root: Path) -> None:
    """A default ACL takes the place of the umask: here, files that are made there are for their owner alone."""
    acl = struct.pack("<I", 2) + b"".join(
        struct.pack("<HHI", who, may, 0xFFFFFFFF) for who, may in ((_OWNER, 7), (_GROUP, 0), (_OTHERS, 0))
    )
    try:
        os.setxattr(root / "objects", "system.posix_acl_default", acl)
    except OSError as error:
        pytest.skip(f"the file system has no ACLs: {error}")
    Objects(OBJECT_TIME_NS).keep(SHA256, BODY)
    assert len(made(root)) == 1


def test_one_that_is_there_stays(root: Path, way: str) -> None:
    Objects(OBJECT_TIME_NS).keep(SHA256, BODY)
    (path,) = made(root)
    link = root / "tree"
    os.link(path, link)
    objects = Objects(OBJECT_TIME_NS)
    objects.keep(SHA256, BODY)
    if way == "nameless":
        assert path.samefile(link)
        assert objects.keep == objects._keep_nameless
    link.unlink()
    assert len(made(root)) == 1


@pytest.mark.parametrize("harm", [b"written", b"longer than it was", b""])
@pytest.mark.usefixtures("way")
def test_one_that_was_written_to_is_replaced(root: Path, harm: bytes) -> None:
    objects = Objects(OBJECT_TIME_NS)
    objects.keep(SHA256, BODY)
    (path,) = made(root)
    path.chmod(0o644)
    path.write_bytes(harm)
    objects.keep(SHA256, BODY)
    assert len(made(root)) == 1


@pytest.mark.usefixtures("way")
def test_directories_that_were_removed_are_made_again(root: Path) -> None:
    objects = Objects(OBJECT_TIME_NS)
    objects.keep(SHA256, BODY)
    (path,) = made(root)
    path.unlink()
    path.parent.rmdir()
    objects.keep(SHA256, BODY)
    assert len(made(root)) == 1


@pytest.mark.usefixtures("way")
def test_what_the_disk_does_not_take_leaves_nothing(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with monkeypatch.context() as patch:
        patch.setattr(os, "write", lambda *_: 3)
        with pytest.raises(OSError, match="No space left") as caught:
            Objects(OBJECT_TIME_NS).keep(SHA256, BODY)
    assert caught.value.errno == errno.ENOSPC
    assert made(root) == []


def test_many_directories_and_few_descriptors(root: Path) -> None:
    """What can't have a descriptor for each directory goes on without."""
    before = resource.getrlimit(resource.RLIMIT_NOFILE)
    objects = Objects(OBJECT_TIME_NS)
    held = len(os.listdir("/proc/self/fd"))
    resource.setrlimit(resource.RLIMIT_NOFILE, (held + 20, before[1]))
    try:
        contents = [b"%d" % number for number in range(200)]
        for content in contents:
            objects.keep(hashlib.sha256(content).hexdigest(), content)
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, before)
    cache = Cache(root)
    assert all(Path(cache.object(hashlib.sha256(one).hexdigest())).read_bytes() == one for one in contents)
