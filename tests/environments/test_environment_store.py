"""The store with the real uv: packages made here, no index, one store a test."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from support import eventually

from tfjob.environments import Definition, Store, variables
from tfjob.environments.place import Machine

if TYPE_CHECKING:
    from environment_parts import Made, Packages

pytestmark = pytest.mark.real
pytest_plugins = ("environment_parts",)

# Prepares the requirements given, saying each step; stops dead at the step that starts with STOP.
CHILD = """
import os, sys, time
from pathlib import Path
from tfjob.environments import Definition, Store
from tfjob.environments.place import Machine
from tfjob.errors import Interrupted, TfjobError
def progress(step):
    print(step, flush=True)
    if os.environ.get("STOP") and step.startswith(os.environ["STOP"]):
        time.sleep(60)
try:
    definition = Definition(requirements=tuple(sys.argv[2:]))
    print("made", Store(Path(sys.argv[1])).prepare(definition, Machine(), log=lambda line: None, progress=progress).key)
except (TfjobError, Interrupted) as error:
    print(type(error).__name__, error.message)
    sys.exit(error.exit_code)
"""


def child(root: Path, *requirements: str, stop: str = "") -> subprocess.Popen[str]:
    command = [sys.executable, "-c", CHILD, str(root), *requirements]
    environment = {**os.environ, "STOP": stop, "PYTHONPATH": os.pathsep.join(path for path in sys.path if path)}
    return subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, text=True)


def output(process: subprocess.Popen[str]) -> str:
    return process.communicate(timeout=60)[0]


def lives(pid: int) -> bool:
    """Whether the process runs; one that ended and that nobody asked about yet does not."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except (FileNotFoundError, ProcessLookupError):
        return False


def until_told(packages: Packages, name: str, folder: Path) -> None:
    """A source package whose build writes its pid to a file, and goes on when there is a file `go`, or after minutes."""
    before = f"""open({str(folder / "pid")!r}, "w").write(str(os.getpid()))
    any(os.path.exists({str(folder / "go")!r}) or time.sleep(0.02) for _ in range(15_000))"""
    packages.sdist(name, before=before)


def builder(folder: Path) -> int:
    """The pid of the build, once it has begun."""
    pid = folder / "pid"
    return int(eventually(lambda: pid.exists() and pid.read_text(), "it is built"))


def run(prefix: Path, *command: str) -> str:
    path = f"{prefix / 'bin'}{os.pathsep}{os.environ['PATH']}"
    inherited = {key: value for key, value in os.environ.items() if key not in {"PYTHONPATH", "PYTHONHOME"}}
    environment = {**inherited, **variables(prefix), "PATH": path}
    return subprocess.run(command, env=environment, check=True, capture_output=True, text=True).stdout.strip()


def test_a_build_is_whole_compiled_and_described(packages: Packages, made: Made) -> None:
    packages.wheel("alpha", files={"alpha/__init__.py": "X = 1\n", "alpha/broken.py": "print 'old'\n"}, requires="beta")
    packages.wheel("beta", "2.5")
    prefix = made("alpha")
    assert run(prefix.path, "python", "-c", "import alpha, beta; print(beta.VERSION)") == "2.5"
    assert prefix.packages == 2
    assert prefix.path == made.store.root / "prefixes" / prefix.key
    assert made.steps[:2] == ["solving", "downloading and installing 2 packages"]
    assert made.steps[2].startswith("compiling ")
    assert any("beta" in line for line in made.log)
    marker = json.loads((prefix.path / "tfjob-prefix.json").read_text())
    assert marker["packages"] == {"alpha": "1.0", "beta": "2.5"}
    assert marker["python"] == prefix.python_version
    lock = prefix.lock.read_text()
    assert "alpha==1.0" in lock
    assert "--hash=sha256:" in lock
    assert str(packages.folder) not in lock
    site = next(prefix.path.glob("lib/python*/site-packages"))
    assert [path.name.split(".")[0] for path in (site / "alpha" / "__pycache__").iterdir()] == ["__init__"]
    assert made.names("building") == []


