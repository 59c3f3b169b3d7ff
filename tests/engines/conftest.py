from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any
from uuid import uuid4

import pytest
from docker_parts import Daemon, docker_daemon, docker_engine, test_base
from engines.engine_bench import ENGINES, IMAGE, PREPARED, SLURM, Bench, plan
from slurm_parts import slurm_cluster
from support import processes_of

from tfjob.dockerapi.api import DockerApi
from tfjob.engines.base import Prepared
from tfjob.planning.plan import TaskPlan
from tfjob.rundir import RunDirectory

if TYPE_CHECKING:
    from cluster.slurm import Slurm

__all__ = ["docker_daemon", "docker_engine", "slurm_cluster", "test_base"]

MakeBench = Callable[..., Bench]


MARKS = {"slurm": (pytest.mark.root, pytest.mark.xdist_group("cluster"), pytest.mark.xdist_group("slurm"))}


@pytest.fixture(params=[pytest.param(name, marks=MARKS.get(name, ())) for name in ENGINES])
def engine_name(request: pytest.FixtureRequest) -> str:
    name: str = request.param
    return name


@pytest.fixture
def leases(tmp_path: Path) -> Path:
    directory = tmp_path / "leases"
    directory.mkdir()
    return directory


@pytest.fixture
def bench(
    engine_name: str, tmp_path: Path, leases: Path, request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch
) -> Iterator[MakeBench]:
    """A run of tasks: `bench(task("echo hello"), gpus=1)`. What it leaves running is ended after the test."""
    if engine_name == "docker":
        request.getfixturevalue("test_base")  # DOCKER_HOST names an engine that has the image
    made: list[Bench] = []
    if engine_name == "slurm":
        slurm: Slurm = request.getfixturevalue("slurm_cluster")
        monkeypatch.setenv("PATH", slurm.environ["PATH"])

        def stat_of(pid: int) -> list[bytes]:
            said = slurm.nodes[0].exec(["cat", f"/proc/{pid}/stat"], check=False)
            return said.encode().rpartition(b")")[2].split()

    def bench(
        *tasks: TaskPlan, environ: Mapping[str, str] = os.environ, prepared: Prepared | None = None, **keys: Any
    ) -> Bench:
        engine = ENGINES[engine_name](leases, environ)
        if engine_name == "slurm":
            keys["slurm"] = SLURM
        run = RunDirectory(tmp_path / f"bench-{uuid4().hex[:10]}")
        made.append(Bench.make(engine, run, plan(*tasks, **keys), prepared or PREPARED[engine_name]))
        if engine_name == "slurm":
            made[-1].stat_of = stat_of
        return made[-1]

    yield bench
    for one in made:
        if one.handle is not None:
            one.stop(0)
        one.release()
        assert processes_of(one.run.id) == []


@pytest.fixture
def nothing_is_left(docker_engine: Daemon, test_base: str, tmp_path: Path) -> Iterator[None]:
    """No container of the test's runs is there when it is over."""
    assert test_base == IMAGE
    yield
    listed = DockerApi(docker_engine.host).get("/containers/json?all=1")
    assert not [one for one in listed if one["Labels"].get("tfjob.directory", "").startswith(f"{tmp_path}/")]
