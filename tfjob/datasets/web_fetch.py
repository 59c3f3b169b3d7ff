"""One file of the web into the cache: only what is missing of it, only if it is another than before, and checked."""

from __future__ import annotations

import contextlib
import json
import os
import re
import shutil
import time
from pathlib import Path
from typing import TYPE_CHECKING, Final, NamedTuple

from tfjob.datasets.digest import Digest
from tfjob.datasets.index import Known
from tfjob.datasets.wanted import changed, check_content, lost, unwritable
from tfjob.datasets.web import Answer, Session, Transient, tag_of
from tfjob.durable import replace_json
from tfjob.errors import PreparationError
from tfjob.spec.addresses import file_name, shown_address

if TYPE_CHECKING:
    from tfjob.datasets.wanted import Partial, Transfer, Wanted

__all__ = ["Sink", "WebFetcher"]

_RESUMABLE: Final = 1 << 20
"""Bytes of a file from which on a part of it is worth to be kept."""
_SLOWEST: Final = 1024
"""Bytes that must come within the time that an answer is waited for."""
_RANGE: Final = re.compile(r"bytes (\d{1,18})-(\d{1,18})/(\d{1,18}|\*)")
_PACKED: Final = (".gz", ".tgz", ".svgz", ".z", ".br", ".zst", ".tzst", ".xz", ".bz2")
"""Ends of the names of files that are compressed: many servers call that an encoding, and send the file as it is."""
_ENCODINGS: Final = {"gzip", "x-gzip", "deflate", "br", "zstd", "compress", "x-compress", "dcb", "dcz"}
"""What makes other bytes of a file (IANA's registry of content codings). Stores keep what is none as well: utf-8, aws-chunked."""
_WHOLE: Final = re.compile(r"bytes \*/(\d{1,18})")


class _Part(NamedTuple):
    """Where in the file an answer begins and ends, and the bytes of the file; None where the server does not say."""

    start: int
    end: int | None
    total: int | None


class WebFetcher:
    """Fetches files of the web for one thread."""

    def __init__(self, session: Session) -> None:
        """Ask over the connections of `session`."""
        self._session = session

    def abort(self) -> None:
        """Make a `fetch` in another thread fail at once."""
        self._session.abort()

    def fetch(self, wanted: Wanted, known: Known | None, transfer: Transfer, partial: Partial) -> Known:
        """Have the file among the cache's objects; see `tfjob.datasets.wanted.Fetcher`."""
        cache = transfer.cache
        sink = Sink(wanted, transfer, partial)
        try:
            held = known if known is not None and cache.has(known.sha256, known.size) else None
            while True:
                answer = self._session.request("GET", wanted.source, _headers(sink, held))
                try:
                    found = self._take(answer, wanted, held, sink)
                except BaseException:
                    answer.drop()
                    raise
                if found is not None:
                    return found
        finally:
            sink.close()

    def _take(self, answer: Answer, wanted: Wanted, held: Known | None, sink: Sink) -> Known | None:
        """Make of an answer what the file is; None when it brought a part, and more is to be asked for (RFC 9110, 15.3.7)."""
        tag = tag_of(answer)
        if answer.status == 304 and held is not None and _is_conditional(sink, held):
            answer.skip()
            return _unchanged(wanted, held, held.tag)
        if answer.status == 416:
            return _after_the_end(answer, wanted, sink, tag)
        if answer.status == 200 and held is not None and tag and tag == held.tag:
            answer.skip()  # a server that knows no conditions
            return _unchanged(wanted, held, tag)
        if answer.status not in {200, 206}:
            answer.drop()
            raise Transient(f"the server answered {answer.status} to what has no such answer")
        _refuse_encoded(answer, wanted)
        part = _part(answer, sink, tag)
        if answer.status == 206:
            tag = sink.tag  # some name it in whole answers only
        _refuse_changed(wanted, tag, part.total)
        sink.begin(part.start, part.total, tag)
        self._receive(answer, sink, part.end, wanted)
        if answer.status == 206 and sink.size != (wanted.size if part.total is None else part.total):
            return None
        return sink.finish(tag)

    def _receive(self, answer: Answer, sink: Sink, end: int | None, wanted: Wanted) -> None:
        window, received = time.monotonic(), 0
        patience_s = sink.transfer.settings.timeout_s
        room = sink.room()
        while count := answer.read_into(room):
            sink.write(room[:count])
            if sink.transfer.stop.is_set() and sink.size != end:  # of what is whole an object is made
                raise Transient("stopped")
            received += count
            room = sink.room()
            now = time.monotonic()
            if now - window > patience_s and sink.size != end:  # what is whole is not refused for coming late
                if received < _SLOWEST:
                    raise Transient(f"only {received} bytes came in {patience_s:g} s")
                window, received = now, 0
        expected = wanted.size if end is None else end
        if expected < 0 or sink.size == expected:
            return
        size = sink.size
        if size > expected:  # nothing can be gone on from there
            sink.discard()
        raise Transient(f"the answer ended after {size} of {expected} bytes")


