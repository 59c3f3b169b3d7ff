"""A prefix and an image's archive are sent whole or not at all. The login here is a shell of this machine."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import IO

import pytest
from engines_slurm.slurm_plans import slurm_plan
from engines_slurm.test_slurm_kept_there import Shell, a_run
from support import eventually

from tfjob.engines.base import Mount, Prepared, tell_nobody
from tfjob.engines.slurm.environment import kept_of, send_environment, there_of
from tfjob.engines.slurm.kept_there import Kept, KeptThere
from tfjob.environments.prefix import MARKER
from tfjob.rundir import RunDirectory

KEY = "0123456789abcdef0123456789abcdef"


@pytest.fixture
def kept(tmp_path: Path) -> KeptThere:
    return KeptThere(Shell(), tmp_path / "shared")


@pytest.fixture
def run(tmp_path: Path) -> RunDirectory:
    return a_run(tmp_path, "r1")


@pytest.fixture
def prepared(tmp_path: Path) -> Prepared:
    """Packages in a store here, mounted at /opt/env."""
    prefix = tmp_path / "store" / "prefixes" / KEY
    (prefix / "bin").mkdir(parents=True)
    (prefix / "bin" / "python").symlink_to("/usr/bin/python3.11")
    tool = prefix / "bin" / "tool é"
    tool.write_bytes(os.urandom(3_000_000))
    tool.chmod(0o555)
    os.link(tool, prefix / "again")
    (prefix / MARKER).write_text(json.dumps({"size_bytes": 3_000_000}))
    return Prepared(KEY, {}, mounts=(Mount(str(prefix), "/opt/env"), Mount("/data", "/data")), prefix=prefix)


def contents(top: Path) -> dict[str, object]:
    """What a directory has: modes, times, and what is in files and links."""
    found: dict[str, object] = {}
    for path in sorted(top.rglob("*")):
        status = path.lstat()
        content = os.readlink(path) if path.is_symlink() else path.read_bytes() if path.is_file() else None
        found[str(path.relative_to(top))] = (status.st_mode, int(status.st_mtime), content)
    return found


def test_a_prefix_is_sent_once_and_as_it_is(kept: KeptThere, run: RunDirectory, prepared: Prepared) -> None:
    wanted = Kept("prefixes", KEY)
    assert kept_of(prepared) == (wanted,)
    assert [one.source for one in there_of(prepared, kept).mounts] == [str(kept.path(wanted)), "/data"]
    assert kept_of(Prepared(None, {})) == ()
    missing = kept.hold(run, kept_of(prepared))
    send_environment(slurm_plan(), prepared, missing, kept=kept, run=run, environ={}, told=tell_nobody)
    assert prepared.prefix is not None
    there = kept.path(wanted)
    assert contents(there) == contents(prepared.prefix)
    assert os.path.samefile(there / "again", there / "bin" / "tool é")
    assert kept.hold(run, kept_of(prepared)) == frozenset()


@pytest.mark.parametrize("kind", ["prefixes", "images"])
def test_what_is_cut_off_leaves_nothing(kept: KeptThere, run: RunDirectory, prepared: Prepared, kind: str) -> None:
    pieces = iter(range(4))  # of 256 KiB

    def give_up(message: str) -> None:
        if not message:
            next(pieces)

    wanted = Kept(kind, KEY)
    missing = kept.hold(run, [wanted])

    def an_image(stream: IO[bytes]) -> None:
        stream.writelines([b"i" * 100_000] * 30)

    def send() -> None:
        if kind == "prefixes":
            send_environment(slurm_plan(), prepared, missing, kept=kept, run=run, environ={}, told=give_up)
        else:
            kept.send(run, wanted, an_image, give_up, what="the image", file="image.tar")

    with pytest.raises(StopIteration):
        send()
    above = kept.store / kind
    eventually(lambda: [path.name for path in above.iterdir()] == [f".{KEY}.lock"], "nothing of it but the lock")
    assert kept.hold(run, [wanted]) == {wanted}
