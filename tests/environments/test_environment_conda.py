"""Environments with conda packages: a real channel of this machine's own Python, solved, installed, relocated and run."""

from __future__ import annotations

import base64
import hashlib
import json
import os
import shutil
import signal
import struct
import subprocess
import sys
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import conda_channel
import pytest

from tfjob.environments import Definition, Prefix, Store, definition_of, variables
from tfjob.environments.interpreters import Interpreter
from tfjob.environments.lock import Lock
from tfjob.environments.place import Machine
from tfjob.environments.pruning import usage
from tfjob.errors import PreparationError, UsageError
from tfjob.spec.job import EnvironmentSpec

if TYPE_CHECKING:
    from environment_parts import Made, Packages

pytestmark = pytest.mark.real
pytest_plugins = ("environment_parts",)

# Prepares the definition given as JSON, saying each step; stops dead at the step that starts with STOP.
CHILD = """
import json, os, sys, time
from pathlib import Path
from tfjob.environments import Definition, Store
from tfjob.environments.place import Machine
def progress(step):
    print(step, flush=True)
    if os.environ.get("STOP") and step.startswith(os.environ["STOP"]):
        time.sleep(60)
asked = {key: tuple(value) if isinstance(value, list) else value for key, value in json.loads(sys.argv[2]).items()}
made = Store(Path(sys.argv[1])).prepare(Definition(**asked), Machine(), log=lambda line: None, progress=progress)
print("made", made.key)
"""


@dataclass(frozen=True)
class Elsewhere(Machine):
    """This machine without its Pythons, with virtual packages and a place for prefixes of the test's choice."""

    offers: Mapping[str, str] = field(default_factory=lambda: {"__glibc": "2.36", "__linux": "5.10", "__unix": "0"})
    seen_at: Path | None = None

    @property
    def name(self) -> str:
        return "the test's place"

    @property
    def identity(self) -> str:
        return f"test:{sorted(self.offers.items())} {self.seen_at}"

    @cached_property
    def interpreters(self) -> tuple[Interpreter, ...]:
        return ()

    @cached_property
    def virtual_packages(self) -> Mapping[str, str]:
        return self.offers

    def final(self, prefix: Path) -> Path:
        return self.seen_at or prefix


@pytest.fixture(scope="module")
def channel() -> Path:
    return conda_channel.channel()


@dataclass
class Conda:
    """Prepares environments from the channel."""

    made: Made
    channel: Path

    def definition(self, *packages: str, pip: tuple[str, ...] = (), **more: Any) -> Definition:
        return Definition(packages=packages, requirements=pip, **{"channels": (self.channel.as_uri(),), **more})

    def __call__(self, *packages: str, pip: tuple[str, ...] = (), place: Machine | None = None, **more: Any) -> Prefix:
        return self.prepare(self.definition(*packages, pip=pip, **more), place)

    def prepare(self, definition: Definition, place: Machine | None = None, lock: str | None = None) -> Prefix:
        made = self.made
        made.steps.clear()
        made.log.clear()
        return made.store.prepare(
            definition, place or Machine(), lock=lock, log=made.log.append, progress=made.steps.append
        )


@pytest.fixture
def conda(packages: Packages, made: Made, channel: Path) -> Conda:
    assert packages.folder
    return Conda(made, channel)


def run(prefix: Path, *command: str) -> str:
    """Run a program of a prefix as a task would, with nothing of this process's own."""
    environment = {"PATH": f"{prefix / 'bin'}:/usr/bin:/bin", **variables(prefix)}
    done = subprocess.run(command, env=environment, check=False, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


def child(store: Store, asked: Mapping[str, Any], stop: str = "") -> subprocess.Popen[str]:
    environment = {**os.environ, "STOP": stop, "PYTHONPATH": os.pathsep.join(path for path in sys.path if path)}
    command = [sys.executable, "-c", CHILD, str(store.root), json.dumps(asked)]
    return subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, text=True)


