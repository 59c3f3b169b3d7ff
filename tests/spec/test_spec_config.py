from __future__ import annotations

from pathlib import Path

import pytest

from tfjob.errors import InvalidFile
from tfjob.spec.schema import config_schema
from tfjob.workspace import make_workspace


def test_the_file_a_new_workspace_gets_sets_nothing(tmp_path: Path) -> None:
    workspace, is_new = make_workspace(tmp_path)
    assert is_new
    assert workspace.config.local_gpus is None
    assert workspace.config.snapshot_limit_mib == 500
    images = config_schema()["properties"]["images"]["properties"]
    assert workspace.config.cpu_image == images["cpu"]["default"]
    assert workspace.config.gpu_image == images["gpu"]["default"]


def test_settings_are_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("TFJOB_STORE", raising=False)
    workspace, _ = make_workspace(tmp_path)
    (workspace.root / "config.yml").write_text("store: ~/kept\nlocal: {gpus: 2}\nsnapshot_limit_mib: 10\n")
    config = workspace.config
    assert (config.store, config.local_gpus, config.snapshot_limit_mib) == (Path.home() / "kept", 2, 10)


def test_images_are_what_base_stands_for(tmp_path: Path) -> None:
    workspace, _ = make_workspace(tmp_path)
    (workspace.root / "config.yml").write_text("images: {cpu: 'my-site/base:12'}\n")
    config = workspace.config
    assert config.image("cpu") == "my-site/base:12"
    assert config.image("gpu") == config_schema()["properties"]["images"]["properties"]["gpu"]["default"]
    assert config.image("debian:12") == "debian:12"


def test_every_problem_of_the_file_is_told(tmp_path: Path) -> None:
    workspace, _ = make_workspace(tmp_path)
    file = workspace.root / "config.yml"
    file.write_text("stor: /x\nlocal: {gpus: two}\ngpus: 2\nchannels: [a]\nstore: ''\nimages: {cpu: a b, cpus: c}\n")
    with pytest.raises(InvalidFile) as caught:
        _ = workspace.config
    keys = "store, local, images, datasets or snapshot_limit_mib is allowed."
    assert sorted(map(str, caught.value.problems)) == [
        f'{file}:1:1: stor: found the unknown key "stor"; {keys} Did you mean store?',
        f'{file}:2:15: local.gpus: found text "two"; a whole number of at least 0 is allowed.',
        f'{file}:3:1: gpus: found the unknown key "gpus"; {keys} It belongs under local.',
        f'{file}:4:1: channels: found the unknown key "channels"; {keys}',
        f"{file}:5:8: store: found empty text; a path is allowed.",
        f'{file}:6:15: images.cpu: found text "a b"; an image without spaces is allowed.',
        f'{file}:6:20: images.cpus: found the unknown key "cpus"; cpu or gpu is allowed. Did you mean cpu?',
    ]