class Sink:
    """The file that is fetched into, under its lock: what came of it before, its digest so far, and its end."""

    def __init__(self, wanted: Wanted, transfer: Transfer, partial: Partial) -> None:
        """Look at what is there of `wanted`."""
        self.transfer = transfer
        self._wanted = wanted
        self._partial = partial
        self._path = partial.path
        self._facts = f"{self._path}.json"
        self._digest = Digest()
        self._file = partial.descriptor
        self.size = partial.size
        self._is_touched = bool(self.size)
        self._has_facts = bool(self.size)
        self._is_hashed = not self.size
        self.tag = self._read_tag() if self.size else ""

    def begin(self, start: int, total: int | None, tag: str) -> None:
        """Go on from `start`, or begin again if that is 0. Raises PreparationError when the disk has no room for it."""
        if start == 0:
            self.discard()
        elif self._is_hashed:  # the part before this one has just come
            return
        else:
            self.rehash()
            os.lseek(self._file, start, os.SEEK_SET)
        if total is None:
            return
        if self._wanted.size < 0:
            self.transfer.count(0, total)
        if total <= _RESUMABLE:
            return
        root = self.transfer.cache.root
        if total - start > (free := shutil.disk_usage(root).free):
            raise PreparationError(
                f"{shown_address(self._wanted.source)} needs {(total - start) // 10**6} MB, and the disk that holds {root} "
                f"has {free // 10**6} MB free",
                "Free space there: tfjob dataset cache --prune; or name another `store` in the workspace's config.yml.",
            )
        if tag and not tag.startswith("W/"):
            self._has_facts = True
            replace_json(Path(self._facts), {"source": self._wanted.source, "tag": tag}, force=False)

    def room(self) -> memoryview:
        """Memory to receive the next piece into."""
        return self._digest.room()

    def write(self, data: bytes | memoryview) -> None:
        """Add what came. Raises PreparationError when the disk is full; what is there of the file is then removed."""
        self._is_touched = True
        rest, count = memoryview(data), len(data)
        try:
            while rest:
                rest = rest[os.write(self._file, rest) :]
        except OSError as error:
            self.discard()
            raise unwritable(self.transfer.cache, error) from error
        self._digest.update(data)
        self.size += count
        self.transfer.count(count)

    def finish(self, tag: str) -> Known:
        """Make an object of what came, if it has the content it must have. Raises PreparationError if it has not."""
        sha256 = self._digest.hexdigest()
        try:
            check_content(self._wanted, sha256)
        except PreparationError:
            self.discard()
            raise
        try:
            self.transfer.cache.keep(self._path, self._file, sha256)
            self._partial.is_kept = True
        except OSError as error:
            self.discard()
            raise unwritable(self.transfer.cache, error) from error
        self._forget()
        return Known(tag, self.size, sha256, time.time())

    def rehash(self) -> None:
        """Read all that is there for the digest, if it has not seen that come."""
        if self._is_hashed:
            return
        with os.fdopen(os.dup(self._file), "rb") as before:
            before.seek(0)
            self._digest.close()
            self._digest = Digest(before)
        self._is_hashed = True

    def discard(self) -> None:
        """Throw away what is there of the file."""
        if self._is_touched:
            self._empty()
            self._digest.close()
            self.size, self._digest, self._is_hashed = 0, Digest(), True
        self._forget()

    def close(self) -> None:
        """Leave the file. What can't be gone on from is thrown away."""
        self._digest.close()
        if self._is_touched and not self._partial.is_kept and not os.path.exists(self._facts):
            self._empty()

    def _empty(self) -> None:
        os.ftruncate(self._file, 0)
        os.lseek(self._file, 0, os.SEEK_SET)
        self._is_touched = False

    def _read_tag(self) -> str:
        try:
            with open(self._facts, encoding="utf-8") as file:
                return str(json.load(file)["tag"])
        except (OSError, ValueError, KeyError, TypeError):
            return ""

    def _forget(self) -> None:
        if self._has_facts:
            self._has_facts = False
            with contextlib.suppress(OSError):
                os.unlink(self._facts)


