"""Datasets by name, registered in a workspace. Registering copies nothing; a version never becomes something else.

The content of an entry is plain data::

    paths: [{path: PATH, sha256: SUM}, …]     absolute paths and globs, and addresses; sha256 where one was given
    listing: KEY                              the digest of what the paths named when it was registered: names, sizes, times or marks;
                                              where that of other files is the same, one over it and where the files are
    file_count, size_bytes                    of it; bytes of files that their servers told no size of are not in it

    .listings/KEY.json                        its files: (source, name, bytes, time of change or mark)
    .contents/KEY.json                        the SHA-256 that each file behind an address had at the first use
    .laid/KEY.json                            of web addresses alone: what the two make together (may be deleted)
"""

from __future__ import annotations

import contextlib
import json
import os
import queue
import threading
import time
from collections import deque
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from tfjob.assets import Assets, Entry
from tfjob.datasets.files import DatasetFiles, Remote, is_address, laid_out, refuse_unsafe
from tfjob.datasets.sources import find
from tfjob.datasets.wanted import Settings
from tfjob.durable import digest_of, replace_json, replace_text
from tfjob.errors import NotFound, PreparationError, UsageError
from tfjob.spec.addresses import is_web, shown_address
from tfjob.values import Pairs

__all__ = [
    "Asked",
    "assets",
    "content_of",
    "find_registered",
    "listed",
    "note_contents",
    "refresh",
    "register",
]

KIND = "dataset"
_LISTINGS, _CONTENTS, _LAID = ".listings", ".contents", ".laid"
_SHOWN = 3


@dataclass(frozen=True)
class Asked:
    """A dataset to register: its paths (absolute, or addresses), the SHA-256 that some must have, and who it is."""

    paths: tuple[str, ...]
    sha256: Pairs = ()
    name: str | None = None
    version: str | None = None
    description: str = ""
    tags: Pairs = ()


def assets(root: Path) -> Assets:
    """The entries of the registry `root`."""
    return Assets(root, KIND)


def register(asked: Asked, root: Path, settings: Settings, *, new_version: bool = False) -> Entry:
    """Register a dataset in the registry `root` and return its entry; see `Assets.register` for versions.

    Servers are asked for each address whether it is there, and nothing is fetched. Raises UsageError for what
    `Assets.register` refuses, and PreparationError for paths that name nothing or can't be read. Nothing has been
    registered then.
    """
    if asked.name is None:
        raise UsageError("the dataset has no name", "Give one: --name NAME, or name: NAME in the file.")
    found = _looked_up(find(asked.paths, asked.sha256), settings)
    return _kept(asked, found, root, new_version=new_version, fresh={})


def refresh(name: str, root: Path, settings: Settings) -> Entry:
    """Register what the paths of ``name`` or ``name@version`` name now as a new version, if that is another content.

    Raises NotFound, and PreparationError as `register` does.
    """
    before = assets(root).find(name)
    paths = before.content["paths"]
    asked = Asked(
        tuple(one["path"] for one in paths),
        tuple((one["path"], one["sha256"]) for one in paths if "sha256" in one),
        before.name,
        description=before.description,
        tags=before.tags,
    )
    found = _looked_up(find(asked.paths, asked.sha256), settings)
    untold = any(is_address(source) and not mark for (source, _, _), mark in _marked(found))
    if not untold and _listing(found, root) == before.content["listing"]:
        return replace(before, is_new=False)
    fresh = {"looked_at": round(time.time(), 3)} if untold else {}  # nothing else may tell it from the version before
    return _kept(asked, found, root, new_version=True, fresh=fresh)


def find_registered(name: str, root: Path | None) -> DatasetFiles:
    """The files of ``name`` or ``name@version``, as they were registered.

    Raises NotFound where there is none, and PreparationError when files of this machine or of stores have changed since.
    Of web addresses that is found out when they are fetched.
    """
    if root is None:
        raise NotFound(
            f"there is no dataset {name!r}: there is no workspace to have it registered in",
            "Register it: tfjob dataset create --name NAME --path PATH",
        )
    entry = assets(root).find(name)
    paths = [one for one in entry.content["paths"] if not is_web(one["path"])]
    laid = root / _LAID / f"{entry.content['listing']}.json"
    if not paths and (found := _laid(laid)) is not None:
        return replace(found, registered=entry.full_name)
    rows = listed(entry, root)
    if paths:
        sums = tuple((one["path"], one["sha256"]) for one in paths if "sha256" in one)
        _refuse_changed(entry, rows, find([one["path"] for one in paths], sums))
    contents = _contents(entry, root)
    local, remote = [], []
    for source, file_name, size, sign in rows:
        if not isinstance(sign, str):
            local.append((source, size, sign, file_name))
            continue
        seen = contents.get(source) if is_web(source) and not sign.startswith("sha256:") else None
        remote.append(Remote(source, file_name, seen[0] if seen else size, f"seen:{seen[1]}" if seen else sign))
    found = laid_out(local, remote)
    if not paths and contents:
        with contextlib.suppress(OSError):  # it is made of what is there; the next use will keep it
            laid.parent.mkdir(exist_ok=True)
            replace_text(laid, json.dumps([found.files, found.marks, found.digest]), force=False)
    return replace(found, registered=entry.full_name)


