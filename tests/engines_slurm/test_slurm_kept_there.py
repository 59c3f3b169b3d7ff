"""What runs from elsewhere use is kept on the cluster's file system by content. The login here is a shell of this machine."""

from __future__ import annotations

import os
import subprocess
import sys
import tarfile
import threading
from pathlib import Path
from typing import IO, TYPE_CHECKING

import pytest
from support import eventually

from tfjob.durable import file_digest
from tfjob.engines.base import tell_nobody
from tfjob.engines.slurm import kept_there
from tfjob.engines.slurm.kept_there import Kept, KeptFile, KeptThere, Placed
from tfjob.engines.slurm.login import Login, LoginLost
from tfjob.errors import PreparationError
from tfjob.rundir import RunDirectory

if TYPE_CHECKING:
    from collections.abc import Callable

CODE = Kept("trees", "code")
MB = 1_000_000


class Shell(Login):
    """A login whose host is this machine. `before` is a line of sh that the user's shell runs first.

    The process is a go-between, as ssh is: who kills it kills nothing of what runs over there, which finds its input closed.
    """

    def __init__(self, before: str = ":") -> None:
        super().__init__("ssh://me@here", os.environ)
        self.before = before

    def start(self, line: str) -> subprocess.Popen[bytes]:
        command = ["sh", "-c", 'sh -c "$0"; exit $?', f"{self.before}; {line}"]
        return subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, start_new_session=True
        )


@pytest.fixture(autouse=True)
def no_word_of_progress(monkeypatch: pytest.MonkeyPatch) -> None:
    """What is told does not depend on how long it takes."""
    monkeypatch.setattr(kept_there, "_SAY_S", 600.0)


@pytest.fixture
def there(tmp_path: Path) -> KeptThere:
    return KeptThere(Shell(), tmp_path / "shared")


@pytest.fixture
def run(tmp_path: Path) -> RunDirectory:
    return a_run(tmp_path, "r1")


def a_run(tmp_path: Path, name: str) -> RunDirectory:
    """The directory of a run over there."""
    return RunDirectory(tmp_path / "shared" / "runs" / "workspace" / name)


def files(tmp_path: Path, **contents: bytes) -> list[KeptFile]:
    """Files with these contents, here."""
    found = []
    for name, data in contents.items():
        path = tmp_path / "here" / name
        path.parent.mkdir(exist_ok=True)
        path.write_bytes(data)
        found.append(KeptFile(str(path), f"deep/{name}", "", len(data), file_digest(path)))
    return found


def send(there: KeptThere, run: RunDirectory, kept: Kept, wanted: list[KeptFile]) -> list[str]:
    """Send a tree; what was told."""
    said: list[str] = []
    there.hold(run, [kept])
    there.send_tree(run, kept, wanted, said.append, what="the code")
    return [one for one in said if one]


def writes(data: bytes) -> Callable[[IO[bytes]], None]:
    """What fills a stream with these bytes."""

    def write(stream: IO[bytes]) -> None:
        stream.write(data)

    return write


def nothing(stream: IO[bytes]) -> None:
    """A run that has no files of its own, but a program that makes its working copies."""
    with tarfile.open(fileobj=stream, mode="w|") as tar:
        for name in ("slurm", "slurm/program"):
            member = tarfile.TarInfo(name)
            member.type, member.mode = tarfile.DIRTYPE, 0o755
            tar.addfile(member)
        tar.addfile(tarfile.TarInfo("slurm/program/sending.py"))


