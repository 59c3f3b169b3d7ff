"""A source package of the tests' own: a C library that is linked, when it is built, to one from another package."""

from __future__ import annotations

import fcntl
import io
import os
import subprocess
import sys
import sysconfig
import tarfile
import zipfile
from typing import TYPE_CHECKING, Any

import pytest
from environment_parts import Packages
from support import REPOSITORY

from tfjob.durable import file_digest
from tfjob.environments import recipes, wheels
from tfjob.environments.lock import Lock
from tfjob.environments.pip_settings import configuration_files, uv_settings
from tfjob.environments.place import Machine
from tfjob.environments.uv import Uv, find_uv

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

    from tfjob.environments.place import Place

RECIPES = """
tiny:
  versions: ["1.0"]
  tested: Base 1.0
  number: 1
  minutes: 1
  requires: [tinybase]
  against: {Base: [tinybase]}
  tools: [pip]
  programs: {a C compiler: {names: [cc], debian: gcc}}
  variables: {TINY_JOBS: "-j{jobs}", TINY_SAYS: "{files}/say"}
  files: {say: "#!/bin/sh\\necho said\\n"}
  passed: [CFLAGS]
"""
# Compiles against, and links to, what the package tinybase put into the build environment.
BACKEND = """
import os, subprocess, sys, zipfile
def build_wheel(wheel_directory, config_settings=None, metadata_directory=None):
    import tinybase
    assert os.environ["TINY_JOBS"].startswith("-j") and "LEAKED_LDFLAGS" not in os.environ.get("LDFLAGS", "")
    assert subprocess.check_output([os.environ["TINY_SAYS"]]) == b"said\\n"
    for percent in (5, 50, 100):
        print("[%3d%%] Compiling" % percent, flush=True)
    WAIT
    lib = os.path.join(sys.prefix, "lib")
    command = ["cc", "-shared", "-fPIC", "tiny.c", "-o", "libtiny.so", "-L" + lib, "-ltinybase", "-Wl,-rpath," + lib]
    subprocess.check_call(command + os.environ.get("CFLAGS", "").split())
    with zipfile.ZipFile(os.path.join(wheel_directory, "tiny-1.0-py3-none-any.whl"), "w") as wheel:
        wheel.write("libtiny.so", "tiny/deep/libtiny.so")
        text = "import ctypes, pathlib\\n_place = pathlib.Path(__file__).parent / 'deep/libtiny.so'\\n"
        wheel.writestr("tiny/__init__.py", text + "answer = ctypes.CDLL(str(_place)).answer\\n")
        info = "tiny-1.0.dist-info/"
        wheel.writestr(info + "METADATA", "Metadata-Version: 2.1\\nName: tiny\\nVersion: 1.0\\n")
        wheel.writestr(info + "WHEEL", "Wheel-Version: 1.0\\nRoot-Is-Purelib: false\\nTag: py3-none-any\\n")
        wheel.writestr(info + "RECORD", "")
    return "tiny-1.0-py3-none-any.whl"
"""
C_SOURCE = "int base(void);\nint answer(void) { return base() + 1; }\n"
TOOLS = ("pip", "patchelf")


