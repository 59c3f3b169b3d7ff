"""What a login node sends of a run, put into the run directory here. What says it is program/sending.py.

What comes is not trusted with more than the run's own files: paths stay in `logs/`, `outputs/`, `work/` and the like, and no
link is followed.
"""

from __future__ import annotations

import os
import shutil
from contextlib import suppress
from pathlib import Path
from typing import Any, Final

from tfjob.durable import replace_text
from tfjob.rundir import RunDirectory

__all__ = ["Home"]

_PLACES: Final = ("logs/", "outputs/", "work/", "attempts/", "slurm/attempts/")
_JOB_LOG: Final = "slurm/job.log"
_PART: Final = ".coming"


class Home:
    """The run directory as one connection writes into it: files that an earlier one sent in part come again from their start."""

    def __init__(self, run: RunDirectory) -> None:
        self._run = run
        self._part = run.path / _PART

    def have(self) -> dict[str, Any]:
        """What is here already, as the program over there is told."""
        self._part.unlink(missing_ok=True)
        logs = {path: status.st_size for path, status in self._found("logs", "slurm/attempts")}
        with suppress(OSError):
            logs[_JOB_LOG] = (self._run.path / _JOB_LOG).stat().st_size
        attempts = [path.name for path in self._run.logs.glob("attempt-*")]
        own = str(self._run.environment_log.relative_to(self._run.path))
        return {
            "logs": {path: size for path, size in logs.items() if path != own and not _is_put_away(path)},
            "files": {path: (status.st_size, status.st_mtime_ns) for path, status in self._found("outputs")},
            "attempts": attempts,
        }

    def take(self, word: dict[str, Any], data: bytes) -> bool:
        """Do as one word says. Returns whether it was the last of a sync. Raises OSError when it finds no room, ValueError."""
        kind = word["kind"]
        if kind == "log":
            self._log(self._place(word["path"]), word["offset"], data)
        elif kind == "file":
            self._file(word, data)
        elif kind == "state":
            replace_text(self._run.path / "slurm" / "state.json", data.decode(), force=False)
        elif kind == "link":
            place = self._place(word["path"])
            _clear(place)
            place.symlink_to(word["target"])
        elif kind == "directory":
            _directory(self._place(word["path"]))
        elif kind == "gone":
            _clear(self._place(word["path"]))
        elif kind == "attempt":
            self._attempt(int(word["number"]), is_whole=word["is_whole"])
        return bool(kind == "synced")

    def _log(self, place: Path, offset: int, data: bytes) -> None:
        descriptor = os.open(place, os.O_WRONLY | os.O_CREAT | os.O_NOFOLLOW, 0o644)
        try:
            while data:
                written = os.pwrite(descriptor, data, offset)
                data, offset = data[written:], offset + written
        finally:
            os.close(descriptor)

    def _file(self, word: dict[str, Any], data: bytes) -> None:
        with self._part.open("ab") as file:
            file.write(data)
        if not word["last"]:
            return
        if word["whole"] and self._part.stat().st_size == word["size"]:
            self._part.chmod(word["mode"] | 0o600)
            os.utime(self._part, ns=(word["mtime_ns"], word["mtime_ns"]))
            place = self._place(word["path"])
            if place.is_dir() and not place.is_symlink():
                shutil.rmtree(place)
            self._part.replace(place)
        else:
            self._part.unlink()

    def _attempt(self, number: int, *, is_whole: bool) -> None:
        """Logs of an attempt that was put away: who follows the run finds all of them, or none."""
        part = self._run.logs / f".attempt-{number}"
        if not is_whole:
            shutil.rmtree(part, ignore_errors=True)
            part.mkdir(parents=True)
        elif not self._run.attempt_logs(number).exists():
            part.rename(self._run.attempt_logs(number))

    def _place(self, path: str) -> Path:
        """Where a path of the run is here, its directory made. No link may lead out of it."""
        parts = path.split("/")
        if ".." in parts or "" in parts or not (path.startswith(_PLACES) or path == _JOB_LOG):
            raise ValueError(f"the login node sent a file named {path!r}")
        place = self._run.path
        for part in parts[:-1]:
            place /= part
            _directory(place)
        return place / parts[-1]

    def _found(self, *below: str) -> list[tuple[str, os.stat_result]]:
        return [
            (str(Path(parent, name).relative_to(self._run.path)), Path(parent, name).lstat())
            for top in below
            for parent, directories, names in os.walk(self._run.path / top)
            for name in (*names, *(one for one in directories if Path(parent, one).is_symlink()))
        ]


def _is_put_away(path: str) -> bool:
    return path.startswith(("logs/attempt-", "logs/.attempt-"))


def _directory(place: Path) -> None:
    if place.is_symlink() or place.is_file():
        place.unlink()
    place.mkdir(exist_ok=True)


def _clear(place: Path) -> None:
    if place.is_dir() and not place.is_symlink():
        shutil.rmtree(place)
    else:
        place.unlink(missing_ok=True)