def test_a_tree_is_sent_once_and_a_content_that_another_has_is_not_sent(
    there: KeptThere, run: RunDirectory, tmp_path: Path
) -> None:
    wanted = files(tmp_path, big=b"b" * MB, small=b"s", empty=b"")
    wanted += [wanted[1]._replace(name="again"), wanted[1]._replace(name="run.sh", kind="x")]
    wanted += [KeptFile("", "link", "l", 0, "deep/big"), KeptFile("", "hollow", "d", 0, "")]
    assert there.hold(run, [CODE]) == {CODE}
    assert send(there, run, CODE, wanted) == ["sending the code to ssh://me@here: 4 of 7 files, 1.0 MB"]
    assert there.hold(run, [CODE]) == frozenset()
    tree = there.path(CODE)
    assert (tree / "link").read_bytes() == b"b" * MB
    assert [os.access(tree / name, os.X_OK) for name in ("run.sh", "again")] == [True, False]
    assert (tree / "hollow").is_dir()
    assert {path.stat().st_mode & 0o222 for path in (tree, *tree.rglob("*")) if not path.is_symlink()} == {0}
    other = [*files(tmp_path, new=b"n"), wanted[0]]
    assert send(there, run, Kept("trees", "other"), other) == [
        "sending the code to ssh://me@here: 1 of 2 files, 0.0 MB"
    ]
    assert send(there, run, CODE, wanted) == []  # it is there


def test_a_cut_connection_leaves_nothing_half_and_what_came_whole_is_not_sent_again(
    there: KeptThere, run: RunDirectory, tmp_path: Path
) -> None:
    wanted = files(tmp_path, first=b"1" * MB, second=b"2" * MB)
    there.hold(run, [CODE])
    pieces = iter(range(6))  # of 256 KiB

    def give_up(message: str) -> None:
        if not message:
            next(pieces)

    with pytest.raises(StopIteration):
        there.send_tree(run, CODE, wanted, give_up, what="the code")
    trees = there.store / "trees"
    eventually(lambda: [path.name for path in trees.iterdir()] == [".code.lock"], "nothing of it but the lock")
    assert there.hold(run, [CODE]) == {CODE}
    (trees / ".code.part-1").mkdir()  # of a program that was killed
    assert send(there, run, CODE, wanted) == ["sending the code to ssh://me@here: 1 of 2 files, 1.0 MB"]
    assert sorted(path.name for path in trees.iterdir()) == [".code.lock", "code", "code.files", "code.json"]


OLD = """#!{python}
import sys
at = sys.argv.index("-c")
sys.version_info = (3, 6, 8, "final", 0)
code, sys.argv = sys.argv[at + 1], sys.argv[at + 1 :]
exec(code)
"""


@pytest.mark.parametrize(
    ("program", "words"),
    [
        (OLD.format(python=sys.executable), "python3 on ssh://me@here is Python 3.6"),
        ("#!/bin/sh\nexit 3\n", "python3 on ssh://me@here ended with exit code 3"),
    ],
    ids=["old", "broken"],
)
def test_a_python_that_will_not_do_is_told(tmp_path: Path, run: RunDirectory, program: str, words: str) -> None:
    (tmp_path / "bin").mkdir()
    (tmp_path / "bin" / "python3").write_text(program)
    (tmp_path / "bin" / "python3").chmod(0o755)
    there = KeptThere(Shell(f"PATH={tmp_path}/bin:$PATH"), tmp_path / "shared")
    with pytest.raises(PreparationError, match=words) as told:
        there.hold(run, [CODE])
    assert "3.8 or newer" in told.value.hint


def test_a_program_that_was_killed_is_a_lost_connection(tmp_path: Path, run: RunDirectory) -> None:
    there = KeptThere(Shell("kill -KILL $$"), tmp_path / "shared")
    with pytest.raises(LoginLost):
        there.hold(run, [CODE])


