from __future__ import annotations

import ast
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING

import conda_channel
import pytest
from image_parts import Client, output_of

from tfjob.environments import Definition, Store
from tfjob.environments.lock import Lock
from tfjob.images.bake import bake
from tfjob.images.base import BaseImage
from tfjob.images.build import _buildkit
from tfjob.images.dockerfile import conda_file, dockerfile, files
from tfjob.images.dockerfile_text import instructions, line_of, parents

if TYPE_CHECKING:
    from environment_parts import Packages

# The shell's own settings, before a test takes those of pip away.
SHELL = dict(os.environ)
LISTED = """
import importlib.metadata, sys
found = sorted((one.name, one.version) for one in importlib.metadata.distributions(path=[
    f"{sys.prefix}/lib/python{sys.version_info[0]}.{sys.version_info[1]}/site-packages"]))
print((sys.version, sys.prefix, found))
"""


def by_hand(folder: Path, tag: str, *options: str) -> None:
    """Build a folder as its README says."""
    program = _buildkit()
    if program is None:
        pytest.skip("no `docker` program with BuildKit is installed")
    environ = {**os.environ, "DOCKER_BUILDKIT": "1", "BUILDKIT_PROGRESS": "plain"}
    command = [program, "build", "--network", "host", "--tag", tag, *options, str(folder)]
    done = subprocess.run(command, env=environ, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr


def written(folder: Path, texts: dict[str, str]) -> Path:
    folder.mkdir()
    for name, text in texts.items():
        (folder / name).write_text(text, encoding="utf-8")
    return folder


def listed(client: Client, image: str) -> object:
    return ast.literal_eval(output_of(client, image, "python", "-c", LISTED))


@pytest.mark.real
@pytest.mark.root
def test_by_hand_and_baked_are_the_same(base: BaseImage, packages: Packages, client: Client, tmp_path: Path) -> None:
    packages.wheel("one", "1.5", requires="two")
    packages.wheel("two", "2.5")
    definition = Definition(python="==3.11.*", requirements=("one",))
    prefix = Store(base.store_root).prepare(definition, base, log=print, progress=print)
    baked = bake(prefix, base, store_root=base.store_root, log=print, progress=print)
    lock = Lock.parse(prefix.lock.read_text(encoding="utf-8"))
    folder = written(tmp_path / "by-hand", files(lock, base.reference, definition=definition))
    assert {path.name for path in folder.iterdir()} == {
        "Dockerfile",
        "README.md",
        "environment.lock",
        "environment.yml",
        "requirements.txt",
    }
    assert not [path for path in folder.iterdir() if str(packages.folder) in path.read_text(encoding="utf-8")]
    shutil.copytree(packages.folder, folder / "wheels")
    settings = tmp_path / "pip.conf"
    settings.write_text("[global]\nno-index = true\n", encoding="utf-8")
    by_hand(folder, "tfjob-test/by-hand:pip", "--secret", f"id=pip,src={settings}")
    ours, theirs = listed(client, baked), listed(client, "tfjob-test/by-hand:pip")
    assert ours == theirs
    assert "two" in str(ours)
    assert output_of(client, "tfjob-test/by-hand:pip", "cat", "/opt/env/environment.lock") == lock.text.strip()
    client.images.remove(f"tfjob/env:{prefix.key}")


@pytest.mark.real
@pytest.mark.root
def test_a_conda_python_by_hand_and_baked(base: BaseImage, packages: Packages, client: Client, tmp_path: Path) -> None:
    packages.wheel("one", "1.5")
    definition = Definition(
        python=f"=={conda_channel.PYTHON}.*",
        requirements=("one",),
        packages=("greet",),
        channels=(conda_channel.channel().as_uri(),),
    )
    prefix = Store(base.store_root).prepare(definition, base, log=print, progress=print)
    baked = bake(prefix, base, store_root=base.store_root, log=print, progress=print)
    lock = Lock.parse(prefix.lock.read_text(encoding="utf-8"))
    folder = written(tmp_path / "by-hand", files(lock, base.reference, definition=definition))
    assert {"conda.lock", "conda_installer.py"} <= {path.name for path in folder.iterdir()}
    wheels, conda = folder / "wheels", folder / "conda"
    shutil.copytree(packages.folder, wheels)
    conda.mkdir()
    for path in conda_channel.channel().rglob("*.conda"):
        shutil.copy(path, conda)
    command = [sys.executable, "-m", "pip", "download", "-q", "--only-binary", ":all:", "-d", str(wheels), "py-rattler"]
    done = subprocess.run(command, env=SHELL, capture_output=True, text=True, check=False)
    if done.returncode:
        pytest.skip(f"py-rattler cannot be downloaded here: {done.stderr[-200:]}")
    settings = tmp_path / "pip.conf"
    settings.write_text("[global]\nno-index = true\n", encoding="utf-8")
    by_hand(folder, "tfjob-test/by-hand:conda", "--secret", f"id=pip,src={settings}")
    ours, theirs = listed(client, baked), listed(client, "tfjob-test/by-hand:conda")
    assert ours == theirs
    assert "/opt/env" in str(ours)
    assert output_of(client, baked, "greet") == output_of(client, "tfjob-test/by-hand:conda", "greet")
    client.images.remove(f"tfjob/env:{prefix.key}")


def lock_of(pip_text: str, conda: object = None) -> Lock:
    return Lock.make(
        definition="d" * 64,
        asked=["one"],
        python_version="3.11.7",
        platform="linux-x86_64-glibc2.36",
        base="debian:12",
        pip_text=pip_text,
        conda=conda,  # type: ignore[arg-type]
    )


def test_where_packages_come_from_is_not_written_down() -> None:
    lock = lock_of("--index-url https://index.example/simple\n--find-links /srv/wheels\none==1.0 --hash=sha256:ab\n")
    found = files(lock, "debian:12@sha256:00")
    assert found["requirements.txt"] == "one==1.0 --hash=sha256:ab\n"
    for name in set(found) - {"environment.lock"}:
        assert "index.example" not in found[name]
        assert "/srv/wheels" not in found[name]
    assert "ARG BASE=debian:12@sha256:00\n" in found["Dockerfile"]
    assert "--require-hashes" in found["Dockerfile"]
    assert "--require-hashes" not in dockerfile(lock_of("one @ git+https://example.org/one@0123\n"), "debian:12")
    assert "openssh" not in dockerfile(lock, "debian:12", ssh=False)


def test_a_dockerfile_is_the_same_each_time() -> None:
    lock = lock_of("one==1.0 --hash=sha256:ab\n")
    assert dockerfile(lock, "debian:12") == dockerfile(Lock.parse(lock.text), "debian:12")


def test_a_conda_file_of_a_definition() -> None:
    import yaml  # noqa: PLC0415  # only here

    definition = Definition(
        python="==3.11.*",
        requirements=("one<2", "--pre"),
        has_pip=True,
        packages=("numpy 1.26.*",),
        channels=("conda-forge",),
        variables=(("A", "1"),),
    )
    assert yaml.safe_load(conda_file(definition)) == {
        "channels": ["conda-forge"],
        "dependencies": ["python=3.11", "pip", "numpy 1.26.*", {"pip": ["one<2", "--pre"]}],
        "variables": {"A": "1"},
    }
    assert yaml.safe_load(conda_file(Definition(python=">=3.10,<3.12"))) == {"dependencies": ["python >=3.10,<3.12"]}
    assert yaml.safe_load(conda_file(Definition(python="==3.11.7"))) == {"dependencies": ["python==3.11.7"]}


def test_instructions_and_their_lines() -> None:
    text = """\
# escape=`
ARG A=1
# a comment
FROM image:${A} AS one
RUN a `
  # a comment between
  b
RUN <<END
FROM not-an-instruction
END
COPY --from=one  x   /x
FROM one
FROM other:$B
"""
    assert [(one.line, one.text) for one in instructions(text)] == [
        (2, "ARG A=1"),
        (4, "FROM image:${A} AS one"),
        (5, "RUN a b"),
        (8, "RUN <<END"),
        (11, "COPY --from=one x /x"),
        (12, "FROM one"),
        (13, "FROM other:$B"),
    ]
    assert parents(text, {}) == ("image:1", "other:")
    assert parents(text, {"A": "2"}) == ("image:2", "other:")
    assert line_of(text, "RUN a b") == 5
    assert line_of(text, "FROM image:7 AS one") == 4
    assert line_of(text, "COPY --from=one x") == 11
    assert line_of(text, "nothing") is None


def test_arguments_in_from() -> None:
    text = "ARG V\nARG W=${V:-x}\nFROM --platform=linux/amd64 ${R:-registry}/a:$W\nFROM scratch\nFROM b${V:+-set}\n"
    assert parents(text, {}) == ("registry/a:x", "b")
    assert parents(text, {"V": "1"}) == ("registry/a:1", "b-set")
