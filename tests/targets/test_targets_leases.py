from __future__ import annotations

import os
import select
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from tfjob.targets import leases as leases_module
from tfjob.targets.leases import Lease, holder_of, lease_directory, try_lease

HOLDER = {"run": "digits-1", "directory": "/runs/digits-1"}

# Takes the lease, says whether it has it, and keeps it until its input ends.
HOLD = """
import sys
from pathlib import Path
from tfjob.targets.leases import try_lease
lease = try_lease(sys.argv[1], {"run": sys.argv[3]}, Path(sys.argv[2]))
print("held" if lease else "refused", flush=True)
sys.stdin.read()
"""

# Counts in a file, one at a time: adds one and takes it away again, and says what it saw.
TAKE_TURNS = """
import os, sys
from pathlib import Path
from tfjob.targets.leases import try_lease
inside, turns, together = Path(sys.argv[2], f"inside"), 0, 0
while turns < 50:
    lease = try_lease(sys.argv[3], {"run": str(os.getpid())}, Path(sys.argv[1]))
    if lease is None:
        continue
    try:
        inside.mkdir()
    except FileExistsError:
        together += 1
    else:
        inside.rmdir()
    lease.release()
    turns += 1
print(together)
"""

THINGS = pytest.mark.parametrize("name", ["gpu-0", "port-20000"])

Holder = Callable[[str, str], subprocess.Popen[str]]


@pytest.fixture
def hold(leases: Path) -> Iterator[Holder]:
    """Another process that takes a lease for a run: `hold(name, run)`."""
    started: list[subprocess.Popen[str]] = []

    def hold(name: str, run: str) -> subprocess.Popen[str]:
        command = [sys.executable, "-c", HOLD, name, str(leases), run]
        started.append(subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True))
        return started[-1]

    yield hold
    for process in started:
        process.kill()
        process.communicate()


def said(process: subprocess.Popen[str]) -> str:
    assert process.stdout is not None
    return process.stdout.readline().strip()


def as_user(user: int, do: Callable[[], bool]) -> bool:
    """Do it in a process of another user; whether it was true there."""
    pid = os.fork()
    if pid == 0:
        code = 2
        try:
            os.setgroups([])
            os.setgid(user)
            os.setuid(user)
            code = 0 if do() else 1
        finally:
            os._exit(code)
    status = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
    assert status in (0, 1), "it failed there"
    return status == 0


def test_a_lease_is_held_by_one_and_says_by_whom(leases: Path) -> None:
    lease = try_lease("gpu-0", HOLDER, leases)
    assert lease is not None
    assert try_lease("gpu-0", {"run": "other"}, leases) is None
    assert holder_of("gpu-0", leases) == HOLDER
    lease.release()
    assert holder_of("gpu-0", leases) is None
    again = try_lease("gpu-0", {"run": "x"}, leases)  # a shorter text than the one before
    assert again is not None
    assert holder_of("gpu-0", leases) == {"run": "x"}
    again.release()


def test_leases_of_different_things_do_not_meet(leases: Path) -> None:
    taken = [try_lease(f"gpu-{number}", HOLDER, leases) for number in range(3)]
    assert all(taken)
    for lease in taken:
        assert isinstance(lease, Lease)
        lease.release()


def test_ports_are_leased_in_one_empty_file(leases: Path) -> None:
    taken = [lease for port in range(20000, 20200) if (lease := try_lease(f"port-{port}", HOLDER, leases))]
    assert len(taken) == 200
    assert try_lease("port-20007", HOLDER, leases) is None
    assert holder_of("port-20007", leases) == {}
    taken[7].release()
    assert holder_of("port-20007", leases) is None
    assert holder_of("port-20008", leases) == {}
    again = try_lease("port-20007", HOLDER, leases)
    assert again is not None
    for lease in (*taken[:7], *taken[8:], again):
        lease.release()
    assert [(path.name, path.stat().st_size) for path in leases.iterdir()] == [("ports.lease", 0)]


def test_a_full_disk_does_not_keep_a_lease_from_being_taken(leases: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object) -> int:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "pwrite", full)
    lease = try_lease("gpu-0", HOLDER, leases)
    assert lease is not None
    assert holder_of("gpu-0", leases) == {}
    lease.release()


