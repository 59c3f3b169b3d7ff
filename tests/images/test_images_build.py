from __future__ import annotations

import secrets
import signal
import subprocess
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from build_parts import BUILDS, Context, builder, context, sleeping
from docker_parts import BARE, CannotRunError, base_image, own_engine
from image_parts import Client, output_of, program
from support import eventually

from tfjob.environments.prefix import Prefix
from tfjob.errors import PreparationError, TargetError
from tfjob.images.bake import bake
from tfjob.images.base import base_image as place_of
from tfjob.images.engine import find_image

if TYPE_CHECKING:
    from docker_parts import Daemon

__all__ = ["builder", "context"]

pytestmark = [pytest.mark.real, pytest.mark.root]


def test_a_dockerfile_is_built_once_for_its_content(context: Context, client: Client, builder: str) -> None:
    context.write("Dockerfile", """\
        ARG FROM=BASE
        FROM $FROM AS first
        ARG WORD=none
        COPY . /context
        RUN echo "the word is $WORD" | tee /word
        FROM first
        RUN echo from \\
            the second >/second
        """)  # fmt: skip
    context.write(".dockerignore", "ignored\n")
    builder += f" {secrets.token_hex(8)}"  # never built before
    context.write("file", builder)
    context.write("ignored", "1")
    image = context.build(WORD="one")
    assert output_of(client, image, "cat", "/word", "/context/file") == f"the word is one\n{builder}"
    assert any("the word is one" in line for line in context.lines)
    assert any(step.startswith("step ") and "echo" in step for step in context.steps)
    assert any("classic builder" in line for line in context.lines) == builder.startswith("classic")

    assert context.build(WORD="one") == image
    context.write("ignored", "2")
    assert context.build(WORD="one") == image
    assert context.steps == []
    context.write("file", f"{builder} changed")
    assert context.build(WORD="one") != image
    assert context.build(WORD="two") != image


@pytest.mark.usefixtures("builder")
def test_a_failing_instruction_is_named(context: Context) -> None:
    context.write("Dockerfile", """\
        # a comment

        FROM BASE
        RUN true
        RUN echo before the end && \\
            ls /no/such/file
        """)  # fmt: skip
    with pytest.raises(PreparationError) as caught:
        context.build()
    said = caught.value.message
    assert f"{context.folder}/Dockerfile:5 could not be built: RUN echo before the end" in said
    assert "before the end\n" in said
    assert "/no/such/file" in said


@pytest.mark.usefixtures("builder")
def test_a_wrong_dockerfile(context: Context) -> None:
    context.write("Dockerfile", "FROM BASE\nRUNN true\n")
    with pytest.raises(
        PreparationError, match=r"Dockerfile:2 could not be built[^:]*\n.*(?i:unknown instruction: runn)"
    ):
        context.build()


@pytest.mark.usefixtures("builder")
def test_a_missing_file(context: Context) -> None:
    context.write("Dockerfile", "FROM BASE\nRUN true\nCOPY none /none\n")
    with pytest.raises(PreparationError, match=r"Dockerfile:3 could not be built: COPY none /none"):
        context.build()


def test_a_base_that_is_nowhere(context: Context) -> None:
    context.write("Dockerfile", "ARG TAG=1\nFROM 127.0.0.1:1/none:${TAG}\n")
    with pytest.raises(PreparationError, match=r"has no image 127\.0\.0\.1:1/none:7") as caught:
        context.build(TAG="7")
    assert "docker load" in caught.value.hint


def test_an_interrupted_build_leaves_nothing(context: Context, builder: str) -> None:
    step = f"DOCKER-BUILD-GOES-ON-{secrets.token_hex(8)}"  # that of no other test: they build at the same time
    context.write("Dockerfile", f"FROM BASE\nRUN echo started; sleep 300; echo {step}\n")
    process = program(BUILDS, str(context.folder))
    assert process.stdout is not None
    for line in process.stdout:
        if line.rstrip().endswith("started") and "echo" not in line:
            break
    process.send_signal(signal.SIGTERM)
    process.communicate(timeout=60)
    assert process.returncode != 0, builder
    eventually(lambda: not sleeping(step), "the step has ended")


@pytest.mark.usefixtures("builder")
def test_an_engine_that_stops_in_a_build(
    tmp_path: Path, store_root: Path, docker_daemon: Daemon, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert docker_daemon
    with own_engine(tmp_path / "data") as daemon:
        monkeypatch.setenv("DOCKER_HOST", daemon.host)
        context = Context(tmp_path / "context", store_root, base_image(daemon, BARE))
        context.write("Dockerfile", "FROM BASE\nRUN echo started && sleep 300\n")
        failures: list[PreparationError] = []

        def run() -> None:
            try:
                context.build()
            except PreparationError as error:
                failures.append(error)

        thread = threading.Thread(target=run)
        thread.start()
        eventually(
            lambda: any(line.rstrip().endswith("started") and "echo" not in line for line in context.lines), "it builds"
        )
        daemon.kill()
        thread.join(60)
        assert [str(one).partition(" while ")[0] for one in failures] == [
            f"the Docker Engine at {daemon.host} stopped answering"
        ]
        with pytest.raises(TargetError):
            context.build()
        daemon.start()
        context.write("Dockerfile", "FROM BASE\nRUN true\n")
        assert context.build().startswith("sha256:")


@pytest.fixture
def small_engine(docker_engine: Daemon, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Daemon]:
    """An engine with a data root of 400 MB, as the one that DOCKER_HOST names."""
    assert docker_engine.runs
    data = tmp_path / "data"
    data.mkdir()
    if subprocess.run(["mount", "-t", "tmpfs", "-o", "size=400m", "tmpfs", str(data)], check=False).returncode:
        pytest.skip("no tmpfs can be mounted here")
    try:
        with own_engine(data) as daemon:
            monkeypatch.setenv("DOCKER_HOST", daemon.host)
            yield daemon
    except CannotRunError as reason:
        pytest.skip(str(reason))
    finally:
        subprocess.run(["umount", "-l", str(data)], check=True)


@pytest.mark.usefixtures("builder")
def test_an_engine_without_space(small_engine: Daemon, tmp_path: Path, store_root: Path) -> None:
    context = Context(tmp_path / "context", store_root, base_image(small_engine, BARE))
    context.write("Dockerfile", "FROM BASE\nRUN head -c 500000000 /dev/urandom >/big\n")
    with pytest.raises(PreparationError, match=r"(?i)no space left on device") as caught:
        context.build()
    assert "Free space in the Docker Engine's data root" in caught.value.hint


def test_a_baked_image_without_space(small_engine: Daemon, tmp_path: Path, store_root: Path) -> None:
    base = place_of(base_image(small_engine, BARE), store_root=store_root, log=print, progress=print)
    path, lock = tmp_path / "prefix", tmp_path / "lock"
    path.mkdir()
    (path / "big").write_bytes(bytes(400_000_000))
    lock.write_text("version: 1\n", encoding="utf-8")
    prefix = Prefix(path, secrets.token_hex(16), "3.11.2", 0, lock, Path("/opt/env"))
    with pytest.raises(PreparationError, match=r"(?i)no space left on device") as caught:
        bake(prefix, base, store_root=store_root, log=print, progress=print, ssh=False)
    assert "docker system df" in caught.value.hint
    assert find_image(f"tfjob/env:{prefix.key}") is None
