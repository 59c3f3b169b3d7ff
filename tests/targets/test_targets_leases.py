from __future__ import annotations

import os
import select
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

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
    lease = try_lease("gpu-0", {"run": str(os.getpid())}, Path(sys.argv[1]))
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


def test_asking_for_the_holder_of_nothing_makes_nothing(leases: Path) -> None:
    assert holder_of("gpu-0", leases) is None
    assert list(leases.iterdir()) == []


def test_a_lease_holds_between_processes(hold: Holder, leases: Path) -> None:
    first = hold("gpu-0", "first")
    assert said(first) == "held"
    assert try_lease("gpu-0", HOLDER, leases) is None
    assert holder_of("gpu-0", leases) == {"run": "first"}
    assert said(hold("gpu-0", "second")) == "refused"


def test_a_lease_ends_with_its_holder_however_it_ends(hold: Holder, leases: Path) -> None:
    first = hold("gpu-0", "first")
    assert said(first) == "held"
    first.kill()
    first.wait()
    assert holder_of("gpu-0", leases) is None
    assert said(hold("gpu-0", "second")) == "held"


def test_a_lease_stays_with_who_inherited_it_when_its_taker_is_killed(leases: Path) -> None:
    code = HOLD.replace(
        "sys.stdin.read()",
        "import os, subprocess; heir = subprocess.Popen(['sleep', '100'], pass_fds=[lease.descriptor], stdout=-3);"
        "print(heir.pid, flush=True); sys.stdin.read()",
    )
    command = [sys.executable, "-c", code, "gpu-0", str(leases), "first"]
    taker = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    assert said(taker) == "held"
    heir = int(said(taker))
    heir_descriptor = os.pidfd_open(heir)
    try:
        taker.kill()
        taker.communicate()
        assert try_lease("gpu-0", HOLDER, leases) is None
        assert holder_of("gpu-0", leases) == {"run": "first"}
    finally:
        os.kill(heir, 9)
        assert select.select([heir_descriptor], [], [], 30)[0]  # it has ended
        os.close(heir_descriptor)
    lease = try_lease("gpu-0", HOLDER, leases)
    assert lease is not None
    lease.release()


def test_two_never_hold_it_at_once(leases: Path, tmp_path: Path) -> None:
    command = [sys.executable, "-c", TAKE_TURNS, str(leases), str(tmp_path)]
    rivals = [subprocess.Popen(command, stdout=subprocess.PIPE, text=True) for _ in range(4)]
    assert [rival.communicate(timeout=60)[0] for rival in rivals] == ["0\n"] * 4


@pytest.mark.root
@pytest.mark.skipif(os.getuid() != 0, reason="only root can be two users")
@pytest.mark.parametrize(("first", "second"), [(0, 65534), (65534, 0), (65534, 65533)])
def test_users_of_one_machine_share_its_leases(leases: Path, first: int, second: int) -> None:
    def take_and_free() -> bool:
        os.umask(0o077)
        lease = try_lease("gpu-0", HOLDER, leases)
        return lease is not None

    def is_held() -> bool:
        return try_lease("gpu-0", HOLDER, leases) is None and holder_of("gpu-0", leases) == {"run": "root's"}

    assert as_user(first, take_and_free)
    assert as_user(second, take_and_free)
    held = try_lease("gpu-0", {"run": "root's"}, leases)
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