def test_asking_for_the_holder_is_in_nobodys_way(leases: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    first = try_lease("gpu-0", HOLDER, leases)
    assert first is not None
    first.release()
    taken: list[Lease | None] = []
    close = os.close

    def take_then_close(descriptor: int) -> None:  # at the last moment of asking
        monkeypatch.setattr(os, "close", close)
        taken.append(try_lease("gpu-0", HOLDER, leases))
        close(descriptor)

    monkeypatch.setattr(os, "close", take_then_close)
    assert holder_of("gpu-0", leases) is None
    assert taken[0] is not None
    taken[0].release()


def test_asking_for_the_holder_of_nothing_makes_nothing(leases: Path) -> None:
    assert holder_of("gpu-0", leases) is None
    assert list(leases.iterdir()) == []


def test_a_lease_holds_between_processes(hold: Holder, leases: Path) -> None:
    first = hold("gpu-0", "first")
    assert said(first) == "held"
    assert try_lease("gpu-0", HOLDER, leases) is None
    assert holder_of("gpu-0", leases) == {"run": "first"}
    assert said(hold("gpu-0", "second")) == "refused"


@THINGS
def test_a_lease_ends_with_its_holder_however_it_ends(hold: Holder, leases: Path, name: str) -> None:
    first = hold(name, "first")
    assert said(first) == "held"
    first.kill()
    first.wait()
    assert holder_of(name, leases) is None
    assert said(hold(name, "second")) == "held"


@THINGS
def test_a_lease_stays_with_who_inherited_it_when_its_taker_is_killed(leases: Path, name: str) -> None:
    code = HOLD.replace(
        "sys.stdin.read()",
        "import os, subprocess; heir = subprocess.Popen(['sleep', '100'], pass_fds=[lease.descriptor], stdout=-3);"
        "print(heir.pid, flush=True); sys.stdin.read()",
    )
    command = [sys.executable, "-c", code, name, str(leases), "first"]
    taker = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    assert said(taker) == "held"
    heir = int(said(taker))
    heir_descriptor = os.pidfd_open(heir)
    try:
        taker.kill()
        taker.communicate()
        assert try_lease(name, HOLDER, leases) is None
        assert holder_of(name, leases) == ({"run": "first"} if name == "gpu-0" else {})
    finally:
        os.kill(heir, 9)
        assert select.select([heir_descriptor], [], [], 30)[0]  # it has ended
        os.close(heir_descriptor)
    lease = try_lease(name, HOLDER, leases)
    assert lease is not None
    lease.release()


@THINGS
def test_two_never_hold_it_at_once(leases: Path, tmp_path: Path, name: str) -> None:
    command = [sys.executable, "-c", TAKE_TURNS, str(leases), str(tmp_path), name]
    rivals = [subprocess.Popen(command, stdout=subprocess.PIPE, text=True) for _ in range(4)]
    assert [rival.communicate(timeout=60)[0] for rival in rivals] == ["0\n"] * 4


@pytest.mark.root
@pytest.mark.skipif(os.getuid() != 0, reason="only root can be two users")
@pytest.mark.parametrize(("first", "second"), [(0, 65534), (65534, 0), (65534, 65533)])
@THINGS
def test_users_of_one_machine_share_its_leases(leases: Path, first: int, second: int, name: str) -> None:
    def take_and_free() -> bool:
        os.umask(0o077)
        lease = try_lease(name, HOLDER, leases)
        return lease is not None

    def is_held() -> bool:
        found = holder_of(name, leases)
        return try_lease(name, HOLDER, leases) is None and found == ({"run": "root's"} if name == "gpu-0" else {})

    assert as_user(first, take_and_free)
    assert as_user(second, take_and_free)
    held = try_lease(name, {"run": "root's"}, leases)
    assert held is not None
    assert as_user(second, is_held)
    held.release()


def test_a_link_in_the_place_of_a_lease_is_not_followed(leases: Path, tmp_path: Path) -> None:
    precious = tmp_path / "precious"
    precious.write_text("precious")
    (leases / "gpu-0.lease").symlink_to(precious)
    with pytest.raises(OSError, match="symbolic links"):
        try_lease("gpu-0", HOLDER, leases)
    assert precious.read_text() == "precious"


def test_every_user_may_write_in_the_directory_of_leases() -> None:
    directory = lease_directory()
    assert directory.stat().st_mode & 0o1777 == 0o1777
    assert lease_directory() == directory


@pytest.fixture
def places(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> tuple[Path, Path]:
    """What stands for /run/lock and for /tmp."""
    found = (tmp_path / "lock", tmp_path / "tmp")
    for place in found:
        place.mkdir()
        place.chmod(0o1777)
    monkeypatch.setattr(leases_module, "_PLACES", found)
    return found


def test_leases_lie_under_run_lock_whatever_the_umask(places: tuple[Path, Path]) -> None:
    before = os.umask(0o077)
    try:
        directory = lease_directory()
    finally:
        os.umask(before)
    assert directory == places[0] / "tfjob"
    assert directory.stat().st_mode & 0o7777 == 0o1777
    assert list(places[0].iterdir()) == [directory]


@pytest.mark.parametrize("mode", [0o755, 0o775, None])
def test_where_not_every_user_can_write_all_use_tmp(
    places: tuple[Path, Path], monkeypatch: pytest.MonkeyPatch, tmp_path: Path, mode: int | None
) -> None:
    if mode is None:
        places[0].rmdir()
    else:
        places[0].chmod(mode)  # root could write there
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    assert lease_directory() == places[1] / "tfjob"


@pytest.mark.parametrize("made", ["closed", "file", "link"])
def test_a_directory_of_leases_that_is_not_shared_is_refused(places: tuple[Path, Path], made: str) -> None:
    directory = places[0] / "tfjob"
    if made == "closed":
        directory.mkdir(mode=0o755)
    elif made == "file":
        directory.touch()
    else:
        directory.symlink_to(places[1])
    with pytest.raises(PermissionError) as caught:
        lease_directory()
    assert caught.value.filename == str(directory)


def test_many_can_make_the_directory_of_leases_at_once(places: tuple[Path, Path]) -> None:
    def lease(number: int) -> Lease | None:
        return try_lease(f"gpu-{number}", HOLDER)

    with ThreadPoolExecutor(16) as pool:
        taken = [lease for lease in pool.map(lease, range(64)) if lease]
    assert len(taken) == 64
    assert all(holder_of(lease.name) == HOLDER for lease in taken)
    assert [path.name for path in places[0].iterdir()] == ["tfjob"]
    for one in taken:
        one.release()


def test_who_is_second_to_make_the_directory_of_leases_takes_the_firsts(
    places: tuple[Path, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    make = tempfile.mkdtemp

    def after_a_rival(**keys: Any) -> str:
        monkeypatch.setattr(tempfile, "mkdtemp", make)
        lease = try_lease("gpu-0", {"run": "rival"})
        assert lease is not None
        lease.release()
        return str(make(**keys))

    monkeypatch.setattr(tempfile, "mkdtemp", after_a_rival)
    directory = lease_directory()
    assert [path.name for path in directory.iterdir()] == ["gpu-0.lease"]
    assert list(places[0].iterdir()) == [directory]
