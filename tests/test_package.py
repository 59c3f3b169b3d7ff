"""What a person gets by `pipx install`: a wheel with everything in it, in an environment that has nothing else."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest
import uv
from support import REPOSITORY

import tfjob


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = tmp_path_factory.mktemp("wheel")
    pip = [sys.executable, "-m", "pip", "wheel", "--quiet", "--no-deps", "--wheel-dir", str(directory), str(REPOSITORY)]
    subprocess.run(pip, check=True)
    (built,) = directory.glob("tfjob-*.whl")
    return built


def test_the_wheel_holds_schemas_and_the_type_marker(wheel: Path) -> None:
    names = set(zipfile.ZipFile(wheel).namelist())
    sources = {path.relative_to(REPOSITORY).as_posix() for path in (REPOSITORY / "tfjob").rglob("*.py")}
    assert sources <= names
    assert {"tfjob/py.typed", "tfjob/spec/job.schema.json", "tfjob/spec/environment.schema.json"} <= names
    assert not [name for name in names if not name.startswith("tfjob")]


@pytest.mark.real
def test_the_wheel_works_where_nothing_else_is(wheel: Path, tmp_path: Path) -> None:
    home = tmp_path / "venv"
    subprocess.run([sys.executable, "-m", "venv", str(home)], check=True)
    subprocess.run([str(home / "bin/python"), "-m", "pip", "install", "--quiet", str(wheel)], check=True)
    (tmp_path / "echo.yml").write_text("name: echo\ncommand: echo hello; echo x > outputs/y\n")
    environ = {name: value for name, value in os.environ.items() if name not in ("PYTHONPATH", "VIRTUAL_ENV")}
    program = str(home / "bin/tfjob")

    def run(*arguments: str) -> str:
        done = subprocess.run(
            [program, *arguments], cwd=tmp_path, env=environ, capture_output=True, text=True, check=True
        )
        return done.stdout

    assert run("--version").strip() == tfjob.__version__
    assert json.loads(run("schema"))["properties"]["compute"]
    assert run("submit", "echo.yml") == "hello\n"
    assert json.loads(run("show", "latest", "-o", "json"))["outputs"] == [{"path": "y", "size_bytes": 2}]


def test_the_library_is_typed(tmp_path: Path) -> None:
    (tmp_path / "user.py").write_text(
        "import tfjob\n"
        "job: tfjob.JobSpec = tfjob.load('job.yml', overrides=['compute.node_count=2'])\n"
        "plan: tfjob.Plan = tfjob.plan(job)\n"
        "run: tfjob.Run = tfjob.submit(job)\n"
        "state: str = run.wait(timeout_s=60).state\n"
        "wrong: int = plan.name\n"
    )
    mypy = [sys.executable, "-m", "mypy", "--strict", "--no-incremental", "user.py"]
    done = subprocess.run(mypy, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert done.stdout.splitlines()[0].startswith("user.py:6: error: Incompatible types in assignment"), done.stdout
    assert "Found 1 error" in done.stdout


def test_the_library_runs_a_job(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "job.yml").write_text(
        "name: lib\ncommand: echo from ${{ parameters.who }}; exit 4\nparameters: {who: me}\n"
    )
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("TFJOB_WORKSPACE", raising=False)
    job = tfjob.load("job.yml", overrides=["parameters.who=you"])
    run = tfjob.submit(job)
    with pytest.raises(tfjob.TfjobError, match=r"run lib-\w+ failed: main exited with code 4"):
        run.wait(timeout_s=60)
    assert run.log() == "from you\n"
    assert run.record.tasks[0].exit_code == 4
    assert tfjob.plan(job).tasks[0].argv[-1] == "echo from you; exit 4"


def test_uv_is_the_one_that_was_installed_with_tfjob() -> None:
    assert Path(uv.find_uv_bin()).is_file()
