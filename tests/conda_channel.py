"""A real conda channel, made from what this machine has: a Python, pip, and small packages of every kind.

`channel()` makes it once, under .cache, and returns its folder; ``file://`` in front of that is its address. Tests with
wishes of their own make packages with `package` and a channel of them with `index`.

| package | what it is |
|---|---|
| python | this interpreter, repacked so that it stands in any prefix |
| pip | pip as conda has it: installed, with its script as an entry point |
| greet 1.0, 2.0 | noarch Python with an entry point; needs python and greet-data |
| greet-data | files for every platform: a script and an activation script with the prefix in them |
| where | a program with the prefix in it, in a CPU and a CUDA variant; the newer build is the CUDA one |
| old-greeter | needs greet <2, so that it cannot be beside greet 2 |
"""

from __future__ import annotations

import asyncio
import compileall
import contextlib
import fcntl
import hashlib
import importlib.metadata
import io
import json
import os
import platform
import pprint
import py_compile
import re
import runpy
import shutil
import struct
import sys
import sysconfig
import tarfile
import tempfile
import time
import zipfile
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

import zstandard
from support import REPOSITORY

# What stands in packages for the prefix they will be installed to. As long as conda's: a program can hold no longer one.
PLACEHOLDER = "/" + "placehold_" * 25 + "end"
SUBDIR = {"x86_64": "linux-64", "aarch64": "linux-aarch64"}[platform.machine()]
PYTHON = ".".join(platform.python_version_tuple()[:2])
_TIMESTAMP_MS = 1_700_000_000_000
_LEFT_OUT = {"site-packages", "dist-packages", "test", "tests", "__pycache__", "idlelib", "turtledemo", "lib2to3"}
_LEFT_OUT |= {"EXTERNALLY-MANAGED", "sitecustomize.py", "_distutils_system_mod.py"}
_SITE = """\
import os, site
site.addsitedir(os.path.join(os.path.dirname(os.__file__), "site-packages"))
"""


def channel() -> Path:
    """The channel, made if it is not there."""
    python = Path(os.path.realpath(sys.executable)).stat()
    of = [platform.python_version(), sys.base_prefix, python.st_size, Path(__file__).read_text()]
    name = hashlib.sha256(json.dumps(of).encode()).hexdigest()[:12]
    root = REPOSITORY / ".cache" / "conda-channel"
    root.mkdir(parents=True, exist_ok=True)
    with _locked(root / "lock"):
        if not (root / name).exists():
            for old in root.iterdir():  # another checkout's or interpreter's may be in use
                if old.is_dir() and old.stat().st_mtime < time.time() - 86_400:
                    shutil.rmtree(old)
            with tempfile.TemporaryDirectory(dir=root) as folder:
                made = Path(folder) / "channel"
                _fill(made)
                made.rename(root / name)
    return root / name


def index(folder: Path) -> None:
    """Make a folder of packages a channel: write the list of what it has."""
    from rattler.index import index_fs  # noqa: PLC0415 (only when a channel is made)

    (folder / "noarch").mkdir(parents=True, exist_ok=True)
    asyncio.run(index_fs(folder, write_zst=True, write_shards=False, force=True))


def package(
    channel: Path,
    name: str,
    version: str = "1.0",
    build: str = "0",
    *,
    files: Mapping[str, str | bytes] | None = None,
    root: Path | None = None,
    depends: Iterable[str] = (),
    constrains: Iterable[str] = (),
    noarch: str | None = None,
    entry_points: Iterable[str] = (),
) -> Path:
    """Write a package of `files` (text or bytes by path; those under bin/ are programs) or of what is in `root`.

    `noarch` is ``generic`` or ``python``; without, the package is for this kind of machine. Where `PLACEHOLDER` stands in
    a file, the prefix will.
    """
    subdir = "noarch" if noarch else SUBDIR
    with tempfile.TemporaryDirectory() as temporary:
        folder = root or Path(temporary)
        for path, content in (files or {}).items():
            file = folder / path
            file.parent.mkdir(parents=True, exist_ok=True)
            file.write_bytes(content.encode() if isinstance(content, str) else content)
            file.chmod(0o755 if path.startswith(("bin/", "python-scripts/")) else 0o644)
        paths = [_entry(path, folder) for path in sorted(folder.rglob("*")) if path.is_symlink() or path.is_file()]
        number = int(build.rpartition("_")[2])
        about: dict[str, Any] = {"name": name, "version": version, "build": build, "build_number": number}
        about |= {"depends": list(depends), "constrains": list(constrains), "subdir": subdir, "license": "none"}
        about |= {"timestamp": _TIMESTAMP_MS, "arch": None, "platform": None}
        about |= {"noarch": noarch} if noarch else {"arch": platform.machine(), "platform": "linux"}
        info = {
            "info/index.json": about,
            "info/paths.json": {"paths": paths, "paths_version": 1},
            "info/about.json": {},
        }
        if noarch == "python":
            link = {"type": "python", "entry_points": list(entry_points)}
            info["info/link.json"] = {"noarch": link, "package_metadata_version": 1}
        stem = f"{name}-{version}-{build}"
        (channel / subdir).mkdir(parents=True, exist_ok=True)
        made = channel / subdir / f"{stem}.conda"
        with zipfile.ZipFile(made, "w", zipfile.ZIP_STORED) as archive:
            archive.writestr("metadata.json", '{"conda_pkg_format_version": 2}')
            archive.writestr(f"pkg-{stem}.tar.zst", _packed(folder, [entry["_path"] for entry in paths]))
            archive.writestr(f"info-{stem}.tar.zst", _packed_texts(info))
    return made


