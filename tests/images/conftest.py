"""What the tests of images share: the Docker Engine of the tests' own, a store, and packages to put into it."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from docker_parts import bare_base, docker_daemon, docker_engine, test_base
from environment_parts import Packages, packages
from image_parts import Client, made_prefix

from tfjob.environments.prefix import Prefix
from tfjob.images.base import BaseImage, base_image

__all__ = ["bare_base", "docker_daemon", "docker_engine", "packages", "test_base"]


@pytest.fixture
def store_root(tmp_path: Path) -> Path:
    folder = tmp_path / "store"
    folder.mkdir()
    return folder


@pytest.fixture
def base(test_base: str, store_root: Path) -> BaseImage:
    return base_image(test_base, store_root=store_root, log=print, progress=print)


@pytest.fixture
def client(docker_engine: object) -> Iterator[Client]:
    import docker  # noqa: PLC0415  # 100 ms that only these tests pay

    assert docker_engine
    made = docker.from_env(timeout=120)
    yield made
    made.close()


@pytest.fixture
def prefix_of(base: BaseImage, packages: Packages, store_root: Path) -> Callable[..., Prefix]:
    """Make a prefix for the base image by uv, in containers of it: ``prefix_of("one", "two==2.0")``."""

    def make(*requirements: str, key: str = "") -> Prefix:
        return made_prefix(base, store_root, packages.folder, requirements, key)

    return make
