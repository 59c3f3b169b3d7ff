from __future__ import annotations

import os
import shutil
import stat
import subprocess
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from tfjob.errors import UsageError
from tfjob.snapshot import Snapshot, copy_tree, scan, take


@pytest.fixture
def code(tmp_path: Path) -> Path:
    directory = tmp_path / "code"
    directory.mkdir()
    return directory


def make(directory: Path, *names: str) -> None:
    for name in names:
        file = directory / name
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_bytes(os.fsencode(name))


def mode(path: Path) -> int:
    return stat.S_IMODE(path.stat().st_mode)


def names(snapshot: Snapshot) -> list[str]:
    return [name for name, *_ in snapshot.files]


def test_all_files_are_in_it_in_order(code: Path) -> None:
    make(code, "train.py", "lib/b.py", "lib/a.py", ".hidden", "name with\nnewline")
    found = scan(code)
    assert names(found) == [".hidden", "lib/a.py", "lib/b.py", "name with\nnewline", "train.py"]
    assert found.left_out == ()
    assert found.size_bytes == sum(len(name) for name in names(found))


def test_an_empty_directory_is_a_snapshot_too(code: Path, tmp_path: Path) -> None:
    assert list(take(scan(code), tmp_path / "store").iterdir()) == []


def test_what_the_run_provides_and_version_control_are_left_out(code: Path) -> None:
    make(code, "train.py", "outputs/model", "logs/x", ".git/HEAD", "lib/.git/HEAD", ".tfjob/runs/x", "lib/outputs/kept")
    make(code, "__pycache__/a.pyc", "lib/__pycache__/a.pyc", "module/.git")  # of a submodule, .git is a file
    found = scan(code)
    assert names(found) == ["lib/outputs/kept", "train.py"]
    assert found.left_out == (".git/", ".tfjob/", "__pycache__/", "logs/", "outputs/")


def test_no_pattern_brings_back_what_the_run_provides(code: Path) -> None:
    make(code, "train.py", "outputs/model")
    (code / ".tfjobignore").write_text("!outputs\n!/outputs/\n!outputs/**\n")
    assert names(scan(code)) == [".tfjobignore", "train.py"]


def test_tfjobignore_replaces_gitignore(code: Path) -> None:
    make(code, "a.txt", "b.txt")
    (code / ".gitignore").write_text("a.txt\n")
    assert names(scan(code)) == [".gitignore", "b.txt"]
    (code / ".tfjobignore").write_text("b.txt\n")
    found = scan(code)
    assert names(found) == [".gitignore", ".tfjobignore", "a.txt"]
    assert found.left_out == ("b.txt",)


@pytest.mark.skipif(shutil.which("git") is None, reason="git is not installed")
@pytest.mark.parametrize(
    "patterns",
    [
        "*.txt\n!keep.txt\n",
        "data/\n",
        "/data\n",
        "data\n",
        "src/data\n",
        "**/data/*.bin\n!**/data/keep.bin\n",
        "data/*\n!data/keep.bin\n",
        "data/\n!data/keep.bin\n",
        "*\n!*/\n!*.py\n",
        "/*\n!/src\n",
        "src/**/deep\n",
        "*.[pt]x?\nx*\n",
        "\\#odd\n# a comment\n\n   \n\\!odd\nspace\\ \n",
        "!\n*.txt\n",
        "\\\n*.txt\n",
        "\ufeffdata\n*.txt\n",
        "data\r\n*.txt\r\n",
        "a/**/b\n***\n!src/\n!src/*.py\n",
        "*\n!src/\n!src/**\nsrc/data/**\n!src/data/keep.bin\n",
    ],
)
def test_patterns_mean_what_they_mean_to_git(code: Path, patterns: str) -> None:
    make(code, "a.txt", "keep.txt", "train.py", "x.txt", "#odd", "!odd", "space ", "data/a.bin", "data/keep.bin")
    make(code, "src/a.py", "src/a.txt", "src/data/a.bin", "src/data/keep.bin", "src/deep/a.py", "src/x/deep/a", "a/x/b")
    (code / ".gitignore").write_text(patterns, encoding="utf-8", newline="")
    subprocess.run(["git", "init", "--quiet", code], check=True)
    listing = ["git", "-C", str(code), "-c", "core.excludesFile=", "ls-files", "-z", "--others", "--exclude-standard"]
    of_git = subprocess.run(listing, check=True, capture_output=True, text=True).stdout.split("\0")[:-1]
    assert names(scan(code)) == sorted(of_git)