def test_conda_packages_are_solved_installed_relocated_and_run(packages: Packages, conda: Conda) -> None:
    packages.wheel(
        "alpha",
        files={
            "alpha.py": "def main():\n    import sys, greet\n    print('alpha', greet.VERSION, sys.prefix)\n",
            "alpha-1.0.dist-info/entry_points.txt": "[console_scripts]\nalpha = alpha:main\n",
        },
        requires="greet",
    )
    prefix = conda("greet", "where", pip=("alpha",), python=f"=={conda_channel.PYTHON}.*", has_pip=True)
    where = str(prefix.path)
    assert prefix.final == prefix.path
    assert prefix.packages == 6
    assert conda.made.steps[:2] == ["solving", "downloading and installing 6 packages"]
    assert conda.made.steps[2] == "scripts of packages that tfjob does not run: etc/conda/activate.d/greet.sh"
    assert conda.made.steps[3].startswith("compiling ")
    code = "import sys, ssl, ctypes, sqlite3, sysconfig; print(sys.prefix, sysconfig.get_path('purelib'))"
    site = f"{where}/lib/python{conda_channel.PYTHON}/site-packages"
    assert run(prefix.path, "python", "-c", code).split() == [where, site]
    for search in ("include", "stdlib", "scripts", "data"):
        found = run(prefix.path, "python", "-c", f"import sysconfig; print(sysconfig.get_path({search!r}))")
        assert found.startswith(where), search
    assert run(prefix.path, "greet") == f"greet {where}"
    assert run(prefix.path, "alpha") == f"alpha 2.0 {where}"
    assert run(prefix.path, "greet-where") == f"greetings from {where}"
    assert run(prefix.path, "where").startswith(where)
    listed = run(prefix.path, "pip", "--disable-pip-version-check", "list", "--format", "json")
    assert {one["name"] for one in json.loads(listed)} == {"alpha", "greet", "pip"}
    files = [path for path in prefix.path.rglob("*") if path.is_file() and not path.is_symlink()]
    texts = {path: path.read_bytes() for path in files if path.suffix != ".pyc"}
    assert not [path for path, text in texts.items() if b"/building/" in text]
    placeholder = conda_channel.PLACEHOLDER.encode()  # conda's own records say what was replaced
    assert {path.parent.name for path, text in texts.items() if placeholder in text} == {"conda-meta"}
    assert [path.name for path in files if path.stat().st_mode & 0o222] == ["tfjob-prefix.json"]
    lock = Lock.parse(prefix.lock.read_text())
    assert lock.packages == {
        "python": prefix.python_version,
        "pip": lock.packages["pip"],
        "greet": "2.0",
        "greet-data": "1.0",
        "where": "0.3",
        "alpha": "1.0",
    }
    assert list(lock.pip_packages) == ["alpha"]
    assert conda.made.names("building") == []


def test_a_hit_starts_no_program_and_asks_nobody(conda: Conda, monkeypatch: pytest.MonkeyPatch) -> None:
    definition = conda.definition("greet")
    prefix = conda.prepare(definition)
    monkeypatch.setattr("subprocess.Popen", lambda *_, **__: pytest.fail("a program was started"))
    monkeypatch.setattr("rattler.solve", lambda *_, **__: pytest.fail("a channel was asked"))
    assert conda.prepare(definition) == prefix
    assert conda.made.steps == []


def test_python_alone_asks_no_channel_where_the_place_has_it(conda: Conda) -> None:
    nowhere = ("http://127.0.0.1:9/none",)
    python = f"=={conda_channel.PYTHON}.*"
    prefix = conda.prepare(Definition(python=python, channels=nowhere))
    assert Lock.parse(prefix.lock.read_text()).conda is None
    with pytest.raises(PreparationError, match=r"127\.0\.0\.1:9"):
        conda.prepare(Definition(python=python, channels=nowhere), Elsewhere())


def test_python_comes_from_the_channel_where_the_place_has_none(packages: Packages, conda: Conda) -> None:
    packages.wheel("alpha")
    asked = Definition(
        python=f"=={conda_channel.PYTHON}.*", requirements=("alpha",), channels=(conda.channel.as_uri(),)
    )
    prefix = conda.prepare(asked, Elsewhere())
    assert run(prefix.path, "python", "-c", "import alpha, sys; print(sys.base_prefix)") == str(prefix.path)
    with pytest.raises(PreparationError, match="the test's place has no Python that tfjob can use"):
        conda.prepare(Definition(python=f"=={conda_channel.PYTHON}.*"), Elsewhere())


@pytest.mark.parametrize(
    ("offered", "variant"), [({}, "cpu_0"), ({"__cuda": "12.4"}, "cuda_1"), ({"__cuda": "11.1"}, "cpu_0")]
)
def test_virtual_packages_choose_the_variant(conda: Conda, offered: dict[str, str], variant: str) -> None:
    place = Elsewhere(offers={"__glibc": "2.36", **offered})
    prefix = conda("where", place=place)
    assert (prefix.path / "share" / "where" / "variant").read_text() == variant


