"""How long an engine is waited for that has something else to do; without an engine."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any, NoReturn

import pytest
from docker.errors import APIError

from tfjob.environments.store import Store
from tfjob.errors import TargetError
from tfjob.images import engine, prune

if TYPE_CHECKING:
    from pathlib import Path


def test_an_image_is_looked_up_as_patiently_as_all_else_is_done(monkeypatch: pytest.MonkeyPatch) -> None:
    """An engine that deletes layers may not answer for half a minute."""
    waited: list[float] = []

    def connect(self: engine._UnixConnection) -> NoReturn:
        waited.append(self.timeout or 0)
        raise ConnectionRefusedError

    monkeypatch.setenv("DOCKER_HOST", "unix:///nowhere")
    monkeypatch.setattr(engine._UnixConnection, "connect", connect)
    with pytest.raises(TargetError, match="no Docker Engine answers"):
        engine.find_image("debian")
    assert waited == [engine._TIMEOUT_S]
    assert engine._TIMEOUT_S >= 60


def test_who_prunes_waits_for_another_who_asks_what_layers_take(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    said: list[Any] = ["a disk usage operation is already running", {"LayersSize": 7}]
    said += ["a disk usage operation is already running", {"LayersSize": 3}]

    def df() -> Any:
        answer = said.pop(0)
        if isinstance(answer, str):
            raise APIError("500 Server Error", explanation=answer)
        return answer

    @contextlib.contextmanager
    def connected(*_: object, **__: object) -> Iterator[Any]:
        yield SimpleNamespace(df=df, images=SimpleNamespace(list=lambda **_: []))

    monkeypatch.setattr(prune, "connected", connected)
    monkeypatch.setattr(prune, "_AGAIN_S", 0.01)
    assert prune.prune_images(Store(tmp_path), unused_days=1).freed_bytes == 4
    said[:] = ["something else"]
    with pytest.raises(APIError):
        prune.prune_images(Store(tmp_path), unused_days=1)
