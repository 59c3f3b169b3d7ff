"""Downloads of conda packages: watched while they last, and hashed where the channel names no hash.

rattler bounds a whole download, however long its file is, and not the time in which nothing comes.
"""

from __future__ import annotations

import asyncio
import hashlib
import threading
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar
from urllib.parse import unquote, urlsplit

from tfjob.durable import file_digest
from tfjob.environments.conda_errors import HASH_HINT, STALLED_HINT
from tfjob.environments.credentials import without_credentials
from tfjob.errors import PreparationError

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Iterable

    from rattler import Client

    from tfjob.environments.lock import CondaRecord

__all__ = ["Downloads", "Stalled", "check_local_files", "hash_of", "stalled", "watched"]

T = TypeVar("T")
_POLL_S = 0.1
_TOLD_EACH_S = 10
_MB = 1_000_000


class Stalled(Exception):
    """Nothing came of a download for a while."""


class Downloads:
    """What rattler tells of an install, in threads of its own: which packages are being downloaded, and how far they are.

    `size_bytes` has the sizes of the packages by name, as far as they are known. `progress` is told now and then how much
    is there.
    """

    def __init__(self, size_bytes: dict[str, int], progress: Callable[[str], None]) -> None:
        """Watch nothing yet."""
        self._progress = progress
        self._size_bytes = size_bytes
        self._lock = threading.Lock()
        self._names: list[str] = []
        self._there_bytes: dict[int, int] = {}
        self._running: set[int] = set()
        self._grew_s = self._told_s = time.monotonic()

    def stalled_s(self) -> float:
        """Return for how long nothing came, 0 while nothing is downloaded."""
        with self._lock:
            return time.monotonic() - self._grew_s if self._running else 0.0

    def tell(self) -> None:
        """Tell how much is there, if that was not told for a while."""
        with self._lock:
            now = time.monotonic()
            if not self._running or now - self._told_s < _TOLD_EACH_S:
                return
            self._told_s = now
            there = sum(self._there_bytes.values())
            total = max(there, sum(self._size_bytes.get(self._names[one], 0) for one in self._there_bytes))
        self._progress(f"downloading conda packages: {there // _MB} of {total // _MB} MB")

    # What follows is called by rattler: the names and arguments of its InstallerReporter.

    def on_populate_cache_start(self, _operation: int, package_name: str) -> int:
        """Give the package a number."""
        with self._lock:
            self._names.append(package_name)
            return len(self._names) - 1

    def on_download_start(self, cache_entry: int) -> int:
        """Watch a package's download, the first or after a failure."""
        with self._lock:
            self._grew_s = time.monotonic()
            self._there_bytes[cache_entry] = 0
            self._running.add(cache_entry)
        return cache_entry

    def on_download_progress(self, download_idx: int, progress: int, _total: int | None) -> None:
        """Note that something came."""
        with self._lock:
            self._grew_s = time.monotonic()
            self._there_bytes[download_idx] = progress

    def on_download_completed(self, download_idx: int) -> None:
        """Watch it no more."""
        with self._lock:
            self._grew_s = time.monotonic()
            self._running.discard(download_idx)

    def on_populate_cache_complete(self, cache_entry: int) -> None:
        """Watch it no more."""
        self.on_download_completed(cache_entry)

    def __getattr__(self, name: str) -> Callable[..., int]:
        """Answer all else that rattler tells."""
        if not name.startswith("on_"):
            raise AttributeError(name)
        return _nothing


def _nothing(*_: Any) -> int:
    return 0


async def watched(work: Awaitable[T], downloads: Downloads, limit_s: float) -> T:
    """Wait for an install; give up on it and raise Stalled when nothing came of its downloads for `limit_s` seconds."""
    task = asyncio.ensure_future(work)
    while not (await asyncio.wait([task], timeout=_POLL_S))[0]:
        downloads.tell()
        if downloads.stalled_s() > limit_s:
            task.cancel()
            await asyncio.wait([task])
            if task.cancelled() or task.exception() is not None:
                raise Stalled
    return task.result()


def stalled(began_s: float, tries: int) -> PreparationError:
    """Return what to say of downloads that stalled; they began at `began_s` (of the monotonic clock)."""
    after = f"{time.monotonic() - began_s:.0f} s and {tries} tr{'y' if tries == 1 else 'ies'}"
    return PreparationError(
        f"the environment's conda packages could not be installed.\n  the download stalled: given up after {after}",
        STALLED_HINT,
    )


def check_local_files(records: Iterable[CondaRecord]) -> None:
    """Compare the hashes of packages that are files of this machine, which rattler takes as they are.

    Raises PreparationError for one that is not the locked one.
    """
    for record in records:
        path = local(record.url)
        if path is None:
            continue
        try:
            found = file_digest(path)
        except FileNotFoundError:
            raise PreparationError(
                f"the environment's conda packages could not be installed.\n  {path} is not there any more",
                "Lock anew (`tfjob env lock`), or put the file back into the channel.",
            ) from None
        if found != record.sha256:
            raise PreparationError(
                f"the environment's conda packages could not be installed.\n"
                f"  hash mismatch for {path}: the lock has {record.sha256}, the file {found}",
                HASH_HINT,
            )


def local(url: str) -> Path | None:
    """Return the file of this machine that a package's address means; None for one elsewhere."""
    path = Path(unquote(urlsplit(url).path)) if url.startswith("file:") else Path(url)
    return path if path.is_absolute() else None


class _Hash:
    """Takes what is written to it into a hash, and gives up on none: `limit_s` is for the time between two writes."""

    def __init__(self, name: str, downloads: Downloads) -> None:
        self.sha256, self.md5 = hashlib.sha256(), hashlib.md5(usedforsecurity=False)
        self._there = 0
        self._downloads = downloads
        self._entry = downloads.on_download_start(downloads.on_populate_cache_start(0, name))

    def write(self, data: bytes) -> int:
        """Take a part of the file."""
        self.sha256.update(data)
        self.md5.update(data)
        self._there += len(data)
        self._downloads.on_download_progress(self._entry, self._there, None)
        return len(data)


async def hash_of(url: str, md5: str, client: Client, limit_s: float) -> str:
    """Return the SHA-256 (hex) of a package's file, for a channel that names none; its MD5 must be `md5` if there is one.

    The file is read whole. Raises PreparationError when it is not the listed one, Stalled as `watched` does.
    """
    if (path := local(url)) is not None:
        with path.open("rb") as file:
            found = hashlib.file_digest(file, lambda: hashlib.md5(usedforsecurity=False)).hexdigest()
        sha256 = file_digest(path)
    else:
        from rattler import package_streaming  # noqa: PLC0415  # 50 ms, only for those who solve

        downloads = Downloads({}, lambda _step: None)
        into = _Hash(url, downloads)
        await watched(package_streaming.download_to_writer(client, url, into), downloads, limit_s)
        found, sha256 = into.md5.hexdigest(), into.sha256.hexdigest()
    if md5 and found != md5:
        raise PreparationError(
            f"the environment's conda packages could not be locked.\n  hash mismatch for {without_credentials(url)}: "
            f"the channel lists the MD5 {md5}, the file has {found}",
            "Ask whoever keeps the channel: its list and its files do not fit.",
        )
    return sha256
