"""Every block of every page is true: files load, commands run and print what the page shows, words stay words."""

from __future__ import annotations

from pathlib import Path

import pytest
from docs.docs_pages import PAGES, Player, blocks, is_known
from support import REPOSITORY

WITH_BLOCKS = [page for page in PAGES if blocks(page)]
WITH_TRAINING = [page for page in WITH_BLOCKS if any(block.kind == "real" for block in blocks(page))]


def _name(page: Path) -> str:
    return page.relative_to(REPOSITORY).as_posix()


@pytest.mark.parametrize("page", WITH_BLOCKS, ids=_name)
def test_every_block_is_of_a_known_kind(page: Path) -> None:
    unknown = [f"{block}: ```{block.language} {block.kind}" for block in blocks(page) if not is_known(block)]
    assert not unknown


@pytest.mark.parametrize("page", WITH_BLOCKS, ids=_name)
def test_page_plays(page: Path, tmp_path: Path) -> None:
    _play(page, tmp_path, real=False)


@pytest.mark.real
@pytest.mark.parametrize("page", WITH_TRAINING, ids=_name)
def test_page_plays_with_training(page: Path, tmp_path: Path) -> None:
    _play(page, tmp_path, real=True)


def _play(page: Path, folder: Path, *, real: bool) -> None:
    player = Player(folder, real=real)
    try:
        for block in blocks(page):
            player.play(block)
    finally:
        player.close()
