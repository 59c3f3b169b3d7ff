"""Measures what tfjob promises about speed, as ratios against a peer in the same run: `make bench`.

Each comparison runs both commands in turn, A B A B ..., after a warm-up, and takes the median of the pairs' ratios, so
that a machine whose speed drifts still gives an honest answer. The peer (TorchX, from the package index) gets a virtual
environment of its own. Ends with exit code 1 when a goal is missed; prints the table that docs/explanation/speed.md shows.
"""

from __future__ import annotations

import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import NamedTuple

REPOSITORY = Path(__file__).resolve().parents[2]
PEERS = REPOSITORY / ".cache" / "bench"
TORCHX = "torchx==0.7.0"
PAIRS = 9
PROGRAM = str(Path(sys.executable).with_name("tfjob"))


class Comparison(NamedTuple):
    """Two commands that do the same; `goal` is the most that ours may take of the other's time."""

    name: str
    ours: list[str]
    theirs: list[str]
    goal: float


class Result(NamedTuple):
    """Medians in seconds, and the median of the ratios ours / theirs pair by pair."""

    ours_s: float
    theirs_s: float
    ratio: float


def main() -> int:
    """Measure everything and print the table."""
    torchx = peer(TORCHX) / "torchx"
    missed = 0
    with tempfile.TemporaryDirectory() as directory:
        workspace = Path(directory)
        (workspace / "echo.yml").write_text("name: echo\ncommand: echo hello\n", encoding="utf-8")
        run([PROGRAM, "init"], workspace)
        for _ in range(20):
            run([PROGRAM, "submit", "echo.yml"], workspace)
        help_of_torchx = [str(torchx), "--help"]
        job_of_torchx = [str(torchx), "run", "-s", "local_cwd", "utils.echo", "--msg", "hello"]
        print("| what | tfjob, s | TorchX, s | ratio | goal |")
        print("|---|---|---|---|---|")
        for comparison in (
            Comparison("`tfjob --help` / `torchx --help`", [PROGRAM, "--help"], help_of_torchx, 0.5),
            Comparison("`tfjob list` (20 runs) / `torchx --help`", [PROGRAM, "list"], help_of_torchx, 0.5),
            Comparison(
                "a whole trivial job / `torchx run -s local_cwd`", [PROGRAM, "submit", "echo.yml"], job_of_torchx, 0.8
            ),
        ):
            result = measure(comparison, workspace)
            missed += result.ratio > comparison.goal
            print(
                f"| {comparison.name} | {result.ours_s:.3f} | {result.theirs_s:.3f} "
                f"| {result.ratio:.2f} | ≤ {comparison.goal} |",
                flush=True,
            )
    return 1 if missed else 0


def measure(comparison: Comparison, directory: Path) -> Result:
    """Run both in turn and compare pair by pair; the first pair warms up and does not count."""
    pairs = [(run(comparison.ours, directory), run(comparison.theirs, directory)) for _ in range(PAIRS + 1)][1:]
    return Result(
        statistics.median(ours for ours, _ in pairs),
        statistics.median(theirs for _, theirs in pairs),
        statistics.median(ours / theirs for ours, theirs in pairs),
    )


def run(command: list[str], directory: Path) -> float:
    """Run a command to its end; the seconds it took."""
    begun = time.perf_counter()
    subprocess.run(command, cwd=directory, check=True, stdin=subprocess.DEVNULL, capture_output=True)
    return time.perf_counter() - begun


def peer(requirement: str) -> Path:
    """The programs of a peer, installed once into an environment of its own."""
    home = PEERS / requirement
    if not (home / "bin").is_dir():
        print(f"installing {requirement}", file=sys.stderr)
        subprocess.run([sys.executable, "-m", "venv", str(home)], check=True)
        pip = [str(home / "bin" / "python"), "-m", "pip", "install", "--quiet", "--disable-pip-version-check"]
        subprocess.run([*pip, requirement], check=True, env=os.environ)
    return home / "bin"


if __name__ == "__main__":
    sys.exit(main())