def test_of_two_that_send_the_same_one_waits(there: KeptThere, run: RunDirectory, tmp_path: Path) -> None:
    prefix, goes_on, told = Kept("prefixes", "p"), threading.Event(), threading.Event()
    there.hold(run, [prefix])

    def fill(stream: IO[bytes]) -> None:
        with tarfile.open(fileobj=stream, mode="w|") as tar:
            tar.add(tmp_path / "here" / "bin", "bin")
            goes_on.wait(60)

    def other(message: str) -> None:
        if "another run sends the packages" in message:
            told.set()

    files(tmp_path, bin=b"#!/bin/sh")
    first = threading.Thread(target=there.send, args=(run, prefix, fill, tell_nobody), kwargs={"what": "the packages"})
    first.start()
    eventually(lambda: list((there.store / "prefixes").glob(".p.part-*")), "the first sends")
    sent: list[object] = []
    second = threading.Thread(
        target=there.send, args=(a_run(tmp_path, "r2"), prefix, sent.append, other), kwargs={"what": "the packages"}
    )
    there.hold(a_run(tmp_path, "r2"), [prefix])
    second.start()
    eventually(told.is_set, "the second waits")
    goes_on.set()
    first.join()
    second.join()
    assert sent == []
    assert (there.path(prefix) / "bin").read_bytes() == b"#!/bin/sh"


def test_a_file_is_kept_as_it_is(there: KeptThere, run: RunDirectory) -> None:
    image = Kept("images", "sha-1")
    there.hold(run, [image])
    there.send(run, image, writes(b"layers"), tell_nobody, what="it", file="image.tar")
    assert (there.path(image) / "image.tar").read_bytes() == b"layers"


def test_a_runs_copies_are_its_own_and_what_it_writes_to_is_not_kept(
    there: KeptThere, run: RunDirectory, tmp_path: Path
) -> None:
    send(there, run, CODE, files(tmp_path, rows=b"rows"))
    placed = [Placed("datasets/own", CODE, "copy"), Placed("datasets/rows", CODE, "link")]
    there.place(run, nothing, placed)
    (run.datasets / "own" / "deep" / "rows").write_bytes(b"mine")
    (run.datasets / "own" / "more").touch()
    assert (there.path(CODE) / "deep" / "rows").read_bytes() == b"rows"
    assert there.release(run) == ()
    assert not run.path.parent.exists()
    other = a_run(tmp_path, "r2")
    assert there.hold(other, [CODE]) == frozenset()
    there.place(other, nothing, placed)
    harmed = other.datasets / "rows" / "deep" / "rows"
    harmed.chmod(0o644)
    harmed.write_bytes(b"ruin")
    assert there.release(other) == (CODE,)
    assert there.hold(run, [CODE]) == {CODE}
    assert send(there, run, CODE, files(tmp_path, rows=b"rows"))[0].endswith("1 of 1 files, 0.0 MB")
    assert (there.path(CODE) / "deep" / "rows").read_bytes() == b"rows"


def test_a_tree_that_was_written_to_while_others_use_it_is_sent_anew_in_its_place(
    there: KeptThere, run: RunDirectory, tmp_path: Path
) -> None:
    wanted, other, unused = files(tmp_path, rows=b"rows"), a_run(tmp_path, "r2"), Kept("trees", "unused")
    send(there, run, CODE, wanted)
    send(there, a_run(tmp_path, "r3"), unused, [*wanted, *files(tmp_path, more=b"more")])
    there.release(a_run(tmp_path, "r3"))
    for one in (run, other):
        there.hold(one, [CODE])
        there.place(one, nothing, [Placed("datasets/rows", CODE, "link")])
    harmed = run.datasets / "rows" / "deep" / "rows"
    harmed.chmod(0o644)
    harmed.write_bytes(b"ruin")
    assert sorted(there.release(run)) == sorted([CODE, unused])  # they have the file in common
    assert (other.datasets / "rows" / "deep" / "rows").read_bytes() == b"ruin"
    assert there.hold(run, [CODE, unused]) == {CODE, unused}
    send(there, run, CODE, wanted)
    assert (other.datasets / "rows" / "deep" / "rows").read_bytes() == b"rows"
    assert there.release(other) == there.release(run) == ()
    assert [one.kept for one in there.free()] == [CODE]


