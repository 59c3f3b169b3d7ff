"""What a requirement leaves possible: a range of versions, from requirement lines and conda packages. Pure.

Versions are compared by the numbers of their release (PEP 440); what follows them, such as ``rc1`` or ``.post1``, does not
count. A range is never narrower than the requirement, so that what is true of all of it is certain.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterable

__all__ = ["Range", "exact", "listed", "normal", "parse"]

_LINE = re.compile(r"(?P<name>[A-Za-z0-9][A-Za-z0-9._-]*)\s*(?:\[[^\]]*\])?\s*(?P<versions>[^;@]*)(?P<rest>.*)")
_CLAUSE = re.compile(r"(?P<operator>===|==|~=|!=|>=|<=|=|>|<)?\s*(?P<version>\d[^\s*,]*?)(?P<star>\.?\*)?(?:[\s=].*)?")
_RELEASE = re.compile(r"\d+(?:\.\d+)*")
_CONSTRAINT = "--constraint "


@dataclass(frozen=True)
class Range:
    """Versions from `lower` (with it) up to `upper` (without it; None: no end). `text` is how it was written."""

    lower: tuple[int, ...] = ()
    upper: tuple[int, ...] | None = None
    text: str = ""

    @property
    def minor(self) -> str | None:
        """The ``major.minor`` that all of it has, or None where it has several."""
        if self.upper is None or not self.lower:
            return None
        major, minor = (*self.lower, 0)[:2]
        return f"{major}.{minor}" if self.upper <= (major, minor + 1) else None

    def is_within(self, other: Range) -> bool:
        """Return whether every version of it is one of `other`."""
        ends = other.upper is None or (self.upper is not None and _short(self.upper) <= _short(other.upper))
        return _short(self.lower) >= _short(other.lower) and ends

    def narrowed(self, other: Range) -> Range:
        """Return the versions that are in both."""
        uppers = [upper for upper in (self.upper, other.upper) if upper is not None]
        text = ",".join(one for one in (self.text, other.text) if one)
        return Range(max(self.lower, other.lower), min(uppers, default=None), text)


def exact(version: str) -> Range:
    """Return the range that is one version, such as ``2.15.1``."""
    release = _short(_release(version))
    return Range(release, (*release, 0, 0, 1) if release else None, version)


def parse(specifiers: str) -> Range:
    """Return the range of version specifiers as pip and conda write them: ``>=2.16,<2.18``, ``=2.15``, ``==2.15.*``."""
    found = Range()
    for part in specifiers.split(","):
        match = _CLAUSE.fullmatch(part.strip())
        if match is not None:
            found = found.narrowed(_clause(match["operator"] or "==", match["version"], has_star=bool(match["star"])))
    text = specifiers.strip()
    return Range(found.lower, found.upper, re.sub(r"^={1,3}", "", text) if "," not in text else text)


def listed(lines: Iterable[str]) -> dict[str, Range]:
    """Return the range of every package that the lines ask for; ``--constraint`` lines narrow those that others ask for.

    Options, and requirements for some systems only (with a ``;``), are left out.
    """
    found: dict[str, Range] = {}
    limits: list[tuple[str, Range]] = []
    for line in lines:
        match = _LINE.fullmatch(line.removeprefix(_CONSTRAINT).rpartition("::")[2].strip())
        if match is None or match["rest"].startswith(";"):
            continue
        name, there = normal(match["name"]), parse(match["versions"].strip().strip("()"))
        if line.startswith(_CONSTRAINT):
            limits.append((name, there))
        else:
            found[name] = found[name].narrowed(there) if name in found else there
    for name, limit in limits:
        if name in found:
            found[name] = found[name].narrowed(limit)
    return found


def normal(name: str) -> str:
    """Return a package's name in the form that all its spellings share (PEP 503)."""
    return re.sub(r"[-_.]+", "-", name).lower()


def _clause(operator: str, version: str, *, has_star: bool) -> Range:
    release = _release(version)
    if operator == "!=":
        return Range()
    if has_star or operator == "=":
        return Range(release, _next(release))
    if operator == "~=":
        return Range(release, _next(release[:-1]))
    if operator in {">=", ">"}:
        return Range(release)
    if operator == "<":
        return Range((), release)
    one = exact(version)
    return Range((), one.upper) if operator == "<=" else one


def _release(version: str) -> tuple[int, ...]:
    match = _RELEASE.match(version)
    return tuple(int(number) for number in match[0].split(".")) if match else ()


def _short(release: tuple[int, ...]) -> tuple[int, ...]:
    """Return the release without zeros at its end: 2.16 and 2.16.0 are one version."""
    while release and not release[-1]:
        release = release[:-1]
    return release


def _next(release: tuple[int, ...]) -> tuple[int, ...] | None:
    return (*release[:-1], release[-1] + 1) if release else None
