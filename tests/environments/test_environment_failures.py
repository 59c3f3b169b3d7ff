"""What can go wrong while an environment is made, with the real uv: a clear error, nothing half-made left."""

from __future__ import annotations

import random
import shutil
import sys
from typing import TYPE_CHECKING

import pytest

from tfjob.durable import file_digest
from tfjob.environments import Definition
from tfjob.environments.place import Machine
from tfjob.errors import PreparationError

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from environment_parts import Made, Packages

    MakesOn = Callable[[Path], Made]
    Mounts = Callable[[str], Path]

pytestmark = pytest.mark.real
pytest_plugins = ("environment_parts",)


def failure(made: Made, *requirements: str) -> PreparationError:
    with pytest.raises(PreparationError) as caught:
        made(*requirements)
    assert made.names("prefixes") == []
    assert made.names("building") == []
    assert caught.value.hint
    return caught.value


def test_a_package_that_is_not_there(packages: Packages, made: Made) -> None:
    packages.wheel("alpha")
    error = failure(made, "alpha", "nosuch")
    assert error.message.startswith("the environment's packages could not be chosen.\n  No solution found")
    assert "nosuch" in error.message
    assert made.names("locks") == []


def test_versions_that_contradict_each_other(packages: Packages, made: Made) -> None:
    packages.wheel("alpha", requires="beta<2")
    packages.wheel("beta", "1.0")
    packages.wheel("beta", "2.0")
    error = failure(made, "alpha", "beta>=2")
    assert "alpha" in error.message
    assert "beta<2" in error.message
    assert error.hint.startswith("Loosen")


def test_a_line_that_is_no_requirement(packages: Packages, made: Made) -> None:
    packages.wheel("alpha")
    assert "===" in failure(made, "alpha ==== 1").message


def test_a_source_package_that_cannot_be_built(packages: Packages, made: Made) -> None:
    packages.sdist("gamma", before="raise ValueError('no compiler here')")
    error = failure(made, "gamma")
    assert "Failed to build" in error.message
    assert "ValueError: no compiler here" in error.message
    assert "Traceback" not in error.message


def test_an_index_that_does_not_answer(packages: Packages, made: Made, monkeypatch: pytest.MonkeyPatch) -> None:
    packages.wheel("alpha")
    monkeypatch.delenv("PIP_NO_INDEX")
    monkeypatch.setenv("PIP_INDEX_URL", "http://127.0.0.1:9/simple")
    monkeypatch.setenv("UV_HTTP_RETRIES", "0")
    error = failure(made, "elsewhere")
    assert "127.0.0.1" in error.message
    assert "`pip config list`" in error.hint


def test_a_file_that_is_not_the_locked_one(packages: Packages, made: Made) -> None:
    packages.wheel("alpha")
    made("alpha")
    for folder in ("prefixes", "known", "uv"):
        shutil.rmtree(made.store.root / folder)
    packages.wheel("alpha", files={"alpha/__init__.py": "import tampered\n"})
    error = failure(made, "alpha")
    assert "ash mismatch" in error.message
    assert str(made.store.root / "locks") in error.hint


def test_a_python_this_machine_has_not(packages: Packages, made: Made) -> None:
    packages.wheel("alpha")
    with pytest.raises(PreparationError, match=r"asks for python=3\.99; this machine has 3\.\d+"):
        made.store.prepare(Definition(python="==3.99.*"), Machine(), log=made.log.append, progress=made.steps.append)
    assert made.names("prefixes") == []


def test_a_python_is_fetched_only_from_where_the_site_says(
    packages: Packages, made: Made, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    packages.wheel("alpha")
    machine = Machine()
    machine.__dict__["interpreters"] = ()
    minor = ".".join(map(str, sys.version_info[:2]))
    asked = Definition(python=f"=={minor}.*")
    with pytest.raises(PreparationError, match="this machine has no Python") as caught:
        made.store.prepare(asked, machine, log=made.log.append, progress=made.steps.append)
    assert f"`uv python install {minor}`" in caught.value.hint
    assert made.steps == []
    monkeypatch.setenv("UV_PYTHON_INSTALL_MIRROR", (tmp_path / "mirror").as_uri())
    with pytest.raises(PreparationError, match="could not be given a Python") as caught:
        made.store.prepare(asked, machine, log=made.log.append, progress=made.steps.append)
    assert str(tmp_path / "mirror") in caught.value.message
    assert made.steps == [f"fetching Python {minor}"]
    assert made.names("building") == []


def test_without_uv_it_says_how_to_get_it(packages: Packages, made: Made, monkeypatch: pytest.MonkeyPatch) -> None:
    packages.wheel("alpha")

    def gone() -> str:
        raise FileNotFoundError("uv")

    monkeypatch.setattr("uv.find_uv_bin", gone)
    assert "pip install uv" in failure(made, "alpha").hint


@pytest.mark.root
def test_a_full_disk(packages: Packages, made_on: MakesOn, small_disk: Mounts) -> None:
    noise = random.Random(0).randbytes(3_000_000).hex()  # noqa: S311 (data that does not compress, no secret)
    packages.wheel("alpha", files={"alpha/__init__.py": "", "alpha/data.txt": noise})
    made = made_on(small_disk("size=4m"))
    error = failure(made, "alpha")
    assert "No space left on device" in error.message
    assert error.hint.startswith("Free space")
    small_disk("size=64m")
    assert made("alpha").packages == 1


@pytest.mark.root
def test_a_store_that_cannot_be_written(packages: Packages, made_on: MakesOn, small_disk: Mounts) -> None:
    packages.wheel("alpha")
    made = made_on(small_disk("size=64m"))
    prefix = made("alpha")
    small_disk("ro")
    assert made("alpha") == prefix
    with pytest.raises(PreparationError, match="Read-only file system") as caught:
        made("alpha", "alpha>=1")
    assert "can write to" in caught.value.hint


def test_a_hash_that_the_pip_section_names_is_kept(packages: Packages, made: Made) -> None:
    path = packages.wheel("alpha")
    good, bad = file_digest(path), "0" * 64
    prefix = made(f"alpha==1.0 --hash=sha256:{good} --hash=sha256:{bad}")
    assert prefix.lock.read_text().count("--hash=sha256:") >= 1
    with pytest.raises(PreparationError) as caught:
        made(f"alpha==1.0 --hash=sha256:{bad}")
    assert caught.value.message.startswith("alpha==1.0 was chosen, and none of its 1 file has a hash")
    with pytest.raises(PreparationError, match="none of its 1 file"):
        made("alpha", f"--constraint alpha==1.0 --hash=sha256:{bad}")
