"""What containers see of the machine, and as whom: decided without an engine."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from tfjob.datasets.files import find_files
from tfjob.engines import dataset_mounts as module
from tfjob.engines.base import Mount
from tfjob.engines.dataset_mounts import dataset_mounts
from tfjob.engines.submitter import Submitter
from tfjob.planning.plan import DatasetPlan

if TYPE_CHECKING:
    import pytest

ACCOUNTS = "root:x:0:0:root:/root:/bin/bash\ngames:x:5:60:games:/usr/games:/usr/sbin/nologin\n"
GROUPS = "root:x:0:\nusers:x:100:"


def made(root: Path, *names: str) -> None:
    for name in names:
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text(name)


def mounted(root: Path, *patterns: str, mode: str = "mount") -> list[str]:
    found = find_files([str(root / pattern) for pattern in patterns])
    mounts = dataset_mounts([DatasetPlan("d", "directory", mode, found.digest, 0, 0, found.files)])
    assert all(mount == Mount(mount.source, mount.source) for mount in mounts)
    return [Path(mount.source).relative_to(root).as_posix() for mount in mounts]


def test_a_whole_directory_is_one_mount(tmp_path: Path) -> None:
    made(tmp_path, "beside", "data/a/1", "data/a/2", "data/b/c/3", "data/4")
    assert mounted(tmp_path, "data") == ["data"]
    assert mounted(tmp_path, "data/a/*", "data/b") == ["data/a", "data/b"]


def test_files_beside_others_are_mounted_alone(tmp_path: Path) -> None:
    made(tmp_path, "data/a.csv", "data/b.csv", "data/private", "data/whole/1")
    assert mounted(tmp_path, "data/*.csv", "data/whole") == ["data/a.csv", "data/b.csv", "data/whole"]


def test_a_link_beside_does_not_count(tmp_path: Path) -> None:
    made(tmp_path, "beside", "data/1")
    (tmp_path / "data/latest").symlink_to("1")
    (tmp_path / "data/away").symlink_to("/etc")
    assert mounted(tmp_path, "data/1") == ["data"]


def test_a_link_in_the_dataset_is_mounted_where_it_leads(tmp_path: Path) -> None:
    made(tmp_path, "store/blobs/1", "store/blobs/2")
    (tmp_path / "data").mkdir()
    (tmp_path / "data/one").symlink_to("../store/blobs/1")
    assert mounted(tmp_path, "data") == ["store/blobs/1"]


def test_a_tree_of_links_is_mounted_with_what_it_leads_to(tmp_path: Path) -> None:
    made(tmp_path, "data/a", "data/beside", "store/tree/b")
    (tmp_path / "datasets").mkdir()
    (tmp_path / "datasets/d").symlink_to(tmp_path / "store/tree")
    local = str(tmp_path / "data/a")
    files = ((local, "a", 1), ("https://example.com/b", "b", 1))
    dataset = DatasetPlan("d", "directory", "mount", "", 2, 2, files, ("", "sha256:x"))
    places = [local, str(tmp_path / "store/tree")]
    assert dataset_mounts([dataset], tmp_path / "datasets") == tuple(Mount(place, place) for place in places)


def test_a_dataset_that_is_copied_needs_none(tmp_path: Path) -> None:
    made(tmp_path, "data/1")
    assert mounted(tmp_path, "data", mode="download") == []


def test_very_many_become_few(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    made(tmp_path, "beside", *(f"data/{one}/{other}" for one in range(6) for other in ("x.jpg", "y.jpg", "junk")))
    monkeypatch.setattr(module, "_MOST", 12)
    assert len(mounted(tmp_path, "data/*/*.jpg")) == 12
    monkeypatch.setattr(module, "_MOST", 6)
    assert mounted(tmp_path, "data/*/*.jpg") == [f"data/{one}" for one in range(6)]
    monkeypatch.setattr(module, "_MOST", 5)
    assert mounted(tmp_path, "data/*/*.jpg") == ["data"]


def test_a_user_whom_the_image_does_not_know() -> None:
    who = Submitter(1234, 100, "ana", ((27, "sudo"), (4321, "lab")))
    assert who.user == "1234:100"
    assert who.home == "/tmp"
    assert who.passwd(ACCOUNTS) == f"{ACCOUNTS}ana:x:1234:100::/tmp:/bin/sh\n"
    assert who.group(GROUPS) == f"{GROUPS}\nsudo:x:27:\nlab:x:4321:\n"


def test_a_user_whose_number_or_name_is_taken() -> None:
    assert Submitter(5, 60, "ana").passwd(ACCOUNTS) == ACCOUNTS
    assert Submitter(1234, 1234, "games").passwd(ACCOUNTS).endswith("\nuser1234:x:1234:1234::/tmp:/bin/sh\n")
    assert Submitter(1234, 1234, "users").group(GROUPS).endswith("\ngroup1234:x:1234:\n")


def test_an_image_without_accounts() -> None:
    assert Submitter(1234, 1234, "ana").passwd("") == "ana:x:1234:1234::/tmp:/bin/sh\n"
