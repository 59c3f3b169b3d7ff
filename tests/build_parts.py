"""Parts of the tests of building a user's Dockerfile: the two builders, and a folder with a Dockerfile."""

from __future__ import annotations

import os
import textwrap
from collections.abc import Callable
from pathlib import Path

import pytest

from tfjob.images.build import build

__all__ = ["BUILDS", "Context", "builder", "context", "sleeping"]

BUILDS = """
import sys
from pathlib import Path
from tfjob.images.base import base_image as place_of
from tfjob.images.build import build
from tfjob.images.engine import find_image
from tfjob.images.bake import bake
from tfjob.environments.prefix import Prefix
from tfjob.environments.processes import interruptible
folder = Path(sys.argv[1])
with interruptible():
    build(folder / "Dockerfile", folder, {}, store_root=folder / "store", log=lambda one: print(one, flush=True), progress=print)
"""


@pytest.fixture(params=["buildkit", "classic"])
def builder(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> str:
    """Both ways to build: by Docker's command line, and by the engine alone where there is no such program."""
    if request.param == "classic":
        programs = tmp_path / "programs"
        programs.mkdir()
        for folder in reversed([*os.environ["PATH"].split(os.pathsep), "/usr/sbin", "/sbin"]):
            for path in Path(folder).glob("*"):
                (programs / path.name).unlink(missing_ok=True)
                (programs / path.name).symlink_to(path)
        (programs / "docker").unlink()
        monkeypatch.setenv("PATH", str(programs))
    return str(request.param)


class Context:
    """A folder with a Dockerfile, and what was said when it was built."""

    def __init__(self, folder: Path, store_root: Path, base: str) -> None:
        self.folder = folder
        self.store_root = store_root
        self.base = base
        self.lines: list[str] = []
        self.steps: list[str] = []
        self.heard: Callable[[str], None] = lambda _: None
        """Is told each step too, and may hold the build up."""
        folder.mkdir()

    def write(self, name: str, text: str) -> None:
        (self.folder / name).write_text(textwrap.dedent(text).replace("BASE", self.base), encoding="utf-8")

    def build(self, **arguments: str) -> str:
        return self.build_in(self.folder, **arguments)

    def build_in(self, folder: Path, **arguments: str) -> str:
        self.lines.clear()
        self.steps.clear()

        def progress(step: str) -> None:
            self.steps.append(step)
            self.heard(step)

        return build(
            self.folder / "Dockerfile",
            folder,
            arguments,
            store_root=self.store_root,
            log=self.lines.append,
            progress=progress,
        )


@pytest.fixture
def context(tmp_path: Path, store_root: Path, bare_base: str) -> Context:
    return Context(tmp_path / "context", store_root, bare_base)


def sleeping(step: str) -> list[int]:
    """The processes that work on a step of a build, by words of its command."""
    found = []
    for name in os.listdir("/proc"):
        if name.isdecimal():
            try:
                command = Path(f"/proc/{name}/cmdline").read_bytes()
            except OSError:
                continue
            if step.encode() in command and b"tfjob" not in command:
                found.append(int(name))
    return found
