"""Every block of every page is true: files load, commands run and print what the page shows, words stay words."""

from __future__ import annotations

import contextlib
from pathlib import Path
from typing import TYPE_CHECKING

import docker
import pytest
from docs.docs_pages import PAGES, Block, Player, blocks, check_commands, is_known
from support import REPOSITORY

if TYPE_CHECKING:
    from docker_parts import Daemon

WITH_BLOCKS = [page for page in PAGES if blocks(page)]
WITH_TRAINING = [page for page in WITH_BLOCKS if any(block.kind == "real" for block in blocks(page))]
WITH_CONTAINERS = [page for page in WITH_BLOCKS if any(block.kind == "docker" for block in blocks(page))]
SITE_BASE = "site/base:12"
"""What pages call a base image of the reader's own; it is the tests' in the tests' engine."""


def _name(page: Path) -> str:
    return page.relative_to(REPOSITORY).as_posix()


@pytest.mark.parametrize("page", WITH_BLOCKS, ids=_name)
def test_every_block_is_of_a_known_kind(page: Path) -> None:
    unknown = [f"{block}: ```{block.language} {block.kind}" for block in blocks(page) if not is_known(block)]
    assert not unknown


@pytest.mark.parametrize("page", WITH_BLOCKS, ids=_name)
def test_page_plays(page: Path, tmp_path: Path) -> None:
    _play(page, Player(tmp_path, kinds=("",)))


@pytest.mark.real
@pytest.mark.parametrize("page", WITH_TRAINING, ids=_name)
def test_page_plays_with_training(page: Path, tmp_path: Path) -> None:
    _play(page, Player(tmp_path, kinds=("", "real")))


@pytest.mark.real
@pytest.mark.root
@pytest.mark.parametrize("page", WITH_CONTAINERS, ids=_name)
def test_page_plays_with_containers(page: Path, tmp_path: Path, docker_engine: Daemon, test_base: str) -> None:
    name, _, tag = SITE_BASE.partition(":")
    with contextlib.closing(docker.DockerClient(base_url=docker_engine.host)) as client:
        client.api.tag(test_base, name, tag)
    _play(page, Player(tmp_path, kinds=("", "docker"), base=SITE_BASE))


@pytest.mark.parametrize(
    "command",
    [
        "tfjob nothing",
        "tfjob env nothing",
        "tfjob env base nothing",
        "tfjob env list --nothing",
        "tfjob env base create",
        "nothing-of-this-name",
    ],
)
def test_a_command_that_cannot_be_is_noticed(command: str) -> None:
    block = Block(REPOSITORY / "README.md", 1, "sh", "check", None, command)
    with pytest.raises(AssertionError, match=r"README\.md:1"):
        check_commands([command], block)


def _play(page: Path, player: Player) -> None:
    try:
        for block in blocks(page):
            player.play(block)
    finally:
        player.close()
