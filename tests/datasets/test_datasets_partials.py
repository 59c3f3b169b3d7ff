"""The files that are fetched into: what was finished and did not become an object is in nobody's way."""

from __future__ import annotations

import os
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest

from tfjob.datasets import partials
from tfjob.datasets.cache import Cache
from tfjob.datasets.partials import locked

HASH = "ab" * 32


def never(_: float) -> None:
    pytest.fail("it waits")


def test_one_that_nobody_fetches_is_had_at_once(tmp_path: Path) -> None:
    (tmp_path / "one").write_text("part")
    partial, has_waited = locked(str(tmp_path / "one"), never)
    assert (partial.size, has_waited) == (4, False)
    os.close(partial.descriptor)


def test_what_was_finished_and_is_no_object_is_removed(tmp_path: Path) -> None:
    left = tmp_path / "one"
    left.write_text("left by somebody who was killed")
    left.chmod(0o444)
    pauses: list[float] = []
    partial, has_waited = locked(str(left), pauses.append)
    assert (partial.size, has_waited, len(pauses)) == (0, True, 1)
    assert os.write(partial.descriptor, b"new") == 3
    assert left.read_text() == "new"
    os.close(partial.descriptor)


@pytest.mark.root
def test_users_remove_it_too(tmp_path: Path) -> None:
    if os.geteuid():
        pytest.skip("needs root: another user fetches")
    program = """
    import os, sys
    from tfjob.datasets.partials import locked
    os.chdir(sys.argv[1])
    os.setgid(65534), os.setuid(65534)
    open("one", "w").close()
    os.chmod("one", 0o444)
    partial, has_waited = locked("one", lambda _: None)
    os.write(partial.descriptor, b"new")
    for mode, found in ((0o500, "two"), (0o700, "none/two")):
        os.chmod(".", mode)
        try:
            locked(found, lambda _: sys.exit("it waits"))
        except OSError as error:
            print(error.strerror)
    """
    os.chown(tmp_path, 65534, 65534)
    ran = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(program), tmp_path], capture_output=True, text=True, check=False
    )
    assert (ran.stdout, ran.stderr) == ("Permission denied\nNo such file or directory\n", "")
    assert (tmp_path / "one").read_text() == "new"


def test_what_becomes_an_object_meanwhile_is_not_harmed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    cache = Cache(tmp_path)
    (tmp_path / "partial").mkdir()
    path = cache.partial("https://host/a")
    first, _ = locked(path, never)
    os.write(first.descriptor, b"content")

    def finish(_: float) -> None:
        if not os.path.exists(cache.object(HASH)):
            cache.keep(path, first.descriptor, HASH)
            os.close(first.descriptor)

    monkeypatch.setattr(partials, "_WAIT_S", 0.0)
    second, has_waited = locked(path, finish)
    assert (second.size, has_waited) == (0, True)
    assert Path(cache.object(HASH)).read_text() == "content"
    os.close(second.descriptor)


def test_one_that_can_not_become_an_object_is_removed(tmp_path: Path) -> None:
    cache = Cache(tmp_path)
    (tmp_path / "partial").mkdir()
    (tmp_path / "objects").write_text("in the way")
    partial, _ = locked(cache.partial("https://host/a"), never)
    with pytest.raises(OSError, match="Not a directory"):
        cache.keep(partial.path, partial.descriptor, HASH)
    assert not os.path.exists(partial.path)
    os.close(partial.descriptor)