def test_a_prefix_can_be_made_for_another_path(packages: Packages, conda: Conda, tmp_path: Path) -> None:
    files = {"alpha.py": "def main():\n    print('alpha')\n"}
    files["alpha-1.0.dist-info/entry_points.txt"] = "[console_scripts]\nalpha = alpha:main\n"
    packages.wheel("alpha", files=files)
    final = tmp_path / "opt" / "env"
    prefix = conda("greet", "where", pip=("alpha",), place=Elsewhere(seen_at=final))
    assert prefix.final == final
    assert prefix.path != final
    for script in ("alpha", "greet", "greet-where"):
        assert str(final) in (prefix.path / "bin" / script).read_text()
    record = next(prefix.path.glob("lib/python*/site-packages/alpha-*.dist-info/RECORD")).read_text()
    digest = hashlib.sha256((prefix.path / "bin" / "alpha").read_bytes()).digest()
    assert f"bin/alpha,sha256={base64.urlsafe_b64encode(digest).decode().rstrip('=')}," in record
    final.parent.mkdir()
    final.symlink_to(prefix.path)  # a container would have it mounted there
    assert run(final, "alpha") == "alpha"
    assert run(final, "where").startswith(str(final))
    assert prefix.key != conda("greet", "where", pip=("alpha",), place=Elsewhere()).key


def test_conda_and_pip_share_files_with_what_is_there(packages: Packages, conda: Conda) -> None:
    for name in ("alpha", "beta"):
        packages.wheel(name)
    first, second = conda("greet", pip=("alpha",)), conda("greet", pip=("alpha", "beta"))
    assert any(step.startswith("compiling") and int(step.split()[1]) < 10 for step in conda.made.steps)
    for name in ("os.py", "site-packages/greet/__init__.py", "site-packages/alpha/__init__.py"):
        path = f"lib/python{conda_channel.PYTHON}/{name}"
        assert (first.path / path).stat().st_ino == (second.path / path).stat().st_ino
    one, other = usage(conda.made.store)
    assert one.own_bytes < one.size_bytes / 4
    assert other.size_bytes > 10_000_000


def test_what_conda_has_is_not_replaced_by_pip(packages: Packages, conda: Conda) -> None:
    packages.wheel("greet", "3.0")
    packages.wheel("alpha", requires="greet>=1")
    prefix = conda("greet", pip=("alpha", "greet"))
    assert run(prefix.path, "python", "-c", "import greet; print(greet.VERSION)") == "2.0"
    assert list(Lock.parse(prefix.lock.read_text()).pip_packages) == ["alpha"]


def test_pip_itself_is_condas_where_python_is(packages: Packages, conda: Conda, channel: Path) -> None:
    packages.wheel("alpha")
    dependencies = ["greet-data", "pip>=1", {"pip": ["alpha"]}]
    spec = EnvironmentSpec(conda={"channels": [str(channel)], "dependencies": dependencies})
    definition = definition_of(spec)
    assert definition is not None
    lock = Lock.parse(conda.prepare(definition).lock.read_text())
    assert "pip" in {record.name for record in lock.conda_records}
    assert list(lock.pip_packages) == ["alpha"]


def test_bytecode_that_came_with_a_package_is_kept(conda: Conda) -> None:
    prefix = conda("greet-data")
    library = prefix.path / "lib" / f"python{conda_channel.PYTHON}"
    tag = f"cpython-{conda_channel.PYTHON.replace('.', '')}"
    cached = conda.made.store.root / "conda" / "packages" / f"python-{prefix.python_version}-tests_0"
    for name in ("abc", "argparse"):
        found = library / "__pycache__" / f"{name}.{tag}.pyc"
        assert found.stat().st_ino == (cached / found.relative_to(prefix.path)).stat().st_ino
    # A file with the prefix in it is another than was compiled; not every repacked Python has one.
    for changed in (one for one in library.glob("*.py") if str(prefix.path).encode() in one.read_bytes()):
        head = (library / "__pycache__" / f"{changed.stem}.{tag}.pyc").read_bytes()[4:16]
        flags, _, size_bytes = struct.unpack("<III", head)
        assert flags == 1 or size_bytes == changed.stat().st_size  # compiled here, by tfjob or by this Python itself


def test_a_conflict_of_pip_with_conda_is_explained(packages: Packages, conda: Conda) -> None:
    packages.wheel("alpha", requires="greet<2")
    packages.wheel("greet", "1.5")
    with pytest.raises(PreparationError) as caught:
        conda("greet", pip=("alpha",))
    assert "greet 2.0 comes from conda, alpha asks for greet<2." in caught.value.message
    assert "`greet<2` under `dependencies:`" in caught.value.hint
    with pytest.raises(PreparationError) as caught:
        conda("greet", pip=("greet==1.5",))
    assert "greet 2.0 comes from conda, the pip section asks for greet==1.5." in caught.value.message
    assert conda("greet<2", pip=("alpha",)).packages == 4


