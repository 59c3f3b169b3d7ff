"""Measures what tfjob promises about environments, in one run, as ratios: `make bench-environments`.

One TensorFlow environment, from what is asked to a container in which it can be imported, by three ways on the same
Docker Engine, base image and package index: (a) the classic `docker build` with pip in a RUN line, (b) BuildKit with a
cache mount for uv, (c) tfjob. Each cold, unchanged, with one package changed, and on a changed base. Then what goes to
an engine that has the previous image, and a trivial job in a container against TorchX and a bare `docker run`.

Cold means no cache of the way's own; what the index itself caches is the same for all. Single measurements of long
builds, medians of short ones. Ends with exit code 1 when a goal is missed.
"""

from __future__ import annotations

import json
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import docker_parts
from bench.run import PROGRAM, TORCHX, peer

BASE = docker_parts.BASE
OTHER_BASE = "tfjob-test/changed:bookworm"
REQUIREMENTS = ["tensorflow-cpu==2.17.1", "setuptools<80", "pandas==2.2.3", "humanize==4.9.0"]
CHANGED = [*REQUIREMENTS[:-1], "humanize==4.10.0"]
PAIRS = 5
CERTIFICATES = ("/etc/ssl/certs/ca-certificates.crt",)


@dataclass
class Row:
    """One measurement of one way, in seconds."""

    way: str
    cold_s: float
    unchanged_s: float
    changed_s: float
    base_s: float


def main() -> int:
    """Measure everything and print the tables."""
    with tempfile.TemporaryDirectory(dir=docker_parts.CACHE.parent) as directory, docker_parts.engine() as engine:
        os.environ["DOCKER_HOST"] = engine.host
        docker_parts.base_image(engine, BASE)
        _other_base()
        folder = Path(directory)
        rows = [_classic(folder / "classic"), _buildkit(folder / "buildkit"), _tfjob(folder / "tfjob")]
        missed = _print_builds(rows)
        missed += _print_shipped(folder / "tfjob")
        missed += _print_trivial(folder / "tfjob")
    return 1 if missed else 0


def _print_builds(rows: list[Row]) -> int:
    print("| way | cold, s | unchanged, s | one package changed, s | base changed, s |")
    print("|---|---|---|---|---|")
    for row in rows:
        print(f"| {row.way} | {row.cold_s:.1f} | {row.unchanged_s:.3f} | {row.changed_s:.1f} | {row.base_s:.1f} |")
    classic, buildkit, ours = rows
    goals = (
        ("one package changed, (a) / (c)", classic.changed_s / ours.changed_s, ">=", 15),
        ("one package changed, (b) / (c)", buildkit.changed_s / ours.changed_s, ">=", 3),
        ("unchanged, (c), ms", ours.unchanged_s * 1000, "<=", 50),
        ("cold, (c) / (b)", ours.cold_s / buildkit.cold_s, "<=", 1),
    )
    return _print_goals(goals)


def _print_goals(goals: tuple[tuple[str, float, str, float], ...]) -> int:
    print("\n| ratio | measured | goal |")
    print("|---|---|---|")
    missed = 0
    for name, value, sense, goal in goals:
        missed += not (value >= goal if sense == ">=" else value <= goal)
        print(f"| {name} | {value:.2f} | {sense} {goal:g} |", flush=True)
    return missed


def _classic(folder: Path) -> Row:
    pip = "python3 -m venv /opt/env && /opt/env/bin/pip install --no-cache-dir -r requirements.txt"
    return _by_dockerfile("(a) docker build, pip in RUN", folder, f"RUN {pip}", buildkit=False)


def _buildkit(folder: Path) -> Row:
    uv = "python3 -m venv /opt/env && UV_CACHE_DIR=/uv uv pip install --python /opt/env/bin/python --compile-bytecode -r requirements.txt"
    return _by_dockerfile(
        "(b) BuildKit, uv, cache mount", folder, f"RUN --mount=type=cache,target=/uv {uv}", buildkit=True
    )


