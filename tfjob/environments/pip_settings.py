"""Where packages come from: pip's own configuration, passed on to uv.

tfjob names no package index. A site sets one up for pip, once, and tfjob follows it. pip itself may not be installed
beside tfjob, so its configuration files and ``PIP_*`` variables are read here, in the order pip documents
(pip user guide, "Configuration"): files of the site, of the user, of the Python, the file ``PIP_CONFIG_FILE``
names, then the environment; within the files ``[install]`` over ``[global]``.
"""

from __future__ import annotations

import configparser
import os
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Mapping

__all__ = ["UvSettings", "configuration_files", "pip_options", "uv_settings"]

# uv's own variables that say where packages come from and how to get there; they win over pip's configuration.
# Every other UV_ variable of the shell could change what is built, and is taken out.
_KEPT = (
    "UV_INDEX",
    "UV_DEFAULT_INDEX",
    "UV_EXTRA_INDEX_URL",
    "UV_FIND_LINKS",
    "UV_INSECURE_HOST",
    "UV_HTTP_",
    "UV_REQUEST_TIMEOUT",
    "UV_NATIVE_TLS",
    "UV_SYSTEM_CERTS",
    "UV_KEYRING_PROVIDER",
    "UV_OFFLINE",
    "UV_CONCURRENT_",
)
# What would make uv, or the builds it starts, look into another environment than the one being made.
_REMOVED = ("VIRTUAL_ENV", "CONDA_PREFIX", "PYTHONPATH", "PYTHONHOME", "PYTHONUSERBASE", "__PYVENV_LAUNCHER__")


@dataclass(frozen=True)
class UvSettings:
    """How uv is to look for packages: its whole environment, more arguments, and what was left out and why."""

    environment: dict[str, str]
    arguments: tuple[str, ...]
    notes: tuple[str, ...]


def configuration_files(environ: Mapping[str, str]) -> tuple[Path, ...]:
    """Pip's configuration files in the order in which a later one overrides an earlier one, there or not."""
    named = environ.get("PIP_CONFIG_FILE", "")
    if named == os.devnull:
        return ()
    home = Path(environ.get("HOME") or Path.home())
    shared = (environ.get("XDG_CONFIG_DIRS") or "/etc/xdg").split(os.pathsep)
    files = [Path(folder) / "pip" / "pip.conf" for folder in shared if folder]
    files += [Path("/etc/pip.conf"), home / ".pip" / "pip.conf"]
    files += [Path(environ.get("XDG_CONFIG_HOME") or home / ".config") / "pip" / "pip.conf"]
    files += [Path(sys.prefix) / "pip.conf"]
    return (*files, Path(named).expanduser()) if named else tuple(files)


def pip_options(environ: Mapping[str, str], files: tuple[Path, ...]) -> dict[str, str]:
    """Pip's options for ``pip install`` by their long names; a file that cannot be read has none."""
    sections: dict[str, dict[str, str]] = {"global": {}, "install": {}}
    for path in files:
        parser = configparser.RawConfigParser()
        try:
            parser.read(path, encoding="utf-8")
        except (OSError, UnicodeDecodeError, configparser.Error):
            continue
        for section, options in sections.items():
            if parser.has_section(section):
                options.update({_long_name(key): value for key, value in parser.items(section)})
    variables = {_long_name(key[4:]): value for key, value in environ.items() if key.startswith("PIP_")}
    merged = sections["global"] | sections["install"] | variables
    return {key: value for key, value in merged.items() if value}


def uv_settings(environ: Mapping[str, str], files: tuple[Path, ...]) -> UvSettings:
    """Uv's environment and arguments that make it look where pip would, and only there."""
    environment = {
        key: value
        for key, value in environ.items()
        if key not in _REMOVED and (not key.startswith("UV_") or key.startswith(_KEPT))
    }
    options = pip_options(environ, files)
    arguments: list[str] = []
    notes: list[str] = []

    def places(option: str) -> list[str]:
        kept = []
        for place in options.get(option, "").split():
            missing = _missing_directory(place)
            if missing is None:
                kept.append(place if "://" in place else str(Path(place).expanduser().absolute()))
            else:
                notes.append(f"pip's configuration names a folder that is not there, left out: {option} = {missing}")
        return kept

    found = {
        "UV_INDEX_URL": options.get("index-url", ""),
        "UV_EXTRA_INDEX_URL": " ".join(places("extra-index-url")),
        "UV_FIND_LINKS": ",".join(places("find-links")),
        "UV_INSECURE_HOST": " ".join(options.get("trusted-host", "").split()),
        "UV_HTTP_TIMEOUT": options.get("timeout", options.get("default-timeout", "")).partition(".")[0],
        "UV_KEYRING_PROVIDER": "subprocess" if options.get("keyring-provider") == "subprocess" else "",
        # pip looks in all indexes alike and takes the best version; uv, unasked, stops at the first that has the name.
        "UV_INDEX_STRATEGY": "unsafe-best-match",
        "HTTP_PROXY": options.get("proxy", ""),
        "HTTPS_PROXY": options.get("proxy", ""),
        "SSL_CLIENT_CERT": options.get("client-cert", ""),
    }
    if "UV_DEFAULT_INDEX" in environment:
        found.pop("UV_INDEX_URL")
    if "UV_INDEX" in environment:
        found.pop("UV_EXTRA_INDEX_URL")
    environment |= {key: value for key, value in found.items() if value and not environment.get(key)}
    if certificates := options.get("cert"):
        place = Path(certificates).expanduser()
        if place.exists():
            environment["SSL_CERT_DIR" if place.is_dir() else "SSL_CERT_FILE"] = str(place)
        else:
            notes.append(f"pip's configuration names certificates that are not there, left out: cert = {place}")
    if options.get("no-index", "").lower() in {"1", "true", "yes", "on"}:
        arguments.append("--no-index")
    for option in ("no-binary", "only-binary"):
        arguments += [f"--{option}={name}" for name in options.get(option, "").replace(",", " ").split()]
    # Nothing but this decides: no uv.toml or pyproject.toml that happens to lie around, no Python from the network.
    environment |= {"UV_NO_CONFIG": "1", "UV_PYTHON_DOWNLOADS": "never", "NO_COLOR": "1"}
    return UvSettings(environment=environment, arguments=tuple(arguments), notes=tuple(notes))


def _long_name(key: str) -> str:
    """Return an option's name as pip spells it: ``PIP_EXTRA_INDEX_URL`` and ``extra_index_url`` are one."""
    return key.lower().replace("_", "-").removeprefix("--")


def _missing_directory(place: str) -> str | None:
    """Return the local directory that `place` names and that is not there; None for one that is there, and for URLs."""
    path = place.removeprefix("file://localhost").removeprefix("file://") if place.startswith("file:") else place
    if "://" in path or Path(path).expanduser().exists():
        return None
    return path
