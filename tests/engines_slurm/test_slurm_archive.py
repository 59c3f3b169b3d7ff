"""An image on the nodes' file system, from a Docker Engine that is made up."""

from __future__ import annotations

import io
import os
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

from support import without_locks

from tfjob.dockerapi.api import DockerApi
from tfjob.engines.base import tell_nobody
from tfjob.engines.slurm.archive import keep_image

if TYPE_CHECKING:
    import pytest


class Engine:
    """An engine with one image; `seen` is what lay in the directory while it was saved."""

    address = "nowhere"

    def __init__(self, directory: Path) -> None:
        self.directory, self.seen = directory, [""]

    def image(self, *_: Any) -> dict[str, int]:
        return {"Size": 3}

    def saved(self, *_: Any) -> io.BytesIO:
        return Saved(self)


class Saved(io.BytesIO):
    def __init__(self, engine: Engine) -> None:
        super().__init__(b"tar")
        self.engine = engine

    def read(self, size: int | None = -1) -> bytes:
        self.engine.seen = sorted(path.name for path in self.engine.directory.iterdir())
        return super().read(size)


def test_where_there_are_no_locks_each_writes_an_archive_of_its_own(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    without_locks(monkeypatch)
    engine = Engine(tmp_path / "id")
    archive = keep_image("sha256:id", tmp_path, cast("DockerApi", engine), tell_nobody)
    assert archive.read_bytes() == b"tar"
    assert engine.seen == ["archive.lock", f"image.tar.part-{os.uname().nodename}-{os.getpid()}"]
    assert sorted(path.name for path in archive.parent.iterdir()) == ["archive.lock", "image.tar"]