def _fill(channel: Path) -> None:
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder)
        _unpack_python(root)
        glibc = ["__glibc >=2.17"]
        package(channel, "python", platform.python_version(), "tests_0", root=root, depends=glibc)
    pip = importlib.metadata.distribution("pip")
    found = {f"site-packages/{one}": Path(str(one.locate())) for one in pip.files or () if ".." not in one.parts}
    texts: dict[str, str | bytes] = {
        path: file.read_bytes() for path, file in found.items() if not path.endswith((".pyc", "RECORD"))
    }
    pip_points = ["pip = pip._internal.cli.main:main", "pip3 = pip._internal.cli.main:main"]
    package(
        channel,
        "pip",
        pip.version,
        "py_0",
        files=texts,
        depends=["python >=3.8"],
        noarch="python",
        entry_points=pip_points,
    )
    script = f"#!/bin/sh\necho greetings from {PLACEHOLDER}\n"
    activate = f'export GREET_HOME="{PLACEHOLDER}/share/greet"\n'
    data = {"bin/greet-where": script, "etc/conda/activate.d/greet.sh": activate, "share/greet/words": "hello\n"}
    package(channel, "greet-data", files=data, noarch="generic")
    for version in ("1.0", "2.0"):
        package(
            channel,
            "greet",
            version,
            "py_0",
            files=python_files("greet", version, "def main():\n    import sys\n    print('greet', sys.prefix)\n"),
            depends=["python >=3.8", "greet-data"],
            noarch="python",
            entry_points=["greet = greet:main"],
        )
    package(channel, "old-greeter", "1.0", depends=["greet <2"], noarch="generic", files={"share/old": "x"})
    for build, depends in (("cpu_0", glibc), ("cuda_1", [*glibc, "__cuda >=11.2"])):
        files = {"bin/where": program(), "share/where/variant": build.encode()}
        package(channel, "where", "0.3", build, files=files, depends=depends)
    index(channel)


def python_files(name: str, version: str, code: str, requires: str = "") -> dict[str, str | bytes]:
    """The files of a noarch Python package of one module: code, and the metadata by which pip knows it."""
    info = f"site-packages/{name}-{version}.dist-info"
    needs = f"Requires-Dist: {requires}\n" if requires else ""
    return {
        f"site-packages/{name}/__init__.py": f"VERSION = {version!r}\n{code}",
        f"{info}/METADATA": f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n{needs}",
        f"{info}/INSTALLER": "conda\n",
        f"{info}/RECORD": f"{name}/__init__.py,,\n{name}-{version}.dist-info/METADATA,,\n",
    }


def program() -> bytes:
    """A program that prints the prefix it was made for: a whole ELF file, so that no compiler is needed."""
    if platform.machine() != "x86_64":
        return f"#!/bin/sh\necho {PLACEHOLDER}\n".encode()
    code = bytes.fromhex(
        "bf01000000"  # mov edi, 1 (standard output)
        "488d3522000000"  # lea rsi, [text]
        "31d2"  # xor edx, edx
        "803c1600"  # next: cmp byte [rsi+rdx], 0
        "7405"  # je write
        "48ffc2"  # inc rdx
        "ebf5"  # jmp next
        "b801000000"  # write: mov eax, 1 (write)
        "0f05"  # syscall
        "31ff"  # xor edi, edi
        "b83c000000"  # mov eax, 60 (exit)
        "0f05"  # syscall
        "9090909090"
    )
    text = PLACEHOLDER.encode() + b"/share\0\0\0\0"
    base, header = 0x400000, 64 + 56
    size = header + len(code) + len(text)
    identity = b"\x7fELF" + bytes([2, 1, 1]) + bytes(9)
    elf = struct.pack("<16sHHIQQQIHHHHHH", identity, 2, 62, 1, base + header, 64, 0, 0, 64, 56, 1, 0, 0, 0)
    segment = struct.pack("<IIQQQQQQ", 1, 5, 0, base, base, size, size, 0x1000)
    return elf + segment + code + text