def _by_dockerfile(way: str, folder: Path, step: str, *, buildkit: bool) -> Row:
    """Build and start one container, in each of the four situations."""
    folder.mkdir()
    _context(folder)
    environ = {**os.environ, "DOCKER_BUILDKIT": "1" if buildkit else "0"}

    def ready(requirements: list[str], base: str) -> float:
        (folder / "requirements.txt").write_text("\n".join(requirements) + "\n", encoding="utf-8")
        (folder / "Dockerfile").write_text(
            f"FROM {base}\nENV PIP_CONFIG_FILE=/etc/pip.conf SSL_CERT_FILE={CERTIFICATES[0]} PIP_CERT={CERTIFICATES[0]}\n"
            f"COPY pip.conf /etc/pip.conf\nCOPY certificates {CERTIFICATES[0]}\nCOPY uv /usr/local/bin/uv\n"
            f"{_uv_settings()}COPY requirements.txt .\n{step}\n",
            encoding="utf-8",
        )
        begun = time.perf_counter()
        tag = f"tfjob-bench/{folder.name}"
        _run([_docker(), "build", "--network", "host", "-t", tag, "."], folder, environ)
        _run([_docker(), "run", "--rm", "--network", "host", tag, "/opt/env/bin/python", "-c", "pass"], folder, environ)
        return time.perf_counter() - begun

    if buildkit:
        _run([_docker(), "builder", "prune", "-af"], folder, environ)
    cold = ready(REQUIREMENTS, BASE)
    unchanged = statistics.median(ready(REQUIREMENTS, BASE) for _ in range(PAIRS))
    changed = ready(CHANGED, BASE)
    return Row(way, cold, unchanged, changed, ready(REQUIREMENTS, OTHER_BASE))


def _tfjob(folder: Path) -> Row:
    """The same by jobs: from submit to the end of a command that does nothing; unchanged: what the environment takes."""
    folder.mkdir()

    def ready(requirements: list[str], base: str) -> tuple[float, float]:
        _write_job(folder, requirements, base)
        begun = time.perf_counter()
        _run([PROGRAM, "submit", "job.yml"], folder, _environ(folder))
        taken = time.perf_counter() - begun
        return taken, _preparing_s(folder)

    cold, _ = ready(REQUIREMENTS, BASE)
    unchanged = statistics.median(ready(REQUIREMENTS, BASE)[1] for _ in range(PAIRS))
    changed, _ = ready(CHANGED, BASE)
    return Row("(c) tfjob, mounted", cold, unchanged, changed, ready(REQUIREMENTS, OTHER_BASE)[0])


def _print_shipped(folder: Path) -> int:
    """What `docker load` is sent for an image that differs from one the engine has by one small package."""
    there = _run([_docker(), "images", "-q", "tfjob/env"], folder, dict(os.environ)).split()
    if there:  # of an earlier run: what is there is not shipped
        _run([_docker(), "image", "rm", "-f", *dict.fromkeys(there)], folder, dict(os.environ))
    shipped = []
    for requirements in (REQUIREMENTS, CHANGED):
        _write_job(folder, requirements, BASE)
        made = _run([PROGRAM, "env", "build", "job.yml", "--image", "-o", "json"], folder, _environ(folder))
        shipped.append(json.loads(made))
    size = int(_run([_docker(), "image", "inspect", "-f", "{{.Size}}", shipped[1]["image"]], folder, dict(os.environ)))
    sent = shipped[1]["bytes_sent"]
    print(f"\nShipped after a one-package change: {sent / 1e6:.1f} MB of an image of {size / 1e6:.0f} MB.")
    return _print_goals((("shipped / image, %", 100 * sent / size, "<=", 2),))


def _print_trivial(folder: Path) -> int:
    """A whole trivial job in a container, image at hand, from Enter to exit."""
    (folder / "trivial.yml").write_text(
        f"name: trivial\ncommand: echo hello\nenvironment: {{image: {BASE}}}\n", encoding="utf-8"
    )
    torchx = [
        str(peer(TORCHX) / "torchx"),
        "run",
        "-s",
        "local_docker",
        "utils.echo",
        "--image",
        BASE,
        "--msg",
        "hello",
    ]
    bare = [_docker(), "run", "--rm", "--network", "host", BASE, "echo", "hello"]
    ours = [PROGRAM, "submit", "trivial.yml"]
    empty = folder / "empty"  # TorchX copies its folder into an image
    empty.mkdir()
    pairs = ((ours, folder), (torchx, empty), (bare, empty))
    timed = [[_timed(command, where) for command, where in pairs] for _ in range(PAIRS + 1)][1:]
    medians = [statistics.median(column) for column in zip(*timed, strict=True)]
    print("\n| a trivial job in a container | s |\n|---|---|")
    for name, seconds in zip(("tfjob", "TorchX, local_docker", "docker run"), medians, strict=True):
        print(f"| {name} | {seconds:.2f} |")
    ratio = statistics.median(row[0] / row[1] for row in timed)
    return _print_goals((("tfjob / TorchX", ratio, "<=", 0.6),))


