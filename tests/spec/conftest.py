"""A folder with what a good job needs, and the two ways to ask about a job in it."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from tfjob.errors import InvalidFile
from tfjob.spec.job import JobSpec
from tfjob.spec.load import load_text

CONDA = """\
name: tf
channels: [conda-forge]
dependencies:
  - python=3.11
  - pip:
      - tensorflow==2.16.2
"""

Load = Callable[..., JobSpec]
Problems = Callable[..., list[str]]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "src" / "deep").mkdir(parents=True)
    (tmp_path / "src" / "train.py").touch()
    (tmp_path / "src" / "deep" / "other.py").touch()
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "images.gz").touch()
    (tmp_path / "data" / "odd[1].gz").touch()
    (tmp_path / "environment.yml").write_text(CONDA)
    (tmp_path / "Dockerfile").write_text("FROM scratch\n")
    return tmp_path


@pytest.fixture
def load_job(folder: Path) -> Load:
    def load_job(text: str, *overrides: str, **environ: str) -> JobSpec:
        return load_text(text, file="job.yml", base_dir=folder, overrides=overrides, environ=environ)

    return load_job


@pytest.fixture
def problems_of(load_job: Load) -> Problems:
    """Return the problems of a text, one line each; none for a good one."""

    def problems_of(text: str, *overrides: str, **environ: str) -> list[str]:
        try:
            load_job(text, *overrides, **environ)
        except InvalidFile as error:
            return [str(problem) for problem in error.problems]
        return []

    return problems_of
