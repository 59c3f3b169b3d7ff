from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any
from uuid import uuid4

import pytest
from engines.engine_bench import ENGINES, Bench, plan
from support import processes_of

from tfjob.planning.plan import TaskPlan

MakeBench = Callable[..., Bench]


@pytest.fixture(params=ENGINES)
def engine_name(request: pytest.FixtureRequest) -> str:
    name: str = request.param
    return name


@pytest.fixture
def leases(tmp_path: Path) -> Path:
    directory = tmp_path / "leases"
    directory.mkdir()
    return directory


@pytest.fixture
def bench(engine_name: str, tmp_path: Path, leases: Path) -> Iterator[MakeBench]:
    """A run of tasks: `bench(task("echo hello"), gpus=1)`. What it leaves running is ended after the test."""
    made: list[Bench] = []

    def bench(*tasks: TaskPlan, environ: Mapping[str, str] = os.environ, **keys: Any) -> Bench:
        engine = ENGINES[engine_name](leases, environ)
        made.append(Bench.make(engine, tmp_path, plan(*tasks, **keys), f"bench-{uuid4().hex[:10]}"))
        return made[-1]

    yield bench
    for one in made:
        if one.handle is not None:
            one.stop(0)
        one.release()
        assert processes_of(one.run.id) == []
