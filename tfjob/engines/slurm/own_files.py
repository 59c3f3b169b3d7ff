"""What of a run on a cluster elsewhere is its own, and is sent with it whatever is kept there."""

from __future__ import annotations

import tarfile
from typing import IO

from tfjob.rundir import RunDirectory

__all__ = ["write_own_files"]


def write_own_files(stream: IO[bytes], run: RunDirectory) -> None:
    """Write them as tar: what the job's programs go by, and the directories that it writes to. Nobody owns them."""
    with tarfile.open(fileobj=stream, mode="w|") as tar:
        for name in ("gang.json", "job.sh", "state.json"):
            tar.add(run.path / "slurm" / name, f"slurm/{name}", filter=_anybodys)
        if (run.path / "accounts").exists():
            tar.add(run.path / "accounts", "accounts", filter=_anybodys)
        tar.add(run.outputs, "outputs", filter=_anybodys)
        tar.add(run.user_logs, "logs/user", filter=_anybodys)


def _anybodys(member: tarfile.TarInfo) -> tarfile.TarInfo:
    member.uid = member.gid = 0
    member.uname = member.gname = ""
    return member
