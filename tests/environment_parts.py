"""Real packages of the tests' own: wheels, source packages and a store, without any index."""

from __future__ import annotations

import base64
import hashlib
import io
import os
import subprocess
import tarfile
import zipfile
from typing import TYPE_CHECKING

import pytest

from tfjob.environments import Definition, Prefix, Store
from tfjob.environments.place import Machine

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping
    from pathlib import Path

MACHINE = Machine()
BACKEND = """
import os, time, zipfile
def build_wheel(wheel_directory, config_settings=None, metadata_directory=None):
    {before}
    name, info = "{name}-{version}-py3-none-any.whl", "{name}-{version}.dist-info"
    with zipfile.ZipFile(os.path.join(wheel_directory, name), "w") as wheel:
        wheel.writestr("{name}.py", "VALUE = 'from source'\\n")
        wheel.writestr(info + "/METADATA", "Metadata-Version: 2.1\\nName: {name}\\nVersion: {version}\\n")
        wheel.writestr(info + "/WHEEL", "Wheel-Version: 1.0\\nRoot-Is-Purelib: true\\nTag: py3-none-any\\n")
        wheel.writestr(info + "/RECORD", "")
    return name
"""
PROJECT = '[build-system]\nrequires = []\nbuild-backend = "backend"\nbackend-path = ["."]\n'
PROJECT += '[project]\nname = "{name}"\nversion = "{version}"\n'


class Packages:
    """A folder of packages that pip's configuration names as the only place to look."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        folder.mkdir()

    def wheel(
        self, name: str, version: str = "1.0", files: Mapping[str, str] | None = None, requires: str = ""
    ) -> Path:
        info = f"{name}-{version}.dist-info"
        needs = f"Requires-Dist: {requires}\n" if requires else ""
        content = dict(files or {f"{name}/__init__.py": f"VERSION = '{version}'\n"})
        content[f"{info}/METADATA"] = f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n{needs}"
        content[f"{info}/WHEEL"] = "Wheel-Version: 1.0\nGenerator: tests\nRoot-Is-Purelib: true\nTag: py3-none-any\n"
        record = f"{info}/RECORD,,\n"
        path = self.folder / f"{name}-{version}-py3-none-any.whl"
        with zipfile.ZipFile(path, "w") as wheel:
            for file, text in content.items():
                digest = base64.urlsafe_b64encode(hashlib.sha256(text.encode()).digest()).rstrip(b"=").decode()
                record += f"{file},sha256={digest},{len(text.encode())}\n"
                wheel.writestr(file, text)
            wheel.writestr(f"{info}/RECORD", record)
        return path

    def source_files(self, name: str, version: str = "1.0", before: str = "pass") -> dict[str, str]:
        return {
            "backend.py": BACKEND.format(name=name, version=version, before=before),
            "pyproject.toml": PROJECT.format(name=name, version=version),
        }

    def sdist(self, name: str, version: str = "1.0", before: str = "pass") -> Path:
        return self.archive(name, self.source_files(name, version, before), version)

    def archive(self, name: str, files: dict[str, str], version: str = "1.0") -> Path:
        files["PKG-INFO"] = f"Metadata-Version: 2.2\nName: {name}\nVersion: {version}\n"
        path = self.folder / f"{name}-{version}.tar.gz"
        with tarfile.open(path, "w:gz") as archive:
            for file, text in files.items():
                member = tarfile.TarInfo(f"{name}-{version}/{file}")
                member.size = len(text.encode())
                archive.addfile(member, io.BytesIO(text.encode()))
        return path


class Made:
    """A store, and what its last preparation said."""

    def __init__(self, root: Path) -> None:
        self.store = Store(root)
        self.steps: list[str] = []
        self.log: list[str] = []

    def __call__(self, *requirements: str) -> Prefix:
        self.steps.clear()
        self.log.clear()
        wanted = Definition(requirements=requirements)
        return self.store.prepare(wanted, MACHINE, log=self.log.append, progress=self.steps.append)

    def names(self, folder: str) -> list[str]:
        path = self.store.root / folder
        return sorted(one.name for one in path.iterdir()) if path.exists() else []


@pytest.fixture
def packages(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Packages:
    for name in [one for one in os.environ if one.startswith(("PIP_", "UV_"))]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("PIP_CONFIG_FILE", os.devnull)
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(tmp_path / "packages"))
    return Packages(tmp_path / "packages")


@pytest.fixture
def made(tmp_path: Path) -> Made:
    return Made(tmp_path / "store")


@pytest.fixture
def made_on() -> Callable[[Path], Made]:
    """Makes a store in a directory of the test's choice."""
    return Made


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Callable[[str], Path]]:
    """Mounts a disk in memory with the options given, and remounts it when called again; needs root."""
    place = tmp_path / "disk"
    place.mkdir()
    mounted = False

    def mount(options: str) -> Path:
        nonlocal mounted
        kind = ["-o", f"remount,{options}"] if mounted else ["-t", "tmpfs", "-o", options, "tfjob-test"]
        done = subprocess.run(["mount", *kind, place], check=False, capture_output=True, text=True)
        if done.returncode and not mounted:
            pytest.skip(f"this machine mounts nothing: {done.stderr.strip()}")
        assert done.returncode == 0, done.stderr
        mounted = True
        return place

    if os.geteuid() != 0:
        pytest.skip("needs root to mount a small disk")
    yield mount
    if mounted:
        subprocess.run(["umount", "-l", place], check=True)