def _unpack_python(root: Path) -> None:
    """Put this interpreter, its standard library and headers into `root`, as they stand in a prefix."""
    source = Path(sys.base_prefix)
    stdlib = Path(sysconfig.get_path("stdlib"))
    executable = Path(os.path.realpath(sys.executable))
    library = root / "lib" / f"python{PYTHON}"
    (root / "bin").mkdir()
    shutil.copytree(stdlib, library, symlinks=True, ignore=_left_out)
    (library / "site-packages").mkdir()
    (library / "site-packages" / "README.txt").write_text("packages\n")
    headers = Path(sysconfig.get_path("include"))
    if headers.is_dir():
        shutil.copytree(headers, root / "include" / f"python{PYTHON}")
    # Found beside the program, not where this Python was built. The text can only become shorter.
    old, new = os.fsencode(source / "lib") + b"\0", b"$ORIGIN/../lib\0"
    binary = executable.read_bytes()
    if len(new) <= len(old):
        binary = binary.replace(old, new.ljust(len(old), b"\0"))
    python = root / "bin" / f"python{PYTHON}"
    python.write_bytes(binary)
    python.chmod(0o755)
    for name in ("python", "python3"):
        (root / "bin" / name).symlink_to(python.name)
    for shared in (source / "lib").glob(f"libpython{PYTHON}*.so*"):
        shutil.copy2(shared, root / "lib" / shared.name, follow_symlinks=False)
    for path in library.glob("_sysconfigdata*.py"):
        if not path.is_symlink():
            _relocate(path, str(source))
    _undo_debian(library)
    for path in library.rglob("*.py"):  # bytecode comes with it, as with conda's Pythons
        os.utime(path, (_TIMESTAMP_MS // 1000, _TIMESTAMP_MS // 1000))
    mode = py_compile.PycInvalidationMode.TIMESTAMP
    compileall.compile_dir(library, quiet=2, stripdir=root, workers=2, invalidation_mode=mode)


def _left_out(_folder: str, names: list[str]) -> set[str]:
    return {name for name in names if name in _LEFT_OUT or name.endswith(".a") or name.startswith("config-")}


def _relocate(path: Path, prefix: str) -> None:
    """Put the placeholder for the prefix into the build's variables: as a path of its own, not inside of another."""
    values = runpy.run_path(str(path))["build_time_vars"]
    pattern = re.compile(rf"(?<![\w./-]){re.escape(prefix)}(?=[/\s'\":]|$)|(?<=-[IL]){re.escape(prefix)}(?=/)")
    moved = {key: pattern.sub(PLACEHOLDER, one) if isinstance(one, str) else one for key, one in values.items()}
    path.write_text(f"build_time_vars = {pprint.pformat(moved, width=1000)}\n")


def _undo_debian(library: Path) -> None:
    """Make Debian's Python look for packages where every other does: its own looks into dist-packages and local/."""
    schemes = library / "sysconfig.py"
    text = schemes.read_text()
    if "posix_local" not in text:
        return
    text = re.sub(r"prefix_scheme = '(posix_local|deb_system)'", "prefix_scheme = 'posix_prefix'", text)
    schemes.write_text(text)
    # `site` is frozen into the program, so its file changes nothing: what it leaves out is added after it.
    (library / "sitecustomize.py").write_text(_SITE)
    for name in ("distutils", "_distutils_system_mod.py"):  # patched the same way; setuptools brings its own
        path = library / name
        shutil.rmtree(path) if path.is_dir() else path.unlink(missing_ok=True)


def _entry(path: Path, root: Path) -> dict[str, Any]:
    """What paths.json says of a file: whether the placeholder is in it, and whether as text."""
    entry: dict[str, Any] = {"_path": path.relative_to(root).as_posix(), "path_type": "hardlink"}
    if path.is_symlink():
        return entry | {"path_type": "softlink", "sha256": hashlib.sha256(b"").hexdigest(), "size_in_bytes": 0}
    data = path.read_bytes()
    entry |= {"sha256": hashlib.sha256(data).hexdigest(), "size_in_bytes": len(data)}
    if PLACEHOLDER.encode() in data:
        entry |= {"prefix_placeholder": PLACEHOLDER, "file_mode": "binary" if b"\0" in data else "text"}
    return entry


def _packed(root: Path, names: Iterable[str]) -> bytes:
    def plain(member: tarfile.TarInfo) -> tarfile.TarInfo:
        member.uid = member.gid = 0
        member.uname = member.gname = ""
        member.mtime = _TIMESTAMP_MS // 1000
        return member

    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as archive:
        for name in names:
            archive.add(root / name, name, recursive=False, filter=plain)
    return zstandard.ZstdCompressor(level=3).compress(buffer.getvalue())


def _packed_texts(texts: Mapping[str, Any]) -> bytes:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as archive:
        for name, value in texts.items():
            data = json.dumps(value).encode()
            member = tarfile.TarInfo(name)
            member.size, member.mtime = len(data), _TIMESTAMP_MS // 1000
            archive.addfile(member, io.BytesIO(data))
    return zstandard.ZstdCompressor(level=3).compress(buffer.getvalue())


@contextlib.contextmanager
def _locked(path: Path) -> Iterator[None]:
    with path.open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield
