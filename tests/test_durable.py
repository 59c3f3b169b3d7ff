from __future__ import annotations

import errno
import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from support import eventually, without_locks

from tfjob.durable import (
    NoLocksError,
    append_line,
    digest_of,
    file_digest,
    is_locked,
    replace_json,
    replace_text,
    take_lock,
    try_lock,
)

UNDECODABLE = os.fsdecode(b"caf\xe9")  # the name of a file whose bytes are no UTF-8


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A disk of 64 KiB."""
    at = tmp_path / "disk"
    at.mkdir()
    mounted = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=64k", "none", at], capture_output=True, check=False)
    if mounted.returncode:
        pytest.skip("a small disk can be made by root only")
    yield at
    subprocess.run(["umount", "--lazy", at], check=True)


def child(code: str, *arguments: object, pass_fds: tuple[int, ...] = ()) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-c", code, *map(str, arguments)], stdout=subprocess.PIPE, text=True, pass_fds=pass_fds
    )


def fill(disk: Path) -> None:
    """Leave no byte free."""
    with (disk / "filling").open("wb", buffering=0) as file:
        try:
            while file.write(bytes(4096)):
                pass
        except OSError:
            return


def test_a_file_is_replaced_and_nothing_is_left_beside_it(tmp_path: Path) -> None:
    file = tmp_path / "file"
    replace_text(file, "old")
    replace_text(file, "new ä")
    assert file.read_text(encoding="utf-8") == "new ä"
    assert list(tmp_path.iterdir()) == [file]


@pytest.mark.parametrize(("umask", "mode"), [(0o022, 0o644), (0o077, 0o600), (0o002, 0o644)])
def test_a_new_file_obeys_the_umask(tmp_path: Path, umask: int, mode: int) -> None:
    before = os.umask(umask)
    try:
        replace_text(tmp_path / "file", "text")
        assert os.umask(umask) == umask
    finally:
        os.umask(before)
    assert (tmp_path / "file").stat().st_mode & 0o777 == mode


def test_a_write_that_fails_leaves_the_old_file(tmp_path: Path) -> None:
    file = tmp_path / "file"
    file.write_text("old")
    code = """
import resource, sys
from pathlib import Path
from tfjob.durable import replace_text
resource.setrlimit(resource.RLIMIT_FSIZE, (1000, 1000))
try:
    replace_text(Path(sys.argv[1]), "new" * 1000)
except OSError as error:
    print(error.strerror)
"""
    assert child(code, file).communicate(timeout=60)[0] == "File too large\n"
    assert file.read_text() == "old"
    assert list(tmp_path.iterdir()) == [file]


@pytest.mark.root
def test_a_full_disk_leaves_the_old_file(small_disk: Path) -> None:
    file = small_disk / "file"
    file.write_text("old")
    fill(small_disk)
    with pytest.raises(OSError, match="No space left"):
        replace_text(file, "new" * 1000)
    assert file.read_text() == "old"
    assert {path.name for path in small_disk.iterdir()} == {"file", "filling"}


def test_a_killed_writer_leaves_a_whole_file(tmp_path: Path) -> None:
    file = tmp_path / "file"
    code = """
import itertools, sys
from pathlib import Path
from tfjob.durable import replace_text
for turn in itertools.count():
    replace_text(Path(sys.argv[1]), f"{turn}\\n" * 50_000, force=False)
"""
    writer = child(code, file)
    try:
        eventually(file.exists, "the first write")
        for _ in range(50):  # readers never see half of it, either
            assert len(set(file.read_text().splitlines())) == 1
    finally:
        writer.send_signal(signal.SIGKILL)
        writer.communicate()
    lines = file.read_text().splitlines()
    assert len(lines) == 50_000
    assert len(set(lines)) == 1


def test_json_holds_file_names_that_are_no_utf8(tmp_path: Path) -> None:
    file = tmp_path / "file"
    replace_json(file, {"ä": UNDECODABLE})
    assert json.loads(file.read_text(encoding="utf-8")) == {"ä": UNDECODABLE}
    append_line(tmp_path / "lines", json.dumps([UNDECODABLE], ensure_ascii=False))
    assert json.loads((tmp_path / "lines").read_text(encoding="utf-8")) == [UNDECODABLE]


def test_lines_of_many_processes_never_mix(tmp_path: Path) -> None:
    file = tmp_path / "lines"
    code = """
