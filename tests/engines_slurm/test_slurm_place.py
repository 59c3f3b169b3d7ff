"""Packages made here for a cluster elsewhere. The login node is a shell of this machine with programs of the test's own."""

from __future__ import annotations

import json
import os
import platform
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from environment_parts import Packages, packages

from tfjob.engines.slurm.login import Login
from tfjob.engines.slurm.place import LoginNode
from tfjob.environments import Definition, Prefix, Store, store
from tfjob.environments.place import Machine
from tfjob.environments.prefix import platform_name
from tfjob.errors import PreparationError, UsageError

if TYPE_CHECKING:
    from collections.abc import Callable

__all__ = ["packages"]

OWN = ".".join(map(str, sys.version_info[:2]))
MACHINE = platform.machine()
pytestmark = pytest.mark.skipif(
    MACHINE not in ("x86_64", "aarch64"), reason="uv knows its platforms on x86_64 and aarch64"
)


class Here(Login):
    """A login whose commands run here, with `programs` first on the PATH."""

    def __init__(self, programs: Path) -> None:
        self.address = "ssh://me@login"
        self.programs = programs
        programs.mkdir()

    def has(self, name: str, says: str) -> Path:
        """Give it a program that says something."""
        file = self.programs / name
        file.write_text(f"#!/bin/sh\ncat <<'EOF'\n{says}\nEOF\n")
        file.chmod(0o755)
        return file

    def has_python(self, version: str) -> Path:
        """Give it a Python. It can tell what it is, and nothing else."""
        major, minor, patch = map(int, version.split("."))
        name = f"python{major}.{minor}"
        said = ["cpython", [major, minor, patch, "final", 0], f"cpython-{major}{minor}", "", str(self.programs / name)]
        return self.has(name, json.dumps(said, separators=(",", ":")))

    def run(self, line: str, *, told: bytes = b"", patience_s: float = 60) -> subprocess.CompletedProcess[bytes]:
        environ = {"PATH": f"{self.programs}:/usr/bin:/bin"}
        return subprocess.run(
            ["/bin/sh", "-c", line], env=environ, input=told, capture_output=True, timeout=patience_s, check=False
        )


@pytest.fixture
def login(tmp_path: Path) -> Here:
    return Here(tmp_path / "bin there")


@pytest.fixture
def make(login: Here, tmp_path: Path) -> Callable[..., Prefix]:
    def make(*requirements: str, python: str | None = None, **environ: str) -> Prefix:
        place = LoginNode(login, Path("/shared/store"), tmp_path / "store", environ)
        wanted = Definition(python=python, requirements=requirements)
        return Store(tmp_path / "store").prepare(wanted, place, log=lambda _: None, progress=lambda _: None)

    return make


def old_glibc(login: Here) -> None:
    login.has("getconf", "glibc 2.28")


def test_a_prefix_names_the_python_over_there(login: Here, packages: Packages, make: Callable[..., Prefix]) -> None:
    python = login.has_python(f"{OWN}.99")
    packages.wheel("sample", files={"sample.py": "", "sample-1.0.data/scripts/tool": "#!python\n"})
    made = make("sample", python=f"=={OWN}.*")
    assert (made.python_version, made.final) == (f"{OWN}.99", Path("/shared/store/prefixes") / made.key)
    assert (made.path / "bin" / "python").readlink() == python
    assert (made.path / "bin" / "python3").readlink() == Path("python")
    config = (made.path / "pyvenv.cfg").read_text()
    assert f"home = {login.programs}\n" in config
    assert f"version_info = {OWN}.99\n" in config
    assert str(made.path) not in (made.path / "bin" / "tool").read_text()
    assert list(made.path.glob(f"lib/python{OWN}/site-packages/__pycache__/sample.*.pyc"))
    assert make("sample", python=f"=={OWN}.*") == made


def test_packages_fit_the_c_library_over_there(login: Here, packages: Packages, make: Callable[..., Prefix]) -> None:
    login.has_python(f"{OWN}.1")
    for version, glibc in (("1.0", "2_17"), ("2.0", "2_34")):
        wheel = packages.wheel("sample", version)
        wheel.rename(wheel.with_name(f"sample-{version}-py3-none-manylinux_{glibc}_{MACHINE}.whl"))
    old_glibc(login)
    made = make("sample", python=f"=={OWN}.*")
    assert "sample==1.0" in made.lock.read_text()
    assert f"platform: linux-{MACHINE}-glibc2.28" in made.lock.read_text()


def test_a_lock_for_an_older_c_library_serves_a_newer_one(
    login: Here, packages: Packages, make: Callable[..., Prefix], tmp_path: Path
) -> None:
    login.has_python(f"{OWN}.1")
    packages.wheel("sample")
    old_glibc(login)
    text = make("sample", python=f"=={OWN}.*").lock.read_text()
    wanted, store = Definition(python=f"=={OWN}.*", requirements=("sample",)), Store(tmp_path / "store")

    def here(lock: str) -> Prefix:
        return store.prepare(wanted, Machine(), lock=lock, log=lambda _: None, progress=lambda _: None)

    assert here(text).packages == 1
    with pytest.raises(UsageError, match=f"the lock is for linux-other-glibc2.28; this machine is {platform_name()}"):
        here(text.replace(f"platform: linux-{MACHINE}", "platform: linux-other"))


