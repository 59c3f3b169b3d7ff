from __future__ import annotations

import contextlib
import glob
import os
import socket
from collections.abc import Callable
from pathlib import Path

import pytest

from tfjob.datasets.files import DatasetFiles, Remote, find_files, laid_out
from tfjob.datasets.placing import place
from tfjob.errors import PreparationError


@pytest.fixture
def data(tmp_path: Path) -> Path:
    """A directory of data: two files, and a tree below it."""
    directory = tmp_path / "data"
    for name in ("a.gz", "b.gz", "notes.txt", "deep/c.gz", "deep/er/d.gz"):
        (directory / name).parent.mkdir(parents=True, exist_ok=True)
        (directory / name).write_text(name)
    return directory


def make_socket(path: Path) -> None:
    """The path may be too long for a socket's address: it is made where a short name is enough."""
    with contextlib.chdir(path.parent), socket.socket(socket.AF_UNIX) as made:
        made.bind(path.name)


def names(found: DatasetFiles) -> list[str]:
    return [name for _, name, _ in found.files]


def test_what_a_glob_finds_keeps_its_place_below_the_globs_fixed_part(data: Path) -> None:
    assert names(find_files([f"{data}/*.gz"])) == ["a.gz", "b.gz"]
    assert names(find_files([f"{data}/**/*.gz"])) == ["a.gz", "b.gz", "deep/c.gz", "deep/er/d.gz"]
    assert names(find_files([f"{data}/deep/*"])) == ["c.gz", "er/d.gz"]
    assert names(find_files([f"{data}/**"])) == names(find_files([str(data)]))
    assert names(find_files([f"{data}/[b]*", f"{data}/deep/er/d.gz"])) == ["b.gz", "d.gz"]


def test_a_directory_keeps_its_tree(data: Path) -> None:
    found = find_files([str(data)])
    assert names(found) == ["a.gz", "b.gz", "deep/c.gz", "deep/er/d.gz", "notes.txt"]
    assert found.files[2] == (str(data / "deep" / "c.gz"), "deep/c.gz", len("deep/c.gz"))


def test_an_existing_file_may_look_like_a_glob(data: Path) -> None:
    (data / "odd[1].gz").write_text("odd")
    assert names(find_files([str(data / "odd[1].gz")])) == ["odd[1].gz"]
    (data / "odd1.gz").write_text("what the glob would match")
    assert names(find_files([str(data / "odd[1].gz")])) == ["odd[1].gz"]
    assert names(find_files([f"{data}/odd[12].gz"])) == ["odd1.gz"]
    (data / "odd[[]1].gz").write_text("what the escaped name is as it stands")
    assert names(find_files([glob.escape(str(data / "odd[1].gz"))])) == ["odd[1].gz"]
    (data / "in[1]").mkdir()
    (data / "in[1]" / "e.gz").write_text("e")
    (data / "in1").mkdir()
    assert names(find_files([f"{data}/in[1]"])) == ["e.gz"]


def test_the_same_file_named_twice_is_one_file(data: Path) -> None:
    (data / "deep" / "a.gz").symlink_to("../a.gz")
    assert names(find_files([f"{data}/*.gz", f"{data}/a.gz", f"{data}/deep/a.gz"])) == ["a.gz", "b.gz"]


def test_two_files_of_one_name_are_refused(data: Path) -> None:
    (data / "deep" / "a.gz").write_text("another")
    with pytest.raises(PreparationError, match=r"two files of the dataset have the name a\.gz: .*a\.gz and .*a\.gz"):
        find_files([f"{data}/*.gz", str(data / "deep")])


def test_a_file_and_a_directory_of_one_name_are_refused(data: Path) -> None:
    (data / "er").write_text("a file")
    with pytest.raises(PreparationError, match=r"er is a file of the dataset and also the directory of er/d\.gz"):
        find_files([str(data / "er"), str(data / "deep")])


@pytest.mark.parametrize("pattern", ["*.png", "gone.gz", "gone/*.gz"])
def test_a_pattern_that_matches_nothing_is_refused(data: Path, pattern: str) -> None:
    with pytest.raises(PreparationError, match="no file matches") as caught:
        find_files([f"{data}/*.gz", f"{data}/{pattern}"])
    assert f"{data}/{pattern}" in caught.value.message


@pytest.mark.parametrize("pattern", ["bare", "*are"])
def test_a_directory_without_a_file_is_refused(data: Path, pattern: str) -> None:
    (data / "bare" / "in").mkdir(parents=True)
    with pytest.raises(PreparationError, match="no file is in") as caught:
        find_files([f"{data}/*.gz", f"{data}/{pattern}"])
    assert f"{data}/{pattern}" in caught.value.message


def test_a_directory_whose_files_were_found_before_is_not_empty(data: Path) -> None:
    assert find_files([str(data), str(data)]) == find_files([str(data)])


def test_a_link_to_nothing_is_refused(data: Path) -> None:
    (data / "deep" / "link").symlink_to("gone")
    with pytest.raises(PreparationError, match=r"deep/link is a link to gone, which is not there$"):
        find_files([str(data)])


@pytest.mark.parametrize("pattern", ["deep", "deep/o*", "deep/odd", "d*", "**", "link"])
@pytest.mark.parametrize(("make", "kind"), [(os.mkfifo, "a named pipe"), (make_socket, "a socket")])
def test_what_is_no_file_is_refused(data: Path, pattern: str, make: Callable[[Path], None], kind: str) -> None:
    make(data / "deep" / "odd")
    if pattern == "link":
        (data / "link").symlink_to("deep/odd")
    with pytest.raises(PreparationError) as caught:
        find_files([f"{data}/{pattern}"])
    shown = data / (pattern if pattern == "link" else "deep/odd")
    assert caught.value.message == f"{shown} is {kind}; a dataset is made of files and directories"


