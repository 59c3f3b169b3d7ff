"""What is brought home from a container that has ended, on a real Docker Engine."""

from __future__ import annotations

import io
import json
import tarfile
from typing import TYPE_CHECKING

import pytest

from tfjob.dockerapi.api import DockerApi
from tfjob.engines.cluster.home import Home
from tfjob.engines.cluster.salvage import salvage
from tfjob.rundir import RunDirectory

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping
    from pathlib import Path

    from docker_parts import Daemon

pytestmark = pytest.mark.root

RUN = "salvaged-run"
EARLIER, NOW = 1_000_000_000, 1_000_000_007


def archive(files: Mapping[str, tuple[str, int]]) -> bytes:
    """Files of the run, as (text, time of change); a text that begins with -> is a link."""
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as tar:
        for path, (text, mtime) in files.items():
            info = tarfile.TarInfo(f"tfjob/{RUN}/{path}")
            info.mtime = mtime
            if text.startswith("->"):
                info.type, info.linkname = tarfile.SYMTYPE, text[2:]
                tar.addfile(info)
            else:
                info.size = len(text)
                tar.addfile(info, io.BytesIO(text.encode()))
    return buffer.getvalue()


@pytest.fixture
def container(docker_engine: Daemon, test_base: str) -> Iterator[tuple[DockerApi, str]]:
    """A container that does not run."""
    api = DockerApi(docker_engine.host)
    made = api.create("", {"Image": test_base, "Entrypoint": ["true"], "HostConfig": {"NetworkMode": "host"}})
    yield api, made
    api.remove(made)


@pytest.fixture
def home(tmp_path: Path) -> Home:
    run = RunDirectory(tmp_path / "runs" / RUN)
    run.outputs.mkdir(parents=True)
    (run.attempts / "1").mkdir(parents=True)
    return Home.of(run, ("main-0", "main-1"))


def test_what_an_earlier_attempt_left_is_no_conflict(container: tuple[DockerApi, str], home: Home) -> None:
    api, made = container
    left = {"outputs/state": [5, EARLIER * 10**9 + 5], "outputs/last": [5, EARLIER * 10**9], "outputs/own": [5, 0]}
    files = {
        "outputs/state": ("first", EARLIER),
        "outputs/last": ("->state", EARLIER),
        "outputs/own": ("second", NOW),
        "outputs/new": ("new", NOW),
        "logs/main-1.log": ("the end", NOW),
        "tasks/main-1/exit.json": ("{}", NOW),
        "left.json": (json.dumps(left), EARLIER),
    }
    api.put(made, "/", archive(files))
    (home.run.outputs / "state").write_text("of the other node, now")
    home.whose.owners = {"outputs/state": 0}
    assert not salvage(api, made, 1, home, by_ours=lambda report: f"{report} by our clock")
    outputs = {path.name: path.read_text() for path in home.run.outputs.iterdir()}
    assert outputs == {"state": "of the other node, now", "own": "second", "new": "new"}
    assert home.notes() == ()
    assert (home.run.path / "logs/main-1.log").read_text() == "the end"
    assert (home.run.task("main-1") / "exit.json").read_text() == "{} by our clock"


def test_a_container_that_was_told_to_end_says_nothing_of_its_tasks(
    container: tuple[DockerApi, str], home: Home
) -> None:
    api, made = container
    files = {"told-to-end": ("", NOW), "tasks/main-1/exit.json": ("{}", NOW), "outputs/x": ("saved", NOW)}
    api.put(made, "/", archive(files))
    assert salvage(api, made, 1, home)
    assert (home.run.outputs / "x").read_text() == "saved"
    assert not home.run.task("main-1").exists()


@pytest.mark.parametrize(
    ("told", "end", "is_own"),
    [
        ("20.0", (19.9, False), True),
        ("20.0", (20.1, False), False),
        ("20.0", (19.9, True), False),
        ("", (19.9, False), False),
    ],
)
def test_an_end_that_came_before_the_container_was_told_to_is_the_tasks_own(
    container: tuple[DockerApi, str], home: Home, told: str, end: tuple[float, bool], is_own: bool
) -> None:
    api, made = container
    report = json.dumps({"exit_code": 3, "signal": None, "time": end[0], "stopped": end[1]})
    api.put(made, "/", archive({"told-to-end": (told, NOW), "tasks/main-1/exit.json": (report, NOW)}))
    assert salvage(api, made, 1, home, by_ours=lambda found: found.replace("19.9", "29.9"))
    found = home.run.read_task_file("main-1", "exit.json")
    assert (found and found["time"]) == (29.9 if is_own else None)
