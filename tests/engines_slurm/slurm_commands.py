"""Slurm's commands as scripts, where a test is about what tfjob makes of their words."""

from __future__ import annotations

import os
from pathlib import Path

from tfjob.engines.slurm.client import SlurmClient


def commands(directory: Path, **texts: str) -> SlurmClient:
    """A client whose commands are shell scripts; each notes its call in `calls`."""
    directory.mkdir(exist_ok=True)
    for name, text in texts.items():
        program = directory / name
        program.write_text(f'#!/bin/sh\necho {name} "$@" >>"{directory}/calls"\n{text}\n')
        program.chmod(0o755)
    return SlurmClient({**os.environ, "PATH": f"{directory}:{os.environ['PATH']}", "SQUEUE_FORMAT": "%A", "X": "y"})


def calls(directory: Path) -> list[str]:
    """The calls so far, a line each."""
    file = directory / "calls"
    return file.read_text().splitlines() if file.exists() else []
