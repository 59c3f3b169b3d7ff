"""Parts of the tests of images: prefixes without a solver, and looks into the engine."""

from __future__ import annotations

import hashlib
import os
import secrets
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeAlias

from support import eventually

from tfjob.environments.prefix import Prefix
from tfjob.environments.uv import find_uv

if TYPE_CHECKING:
    from collections.abc import Sequence

    from tfjob.images.base import BaseImage

Client: TypeAlias = Any


def uv_environment(store_root: Path, folder: Path) -> dict[str, str]:
    """How uv is to look for packages: only in `folder`."""
    settings = {"UV_FIND_LINKS": str(folder), "UV_NO_CONFIG": "1", "UV_PYTHON_DOWNLOADS": "never"}
    own = {name: value for name, value in os.environ.items() if not name.startswith(("UV_", "PIP_"))}
    return {**own, **settings, "UV_CACHE_DIR": str(store_root / "uv")}


def made_prefix(base: BaseImage, store_root: Path, folder: Path, requirements: Sequence[str], key: str = "") -> Prefix:
    key = key or hashlib.sha256(repr((requirements, secrets.token_hex(4))).encode()).hexdigest()[:32]
    path = store_root / "prefixes" / key
    path.parent.mkdir(exist_ok=True)
    python = base.interpreters[0].path
    lines: list[str] = []
    for arguments in (
        ["venv", "--relocatable", "--python", str(python), str(path)],
        ["pip", "install", "--no-index", "--python", str(path / "bin" / "python"), *requirements],
    ):
        code = base.run(
            [find_uv(), *arguments],
            environment=uv_environment(store_root, folder),
            cwd=store_root,
            on_line=lines.append,
            holds=0,
        )
        assert code == 0, "\n".join(lines)
    lock = store_root / f"{key}.lock"
    lock.write_text("version: 1\npip: |\n" + "".join(f"  {one}\n" for one in requirements), encoding="utf-8")
    return Prefix(path, key, base.interpreters[0].version_text, len(requirements), lock, Path("/opt/env"))


def output_of(client: Client, image: str, *command: str) -> str:
    """What a program in a container of the image prints."""
    # Not `run` in the foreground: it follows the log, and may miss the end of it.
    container = client.containers.run(image, list(command), detach=True, network_mode="host")
    try:
        code = container.wait()["StatusCode"]
        printed = container.logs(stdout=True, stderr=False).decode().strip()
        assert code == 0, f"exit code {code}: {printed} {container.logs(stdout=False, stderr=True).decode()}"
    finally:
        container.remove(force=True)
    return str(printed)


def containers(client: Client, pid: int) -> list[str]:
    """The throw-away containers of a process: others use the same engine at the same time."""
    there = client.api.containers(all=True, filters={"label": "tfjob.owner"})
    return [one["Id"] for one in there if one["Labels"]["tfjob.owner"].split()[2:3] == [str(pid)]]


def program(text: str, *arguments: str) -> subprocess.Popen[str]:
    """Start Python with a text, as another tfjob would be."""
    command = [sys.executable, "-c", text, *arguments]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def gone(client: Client, pid: int) -> None:
    """Wait until no throw-away container of a process is left."""
    eventually(lambda: not containers(client, pid), "the container is gone")