def test_what_is_compiled_here_must_run_there(login: Here, packages: Packages, make: Callable[..., Prefix]) -> None:
    login.has_python(f"{OWN}.1")
    packages.sdist("plain")
    sdist = packages.source_files("compiled")
    sdist["backend.py"] = sdist["backend.py"].replace("py3-none-any", f"py3-none-linux_{MACHINE}")
    packages.archive("compiled", sdist)
    assert make("plain", "compiled", python=f"=={OWN}.*")
    old_glibc(login)
    assert make("plain", python=f"=={OWN}.*")
    with pytest.raises(
        PreparationError, match=r"compiled-1\.0 comes as source only, and what is compiled here"
    ) as raised:
        make("plain", "compiled", python=f"=={OWN}.*")
    assert platform_name() in str(raised.value)
    assert "glibc2.28" in str(raised.value)


def test_a_python_that_only_the_login_node_has_gets_its_wheels(
    login: Here, packages: Packages, make: Callable[..., Prefix]
) -> None:
    python = login.has_python("3.77.0")
    for tag in ("cp377-cp377", f"cp{OWN.replace('.', '')}-cp{OWN.replace('.', '')}"):
        files = {"sample.py": f"TAG = {tag!r}\n", "sample-1.0.data/scripts/tool": "#!python\n"}
        wheel = packages.wheel("sample", files=files)
        wheel.rename(wheel.with_name(f"sample-1.0-{tag}-manylinux_2_17_{MACHINE}.whl"))
    made = make("sample", python="==3.77.*")
    found = sorted(
        str(path.relative_to(made.path))
        for path in made.path.rglob("*")
        if "sample" in path.name or path.name == "tool"
    )
    assert found == [
        "bin/tool",
        *(f"lib/python3.77/site-packages/{name}" for name in ("sample-1.0.dist-info", "sample.py")),
    ]
    assert "cp377" in (made.path / "lib/python3.77/site-packages/sample.py").read_text()
    links = {path.name: str(path.readlink()) for path in (made.path / "bin").glob("python*")}
    assert links == {"python": str(python), "python3": "python", "python3.77": "python"}
    assert make("sample", python="==3.77.*") == made
    place = LoginNode(login, Path("/shared/store"), made.path, {})
    [one] = [one for one in place.interpreters if one.path == python]
    identity = place.identity_of(one)
    assert place.has(identity)
    place.__dict__["_local"] = (one,)  # it has been installed here
    assert not place.has(identity)
    assert place.has(place.identity_of(one))
    place = LoginNode(login, Path("/shared/store"), made.path, {})
    with pytest.raises(PreparationError, match=r"building them for .* takes a Python 3\.77 here") as raised:
        place.builder(str(python), log=lambda _: None, progress=lambda _: None)
    assert "uv python install 3.77" in raised.value.hint


def test_what_cannot_be_made_here_is_told(login: Here, packages: Packages, make: Callable[..., Prefix]) -> None:
    packages.wheel("sample")
    with pytest.raises(PreparationError, match=r"asks for python=3\.78; the login node ssh://me@login has"):
        make("sample", python="==3.78.*")
    login.has("getconf", "glibc 2.12")
    with pytest.raises(PreparationError, match=r"it is linux-\w+-glibc2\.12"):
        make("sample")


def test_conda_is_told_what_the_nodes_have(login: Here, tmp_path: Path) -> None:
    login.has("uname", "4.18.0-553.el8.x86_64")
    login.has("nvidia-smi", "| NVIDIA-SMI 550.54 Driver Version: 550.54 CUDA Version: 12.4 |")
    old_glibc(login)

    def asked(**environ: str) -> dict[str, str]:
        return dict(LoginNode(login, Path("/shared/store"), tmp_path, environ).virtual_packages)

    expected = {"__unix": "0", "__linux": "4.18.0", "__glibc": "2.28", "__archspec": "1", "__cuda": "12.4"}
    assert asked() == expected
    assert asked(CONDA_OVERRIDE_CUDA="11.8")["__cuda"] == "11.8"
    assert "__cuda" not in asked(CONDA_OVERRIDE_CUDA="")

    def tag(version: str) -> str:
        definition = Definition(channels=("conda-forge",), packages=("numpy",))
        return store._tag(
            definition, LoginNode(login, Path("/shared/store"), tmp_path, {"CONDA_OVERRIDE_CUDA": version})
        )

    assert len({tag("11.8"), tag("12.4"), tag("")}) == 3


def test_a_script_that_starts_a_python_is_not_taken_for_it(login: Here, tmp_path: Path) -> None:
    shim = login.has("python3.99", "")
    shim.write_text(f'#!/bin/sh\nexec {sys.executable} "$@"\n')
    found = LoginNode(login, Path("/shared/store"), tmp_path, {}).interpreters
    assert os.path.realpath(sys.executable) in [str(one.path) for one in found]
    assert shim not in [one.path for one in found]


def test_a_python_from_a_channel_needs_a_machine_of_the_same_kind(login: Here, tmp_path: Path) -> None:
    place = LoginNode(login, Path("/shared/store"), tmp_path, {})
    place.require_same_processor()
    login.has("uname", "riscv64")
    other = LoginNode(login, Path("/shared/store"), tmp_path, {})
    with pytest.raises(PreparationError, match=f"is riscv64, and this machine {os.uname().machine}"):
        other.require_same_processor()