def _headers(sink: Sink, held: Known | None) -> dict[str, str]:
    """Ask for the rest of what broke off; or only for what is another than what is held."""
    if sink.size and sink.tag:
        return {"Range": f"bytes={sink.size}-", "If-Range": sink.tag}
    sink.discard()
    if held is None or not held.tag:
        return {}
    return {"If-None-Match" if held.tag.startswith(('"', "W/")) else "If-Modified-Since": held.tag}


def _is_conditional(sink: Sink, held: Known) -> bool:
    """Whether `_headers` asked for what is another than what is held."""
    return bool(held.tag) and not sink.size


def _unchanged(wanted: Wanted, held: Known, tag: str) -> Known:
    """What is held, if it is what it must be."""
    _refuse_changed(wanted, tag, None)
    check_content(wanted, held.sha256)
    return held._replace(tag=tag, checked=time.time())


def _after_the_end(answer: Answer, wanted: Wanted, sink: Sink, tag: str) -> Known:
    """What to make of "there is nothing after that": the part that is there may be the whole file."""
    whole = _WHOLE.match(answer.header("content-range"))
    answer.skip()
    if whole and int(whole[1]) == sink.size and sink.size and tag == sink.tag:
        _refuse_changed(wanted, tag, sink.size)
        sink.rehash()
        return sink.finish(tag)
    sink.discard()
    raise Transient("the part that was fetched before does not belong to what is there now")


def _part(answer: Answer, sink: Sink, tag: str) -> _Part:
    """What of the file an answer brings. A part must be the one that was asked for, but may end sooner."""
    if answer.status == 200:
        return _Part(0, answer.length, answer.length)
    told = _RANGE.fullmatch(answer.header("content-range"))
    if told and sink.size and tag in {"", sink.tag}:
        start, end = int(told[1]), int(told[2]) + 1
        total = None if told[3] == "*" else int(told[3])
        is_sound = start == sink.size < end <= (end if total is None else total)
        if is_sound and answer.length in {None, end - start}:
            return _Part(start, end, total)
    sink.discard()
    raise Transient("the server gave another part of the file than it was asked for")


def _refuse_encoded(answer: Answer, wanted: Wanted) -> None:
    """Refuse a file that comes in another form than its name says, though that was not asked for (RFC 9110, 12.5.3)."""
    coding = answer.header("content-encoding").lower()
    if _ENCODINGS.isdisjoint(re.split(r"[\s,]+", coding)) or file_name(wanted.source).lower().endswith(_PACKED):
        return
    shown = shown_address(wanted.source)
    raise PreparationError(
        f"the server gives {shown} encoded ({coding[:40]}), and the file as it is was asked for",
        "Have whoever keeps it there remove its Content-Encoding, or give the file a name that says what it is, such as "
        f"{file_name(wanted.source)}.gz; or fetch it yourself (curl --compressed -O {shown}) and give its path.",
    )


def _refuse_changed(wanted: Wanted, tag: str, total: int | None) -> None:
    """Refuse what is seen to be another content than the registered one before it is read."""
    kind, _, expected = wanted.mark.partition(":")
    if kind == "tag" and tag != expected:
        raise changed(wanted, f"its server called it {expected} and calls it {tag or 'nothing'} now")
    if kind in {"tag", "seen"} and total is not None and wanted.size not in (-1, total):
        raise changed(wanted, f"it had {wanted.size} bytes and has {total}")
    if kind == "sha256" and total is not None and wanted.size not in (-1, total):
        if wanted.rerun_of:
            raise lost(wanted)
        raise PreparationError(
            f"{shown_address(wanted.source)} has {total} bytes, and the content that is asked for has {wanted.size}",
            "The file was changed. Where it was kept before, put it back, or submit the job again.",
        )
