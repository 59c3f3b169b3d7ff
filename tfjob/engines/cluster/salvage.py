"""What is left in a container that has ended: logs, reports and outputs are brought home from it, once.

Outputs that are as an earlier attempt left them are not: another node may have changed them since.
"""

from __future__ import annotations

import io
import json
import tarfile
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import IO, Any, Final, cast

from tfjob.dockerapi.api import DockerApi, RefusalError
from tfjob.engines.cluster.agent import EXIT, TOLD_TO_END
from tfjob.engines.cluster.agent_files import LEFT
from tfjob.engines.cluster.agent_tasks import REPORTS, is_own_end, told_time
from tfjob.engines.cluster.container import inside
from tfjob.engines.cluster.home import Home
from tfjob.errors import TargetError

__all__ = ["salvage"]

_CHUNK_BYTES: Final = 1 << 20
_TIMEOUT_S: Final = 60.0


def salvage(
    api: DockerApi,
    container: str,
    node: int,
    home: Home,
    coming: Callable[[], None] = lambda: None,
    *,
    by_ours: Callable[[str], str] = str,
) -> bool:
    """Bring home what can still be read. An engine that does not answer, or a broken archive, ends it early.

    `coming` is called for each piece that has come; `by_ours` gives a report its time by our clock. Returns whether the
    container had been told to end from outside: what its tasks reported since then is not their own end.
    """
    run = inside(home.run).path
    home.begin(node)
    told = _told(api, container, f"{run}/{TOLD_TO_END}")
    left = _left(api, container, run)
    for part in ("logs", "outputs", "tasks"):
        with (
            suppress(TargetError, RefusalError, tarfile.TarError, OSError, ValueError),
            api.files(container, f"{run}/{part}", _TIMEOUT_S) as response,
            tarfile.open(fileobj=cast("IO[bytes]", response), mode="r|") as archive,
        ):
            for member in archive:
                coming()
                if member.name.startswith("tasks/"):
                    _take_report(archive, member, home, by_ours, told)
                elif left.get(member.name) != _stamp(member):
                    _take(archive, member, node, home, coming)
    return told is not None


def _left(api: DockerApi, container: str, run: Path) -> dict[str, tuple[int, int]]:
    """What the agent found in outputs before any task began: sizes in bytes, and times in seconds, as the archive has them."""
    with suppress(TargetError, RefusalError, tarfile.TarError, OSError, ValueError, TypeError, KeyError):
        with tarfile.open(fileobj=io.BytesIO(api.file(container, f"{run}/{LEFT}", _TIMEOUT_S))) as archive:
            file = archive.extractfile(LEFT)
            found = json.load(file) if file is not None else {}
        return {path: (size, mtime_ns // 10**9) for path, (size, mtime_ns) in found.items()}
    return {}


def _stamp(member: tarfile.TarInfo) -> tuple[int, int]:
    return len(member.linkname) if member.issym() else member.size, int(member.mtime)


def _told(api: DockerApi, container: str, path: str) -> float | None:
    """When the container was told to end, by its own clock; None when it was not."""
    try:
        found = api.file(container, path, _TIMEOUT_S)
    except (TargetError, RefusalError):
        return None
    with suppress(tarfile.TarError, OSError), tarfile.open(fileobj=io.BytesIO(found)) as archive:
        file = archive.extractfile(TOLD_TO_END)
        return told_time(file.read().decode(errors="replace") if file is not None else "")
    return told_time("")


def _take_report(
    archive: tarfile.TarFile, member: tarfile.TarInfo, home: Home, by_ours: Callable[[str], str], told: float | None
) -> None:
    _, task, name = (*member.name.split("/"), "", "")[:3]
    file = archive.extractfile(member) if member.isfile() and name in REPORTS else None
    if file is not None:
        with file:
            report = file.read().decode(errors="replace")
        if name != EXIT or told is None or is_own_end(report, told):
            home.report(task, name, by_ours(report))


def _take(archive: tarfile.TarFile, member: tarfile.TarInfo, node: int, home: Home, coming: Callable[[], None]) -> None:
    path = member.name
    if member.issym() and path.startswith("outputs/"):
        home.link(node, path, member.linkname)
        return
    file = archive.extractfile(member) if member.isfile() else None
    if file is None:
        return
    with file:
        if path.startswith("logs/"):
            offset = 0
            while data := file.read(_CHUNK_BYTES):
                home.log(node, path, offset, data)
                offset += len(data)
        else:
            _take_file(member, file, node, home, coming)


def _take_file(member: tarfile.TarInfo, file: IO[bytes], node: int, home: Home, coming: Callable[[], None]) -> None:
    left = member.size
    header: dict[str, Any] = {
        "path": member.name,
        "size": member.size,
        "mode": member.mode & 0o777,
        "mtime_ns": int(member.mtime * 1e9),
    }
    while True:
        data = file.read(_CHUNK_BYTES)
        coming()
        left -= len(data)
        last = left <= 0 or not data
        home.part(node, {**header, "last": last, "whole": left == 0}, data, coming)
        if last:
            return
