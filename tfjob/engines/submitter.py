"""The user who submits, as containers know them: outputs belong to them, and programs find their name."""

from __future__ import annotations

import grp
import os
import pwd
from dataclasses import dataclass
from typing import Final

__all__ = ["Submitter", "submitter"]

_HOME = "/tmp"  # noqa: S108  # the container's own: it is writable for everybody, and gone with the container
_FIELDS: Final = 7  # of a line of /etc/passwd (passwd(5))
_NO_SHELLS: Final = ("/nologin", "/false")


@dataclass(frozen=True)
class Submitter:
    """A user by numbers, with the names they have on this machine. `groups` are the further ones."""

    uid: int
    gid: int
    name: str
    groups: tuple[tuple[int, str], ...] = ()

    @property
    def user(self) -> str:
        """As the Docker Engine's API wants it."""
        return f"{self.uid}:{self.gid}"

    @property
    def home(self) -> str | None:
        """A home in containers; None for root, who has one in every image."""
        return _HOME if self.uid else None

    def passwd(self, of_image: str) -> str:
        """An image's /etc/passwd, with a line for this user if it has none: ssh, Open MPI and getpass ask for it."""
        if _has(of_image, self.uid):
            return of_image
        name = self.name if self.name not in _names(of_image) else f"user{self.uid}"
        return f"{_ended(of_image)}{name}:x:{self.uid}:{self.gid}::{_HOME}:/bin/sh\n"

    def login(self, of_image: str) -> tuple[str, str]:
        """An image's /etc/passwd for who is to log in there: completed, with a home and a shell; and the name to log in by.

        The image may call this user otherwise: many have a user of the number 1000.
        """
        lines = self.passwd(of_image).splitlines()
        name = self.name
        for number, line in enumerate(lines):
            fields = line.split(":")
            if len(fields) == _FIELDS and fields[2] == str(self.uid):
                name = fields[0]
                shell = "/bin/sh" if fields[6].endswith(_NO_SHELLS) else fields[6]
                lines[number] = ":".join([*fields[:5], _HOME, shell])
                break  # the first counts, as in getpwuid(3)
        return "".join(f"{line}\n" for line in lines), name

    def group(self, of_image: str) -> str:
        """An image's /etc/group, with a line for each of this user's groups that it lacks."""
        text = _ended(of_image)
        for gid, name in ((self.gid, self.name), *self.groups):
            if not _has(text, gid):
                text += f"{name if name not in _names(text) else f'group{gid}'}:x:{gid}:\n"
        return text


def submitter() -> Submitter:
    """The user of this process."""
    uid, gid = os.geteuid(), os.getegid()
    groups = tuple((other, _group_name(other)) for other in sorted(os.getgroups()) if other != gid)
    try:
        name = pwd.getpwuid(uid).pw_name
    except KeyError:  # a number without a name, as in some containers
        name = f"user{uid}"
    return Submitter(uid, gid, name, groups)


def _group_name(gid: int) -> str:
    try:
        return grp.getgrgid(gid).gr_name
    except KeyError:
        return f"group{gid}"


def _has(text: str, number: int) -> bool:
    """Whether a passwd(5) or group(5) file has an entry with this number: the third field of both."""
    return any(fields[2:3] == [str(number)] for fields in map(_fields, text.splitlines()))


def _names(text: str) -> set[str]:
    return {_fields(line)[0] for line in text.splitlines()}


def _fields(line: str) -> list[str]:
    return line.split(":")


def _ended(text: str) -> str:
    return text if not text or text.endswith("\n") else f"{text}\n"
