from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from tfjob.cli import transfer
from tfjob.errors import UsageError

if TYPE_CHECKING:
    from support import Tfjob


@pytest.fixture
def run(tfjob: Tfjob) -> Path:
    tfjob.write(
        "job.yml",
        """\
        name: job
        command: |
          cd outputs
          mkdir checkpoint-5
          echo weights > checkpoint-5/weights
          ln -s checkpoint-5 latest
          ln -s checkpoint-5/weights best
          ln -s gone broken
          mkfifo pipe
        """,
    )
    tfjob("submit", "job.yml")
    return tfjob.run_directory(str(tfjob.show()["id"]))


@pytest.mark.usefixtures("run")
def test_links_stay_links_and_pipes_are_left_out(tfjob: Tfjob) -> None:
    done = tfjob("download", "latest", "--to", "got")
    assert done.stdout == "1 file and 3 links (8 B) in got\n"
    assert done.stderr == "tfjob: pipe is left out: it is a pipe\n"
    got = tfjob.directory / "got"
    links = {name: os.readlink(got / name) for name in ("latest", "best", "broken")}
    assert links == {"latest": "checkpoint-5", "best": "checkpoint-5/weights", "broken": "gone"}
    assert (got / "latest" / "weights").read_text() == "weights\n"
    assert sorted(path.name for path in got.iterdir()) == ["best", "broken", "checkpoint-5", "latest"]
    again = tfjob("download", "latest", "--to", "got")
    assert again.stdout == done.stdout


@pytest.mark.usefixtures("run")
def test_another_link_is_another_thing(tfjob: Tfjob) -> None:
    tfjob("download", "latest", "--to", "got")
    link = tfjob.directory / "got" / "broken"
    link.unlink()
    link.symlink_to("elsewhere")
    assert "1 file with other contents" in tfjob("download", "latest", "--to", "got", exit_code=2).stderr
    tfjob("download", "latest", "--to", "got", "--overwrite")
    assert os.readlink(link) == "gone"


@pytest.mark.usefixtures("run")
def test_what_can_not_be_written_is_named(tfjob: Tfjob) -> None:
    tfjob.write("got", "a file")
    error = tfjob("download", "latest", "--to", "got", exit_code=2).stderr
    assert error.splitlines()[-1] == "tfjob: got is there, and is no directory"
    error = tfjob("download", "latest", "--to", "got/further", exit_code=2).stderr
    assert error.splitlines()[-1] == "tfjob: got/further can't be made: Not a directory"
    (tfjob.directory / "got").unlink()
    (tfjob.directory / "got" / "best" / "x").mkdir(parents=True)
    error = tfjob("download", "latest", "--to", "got", "--overwrite", exit_code=2).stderr
    assert error.splitlines()[-1] == "tfjob: got/best can't be written: Is a directory"


def test_a_run_without_outputs_has_none(tfjob: Tfjob) -> None:
    tfjob.write("job.yml", "name: job\ncommand: 'true'")
    tfjob("submit", "job.yml")
    first, hint = tfjob("download", "latest", exit_code=3).stderr.splitlines()
    assert first.endswith(" has no outputs")
    assert "--prefix logs/" in hint


def test_what_can_not_be_read_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    memory = Path("/proc/self/mem")  # opens, and gives EIO when read at 0
    with pytest.raises(UsageError, match="/proc/self/mem can't be read: Input/output error"):
        transfer._copy(memory, tmp_path / "mem")
    with pytest.raises(UsageError, match="gone can't be read: No such file"):
        transfer._copy(tmp_path / "gone", tmp_path / "copy")
    assert list(tmp_path.iterdir()) == []
