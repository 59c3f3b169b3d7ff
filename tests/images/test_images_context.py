from __future__ import annotations

import secrets
import signal
import threading
from typing import TYPE_CHECKING

import pytest
from build_parts import BUILDS, Context, builder, context, sleeping
from image_parts import Client, output_of, program
from support import eventually

from tfjob.errors import PreparationError
from tfjob.images.build import _has_bridge

if TYPE_CHECKING:
    from pathlib import Path

__all__ = ["builder", "context"]

pytestmark = [pytest.mark.real, pytest.mark.root]


def test_an_image_that_files_are_copied_from(context: Context, client: Client, builder: str) -> None:
    name = f"tfjob-test/source:{secrets.token_hex(4)}"
    other = Context(context.folder / "other", context.store_root, context.base)
    context.write(".dockerignore", "other\n")
    context.write("Dockerfile", f"FROM BASE\nCOPY --from={name} /word /word\n")
    built = []
    for word in ("one", "two"):
        other.write("Dockerfile", f"FROM BASE\nRUN echo {word} >/word\n")
        client.images.get(other.build()).tag(name)
        built.append(context.build())
        assert output_of(client, built[-1], "cat", "/word") == word, builder
    assert context.build() == built[1]
    assert context.steps == []
    client.images.remove(name)


def test_what_is_sent_is_what_is_in_the_key(context: Context, client: Client, builder: str) -> None:
    context.write("Dockerfile", "FROM BASE\nCOPY . /app/\nRUN touch /done\n")
    context.write(".dockerignore", "# left out\nsecret\nfolder/*\n!folder/kept\n")
    for folder in ("folder", "folder/.tfjob", ".tfjob"):
        (context.folder / folder).mkdir()
    for file in ("secret", "folder/kept", "folder/left", "folder/.tfjob/state", ".tfjob/state", "script"):
        context.write(file, f"{builder} {secrets.token_hex(4)}")
    (context.folder / "link").symlink_to("script")
    image = context.build()
    found = output_of(client, image, "sh", "-c", "cd /app && find . | sort | tr '\\n' ' '").split()
    assert found == [".", "./.dockerignore", "./Dockerfile", "./folder", "./folder/kept", "./link", "./script"]
    for file in ("secret", "folder/left", "folder/.tfjob/state", ".tfjob/state"):
        context.write(file, "changed")
    assert context.build() == image
    (context.folder / "script").chmod(0o700)
    changed = context.build()
    assert output_of(client, changed, "stat", "-c", "%a", "/app/script") == "700"
    (context.folder / "folder").chmod(0o711)
    again = context.build()
    assert context.steps[0] == "building Dockerfile"
    # The BuildKit of Docker 20.10 takes no notice of a folder's mode alone.
    assert again != changed or builder == "buildkit"


def test_a_dockerfile_outside_of_its_context(context: Context, client: Client, builder: str) -> None:
    inside = context.folder / "inside"
    inside.mkdir()
    (inside / "file").write_text(builder, encoding="utf-8")
    context.write("Dockerfile", "FROM BASE\nCOPY . /app/\n")
    image = context.build_in(inside)
    assert output_of(client, image, "find", "/app", "-type", "f") == "/app/file"


def test_a_stage_that_is_not_needed_is_not_pulled(context: Context) -> None:
    context.write("Dockerfile", "ARG A=1 B=BASE\nFROM 127.0.0.1:1/none:1 AS unused\nFROM $B\nCOPY file /file\n")
    context.write("file", secrets.token_hex(4))
    image = context.build()
    assert context.build() == image
    assert context.steps == []


def test_what_is_not_understood_is_left_to_the_builder(context: Context, builder: str) -> None:
    repository, tag = context.base.split(":")
    context.write("Dockerfile", f"ARG A={tag}.x\nFROM {repository}:${{A%.*}}\nCOPY Dockerfile /file\n")
    for _ in range(2):
        with pytest.raises(PreparationError, match="could not be built"):  # this old one neither
            context.build()
        assert context.steps[0] == "building Dockerfile", builder
    context.write("Dockerfile", f"FROM --platform=linux/${{A:-any}} {context.base}\nRUN true\n")


def test_a_missing_dockerfile_or_folder(context: Context) -> None:
    with pytest.raises(PreparationError, match="there is no Dockerfile") as caught:
        context.build()
    assert "Correct its path" in caught.value.hint
    context.write("Dockerfile", "FROM BASE\n")
    with pytest.raises(PreparationError, match="there is no folder"):
        context.build_in(context.folder / "none")


def test_a_killed_build_is_canceled(context: Context, builder: str) -> None:
    step = f"DOCKER-BUILD-GOES-ON-{secrets.token_hex(8)}"  # that of no other test: they build at the same time
    context.write("Dockerfile", f"FROM BASE\nRUN echo started; sleep 300; echo {step}\n")
    process = program(BUILDS, str(context.folder))
    assert process.stdout is not None
    for line in process.stdout:
        if line.rstrip().endswith("started") and "echo" not in line:
            break
    assert sleeping(step), builder
    process.send_signal(signal.SIGKILL)
    process.communicate(timeout=60)  # nothing holds its pipes any more
    eventually(lambda: not sleeping(step), "the step has ended")


@pytest.mark.usefixtures("builder")
def test_two_builds_of_the_same(context: Context, tmp_path: Path) -> None:
    context.write("Dockerfile", f"FROM BASE\nCOPY file /file\nRUN echo started && echo {secrets.token_hex(4)}\n")
    context.write("file", secrets.token_hex(4))
    second = Context(tmp_path / "second", context.store_root, context.base)
    second.folder = context.folder

    arrived, waits = threading.Event(), threading.Event()

    def hold(step: str) -> None:  # the first holds the lock, and the engine knows nothing of it yet
        if step == "building Dockerfile":
            arrived.set()
            assert waits.wait(120), "the second does not wait for the first"

    context.heard = hold
    second.heard = lambda _: waits.set()
    images: list[str] = []
    first = threading.Thread(target=lambda: images.append(context.build()))
    first.start()
    assert arrived.wait(120), "it builds"
    images.append(second.build())
    first.join(60)
    assert images[0] == images[1]
    assert second.lines == []
    assert second.steps == ["waiting for another tfjob that builds this environment"]
    assert not list((context.store_root / "building").iterdir())


def test_only_the_network_of_that_name_is_the_bridge(client: Client) -> None:
    before = any(one.name == "bridge" for one in client.networks.list())
    network = client.networks.create(f"tfjob-test-bridge-{secrets.token_hex(4)}", driver="bridge", internal=True)
    try:
        assert _has_bridge() == before
    finally:
        network.remove()


def test_a_store_that_cannot_be_written(context: Context, tmp_path: Path) -> None:
    context.write("Dockerfile", "FROM BASE\nRUN true\n")
    context.store_root = tmp_path / "file"
    context.store_root.touch()
    with pytest.raises(PreparationError, match=f"the store {context.store_root} cannot be written") as caught:
        context.build()
    assert "Free space in it" in caught.value.hint
