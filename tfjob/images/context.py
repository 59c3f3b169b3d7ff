"""The files a Dockerfile is built with: what is part of the image's key is what the builder is sent, and nothing else.

Left out is what ``.dockerignore`` leaves out, and tfjob's own workspaces, which change with every run.
"""

from __future__ import annotations

import io
import os
import stat
import tarfile
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tfjob.durable import digest_of, file_digest, replace_json
from tfjob.environments.prefix import read_json

if TYPE_CHECKING:
    from collections.abc import Sequence

__all__ = ["Context"]

_WORKSPACES = (".tfjob", "**/.tfjob")


@dataclass(frozen=True)
class Context:
    """A folder of files for a Dockerfile. `text` is the Dockerfile's, `rules` what is left out, line by line."""

    dockerfile: Path
    folder: Path
    text: str
    rules: tuple[str, ...]

    @classmethod
    def read(cls, dockerfile: Path, folder: Path, store_root: Path) -> Context:
        """Read a Dockerfile and what its context leaves out, the store among it. Raises OSError and UnicodeDecodeError."""
        text = dockerfile.read_text(encoding="utf-8")
        os.listdir(folder)  # raises where there is no such folder
        own = dockerfile.with_name(f"{dockerfile.name}.dockerignore")
        ignore = own if own.exists() else folder / ".dockerignore"
        lines = ignore.read_text(encoding="utf-8-sig").splitlines() if ignore.exists() else []
        rules = [line.strip() for line in lines if line.strip() and not line.startswith("#")]
        store = os.path.relpath(store_root.resolve(), folder.resolve())
        rules += [] if store.split(os.sep)[0] in {os.curdir, os.pardir} else [store]
        return cls(dockerfile, folder, text, (*rules, *_WORKSPACES))

    def content(self, store_root: Path) -> list[list[str]]:
        """Return each file by its path, kind, mode and digest; one that was not touched is not read again."""
        kept = store_root / "builds" / f"{digest_of(str(self.folder.absolute()))[:32]}.json"
        before = read_json(kept) or {}
        now: dict[str, list[Any]] = {}
        found: list[list[str]] = []
        for relative in self._paths():
            path = self.folder / relative
            status = path.lstat()
            mode = f"{stat.S_IMODE(status.st_mode):o}"
            if stat.S_ISLNK(status.st_mode):
                found.append([relative, "link", os.readlink(path)])
            elif stat.S_ISDIR(status.st_mode):
                found.append([relative, "folder", mode])
            elif stat.S_ISREG(status.st_mode):
                seen = [status.st_ino, status.st_size, status.st_mtime_ns, status.st_ctime_ns]
                known = before.get(relative, [])
                now[relative] = known if known[:4] == seen else [*seen, file_digest(path)]
                found.append([relative, "file", mode, now[relative][4]])
        if now != before:
            kept.parent.mkdir(parents=True, exist_ok=True)
            replace_json(kept, now, force=False)
        return found

    def write_dockerfile(self, into: Path) -> Path:
        """Write the Dockerfile into an empty folder, and beside it what BuildKit shall leave out, and return its path."""
        path = into / "Dockerfile"
        path.write_text(self.text, encoding="utf-8")
        path.with_name("Dockerfile.dockerignore").write_text("\n".join([*self.rules, ""]), encoding="utf-8")
        return path

    def write_archive(self, path: Path) -> str:
        """Write a tarball for the classic builder, of exactly these files, and return the Dockerfile's name in it."""
        inside = self._name_inside()
        name = inside or f".dockerfile.{digest_of(self.text)[:16]}"
        extra: dict[str, str] = {}
        if inside is None:
            # The engine takes out of the image what .dockerignore names of these two files, and of no others.
            own = self.folder / ".dockerignore"
            rules = own.read_text(encoding="utf-8") if own.is_file() else ".dockerignore"
            extra = {name: self.text, ".dockerignore": f"{rules}\n{name}\n"}
        with tarfile.open(path, "w") as archive:
            for relative in sorted({*self._paths(), *([inside] if inside else [])} - set(extra)):
                _add(archive, self.folder / relative, relative)
            for one, text in extra.items():
                member = tarfile.TarInfo(one)
                member.size = len(text.encode())
                archive.addfile(member, io.BytesIO(text.encode()))
        return name

    def _name_inside(self) -> str | None:
        """The Dockerfile's path in the context; None when it stands elsewhere or is a link."""
        try:
            relative = self.dockerfile.resolve().relative_to(self.folder.resolve())
        except ValueError:
            return None
        return None if self.dockerfile.is_symlink() else str(relative)

    def _paths(self) -> Sequence[str]:
        from docker.utils.build import exclude_paths  # noqa: PLC0415  # 100 ms, only for those who build

        return sorted(exclude_paths(str(self.folder), list(self.rules)))


def _add(archive: tarfile.TarFile, path: Path, name: str) -> None:
    """Add a file, folder or link as root's; other kinds are no part of an image."""
    member = archive.gettarinfo(path, name)
    if member is None or not (member.isfile() or member.isdir() or member.issym() or member.islnk()):
        return
    member.uid = member.gid = 0
    member.uname = member.gname = ""
    if member.isreg():
        with path.open("rb") as file:
            archive.addfile(member, file)
    else:
        archive.addfile(member)