def test_what_was_not_used_for_longest_goes_and_never_what_a_run_holds(
    there: KeptThere, run: RunDirectory, tmp_path: Path
) -> None:
    old, new, held = (Kept("trees", name) for name in ("old", "new", "held"))
    for age_s, kept in ((3000, held), (2000, old), (1000, new)):
        send(there, a_run(tmp_path, kept.key), kept, files(tmp_path, **{kept.key: b"x" * 1000}))
        if kept is not held:
            there.release(a_run(tmp_path, kept.key))
        facts = there.store / "trees" / f"{kept.key}.json"
        os.utime(facts, (facts.stat().st_mtime - age_s,) * 2)
    assert [(one.kept, one.size_bytes) for one in there.free(2000)] == [(old, 1000)]
    limited = KeptThere(Shell(), tmp_path / "shared", limit_gib=2200 / (1 << 30))
    said = send(limited, run, CODE, files(tmp_path, own=b"y" * 1000))
    assert said[0] == "ssh://me@here has removed what no run has used for longest: 0.0 MB"
    assert sorted(there.hold(run, [old, new, held, CODE])) == sorted([old, new])
    there.release(run)
    assert [one.kept for one in there.free()] == [CODE]
    objects = [path for path in (there.store / "objects").rglob("*") if path.is_file()]
    assert [path.read_bytes() for path in objects] == [b"x" * 1000]


def test_what_nodes_made_themselves_counts_too(there: KeptThere, run: RunDirectory) -> None:
    image = Kept("images", "named-1")
    there.path(image).mkdir(parents=True)
    (there.path(image) / "image.sif").write_bytes(b"x" * 1000)
    assert there.hold(run, [image]) == frozenset()
    assert there.free() == ()
    there.release(run)
    assert [(one.kept, one.size_bytes) for one in there.free()] == [(image, 1000)]


def test_a_hold_ends_with_the_runs_directory(there: KeptThere, run: RunDirectory, tmp_path: Path) -> None:
    send(there, run, CODE, files(tmp_path, a=b"a"))
    there.place(run, nothing, [])
    (use,) = (there.store / "uses").iterdir()
    os.utime(use, (use.stat().st_mtime - 7200,) * 2)
    assert there.free() == ()
    subprocess.run(["rm", "-r", run.path], check=True)  # by hand
    assert [one.kept for one in there.free()] == [CODE]
    assert list((there.store / "uses").iterdir()) == []


@pytest.mark.parametrize(
    ("harm", "words"),
    [
        (lambda file: file.write_bytes(b"other"), "a file changed while it was sent"),
        (lambda file: file.unlink(), "is gone"),
    ],
)
def test_a_file_that_changes_while_it_is_sent_is_told(
    there: KeptThere, run: RunDirectory, tmp_path: Path, harm: Callable[[Path], None], words: str
) -> None:
    wanted = files(tmp_path, rows=b"12345")
    harm(tmp_path / "here" / "rows")
    with pytest.raises(PreparationError, match=words):
        send(there, run, CODE, wanted)
    assert there.hold(run, [CODE]) == {CODE}


def test_trouble_over_there_is_told_in_its_words(there: KeptThere, run: RunDirectory, tmp_path: Path) -> None:
    (tmp_path / "shared").mkdir()
    there.store.write_text("a file is in its way")
    with pytest.raises(PreparationError, match=r"ssh://me@here can't keep what runs need: .*/kept: File exists"):
        there.hold(run, [CODE])
    there.store.unlink()
    there.hold(run, [CODE])
    with pytest.raises(PreparationError, match="can't keep what runs need: tar: "):
        there.send(run, Kept("prefixes", "p"), writes(b"x" * MB), tell_nobody, what="it")


def test_what_a_shell_says_first_does_no_harm_and_a_login_that_breaks_is_told(
    run: RunDirectory, tmp_path: Path
) -> None:
    there = KeptThere(Shell("echo Welcome; printf 'No news, '"), tmp_path / "shared")
    assert there.hold(run, [CODE]) == {CODE}
    with pytest.raises(LoginLost, match="the connection to ssh://me@here was lost"):
        KeptThere(Shell("exit 255"), tmp_path / "shared").hold(run, [CODE])
