from __future__ import annotations

import io
import os
import tarfile
from typing import TYPE_CHECKING

import pytest
from image_parts import Client, gone

from tfjob.errors import PreparationError
from tfjob.images.base import base_image
from tfjob.images.environment import use_image

if TYPE_CHECKING:
    from pathlib import Path

pytestmark = [pytest.mark.real, pytest.mark.root]


def test_a_python_without_a_shell(client: Client, test_base: str, store_root: Path) -> None:
    text = f'FROM {test_base}\nENV PATH=/nothing\nRUN ["/bin/rm", "/bin/sh"]\n'
    client.images.build(fileobj=io.BytesIO(text.encode()), tag="tfjob-test/shellless:latest", network_mode="host")
    environment = use_image("tfjob-test/shellless:latest", store=store_root, log=print, progress=print)
    full = base_image(test_base, store_root=store_root, log=print, progress=print)
    assert environment.python == str(full.interpreters[0].path)
    gone(client, os.getpid())
    steps: list[str] = []
    with pytest.raises(PreparationError, match="the image tfjob-test/shellless:latest has no shell"):
        base_image("tfjob-test/shellless:latest", store_root=store_root, log=print, progress=steps.append)
    assert steps == []  # it was looked into before


def test_an_image_with_nothing(client: Client, store_root: Path) -> None:
    data = io.BytesIO()
    with tarfile.open(fileobj=data, mode="w") as archive:
        archive.addfile(tarfile.TarInfo("etc/none"))
    client.api.import_image_from_data(data.getvalue(), repository="tfjob-test/nothing", tag="latest")
    with pytest.raises(PreparationError, match="the image tfjob-test/nothing:latest has no Python"):
        use_image("tfjob-test/nothing:latest", store=store_root, log=print, progress=print)
    image = client.images.get("tfjob-test/nothing:latest").id
    steps: list[str] = []
    found = base_image(
        image,
        store_root=store_root / "other",
        log=print,
        progress=steps.append,
        for_packages=False,
        called="the image of Dockerfile",
    )
    assert found.interpreters == ()
    assert steps == ["looking into the image of Dockerfile"]
    with pytest.raises(PreparationError, match="the image of Dockerfile has no shell"):
        base_image(image, store_root=store_root, log=print, progress=print, called="the image of Dockerfile")
