from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from tfjob.environments import curated
from tfjob.environments.definition import definition_of
from tfjob.environments.registered import NamedEnvironment, clone, entries, entry, find, register, remove
from tfjob.errors import NotFound, PreparationError, UsageError
from tfjob.snapshot import scan, take
from tfjob.spec.environment_file import EnvironmentFile, load
from tfjob.spec.job import EnvironmentSpec
from tfjob.workspace import make_workspace

Registered = Callable[..., NamedEnvironment]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    folder = tmp_path / "source"
    (folder / "docker").mkdir(parents=True)
    (folder / "docker" / "Dockerfile").write_text("FROM scratch\nCOPY tool /\n")
    (folder / "docker" / "tool").write_text("#!/bin/sh\n")
    (tmp_path / "channel").mkdir()
    (folder / "limits.txt").write_text("numpy<2\nprotobuf<5\n")
    (folder / "more.txt").write_text("keras\n-c other.txt\n")
    (folder / "other.txt").write_text("h5py<4\n")
    return folder


@pytest.fixture
def root(tmp_path: Path) -> Path:
    return make_workspace(tmp_path)[0].environments


@pytest.fixture
def registered(folder: Path, root: Path) -> Registered:
    """Register the text of an environment file, delete everything it named, and return what its name stands for."""

    def keep(directory: Path) -> str:
        snapshot = scan(directory)
        take(snapshot, root.parent / "snapshots")
        return snapshot.digest

    def registered(text: str, **options: object) -> NamedEnvironment:
        made = register(read(folder, text), root, keep_context=keep, **options)  # type: ignore[arg-type]
        shutil.rmtree(folder)
        return find(made.full_name, root)

    return registered


def read(folder: Path, text: str) -> EnvironmentFile:
    (folder / "env.yml").write_text(text)
    return load(folder / "env.yml")


def no_context(path: Path) -> str:
    raise AssertionError(path)


PACKAGES = """\
name: tf
version: 7
description: Words.
tags: {team: demo}
base: gpu
environment_variables: {A: b}
conda:
  channels: [conda-forge, ../channel]
  dependencies:
    - python>=3.10,<3.12
    - pip=24.*
    - libjpeg-turbo=3
    - pip: [-c limits.txt, numpy, -f wheels, -r more.txt, --pre, "scipy ; python_version > '3'"]
  variables: {C: d}
"""


def test_packages_mean_the_same_when_their_files_are_gone(folder: Path, root: Path, registered: Registered) -> None:
    file = read(folder, PACKAGES)
    wanted = definition_of(file.spec, base_dir=file.base_dir)
    found = registered(PACKAGES)
    assert definition_of(found.spec, base_dir=root) == wanted
    assert wanted is not None
    assert wanted.requirements[:3] == ("pip==24.*", "--constraint numpy<2", "--constraint protobuf<5")
    assert (found.full_name, found.variables, found.spec.base) == ("tf@7", (("A", "b"),), "gpu")
    assert (found.description, found.tags) == ("Words.", (("team", "demo"),))
    kept = json.loads((root / "tf" / "7.json").read_text())["content"]
    assert kept["conda"]["dependencies"][:3] == ["python >=3.10,<3.12", "pip", "libjpeg-turbo=3"]
    assert "--constraint h5py<4" in kept["conda"]["dependencies"][3]["pip"]


@pytest.mark.parametrize(
    "dependencies", ["[python]", "[python=3.11.*=*_cpython, pip]", "[{pip: [numpy]}]", "[python==3.11.7]", "[numpy=2]"]
)
def test_every_form_of_packages_comes_back(folder: Path, root: Path, registered: Registered, dependencies: str) -> None:
    text = f"name: a\nconda: {{channels: [c], dependencies: {dependencies}}}\n"
    wanted = definition_of(read(folder, text).spec, base_dir=folder)
    assert definition_of(registered(text).spec, base_dir=root) == wanted


def test_a_dockerfile_builds_when_its_folder_is_gone(root: Path, registered: Registered) -> None:
    found = registered("name: d\ndockerfile: docker/Dockerfile\nbuild_arguments: {V: 3.10}\n").spec
    assert found.dockerfile is not None
    assert found.build_context is not None
    assert found.dockerfile.read_text() == "FROM scratch\nCOPY tool /\n"
    assert (found.build_context / "tool").read_text() == "#!/bin/sh\n"
    assert found.build_arguments == (("V", "3.10"),)
    shutil.rmtree(root / ".files")
    again = find("d", root).spec.dockerfile
    assert again is not None
    assert again.is_file(), "the entry itself has the text"
    shutil.rmtree(found.build_context)
    with pytest.raises(PreparationError, match=r"d@1 can't be built: its build context .* is no longer"):
        find("d", root)