def test_the_executable_bit_is_kept(code: Path, tmp_path: Path) -> None:
    make(code, "run.sh", "train.py")
    plain = scan(code)
    (code / "run.sh").chmod(0o755)
    found = scan(code)
    assert found.digest != plain.digest
    kept = take(found, tmp_path / "store")
    assert os.access(kept / "run.sh", os.X_OK)
    assert mode(kept / "run.sh") == 0o555
    assert mode(kept / "train.py") == 0o444


def test_a_kept_snapshot_is_read_only_and_no_more_open_than_its_source(code: Path, tmp_path: Path) -> None:
    make(code, "private/run.sh", "private/a.py", "public/run.sh", "public/a.py")
    for name, bits in (("private", 0o700), ("private/run.sh", 0o711), ("private/a.py", 0o620), ("public", 0o775)):
        (code / name).chmod(bits)
    (code / "public" / "run.sh").chmod(0o777)
    (code / "public" / "a.py").chmod(0o455)
    kept = take(scan(code), tmp_path / "store")
    modes = {path.relative_to(kept).as_posix(): mode(path) for path in kept.rglob("*")}
    assert modes == {
        "private": 0o700,
        "private/run.sh": 0o511,
        "private/a.py": 0o400,
        "public": 0o755,
        "public/run.sh": 0o555,
        "public/a.py": 0o444,
    }


def test_a_working_copy_can_be_written(code: Path, tmp_path: Path) -> None:
    make(code, "run.sh", "lib/a.py")
    (code / "run.sh").chmod(0o700)
    (code / "lib" / "a.py").chmod(0o640)
    kept = take(scan(code), tmp_path / "store")
    work = tmp_path / "work"
    copy_tree(kept, work)
    assert mode(work / "run.sh") == 0o700
    assert mode(work / "lib" / "a.py") == 0o640
    assert (work / "run.sh").stat().st_mtime_ns == (kept / "run.sh").stat().st_mtime_ns