def _timed(command: list[str], folder: Path) -> float:
    begun = time.perf_counter()
    _run(command, folder, _environ(folder))
    return time.perf_counter() - begun


def _write_job(folder: Path, requirements: list[str], base: str) -> None:
    conda = {"dependencies": ["python=3.11", {"pip": requirements}]}
    job = {"name": "ready", "command": "python -c pass", "environment": {"conda": conda, "base": base}}
    job["compute"] = {"runtime": "docker"}
    (folder / "job.yml").write_text(json.dumps(job), encoding="utf-8")  # JSON is YAML


def _preparing_s(folder: Path) -> float:
    shown = json.loads(_run([PROGRAM, "show", "latest", "-o", "json"], folder, _environ(folder)))
    phase = next(one for one in shown["phases"] if one["name"] == "Preparing")
    return _seconds(phase["ended"]) - _seconds(phase["started"])


def _seconds(text: str) -> float:
    from datetime import datetime  # noqa: PLC0415

    return datetime.fromisoformat(text).timestamp()


def _environ(folder: Path) -> dict[str, str]:
    return {**os.environ, "TFJOB_STORE": str(folder / "store")}


def _other_base() -> None:
    """The base with one more file in it, as an update of it would have."""
    build = f"FROM {BASE}\nRUN date > /etc/changed\n"
    subprocess.run(
        [_docker(), "build", "--network", "host", "-q", "-t", OTHER_BASE, "-"],
        input=build.encode(),
        env={**os.environ, "DOCKER_BUILDKIT": "0"},
        check=True,
        capture_output=True,
    )


def _context(folder: Path) -> None:
    """What a build needs to reach the index as this machine does: pip's settings, certificates, uv."""
    from uv import find_uv_bin  # noqa: PLC0415

    listed = subprocess.run(
        [sys.executable, "-m", "pip", "config", "list"], check=True, capture_output=True, text=True
    ).stdout
    options = [line.partition("=") for line in listed.splitlines() if line.startswith("global.")]
    lines = [f"{name.removeprefix('global.')} = {value.strip(chr(39))}" for name, _, value in options]
    kept = [line for line in lines if "file:" not in line and not line.startswith(("find-links", "cert"))]
    (folder / "pip.conf").write_text("\n".join(["[global]", *kept]) + "\n", encoding="utf-8")
    named = os.environ.get("SSL_CERT_FILE") or os.environ.get("PIP_CERT") or CERTIFICATES[0]
    shutil.copyfile(named if Path(named).exists() else CERTIFICATES[0], folder / "certificates")
    shutil.copy(find_uv_bin(), folder / "uv")


def _uv_settings() -> str:
    """The same for uv, as tfjob passes it on."""
    from tfjob.environments.pip_settings import configuration_files, uv_settings  # noqa: PLC0415

    environment = uv_settings(os.environ, configuration_files(os.environ)).environment
    named = {name: value for name, value in environment.items() if name.startswith("UV_") and "file:" not in value}
    local = ("UV_CACHE_DIR", "UV_FIND_LINKS")  # folders of this machine
    return "".join(f"ENV {name}={json.dumps(value)}\n" for name, value in named.items() if name not in local)


def _docker() -> str:
    """A docker program that builds with BuildKit without buildx: that of Debian's docker.io, where there are several."""
    return "/usr/bin/docker" if Path("/usr/bin/docker").exists() else "docker"


def _run(command: list[str], folder: Path, environ: dict[str, str]) -> str:
    done = subprocess.run(
        command, check=False, cwd=folder, env=environ, capture_output=True, text=True, stdin=subprocess.DEVNULL
    )
    if done.returncode:
        sys.exit(f"{' '.join(command)}\n{done.stdout[-2000:]}\n{done.stderr[-2000:]}")
    return done.stdout


if __name__ == "__main__":
    sys.exit(main())
