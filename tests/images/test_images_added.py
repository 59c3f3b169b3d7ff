"""A base image with programs it lacks, where several jobs need it at once; without an engine."""

from __future__ import annotations

import threading
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, Any

from tfjob.images import added as module
from tfjob.images.added import SSH, added
from tfjob.images.base import BaseImage

if TYPE_CHECKING:
    from pathlib import Path

    import pytest


def test_two_that_need_a_program_at_once_install_it_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    base = BaseImage(
        reference="base",
        image="sha256:0123456789abcdef",
        pinned="base",
        system="",
        platform="",
        search_path="",
        user="",
        interpreters=(),
        tools=frozenset({"apt-get"}),
        cuda="",
        store_root=tmp_path / "store",
    )
    images: dict[str, dict[str, Any]] = {}
    made: list[str] = []
    waits = threading.Event()

    def build(_lines: list[str], tag: str, *_: object) -> None:
        made.append(tag)
        if len(made) == 1:
            assert waits.wait(60), "the second does not wait for the first"
        images[tag] = {"Id": f"sha256:{len(made)}", "Config": {"Labels": {"tfjob.base": base.image}}}

    def progress(step: str) -> None:
        if step.startswith("waiting"):
            waits.set()

    monkeypatch.setattr(module, "find_image", images.get)
    monkeypatch.setattr(module, "_build", build)
    with ThreadPoolExecutor(2) as pool:
        found = list(pool.map(lambda _: added(base, SSH, log=print, progress=progress), range(2)))
    assert found == ["sha256:1", "sha256:1"]
    assert made == ["tfjob/base:0123456789ab"]