def test_a_snapshot_is_on_the_disk_before_it_has_its_name(
    code: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    make(code, "train.py", "lib/deep/a.py")
    (code / "link").symlink_to("lib")
    forced: set[int] = set()

    def force(descriptor: int) -> None:
        assert [path.name[0] for path in (tmp_path / "store").iterdir()] == ["."]
        forced.add(os.fstat(descriptor).st_ino)

    monkeypatch.setattr(os, "fsync", force)
    kept = take(scan(code), tmp_path / "store")
    must_be = [kept, *(path for path in kept.rglob("*") if not path.is_symlink())]
    assert forced == {path.stat().st_ino for path in must_be}
    assert len(must_be) == 5


def test_the_same_content_has_the_same_digest_wherever_and_whenever(code: Path, tmp_path: Path) -> None:
    make(code, "train.py", "lib/a.py")
    first = scan(code)
    os.utime(code / "train.py", (0, 0))
    (code / "lib" / "a.py").chmod(0o600)
    assert scan(code).digest == first.digest
    shutil.copytree(code, tmp_path / "elsewhere")
    assert scan(tmp_path / "elsewhere").digest == first.digest
    (code / "train.py").write_text("train.pz")
    assert scan(code).digest != first.digest


def test_a_name_that_is_no_utf8_is_kept(code: Path, tmp_path: Path) -> None:
    name = os.fsdecode(b"caf\xe9.py")
    make(code, name)
    assert (take(scan(code), tmp_path / "store") / name).read_bytes() == b"caf\xe9.py"


def test_links_inside_are_kept_as_links(code: Path, tmp_path: Path) -> None:
    make(code, "lib/a.py")
    (code / "b.py").symlink_to("lib/a.py")
    (code / "lib" / "up").symlink_to("../lib")
    found = scan(code)
    assert found.files[0] == ("b.py", "l", 0, "lib/a.py")
    kept = take(found, tmp_path / "store")
    work = tmp_path / "work"
    copy_tree(kept, work)
    for tree in (kept, work):
        assert (tree / "b.py").is_symlink()
        assert (tree / "b.py").read_text() == "lib/a.py"
        assert (tree / "lib" / "up").is_symlink()
    (code / "b.py").unlink()
    (code / "b.py").symlink_to("lib/up/a.py")
    assert scan(code).digest != found.digest


@pytest.mark.parametrize("target", ["../secret", "/etc/hostname", "../code/train.py", "{code}/train.py"])
def test_links_that_lead_outside_are_refused(code: Path, tmp_path: Path, target: str) -> None:
    make(code, "train.py")
    make(tmp_path, "secret")
    (code / "link").symlink_to(target.format(code=code))
    with pytest.raises(UsageError, match=r"link is a link to .*, outside of the code directory") as caught:
        scan(code)
    assert ".tfjobignore" in caught.value.hint
    (code / ".tfjobignore").write_text("link\n")
    assert names(scan(code)) == [".tfjobignore", "train.py"]


def test_a_link_to_nothing_does_not_matter(code: Path, tmp_path: Path) -> None:
    (code / "link").symlink_to("nothing")
    assert (take(scan(code), tmp_path / "store") / "link").is_symlink()


def test_a_directory_that_is_too_large_is_refused_with_what_is_largest(code: Path) -> None:
    make(code, "train.py")
    for name, size_mib in (("a.bin", 1), ("big.bin", 3), ("huge.bin", 2)):
        with (code / name).open("wb") as file:
            file.truncate(size_mib * 2**20)
    with pytest.raises(UsageError) as caught:
        scan(code, limit_mib=2)
    assert "holds 6 MiB or more; a snapshot may hold 2 MiB" in caught.value.message
    assert "Largest: big.bin (3 MiB), huge.bin (2 MiB), a.bin (1 MiB)" in caught.value.message
    assert ".tfjobignore" in caught.value.hint
    (code / ".tfjobignore").write_text("big.bin\nhuge.bin\n")
    assert names(scan(code, limit_mib=2)) == [".tfjobignore", "a.bin", "train.py"]


def test_small_files_are_not_among_the_largest(code: Path) -> None:
    make(code, "train.py")
    (code / "big.bin").write_bytes(bytes(3 * 2**20))
    with pytest.raises(UsageError) as caught:
        scan(code, limit_mib=2)
    assert caught.value.message.endswith("Largest: big.bin (3 MiB)")


def test_what_can_not_be_read_is_named(code: Path) -> None:
    with pytest.raises(UsageError, match="gone can't be read: No such file or directory"):
        scan(code / "gone")


def test_what_is_neither_file_nor_link_is_passed_over(code: Path) -> None:
    os.mkfifo(code / "fifo")
    make(code, "train.py")
    assert names(scan(code)) == ["train.py"]


def test_a_kept_snapshot_stays_what_it_was(code: Path, tmp_path: Path) -> None:
    make(code, "train.py")
    found = scan(code)
    kept = take(found, tmp_path / "store")
    assert kept == tmp_path / "store" / found.digest
    (code / "train.py").write_text("edited")
    assert (kept / "train.py").read_text() == "train.py"
    assert take(found, tmp_path / "store") == kept


@pytest.mark.parametrize("change", ["edited", "removed", "replaced by a directory"])
def test_a_file_that_changes_before_it_is_kept_is_refused(code: Path, tmp_path: Path, change: str) -> None:
    make(code, "a.py", "train.py")
    found = scan(code)
    if change == "edited":
        (code / "train.py").write_text("longer than before")
    else:
        (code / "train.py").unlink()
    if change == "replaced by a directory":
        (code / "train.py").mkdir()
    with pytest.raises(UsageError, match=r"train\.py changed while it was being read"):
        take(found, tmp_path / "store")
    assert list((tmp_path / "store").iterdir()) == []


def test_two_can_keep_the_same_snapshot_at_once(code: Path, tmp_path: Path) -> None:
    make(code, *(f"file{number}.py" for number in range(50)))
    found = scan(code)
    with ThreadPoolExecutor(8) as pool:
        kept = set(pool.map(lambda _: take(found, tmp_path / "store"), range(8)))
    assert kept == {tmp_path / "store" / found.digest}
    assert list((tmp_path / "store").iterdir()) == list(kept)
    assert scan(kept.pop()).digest == found.digest


def test_a_working_copy_is_made_anew(code: Path, tmp_path: Path) -> None:
    make(code, "train.py")
    kept = take(scan(code), tmp_path / "store")
    work = tmp_path / "work"
    copy_tree(kept, work)
    make(work, "left by a try that was killed")
    (work / "train.py").write_text("edited by the script")
    copy_tree(kept, work)
    assert [path.name for path in work.iterdir()] == ["train.py"]
    assert (kept / "train.py").read_text() == "train.py"
