"""What of this machine a program in a container is given: variables, and files and directories at their own paths.

What uv is told is in its environment, its arguments and the requirements files beside it. Whatever these name on this
machine (an index or a folder of packages, a wheel, certificates) is mounted read-only.
"""

from __future__ import annotations

import os
import re
from pathlib import Path
from typing import TYPE_CHECKING
from urllib.parse import unquote, urlsplit

from tfjob.environments.uv import find_uv
from tfjob.images.container import Mount

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

__all__ = ["mounts_for", "passed_on"]

# Variables of this process that concern where packages come from and how to get there, and the text of messages.
_PASSED = re.compile(
    r"UV_.*|PIP_.*|SSL_CERT_(FILE|DIR)|SSL_CLIENT_CERT|REQUESTS_CA_BUNDLE|CURL_CA_BUNDLE|NETRC|NO_COLOR|LANG|LC_.*"
    r"|SOURCE_DATE_EPOCH|(HTTPS?|ALL|NO|FTP)_PROXY",
    re.IGNORECASE,
)
# What only means something on this machine.
_OWN = frozenset({"HOME", "TMPDIR", "TEMP", "TMP", "PWD", "OLDPWD", "SHELL", "USER", "LOGNAME", "XDG_RUNTIME_DIR"})
_FILES = ("SSL_CERT_FILE", "SSL_CLIENT_CERT", "REQUESTS_CA_BUNDLE", "CURL_CA_BUNDLE", "NETRC")
_INDEXES = ("UV_INDEX_URL", "UV_EXTRA_INDEX_URL", "UV_DEFAULT_INDEX", "UV_INDEX")
_INDEX = re.compile(r"(?:--default-index|--index|--index-url|--extra-index-url|-i)(?:\s+|=)(\S+)")
_FOLDER = re.compile(r"(?:--find-links|-f)(?:\s+|=)(\S+)")
_FILE_URL = re.compile(r"file:[^\s\"',;]+")
_REQUIREMENTS = (".in", ".txt")
_TEXT_MAX_BYTES = 4 << 20
# A path of so many parts may hold a whole system: ``/usr/lib``.
_SYSTEM_PARTS = 3


def passed_on(environment: Mapping[str, str], search_path: str, store: Path) -> dict[str, str]:
    """Return the variables for a program in a container whose PATH is `search_path`.

    Those that the caller of this process set itself (they are not what this process was started with), and those about
    packages. Folders of `store` that the caller put into PATH stay first in it.
    """
    passed = {
        name: value
        for name, value in environment.items()
        if name not in _OWN and (_PASSED.fullmatch(name) or os.environ.get(name) != value)
    }
    if "SSL_CERT_FILE" in passed:
        passed.pop("SSL_CERT_DIR", None)
    if "NETRC" not in passed and (netrc := Path.home() / ".netrc").is_file():
        passed["NETRC"] = str(netrc)
    asked = environment.get("PATH", "").split(os.pathsep)
    return {**passed, "PATH": os.pathsep.join([*(one for one in asked if _is_in(one, store)), search_path])}


def mounts_for(environment: Mapping[str, str], command: Sequence[str | Path], cwd: Path, store: Path) -> list[Mount]:
    """Return what is mounted read-only beside the store: uv, tfjob's own files, and what uv is told of this machine."""
    wanted = [Path(find_uv()), Path(__file__).resolve().parent.parent]
    wanted += [Path(environment[name]) for name in _FILES if environment.get(name)]
    if "SSL_CERT_FILE" not in environment and (folder := environment.get("SSL_CERT_DIR")):
        wanted += _certificates(Path(folder))
    if not environment.get("NETRC"):
        wanted.append(Path.home() / ".netrc")
    for name in _INDEXES:
        for value in re.split(r"[\s,]+", environment.get(name, "")):
            wanted += _index(value.partition("=")[2] if re.match(r"[\w-]+=", value) else value)
    for value in environment.get("UV_FIND_LINKS", "").split(","):
        wanted += _named(value.strip())
    texts = [" ".join(map(str, command)), *_texts(cwd, command)]
    for text in texts:
        for value in [*_FOLDER.findall(text), *_FILE_URL.findall(text)]:
            wanted += _named(value)
        for value in _INDEX.findall(text):
            wanted += _index(value)
    return [Mount(path) for path in _outermost(wanted, store)]


def _named(value: str) -> list[Path]:
    """Return the path that a URL or a path names, and what it leads to when it is a link; nothing for one elsewhere."""
    value = value.strip("\"'")
    if value.startswith("file:"):
        path = Path(unquote(urlsplit(value).path))
    elif value.startswith(("/", "~")):
        path = Path(value).expanduser()
    else:
        return []
    return [path, path.resolve()] if path.is_symlink() else [path]


def _index(value: str) -> list[Path]:
    """Return the folders of an index: its own, and the one beside which it mostly keeps its files."""
    found = _named(value)
    return [*found, *(path.parent for path in found if path.is_dir() and len(path.parts) > _SYSTEM_PARTS)]


def _texts(cwd: Path, command: Sequence[str | Path]) -> Iterator[str]:
    """Read the requirements files in `cwd` and among the arguments."""
    paths = [cwd / str(part) for part in command if str(part).endswith(_REQUIREMENTS)]
    for path in dict.fromkeys([*sorted(cwd.glob("*")), *paths]):
        try:
            if path.suffix in _REQUIREMENTS and path.is_file() and path.stat().st_size < _TEXT_MAX_BYTES:
                yield path.read_text(encoding="utf-8", errors="replace")
        except OSError:
            continue


def _certificates(folder: Path) -> list[Path]:
    """Return a folder of certificates and the folders that the links in it lead to."""
    try:
        return [folder, *{path.resolve().parent for path in folder.iterdir() if path.is_symlink()}]
    except OSError:
        return []


def _outermost(paths: Sequence[Path], store: Path) -> list[Path]:
    """Return the paths that exist, are not in the store or in another of them, and are not whole trees of a system."""
    absolute = dict.fromkeys(Path(os.path.abspath(path)) for path in paths)
    there = [path for path in absolute if path.exists() and len(path.parts) > 2 and not _is_in(path, store)]
    return [path for path in there if not any(other != path and _is_in(path, other) for other in there)]


def _is_in(path: str | Path, folder: Path) -> bool:
    return Path(path).is_absolute() and Path(path).is_relative_to(folder)