def test_a_hit_starts_no_program_and_takes_milliseconds(
    packages: Packages, made: Made, monkeypatch: pytest.MonkeyPatch
) -> None:
    packages.wheel("alpha")
    prefix = made("alpha")
    shutil.rmtree(packages.folder)
    monkeypatch.setattr("tfjob.environments.preparation.find_uv", lambda: pytest.fail("uv was wanted"))
    monkeypatch.setattr("subprocess.Popen", lambda *_, **__: pytest.fail("a program was started"))
    took = []
    for _ in range(10):
        start = time.perf_counter()
        assert made("alpha") == prefix
        took.append(time.perf_counter() - start)
        assert made.steps == []
    assert min(took) < 0.05  # somebody else may have had the processor meanwhile, but not each time
    assert made.store.find(Definition(requirements=("alpha",)), Machine()) == prefix
    assert made.store.find(Definition(requirements=("alpha", "alpha")), Machine()) is None
    assert Store(made.store.root / "elsewhere").find(Definition(), Machine()) is None


def test_one_package_more_shares_all_the_rest(packages: Packages, made: Made) -> None:
    packages.wheel("alpha")
    packages.wheel("beta")
    first, second = made("alpha"), made("alpha", "beta")
    assert made.steps[1] == "downloading and installing 2 packages"
    assert made.steps[2].startswith("compiling 1 of ") or made.steps[2].startswith("compiling 2 of ")
    for pattern in ("lib/python*/site-packages/alpha/__init__.py", "lib/python*/site-packages/alpha/__pycache__/*.pyc"):
        assert next(first.path.glob(pattern)).stat().st_ino == next(second.path.glob(pattern)).stat().st_ino
    assert run(second.path, "python", "-c", "import alpha; print(alpha.__file__)").startswith(str(second.path))


def test_the_same_lock_from_another_definition_is_the_same_prefix(packages: Packages, made: Made) -> None:
    packages.wheel("alpha")
    assert made("alpha").path == made("alpha==1.0").path
    assert made.steps == ["solving"]


def test_no_packages_is_an_environment_too(packages: Packages, made: Made) -> None:
    packages.wheel("unused")
    prefix = made()
    assert prefix.packages == 0
    assert run(prefix.path, "python", "-c", "import sys; print(sys.prefix)") == str(prefix.path)


def test_prefixes_and_uvs_cache_do_not_change_each_other(packages: Packages, made: Made) -> None:
    packages.wheel("alpha")
    prefix = made("alpha")
    files = [path for path in prefix.path.rglob("*") if path.is_file() and not path.is_symlink()]
    writable = [path.name for path in files if path.stat().st_mode & 0o222]
    assert writable == ["tfjob-prefix.json"]
    site = next(prefix.path.glob("lib/python*/site-packages"))
    (site / "intruder.py").write_text("")
    assert made.store.find(Definition(requirements=("alpha",)), Machine()) is None
    again = made("alpha")
    assert "solving" not in made.steps
    assert again == prefix
    assert not (site / "intruder.py").exists()
    assert made.names("building") == []


def test_a_python_that_was_replaced_is_asked_again(packages: Packages, made: Made) -> None:
    packages.wheel("alpha")
    prefix = made("alpha")
    known = next((made.store.root / "known").iterdir())
    record = json.loads(known.read_text())
    record["interpreter"]["modified_ns"] += 1
    known.write_text(json.dumps(record))
    assert made.store.find(Definition(requirements=("alpha",)), Machine()) is None
    assert made("alpha") == prefix
    assert made.steps == []
    known.write_text("{")
    assert made("alpha") == prefix


def test_scripts_work_where_the_prefix_ends_up(packages: Packages, made: Made, tmp_path: Path) -> None:
    code = "import sys\ndef main():\n    print('tool', sys.prefix)\n"
    files = {"tool.py": code, "tool-1.0.dist-info/entry_points.txt": "[console_scripts]\ntool = tool:main\n"}
    files["tool-1.0.data/scripts/plain.py"] = "#!python\nimport sys\nprint('plain', sys.prefix)\n"
    files["tool-1.0.data/scripts/shell"] = "#!/bin/sh\necho shell\n"
    packages.wheel("tool", files=files)
    prefix = made("tool")
    assert run(prefix.path, "tool") == f"tool {prefix.path}"
    assert run(prefix.path, "plain.py") == f"plain {prefix.path}"
    assert run(prefix.path, "shell") == "shell"
    (tmp_path / "link").symlink_to(prefix.path / "bin" / "tool")
    assert subprocess.check_output([tmp_path / "link"], text=True, env={"PATH": "/usr/bin:/bin"}).startswith("tool")
    texts = [path.read_bytes() for path in prefix.path.rglob("*") if path.is_file() and path.suffix != ".pyc"]
    assert not [text for text in texts if str(made.store.root / "building").encode() in text]


def test_a_source_package_is_built(packages: Packages, made: Made) -> None:
    packages.sdist("gamma")
    prefix = made("gamma")
    assert run(prefix.path, "python", "-c", "import gamma; print(gamma.VALUE)") == "from source"