def _laid(path: Path) -> DatasetFiles | None:
    """Files that were laid out before, when all was known of them."""
    try:
        files, marks, digest = json.loads(path.read_bytes())
        refuse_unsafe(files)  # an earlier tfjob may have laid them out
        return DatasetFiles(tuple(map(tuple, files)), str(digest), tuple(marks))
    except (OSError, ValueError, TypeError):
        return None


def listed(entry: Entry, root: Path) -> list[tuple[str, str, int, int | str]]:
    """The files of an entry as they were registered: source, name, bytes, and time of change (ns) or mark."""
    path = root / _LISTINGS / f"{entry.content['listing']}.json"
    try:
        return [(row[0], row[1], row[2], row[3]) for row in json.loads(path.read_bytes())]
    except (OSError, ValueError, IndexError, TypeError) as error:
        raise PreparationError(
            f"what the dataset {entry.full_name} holds can't be read from {path}: {error}",
            f"Register it again: tfjob dataset create --name {entry.full_name} --refresh",
        ) from error


def content_of(entry: Entry, root: Path) -> dict[str, tuple[int, str]]:
    """Address → (bytes, SHA-256) of its file at the first use; empty before that."""
    return _contents(entry, root)


def note_contents(name: str, root: Path, contents: Mapping[str, tuple[int, str]]) -> None:
    """Keep what the addresses of ``name@version`` held at its first use; later uses must find the same.

    Raises PreparationError where another was the first and found something else, and NotFound, UsageError, OSError.
    """
    registry = assets(root)
    entry = registry.find(name)
    path = root / _CONTENTS / f"{entry.content['listing']}.json"
    path.parent.mkdir(exist_ok=True)
    with registry.locked():  # of two at once one is the first
        if path.exists():
            _refuse_other(entry, _contents(entry, root), contents)
        else:
            replace_text(path, json.dumps(contents) + "\n")  # in one line: there may be very many


def _refuse_other(entry: Entry, first: Mapping[str, tuple[int, str]], now: Mapping[str, tuple[int, str]]) -> None:
    changed = [source for source, held in now.items() if is_web(source) and first.get(source, held) != held]
    if changed:
        raise PreparationError(
            f"{shown_address(changed[0])} has changed since another run was the first to use {entry.full_name}",
            f"A version never changes. Make a new one of what is there now: tfjob dataset create --name {entry.full_name} --refresh",
        )


def _kept(asked: Asked, found: DatasetFiles, root: Path, *, new_version: bool, fresh: Mapping[str, Any]) -> Entry:
    sums = dict(asked.sha256)
    listing = _listing(found, root)
    content = {
        "paths": [{"path": path, **({"sha256": sums[path]} if path in sums else {})} for path in asked.paths],
        "file_count": len(found.files),
        "size_bytes": sum(max(size, 0) for _, _, size in found.files),
        "listing": listing,
        **fresh,
    }
    registry = assets(root)
    path = root / _LISTINGS / f"{listing}.json"
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        if not path.exists():
            replace_json(path, _signed(found))
    except OSError as error:
        raise UsageError(
            f"the dataset {asked.name} can't be kept in {root}: {error.strerror}",
            "Nothing was registered; free space or permissions there, and try again.",
        ) from error
    return registry.register(
        asked.name or "",
        content,
        version=asked.version,
        new_version=new_version,
        description=asked.description,
        tags=asked.tags,
    )


def _listing(found: DatasetFiles, root: Path) -> str:
    """The key of a listing. Files elsewhere of the same names, sizes, and times or marks have another one."""
    sources = [source for source, _, _ in found.files]
    try:
        kept = json.loads((root / _LISTINGS / f"{found.digest}.json").read_bytes())
        return found.digest if [row[0] for row in kept] == sources else digest_of([found.digest, sources])
    except (OSError, ValueError, IndexError, TypeError):
        return found.digest


def _signed(found: DatasetFiles) -> list[tuple[str, str, int, int | str]]:
    rows: list[tuple[str, str, int, int | str]] = []
    for (source, name, size), mark in _marked(found):
        rows.append((source, name, size, mark if is_address(source) else os.stat(source).st_mtime_ns))
    return rows