class Shop:
    """A store with the package index of a test, and what the last preparation said."""

    def __init__(self, root: Path, packages: Packages | None = None) -> None:
        self.root = root
        self.packages = packages
        self.steps: list[str] = []
        self.log: list[str] = []
        self.recipes = root / "recipes.yml"

    def base(self, value: int = 41, version: str = "1.0") -> None:
        """Offer the package tinybase: a module, and a library in PREFIX/lib."""
        source, library = self.root / "base.c", self.root / "libtinybase.so"
        source.write_text(f"int base(void) {{ return {value}; }}\n", encoding="utf-8")
        subprocess.run(["cc", "-shared", "-fPIC", "-Wl,-soname,libtinybase.so", source, "-o", library], check=True)
        wheel = self.offered.wheel("tinybase", version)
        with zipfile.ZipFile(wheel, "a") as archive:
            archive.write(library, f"tinybase-{version}.data/data/lib/libtinybase.so")

    def tiny(self, wait: str = "pass", c_source: str = C_SOURCE) -> None:
        """Offer the package tiny, as source."""
        project = '[build-system]\nrequires = []\nbuild-backend = "backend"\nbackend-path = ["."]\n'
        files = {"backend.py": BACKEND.replace("WAIT", wait), "tiny.c": c_source, "pyproject.toml": project}
        page = self.offered.folder.parent / "index" / "tiny" / "index.html"
        page.parent.mkdir(parents=True, exist_ok=True)
        path = page.with_name("tiny-1.0.tar.gz")
        with tarfile.open(path, "w:gz") as archive:
            for file, text in files.items():
                member = tarfile.TarInfo(f"tiny-1.0/{file}")
                member.size = len(text.encode())
                archive.addfile(member, io.BytesIO(text.encode()))
        page.write_text(f'<a href="{path.name}#sha256={file_digest(path)}">{path.name}</a>', encoding="utf-8")

    def lock(self, *requirements: str) -> Lock:
        """Solve and lock, with the metadata of the recipes."""
        work = self.root / "solving"
        work.mkdir(exist_ok=True)
        (work / "asked.in").write_text("\n".join(requirements), encoding="utf-8")
        options = wheels.metadata_options(requirements, work, known=self.known)
        command = ["pip", "compile", "--generate-hashes", "--no-header", "-o", "lock.txt", "asked.in", *options]
        uv = self.uv
        arguments = [*command, *uv.settings.arguments]
        uv(arguments, cwd=work, log=self.log.append, holds=self._holds(), done="chosen", lock=work / "lock.txt")
        return self.locked((work / "lock.txt").read_text(encoding="utf-8"))

    def locked(self, pip_text: str) -> Lock:
        """Make a lock of a requirements file."""
        version = ".".join(map(str, sys.version_info[:3]))
        options: dict[str, Any] = {"asked": [], "base": None, "conda": None, "python_version": version}
        return Lock.make(definition="d" * 64, platform=Machine().platform, pip_text=pip_text, **options)

    def prepare(self, lock: Lock, place: Place | None = None, **others: Any) -> dict[str, Path]:
        """Prepare the wheels of a lock, for this machine or another place."""
        self.steps.clear()
        self.log.clear()
        work = self.root / "building" / f"work-{os.getpid()}"
        work.mkdir(parents=True, exist_ok=True)
        with work.with_suffix(".lock").open("w") as holds:
            fcntl.flock(holds, fcntl.LOCK_EX)
            return wheels.prepare(
                lock,
                place or Machine(),
                sys.executable,
                store_root=self.root,
                uv=self.uv,
                work=work,
                log=self.log.append,
                progress=self.steps.append,
                holds=holds.fileno(),
                known=self.known,
                **others,
            )

    def install(self, folder: Path, lock: Lock, made: Mapping[str, Path]) -> None:
        """Install a lock with its wheels into a new environment."""
        requirements = self.root / "requirements.txt"
        requirements.write_text(wheels.replace(lock.pip_text, made), encoding="utf-8")
        environment = {**self.uv.settings.environment, "UV_CACHE_DIR": str(self.root / "uv")}
        sync = ["pip", "sync", "-q", "--require-hashes", "--python", str(folder / "bin" / "python"), str(requirements)]
        for command in (["venv", "-q", "--python", sys.executable, str(folder)], sync):
            subprocess.run([find_uv(), *command, *self.uv.settings.arguments], env=environment, check=True)

    def program(self, path: Path, line: str) -> None:
        """Write a program that does one line of shell."""
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(f"#!/bin/sh\n{line}\n", encoding="utf-8")
        path.chmod(0o755)

    def kept(self) -> list[str]:
        """The wheels in the store."""
        return sorted(path.name for path in (self.root / "wheels").glob("*/*.whl"))

    @property
    def offered(self) -> Packages:
        assert self.packages is not None
        return self.packages

    @property
    def known(self) -> tuple[recipes.Recipe, ...]:
        return recipes.load(self.recipes)

    @property
    def uv(self) -> Uv:
        settings = uv_settings(os.environ, configuration_files(os.environ))
        return Uv(find_uv(), self.root / "uv", settings, Machine())

    def _holds(self) -> int:
        return os.open(self.root / "holds", os.O_RDWR | os.O_CREAT)


@pytest.fixture(scope="session")
def tools(compilers: None) -> Path:  # noqa: ARG001  # what is built by the tools needs them
    """A folder with the wheels of the tools that builds need, fetched once and kept."""
    folder = REPOSITORY / ".cache" / "build-tools" / str(sysconfig.get_config_var("py_version_nodot"))
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / "lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        missing = [name for name in TOOLS if not list(folder.glob(f"{name}-*.whl"))]
        if missing:
            command = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--only-binary", ":all:"]
            subprocess.run([*command, "--dest", folder, *missing], check=True)
    return folder


@pytest.fixture
def shop(tmp_path: Path, tools: Path, monkeypatch: pytest.MonkeyPatch) -> Shop:
    """A store of the test's own; packages come from the test and from the folder of tools, and from nowhere else."""
    for name in [one for one in os.environ if one.startswith(("PIP_", "UV_"))]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("PIP_CONFIG_FILE", os.devnull)
    monkeypatch.setenv("PIP_INDEX_URL", (tmp_path / "index").as_uri())
    monkeypatch.setenv("PIP_FIND_LINKS", f"{tmp_path / 'packages'} {tools}")
    monkeypatch.setenv("LDFLAGS", "-DLEAKED_LDFLAGS")
    made = Shop(tmp_path / "store", Packages(tmp_path / "packages"))
    made.root.mkdir()
    made.recipes.write_text(RECIPES, encoding="utf-8")
    made.base()
    made.tiny()
    return made