def test_a_lock_is_repeated_without_asking_what_there_is(packages: Packages, conda: Conda, tmp_path: Path) -> None:
    packages.wheel("alpha")
    definition = conda.definition("greet", pip=("alpha",))
    lock = conda.made.store.solve(definition, Machine(), log=conda.made.log.append, progress=conda.made.steps.append)
    assert conda.made.names("prefixes") == []
    assert conda.made.names("locks") == []
    packages.wheel("alpha", "2.0")
    prefix = conda.prepare(definition, lock=lock.text)
    assert "solving" not in conda.made.steps
    assert Lock.parse(prefix.lock.read_text()) == lock
    assert conda.prepare(definition, lock=lock.text) == prefix
    assert conda.made.steps == []
    assert conda.made.store.find(definition, Machine(), lock.text) == prefix
    assert conda.made.store.find(definition, Machine()) is None
    elsewhere = Store(tmp_path / "second").prepare(
        definition, Machine(), lock=lock.text, log=conda.made.log.append, progress=conda.made.steps.append
    )
    assert Lock.parse(elsewhere.lock.read_text()).digest() == lock.digest()
    newer = conda.prepare(definition)
    assert newer.key != prefix.key


def test_a_lock_of_something_else_is_refused(packages: Packages, conda: Conda) -> None:
    packages.wheel("alpha")
    definition = Definition(requirements=("alpha",))
    lock = conda.made.store.solve(definition, Machine(), log=conda.made.log.append, progress=conda.made.steps.append)
    with pytest.raises(UsageError, match="of another definition"):
        conda.prepare(Definition(requirements=("alpha", "beta")), lock=lock.text)
    with pytest.raises(UsageError, match=r"the lock is for linux-x86_64-glibc2.99; this machine is linux"):
        conda.prepare(
            definition, lock=lock.text.replace(f"platform: {lock.platform}", "platform: linux-x86_64-glibc2.99")
        )
    with pytest.raises(PreparationError, match=r"the lock is for Python 3.99.1, and this machine has no 3.99"):
        conda.prepare(definition, lock=lock.text.replace(f"python: {lock.python_version}", "python: 3.99.1"))
    with pytest.raises(UsageError, match="the lock cannot be read"):
        conda.prepare(definition, lock="{")
    assert conda.made.names("prefixes") == []
    minor = ".".join(lock.python_version.split(".")[:2])
    conda.prepare(definition, lock=lock.text.replace(f"python: {lock.python_version}", f"python: {minor}.99"))
    assert any(f"the lock was made with Python {minor}.99; this machine has" in step for step in conda.made.steps)


def test_a_channel_is_found_by_name_under_the_alias(conda: Conda, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CONDA_CHANNEL_ALIAS", str(conda.channel.parent))
    name = conda.channel.name
    assert conda("greet-data", channels=(name, "nodefaults")).packages == 2
    assert conda(f"{name}::greet-data", channels=()).packages == 2


def test_two_at_once_build_once(conda: Conda) -> None:
    asked = {"packages": ["greet"], "channels": [conda.channel.as_uri()]}
    both = [child(conda.made.store, asked) for _ in range(2)]
    outputs = [process.communicate(timeout=120)[0] for process in both]
    assert "".join(outputs).count("downloading and installing") == 1
    assert outputs[0].splitlines()[-1] == outputs[1].splitlines()[-1]
    assert outputs[0].splitlines()[-1].startswith("made ")
    assert len(conda.made.names("prefixes")) == 1


@pytest.mark.parametrize("stop", ["solving", "downloading", "scripts", "compiling"])
def test_a_killed_build_leaves_nothing_that_looks_finished(conda: Conda, stop: str) -> None:
    process = child(conda.made.store, {"packages": ["greet"], "channels": [conda.channel.as_uri()]}, stop)
    assert process.stdout is not None
    while not process.stdout.readline().startswith(stop):
        assert process.poll() is None
    os.kill(process.pid, signal.SIGKILL)
    process.communicate()
    assert conda.made.names("prefixes") == []
    assert conda.made.names("building")
    assert run(conda("greet").path, "greet").startswith("greet ")
    assert conda.made.names("building") == []


def test_a_store_that_is_gone_is_made_again(conda: Conda) -> None:
    first = conda("greet")
    shutil.rmtree(conda.made.store.root)
    assert conda("greet") == first


def test_the_python_that_runs_is_the_prefixs_own(conda: Conda, tmp_path: Path) -> None:
    prefix = conda("greet")
    code = "import os; print(open('/proc/self/maps').read())"
    mapped = {line.split()[-1] for line in run(prefix.path, "python", "-c", code).splitlines() if "libpython" in line}
    assert all(path.startswith(str(prefix.path)) for path in mapped), mapped
    moved = tmp_path / "link"
    moved.symlink_to(prefix.path / "bin" / "greet")
    assert subprocess.check_output([moved], text=True, env={"PATH": "/usr/bin:/bin"}).startswith("greet ")
