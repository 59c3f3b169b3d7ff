"""The generated pages are those the code gives now, and what they say of this version is so."""

from __future__ import annotations

import importlib.util
import subprocess
import sys
from pathlib import Path
from types import ModuleType

import pytest
from support import REPOSITORY

from tfjob.errors import TfjobError
from tfjob.spec.load import load_text
from tfjob.submission import plan

SCRIPT = REPOSITORY / "docs" / "generate.py"


def _generate() -> ModuleType:
    spec = importlib.util.spec_from_file_location("docs_generate", SCRIPT)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


GENERATE = _generate()


def test_generated_pages_are_fresh() -> None:
    done = subprocess.run([sys.executable, str(SCRIPT), "--check"], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


def test_unknown_arguments_are_refused() -> None:
    assert GENERATE.main(["--chekc"]) == 2


@pytest.mark.parametrize("key", sorted(GENERATE.NOT_YET))
def test_what_is_said_to_be_missing_is_refused(key: str, tmp_path: Path) -> None:
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "a").write_text("a")
    (tmp_path / "Dockerfile").write_text("FROM scratch\n")
    with pytest.raises(TfjobError):
        _plan(GENERATE.NOT_YET[key], tmp_path)


def test_what_is_said_to_have_no_effect_is_accepted_and_changes_nothing(tmp_path: Path) -> None:
    values = {
        "display_name": "display_name: Another name",
    }
    assert set(values) == set(GENERATE.NO_EFFECT)
    without = _plan("", tmp_path)
    assert {key: _plan(part, tmp_path) == without for key, part in values.items()} == dict.fromkeys(values, True)


def _plan(part: str, folder: Path) -> object:
    text = f"name: job\ncommand: 'true'\n{part}\n"
    return plan(load_text(text, file="job.yml", base_dir=folder, environ={}))