def _marked(found: DatasetFiles) -> Iterable[tuple[tuple[str, str, int], str]]:
    return zip(found.files, found.marks or ("",) * len(found.files), strict=True)


def _contents(entry: Entry, root: Path) -> dict[str, tuple[int, str]]:
    try:
        held = json.loads((root / _CONTENTS / f"{entry.content['listing']}.json").read_bytes())
        return {source: (int(one[0]), str(one[1])) for source, one in held.items()}
    except (OSError, ValueError, AttributeError, IndexError, TypeError):
        return {}


def _refuse_changed(entry: Entry, rows: Sequence[tuple[str, str, int, int | str]], now: DatasetFiles) -> None:
    """Refuse files of this machine and of stores that are not those that were registered. The web is not asked here."""
    signed = {name: (source, size, sign) for source, name, size, sign in rows if not is_web(source)}
    current = {name: (source, size, sign) for source, name, size, sign in _signed(now)}
    changes = []
    for name in sorted({*signed, *current}):
        before, after = signed.get(name), current.get(name)
        if before is None or after is None:
            changes.append(f"{name} is {'new' if before is None else 'gone'}")
        elif before[1] != after[1]:
            changes.append(f"{name} has {after[1]} bytes where it had {before[1]}")
        elif before[2] != after[2]:
            changes.append(f"{name} was written to")
        elif before != after:
            changes.append(f"{name} is {shown_address(after[0])} where it was {shown_address(before[0])}")
    if not changes:
        return
    more = f" and {len(changes) - _SHOWN} more" if len(changes) > _SHOWN else ""
    raise PreparationError(
        f"the dataset {entry.full_name} has changed since it was registered: {', '.join(changes[:_SHOWN])}{more}",
        f"A version never changes. Make a new one of what is there now: tfjob dataset create --name {entry.full_name} --refresh",
    )


def _looked_up(found: DatasetFiles, settings: Settings) -> DatasetFiles:
    """The files with what the servers of web addresses say of them: that they are there, bytes, and a mark."""
    asked = deque(source for source, _, _ in found.files if is_web(source))
    if not asked:
        return found
    heads = _heads(asked, settings)
    local, remote = [], []
    for (source, name, size), mark in _marked(found):
        if not is_address(source):
            local.append((source, size, os.stat(source).st_mtime_ns, name))
        elif source in heads:
            told, tag = heads[source]
            remote.append(Remote(source, name, told, mark or (f"tag:{tag}" if tag else "")))
        else:
            remote.append(Remote(source, name, size, mark))
    return laid_out(local, remote)


def _heads(asked: deque[str], settings: Settings) -> dict[str, tuple[int, str]]:
    """Address → (bytes, tag), asked by several threads. Raises PreparationError for the first that can't be had."""
    from tfjob.datasets.web import Session  # noqa: PLC0415  # only where it is needed

    heads: dict[str, tuple[int, str]] = {}
    failures: queue.SimpleQueue[BaseException] = queue.SimpleQueue()

    def work() -> None:
        session = Session(settings.timeout_s)
        try:
            while failures.empty():
                try:
                    address = asked.popleft()
                except IndexError:
                    return
                heads[address] = _head(session, address, settings)
        except BaseException as error:  # noqa: BLE001  # it is raised again by who waits
            failures.put(error)
        finally:
            session.close()

    threads = [threading.Thread(target=work, daemon=True) for _ in range(min(settings.connections, len(asked)))]
    for thread in threads:
        thread.start()
    for thread in threads:
        while thread.is_alive():
            thread.join(0.1)
    if not failures.empty():
        raise failures.get()
    return heads


def _head(session: Any, address: str, settings: Settings) -> tuple[int, str]:
    """The bytes (-1: not told) and the tag of an address, by asking for its first byte: not every server knows HEAD."""
    from tfjob.datasets.web import Transient, tag_of  # noqa: PLC0415  # only where it is needed

    for failures in range(1, settings.tries + 1):
        try:
            answer = session.request("GET", address, {"Range": "bytes=0-0"})
            break
        except Transient as error:
            if failures == settings.tries:
                raise PreparationError(
                    f"{shown_address(address)} can't be looked at: {error.message} (tried {failures} times)",
                    "Check the address and the network, and try again.",
                ) from error
            time.sleep(max(error.wait_s, settings.pause_s * 2 ** (failures - 1)))
    whole = answer.header("content-range").rpartition("/")[2]
    told = whole if answer.status != 200 else str(answer.length)
    size = int(told) if told.isdecimal() else -1
    tag = tag_of(answer)
    answer.skip()
    return size, tag
