"""What happens to a run, written down as it happens: its record, and its events. The supervisor alone writes them."""

from __future__ import annotations

import errno
import os
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import replace
from typing import Any, get_args

from tfjob.durable import force
from tfjob.rundir import RunDirectory
from tfjob.runs.events import append_event
from tfjob.runs.record import Phase, RunState, iso, read_record, write_record

__all__ = ["Chronicle"]

_PROGRESS_S = 0.2
_FULL = (errno.ENOSPC, errno.EDQUOT)
_PASSING = (errno.EIO, errno.ESTALE, errno.ETIMEDOUT)
"""What a shared file system says while its server is away, or has replaced what was open."""
_FULL_BYTES = 128 * 1024
_LAST_WORD_TRIES, _LAST_WORD_PAUSE_S = 20, 0.5
_ORDER = get_args(RunState)


class Chronicle:
    """The record of one run as it stands, and the only hand that changes it.

    A full disk must not end a run that is well: what can't be written then is not, and the end says so. The same is true of
    a shared file system that is away for a moment, of which the end says nothing.
    """

    def __init__(self, run: RunDirectory) -> None:
        self._run = run
        self.record = read_record(run)
        self._disk_was_full = False
        self._last_progress: dict[str, tuple[float, str]] = {}

    def change(self, **facts: Any) -> None:
        """Change fields of the record. It is written by the next `save`."""
        self.record = replace(self.record, **facts)

    def save(self) -> None:
        """Replace the record. Only the last word is forced to the disk: a power loss takes the processes too."""
        with self._best_effort():
            write_record(self._run, self.record, force=False)

    def save_for_good(self) -> None:
        """Write the last word; on a full disk, wait a little for space. Raises OSError when there is none: others will try.

        A file system that is away is waited for as well.
        """
        for _ in range(_LAST_WORD_TRIES):
            try:
                write_record(self._run, self.record, force=False)
            except OSError as error:
                if error.errno not in (*_FULL, *_PASSING):
                    raise
                time.sleep(_LAST_WORD_PAUSE_S)
            else:
                return
        write_record(self._run, self.record)

    def force(self) -> None:
        """Force the record to the disk, as far as that can be. It is not written again: others may have, now that the run is over."""
        with self._best_effort(), suppress(FileNotFoundError):  # or have removed it
            force(self._run.record)

    def enter(self, phase: RunState, **facts: Any) -> None:
        """Note that a phase begins, and `facts` of the record with it. Phases that come after it are to be gone through again."""
        now = iso(time.time())
        before = _ORDER[: _ORDER.index(phase)]
        past = tuple(replace(p, ended=p.ended or now) for p in self.record.phases if p.name in before)
        self.change(state=phase, phases=(*past, Phase(phase, now)), **facts)
        self.save()
        self.event("phase", phase=phase)

    def note(self, message: str) -> None:
        """Note something out of the ordinary, for good."""
        self.change(notes=(*self.record.notes, message))
        self.save()
        self.event("note", message=message)

    def progress(self, message: str, *, topic: str = "") -> None:
        """Note what the phase is at; of messages that come faster than anybody reads, some.

        `topic` is what goes on beside the rest of the phase. Another thread may tell of it.
        """
        self.try_progress(message, topic=topic)

    def try_progress(self, message: str, *, topic: str = "") -> bool:
        """The same; returns whether it was noted."""
        now = time.monotonic()
        last, step = self._last_progress.get(topic, (0.0, ""))
        if message[:8] == step and now - last < _PROGRESS_S:
            return False
        self._last_progress[topic] = (now, message[:8])
        self.event("progress", phase=self.record.state, message=message, **({"topic": topic} if topic else {}))
        return True

    def event(self, kind: str, **facts: Any) -> None:
        """Append an event."""
        with self._best_effort():
            append_event(self._run, kind, **facts)

    def disk_is_full(self) -> bool:
        """Whether the disk is full, or was when something had to be written."""
        try:
            status = os.statvfs(self._run.path)
        except OSError:
            return self._disk_was_full
        return self._disk_was_full or status.f_bavail * status.f_frsize < _FULL_BYTES

    @contextmanager
    def _best_effort(self) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            if error.errno not in (*_FULL, *_PASSING):
                raise
            self._disk_was_full = self._disk_was_full or error.errno in _FULL
