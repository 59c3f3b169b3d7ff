"""Real packages from where pip is configured to take them, in environments that tests make with uv."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from dataclasses import dataclass
from functools import cache
from pathlib import Path

from support import REPOSITORY

from tfjob.environments.pip_settings import configuration_files, uv_settings
from tfjob.environments.uv import find_uv

CACHE = Path(os.environ.get("TFJOB_TEST_STORE", str(REPOSITORY / ".cache" / "store"))) / "uv"


@cache
def _settings() -> tuple[dict[str, str], tuple[str, ...]]:
    settings = uv_settings(os.environ, configuration_files(os.environ))
    return {**settings.environment, "UV_CACHE_DIR": str(CACHE)}, tuple(map(str, settings.arguments))


def uv(*arguments: str | Path, stdin: str = "", where: Path | None = None) -> subprocess.CompletedProcess[str]:
    environment, options = _settings()
    needs_index = arguments[0] == "pip" and arguments[1] != "list"
    command = [find_uv(), *map(str, arguments), *(options if needs_index else ())]
    return subprocess.run(
        command, env=environment, cwd=where, input=stdin, capture_output=True, text=True, check=False, timeout=240
    )


def solve(*requirements: str, python: str = "3.11", options: tuple[str, ...] = ()) -> dict[str, str] | str:
    """Return what would be installed, name → version, or uv's words where nothing can be."""
    place = ["--python-version", python, "--python-platform", "x86_64-manylinux_2_36", "--no-header", "--no-annotate"]
    done = uv("pip", "compile", "--quiet", *place, *options, "-", stdin="\n".join(requirements))
    if done.returncode:
        return done.stderr
    pairs = [line.split("==", 1) for line in done.stdout.splitlines() if "==" in line]
    return {name: version.split(" ")[0] for name, version in pairs}


@dataclass(frozen=True)
class Installed:
    """A virtual environment; `packages` as a lock would have them."""

    path: Path

    @property
    def packages(self) -> dict[str, str]:
        done = uv("pip", "list", "--format", "json", "--python", self.path)
        return {one["name"]: one["version"] for one in json.loads(done.stdout)}

    def install(self, *requirements: str) -> None:
        done = uv("pip", "install", "--quiet", "--python", self.path, *requirements)
        assert done.returncode == 0, done.stderr

    def start(self, *command: str | Path, **variables: str) -> subprocess.Popen[str]:
        environ = {"PATH": os.environ["PATH"], "HOME": str(self.path), "TF_CPP_MIN_LOG_LEVEL": "3", **variables}
        program, *arguments = map(str, command)
        return subprocess.Popen(
            [str(self.path / "bin" / program), *arguments],
            env=environ,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )

    def run(self, *command: str | Path, **variables: str) -> tuple[int, str]:
        process = self.start(*command, **variables)
        said, _ = process.communicate(timeout=120)
        return process.returncode, said


def install(path: Path, *requirements: str) -> Installed:
    done = uv("venv", "--quiet", "--python", sys.executable, path)
    assert done.returncode == 0, done.stderr
    made = Installed(path)
    made.install(*requirements)
    return made
