"""Puts the programs that a job's nodes run into its run directory, compiled for the Python that will run them.

Python keeps what it compiles beside the source, which would be new for every run: the job would start a tenth of a second later.
"""

from __future__ import annotations

import hashlib
import shutil
import subprocess
import tempfile
from contextlib import suppress
from pathlib import Path
from typing import Final

from tfjob import entrypoint
from tfjob.engines import run_files

__all__ = ["PROGRAMS", "place_programs"]

PROGRAMS: Final = (
    *("batch.py", "node.py", "sending.py", "slurm.py", "start.py", "state.py", "step.py", "verdict.py", "work.py"),
    *("binding.py", "clock.py", "closing.py", "container.py", "image.py", "judging.py", "launching.py"),
    "runtimes.py",
)
"""The files of `program/` that go into the run directory, with the entrypoint and run_files.py beside them."""
_COMPILE_S: Final = 30.0


def place_programs(into: Path, python: str | None, cache: Path) -> None:
    """Put the programs into a directory, compiled by `python`, a file of this machine, if that can be done.

    What was compiled is kept under `cache`. A Python of another version ignores it (PEP 3147), and compiles for itself.
    """
    own = (Path(__file__).parent / "program" / name for name in PROGRAMS)
    sources = (*own, Path(run_files.__file__), Path(entrypoint.__file__))
    into.mkdir(parents=True, exist_ok=True)
    for source in sources:
        shutil.copyfile(source, into / source.name)
    compiled = _compiled(sources, python, cache) if python else None
    if compiled is not None:
        shutil.copytree(compiled, into / "__pycache__", copy_function=shutil.copyfile, dirs_exist_ok=True)


def _compiled(sources: tuple[Path, ...], python: str, cache: Path) -> Path | None:
    """The directory with the compiled programs, made if it is not there; None where that can't be."""
    try:
        real = Path(python).resolve(strict=True)
        digest = hashlib.sha256(f"{real}\0{real.stat().st_mtime_ns}".encode())
        for source in sources:
            digest.update(source.read_bytes())
        kept = cache / "slurm-programs" / digest.hexdigest()[:32]
        if not kept.is_dir():
            _compile(sources, python, kept)
    except (OSError, subprocess.SubprocessError):
        return None  # the job starts all the same
    return kept if kept.is_dir() else None


def _compile(sources: tuple[Path, ...], python: str, kept: Path) -> None:
    kept.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=kept.parent, prefix=".") as directory:
        for source in sources:
            shutil.copyfile(source, Path(directory, source.name))
        # Unchecked: the sources in a run directory are as old as the run, not as those that are compiled here.
        options = ["-E", "-s", "-m", "compileall", "-q", "--invalidation-mode", "unchecked-hash"]
        subprocess.run(
            [python, *options, directory],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            timeout=_COMPILE_S,
            check=True,
        )
        with suppress(OSError):  # another run was quicker
            Path(directory, "__pycache__").rename(kept)
