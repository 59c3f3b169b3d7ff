from __future__ import annotations

import io
import re
import secrets
import shutil
import socket
import subprocess
import tarfile
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from docker_parts import CannotRunError, install
from support import eventually, free_ports

from tfjob.images.push import push

if TYPE_CHECKING:
    from image_parts import Client

pytestmark = [pytest.mark.real, pytest.mark.root]


@pytest.fixture
def registry(tmp_path: Path) -> Iterator[str]:
    """A registry on a free port of this machine."""
    try:
        if shutil.which("docker-registry") is None:
            install("docker-registry")
    except CannotRunError as reason:
        pytest.skip(str(reason))
    [port] = free_ports(1)
    text = f"version: 0.1\nstorage: {{filesystem: {{rootdirectory: {tmp_path}/data}}}}\nhttp: {{addr: '127.0.0.1:{port}'}}\n"
    (tmp_path / "config.yml").write_text(text, encoding="utf-8")
    with (tmp_path / "log").open("wb") as log:
        command = ["docker-registry", "serve", str(tmp_path / "config.yml")]
        process = subprocess.Popen(command, stdout=log, stderr=log)
    eventually(lambda: _listens(port), "the registry answers")
    yield f"127.0.0.1:{port}"
    process.terminate()
    process.wait()


def _listens(port: int) -> bool:
    with socket.socket() as connection:
        return connection.connect_ex(("127.0.0.1", port)) == 0


def test_what_is_said_of_a_push(registry: str, client: Client) -> None:
    name = f"tfjob-test/large:{secrets.token_hex(4)}"
    data = io.BytesIO()
    with tarfile.open(fileobj=data, mode="w") as archive:
        member = tarfile.TarInfo("file")
        member.size = 100_000_000
        archive.addfile(member, io.BytesIO(secrets.token_bytes(member.size)))
    client.api.import_image_from_data(data.getvalue(), repository="tfjob-test/large", tag=name.partition(":")[2])
    lines: list[str] = []
    steps: list[str] = []
    push(name, f"{registry}/large:1", log=lines.append, progress=steps.append)
    of_layer = [line.partition(" ")[2] for line in lines if re.match(r"[0-9a-f]{12} ", line)]
    assert of_layer[-2:] == ["Pushing", "Pushed"]
    assert len(set(of_layer)) == len(of_layer)
    assert len(set(steps)) == len(steps) > 2
    assert any(re.search(r"0 of 1 layers, \d+ of 100 MB", step) for step in steps)
    client.images.remove(client.images.get(name).id, force=True)