import sys
from pathlib import Path
from tfjob.durable import append_line
for turn in range(100):
    append_line(Path(sys.argv[1]), sys.argv[2] * 9000)
"""
    writers = [child(code, file, letter) for letter in "abcd"]
    assert [writer.wait(timeout=60) for writer in writers] == [0] * 4
    for writer in writers:
        writer.communicate()
    lines = file.read_text().splitlines()
    assert sorted(lines) == sorted(letter * 9000 for letter in "abcd" for _ in range(100))


@pytest.mark.root
def test_half_a_line_on_a_full_disk_is_taken_back(small_disk: Path) -> None:
    file = small_disk / "lines"
    append_line(file, "first")
    fill(small_disk)
    with pytest.raises(OSError, match="No space left"):
        append_line(file, "second" * 2000)
    (small_disk / "filling").unlink()
    append_line(file, "third")
    assert file.read_text() == "first\nthird\n"


def test_a_lock_is_held_by_one_at_a_time(tmp_path: Path) -> None:
    lock = tmp_path / "lock"
    held = try_lock(lock)
    assert held is not None
    assert try_lock(lock) is None
    assert is_locked(lock)
    os.close(held)
    assert not is_locked(lock)
    again = try_lock(lock)
    assert again is not None
    os.close(again)


def test_a_file_system_without_locks_is_told_from_one_that_is_held(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    held = take_lock(tmp_path / "lock")
    assert held is not None
    assert take_lock(tmp_path / "lock") is None
    os.close(held)
    without_locks(monkeypatch)
    with pytest.raises(NoLocksError, match="Function not implemented"):
        take_lock(tmp_path / "lock")
    assert try_lock(tmp_path / "lock") is None


def test_a_held_lock_may_be_told_in_other_words(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def denied(*_: object) -> None:
        raise OSError(errno.EACCES, "Permission denied")

    monkeypatch.setattr("tfjob.durable.fcntl.flock", denied)
    assert take_lock(tmp_path / "lock") is None


def test_asking_for_a_lock_makes_no_file(tmp_path: Path) -> None:
    assert not is_locked(tmp_path / "lock")
    assert list(tmp_path.iterdir()) == []


def test_a_lock_is_not_handed_down_by_accident(tmp_path: Path) -> None:
    held = try_lock(tmp_path / "lock")
    assert held is not None
    assert not os.get_inheritable(held)
    os.close(held)


def test_a_lock_dies_with_the_last_process_that_inherited_it(tmp_path: Path) -> None:
    lock = tmp_path / "lock"
    code = "import sys; print('ready', flush=True); sys.stdin.read()"
    held = try_lock(lock)
    assert held is not None
    heirs = [
        subprocess.Popen(
            [sys.executable, "-S", "-c", code], stdin=subprocess.PIPE, stdout=subprocess.PIPE, pass_fds=[held]
        )
        for _ in range(2)
    ]
    os.close(held)
    try:
        assert all(heir.stdout and heir.stdout.readline() == b"ready\n" for heir in heirs)
        heirs[0].send_signal(signal.SIGKILL)
        heirs[0].wait()
        assert is_locked(lock)
        assert try_lock(lock) is None
        heirs[1].send_signal(signal.SIGKILL)
        heirs[1].wait()
        assert not is_locked(lock)
    finally:
        for heir in heirs:
            heir.kill()
            heir.communicate()


def test_a_digest_is_of_the_value_and_not_of_its_layout() -> None:
    assert digest_of({"a": 1, "b": [2]}) == digest_of({"b": [2], "a": 1})
    assert digest_of(["1"]) != digest_of([1])
    assert digest_of([UNDECODABLE]) != digest_of([UNDECODABLE.encode("utf-8", "backslashreplace").decode()])


def test_a_file_digest_is_its_sha256(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"abc")
    assert file_digest(tmp_path / "file") == "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"