def test_an_image(root: Path, registered: Registered) -> None:
    assert registered("name: i\nimage: r/i:1\n").spec == EnvironmentSpec(image="r/i:1")
    assert find("i", root).variables == ()


def test_comments_and_layout_make_no_new_version(folder: Path, root: Path) -> None:
    first = register(read(folder, "name: a\nconda: {dependencies: [python=3.11]}"), root, keep_context=no_context)
    again = register(
        read(folder, "# words\ndescription: other\nname: a\nconda:\n  dependencies:\n    - python 3.11.*\n"),
        root,
        keep_context=no_context,
    )
    assert (again.version, again.is_new, first.is_new) == ("1", False, True)
    with pytest.raises(UsageError, match=r'conda\.dependencies: with "python ==3\.12\.\*"'):
        register(read(folder, "name: a\nconda: {dependencies: [python=3.12]}"), root, keep_context=no_context)


def test_names_of_the_command_win(folder: Path, root: Path) -> None:
    made = register(read(folder, "name: a\nversion: 1\nimage: i"), root, keep_context=no_context, name="b", version="x")
    assert made.full_name == "b@x"
    with pytest.raises(UsageError, match="the environment file has no name"):
        register(read(folder, "image: i"), root, keep_context=no_context)
    with pytest.raises(UsageError, match="tfjob's own"):
        register(read(folder, "name: tfjob-x\nimage: i"), root, keep_context=no_context)


def test_packages_that_cannot_be_register_nothing(folder: Path, root: Path) -> None:
    file = EnvironmentFile(EnvironmentSpec(conda={"dependencies": [{"pip": ["-e ."]}]}), name="a", base_dir=folder)
    with pytest.raises(PreparationError, match="editable"):
        register(file, root, keep_context=no_context)
    assert [one.name for one in entries(root)] == list(curated.names())


def test_the_lock_beside_a_conda_file_is_kept(folder: Path, root: Path) -> None:
    (folder / "environment.yml").write_text("name: tf\ndependencies: [python=3.11]\n")
    file = load(folder / "environment.yml")
    (folder / "environment.lock").write_text("# words\nversion: 1\ndefinition: 0000\n")
    with pytest.raises(UsageError, match=r"environment\.lock is not of the packages in .*environment\.yml"):
        register(file, root, keep_context=no_context)
    definition = definition_of(file.spec)
    assert definition is not None
    text = f"# words\nversion: 1\ndefinition: {definition.digest()}\n"
    (folder / "environment.lock").write_text(text)
    assert register(file, root, keep_context=no_context).is_new
    assert find("tf", root).lock == text


def test_curated_environments_are_found_and_listed_and_cannot_be_removed(root: Path) -> None:
    name = curated.names()[0]
    assert find(name, None).full_name == find(f"{name}@1", root).full_name == f"{name}@1"
    assert [one.name for one in entries(None)] == list(curated.names())
    with pytest.raises(NotFound, match="has no version '99' in this version of tfjob"):
        find(f"{name}@99", root)
    with pytest.raises(NotFound) as caught:
        find(name.replace("tensorflow", "tensorflwo"), root)
    assert caught.value.hint == f"Did you mean {name}?"
    with pytest.raises(UsageError, match="comes with tfjob and can't be removed"):
        remove(name, root)


def test_what_is_not_there(root: Path) -> None:
    with pytest.raises(NotFound, match="there is no environment 'tf' in this workspace"):
        find("tf", root)
    with pytest.raises(NotFound, match="there is no workspace to have it registered in") as caught:
        find("tf", None)
    assert "tfjob env create -f FILE" in caught.value.hint
    with pytest.raises(NotFound) as caught:
        find("tensorflow-2.15-cpu", root)
    assert caught.value.hint == "Did you mean tfjob-tensorflow-2.15-cpu?"


def test_cloning(root: Path) -> None:
    name = curated.names()[0]
    made = clone(name, "mine", root)
    assert (made.full_name, made.digest) == ("mine@1", entry(name, None).digest)
    assert find("mine", root).spec == find(name, None).spec
    assert not clone("mine@1", "mine", root).is_new
    assert [one.full_name for one in remove("mine", root)] == ["mine@1"]
    with pytest.raises(UsageError, match="tfjob's own"):
        clone(name, "tfjob-mine", root)
