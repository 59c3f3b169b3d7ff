"""Install the conda packages of a lock: ``python conda_installer.py conda.lock /opt/env [FOLDER]``.

Copied beside a Dockerfile by tfjob and run in its build, so: one file, needs py-rattler (from PyPI) and nothing else.
Packages whose files lie in FOLDER are taken from there, the others from where the lock says. Their hashes are checked.
"""

from __future__ import annotations

import asyncio
import re
import sys
import tempfile
from pathlib import Path

# The file of a package in a lock: by its address or, of a channel in a folder, its path.
_FILE = re.compile(r"(?:[a-z]+:/)?/\S+\.(?:conda|tar\.bz2)\b")


def main() -> None:
    """Do what the arguments say."""
    lock, prefix = Path(sys.argv[1]), Path(sys.argv[2])
    folder = Path(sys.argv[3]) if len(sys.argv) > 3 else None
    text = lock.read_text(encoding="utf-8")

    def nearer(match: re.Match[str]) -> str:
        near = folder / match[0].rpartition("/")[2] if folder is not None else None
        return str(near) if near is not None and near.exists() else match[0]

    with tempfile.TemporaryDirectory() as work:
        written = Path(work) / "conda.lock"
        written.write_text(_FILE.sub(nearer, text), encoding="utf-8")
        count = asyncio.run(install(written, prefix, Path(work) / "packages"))
    sys.stdout.write(f"installed {count} conda packages into {prefix}\n")


async def install(lock: Path, prefix: Path, cache: Path) -> int:
    """Install what a lock names into `prefix` and return how many packages that are."""
    import rattler  # noqa: PLC0415  # the one thing that must be installed

    file = rattler.LockFile.from_path(lock)
    environment = file.default_environment()
    platform = file.platforms()[0]
    records = environment.conda_repodata_records_for_platform(platform) if environment else None
    if not records:
        raise SystemExit(f"{lock} has no conda packages")
    await rattler.install(
        records,
        prefix,
        cache_dir=cache,
        platform=rattler.Subdir(platform.name),
        execute_link_scripts=False,
        show_progress=False,
    )
    return len(records)


if __name__ == "__main__":
    main()