def test_a_device_is_refused() -> None:
    with pytest.raises(PreparationError, match=r"^/dev/null is a character device; a dataset is made of files"):
        find_files(["/dev/null"])


def test_links_to_directories_are_followed_and_loops_are_not(data: Path, tmp_path: Path) -> None:
    (tmp_path / "more").mkdir()
    (tmp_path / "more" / "e.gz").write_text("e")
    (tmp_path / "more" / "back").symlink_to(data)
    (data / "more").symlink_to(tmp_path / "more")
    (data / "self").symlink_to(".")
    (data / "deep" / "up").symlink_to("..")
    assert names(find_files([str(data)])) == [
        *("a.gz", "b.gz", "deep/c.gz", "deep/er/d.gz", "more/e.gz", "notes.txt"),
    ]


def test_the_digest_tells_a_changed_file(data: Path) -> None:
    first = find_files([str(data)])
    assert find_files([str(data)]) == first
    status = (data / "a.gz").stat()
    os.utime(data / "a.gz", ns=(status.st_atime_ns, status.st_mtime_ns + 1))
    assert find_files([str(data)]).digest != first.digest


def test_a_name_that_is_no_utf8_is_found(tmp_path: Path) -> None:
    name = os.fsdecode(b"caf\xe9.gz")
    (tmp_path / name).touch()
    assert names(find_files([f"{tmp_path}/*.gz"])) == [name]


def test_a_mount_shows_the_files_where_they_are(data: Path, tmp_path: Path) -> None:
    into = tmp_path / "run" / "digits"
    place(find_files([str(data)]).files, into, copy=False)
    assert (into / "deep" / "c.gz").is_symlink()
    (data / "deep" / "c.gz").write_text("new")
    assert (into / "deep" / "c.gz").read_text() == "new"


def test_a_download_is_a_copy_that_can_be_written(data: Path, tmp_path: Path) -> None:
    (data / "a.gz").chmod(0o444)
    into = tmp_path / "run" / "digits"
    place(find_files([str(data)]).files, into, copy=True)
    assert not (into / "a.gz").is_symlink()
    assert (into / "a.gz").stat().st_mode & 0o200
    (into / "a.gz").write_text("edited")
    assert (data / "a.gz").read_text() == "a.gz"


@pytest.mark.parametrize("copy", [True, False])
def test_files_are_placed_anew(data: Path, tmp_path: Path, copy: bool) -> None:
    into = tmp_path / "run"
    place(find_files([str(data)]).files, into, copy=copy)
    (into / "left").touch()
    place(find_files([f"{data}/a.gz"]).files, into, copy=copy)
    assert [path.name for path in into.iterdir()] == ["a.gz"]
    assert len(names(find_files([str(data)]))) == 5


@pytest.mark.parametrize("copy", [True, False])
def test_a_file_that_changed_or_went_after_it_was_found_is_refused(data: Path, tmp_path: Path, copy: bool) -> None:
    found = find_files([f"{data}/a.gz"])
    (data / "a.gz").write_text("longer than before")
    with pytest.raises(PreparationError, match=r"a\.gz has changed since the job was submitted"):
        place(found.files, tmp_path / "run", copy=copy)
    (data / "a.gz").unlink()
    with pytest.raises(PreparationError, match=r"a\.gz can't be used: No such file"):
        place(found.files, tmp_path / "run", copy=copy)


@pytest.mark.parametrize(
    ("name", "why"),
    [
        ("../../victim", "has a part that is empty, '.' or '..'"),
        ("a/../b", "has a part that is empty, '.' or '..'"),
        ("./b", "has a part that is empty, '.' or '..'"),
        ("a//b", "has a part that is empty, '.' or '..'"),
        ("a/", "has a part that is empty, '.' or '..'"),
        ("", "has a part that is empty, '.' or '..'"),
        ("/etc/victim", "is an absolute path"),
        ("a\0b", "has a control character"),
        ("a\nb", "has a control character"),
        ("a\x1b[2Jb", "has a control character"),
        ("a\x9b2Jb", "has a control character"),
        (f"a/{'é' * 128}", "has a part of more than 255 bytes"),
    ],
)
def test_a_name_that_a_store_says_must_be_one_that_a_file_of_the_dataset_can_have(name: str, why: str) -> None:
    with pytest.raises(PreparationError) as caught:
        laid_out([], [Remote("s3://bucket/good", "good", 1, ""), Remote("s3://bucket/odd", name, 1, "")])
    assert caught.value.message == f"'s3://bucket/odd' can't be a file of a dataset: its name there, {name!r}, {why}"
    assert caught.value.hint.startswith("Rename it there")


@pytest.mark.parametrize(
    "name", ["..a", "a..", "a/...", "a b", "é" * 127, "caf\udce9", f"{'x' * 255}/{'y' * 255}", "a\u2028b"]
)
def test_any_other_name_that_a_store_says_is_good(name: str) -> None:
    assert names(laid_out([], [Remote("s3://bucket/odd", name, 1, "")])) == [name]


def test_files_of_this_machine_may_have_odd_names_and_none_that_leads_out(data: Path) -> None:
    (data / "deep" / "two\nlines").touch()
    assert names(find_files([str(data / "deep")])) == ["c.gz", "er/d.gz", "two\nlines"]
    (data.parent / "beside").touch()
    with pytest.raises(PreparationError, match=r"'\.\./beside', has a part that is empty, '\.' or '\.\.'"):
        find_files([f"{data}/d*/../../beside"])