def test_a_git_requirement_is_locked_to_its_commit(packages: Packages, made: Made, tmp_path: Path) -> None:
    if shutil.which("git") is None:
        pytest.skip("no git on this machine")
    (tmp_path / "repository").mkdir()
    for name, text in packages.source_files("delta").items():
        (tmp_path / "repository" / name).write_text(text)
    who = ["-c", "user.name=t", "-c", "user.email=t@t", "-c", "commit.gpgsign=false"]
    for command in (["init", "-q"], ["add", "."], [*who, "commit", "-qm", "one"]):
        subprocess.run(["git", *command], cwd=tmp_path / "repository", check=True)
    prefix = made(f"delta @ git+file://{tmp_path}/repository")
    commit = subprocess.check_output(["git", "rev-parse", "HEAD"], cwd=tmp_path / "repository", text=True).strip()
    assert commit in prefix.lock.read_text()
    assert run(prefix.path, "python", "-c", "import delta; print(delta.VALUE)") == "from source"


def test_options_of_the_definition_count_in_both_steps(packages: Packages, made: Made, tmp_path: Path) -> None:
    packages.wheel("alpha")
    packages.folder.rename(tmp_path / "other")
    packages.folder.mkdir()
    assert made(f"--find-links {tmp_path / 'other'}", "--pre", "alpha").packages == 1


def test_limits_and_pip_itself_come_from_the_definition(packages: Packages, made: Made) -> None:
    for version in ("1.0", "2.0"):
        packages.wheel("alpha", version)
    packages.wheel("pip", "99.0")
    assert "alpha==1.0" in made("alpha", "--constraint alpha<2").lock.read_text()
    definition = Definition(requirements=("alpha",), has_pip=True)
    prefix = made.store.prepare(definition, Machine(), log=made.log.append, progress=made.steps.append)
    assert "pip==99.0" in prefix.lock.read_text()


def test_two_at_once_build_once(packages: Packages, made: Made, tmp_path: Path) -> None:
    until_told(packages, "slow", tmp_path)
    first = child(made.store.root, "slow")
    builder(tmp_path)
    second = child(made.store.root, "slow")
    assert second.stdout is not None
    said = ""
    while "waiting for another tfjob that builds this environment" not in said:
        said += (line := second.stdout.readline())
        assert line, said
    (tmp_path / "go").touch()
    outputs = [output(first), said + output(second)]
    assert "".join(outputs).count("downloading and installing") == 1
    assert outputs[0].splitlines()[-1] == outputs[1].splitlines()[-1]
    assert len(made.names("prefixes")) == 1


@pytest.mark.parametrize("stop", ["solving", "downloading", "compiling"])
def test_a_killed_build_leaves_nothing_that_looks_finished(packages: Packages, made: Made, stop: str) -> None:
    packages.wheel("alpha")
    process = child(made.store.root, "alpha", stop=stop)
    assert process.stdout is not None
    while not process.stdout.readline().startswith(stop):
        assert process.poll() is None
    process.kill()
    process.wait()
    assert made.names("prefixes") == []
    assert made.names("building")
    assert made.store.find(Definition(requirements=("alpha",)), Machine()) is None
    assert made("alpha").packages == 1
    assert made.names("building") == []


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGKILL])
def test_a_signal_ends_uv_too(packages: Packages, made: Made, tmp_path: Path, number: signal.Signals) -> None:
    until_told(packages, "slow", tmp_path)
    process = child(made.store.root, "slow")
    building = builder(tmp_path)
    process.send_signal(number)
    text = output(process)
    if number == signal.SIGKILL:  # nobody is left to end uv; its lock keeps others out until it is done
        with ThreadPoolExecutor(1) as pool:
            prepared = pool.submit(made, "slow")
            eventually(lambda: made.steps, "another waits")
            (tmp_path / "go").touch()
            assert prepared.result(60).packages == 1
        assert made.steps[0].startswith("waiting")
    else:
        assert process.returncode
        eventually(lambda: not lives(building), "its build has ended")
        assert "made" not in text
    if number == signal.SIGTERM:
        assert "Interrupted" in text
    assert made.names("building") == []


def test_packages_from_the_machines_own_index(made: Made) -> None:
    prefix = made("six", "tabulate==0.9.0")
    assert run(prefix.path, "python", "-c", "import six, tabulate; print(tabulate.__version__)") == "0.9.0"
    assert "-" in run(prefix.path, "tabulate", "--help")
