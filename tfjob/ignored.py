"""What the copy of a code directory leaves out, and which line says so.

It is what the ignore file at its root names (`.tfjobignore`, or else `.gitignore`; patterns as git's), version control,
and the directories the run itself provides (`outputs`, `logs`).
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from pathlib import Path, PurePosixPath
from typing import NamedTuple

__all__ = ["Ignored", "Rule", "ignored"]

_IGNORE_FILES = (".tfjobignore", ".gitignore")
_NEVER = (".git", ".hg", ".svn", ".tfjob/", "__pycache__/", "/outputs", "/logs")


class Rule(NamedTuple):
    """A pattern, and the ignore file and line it stands in; those that always hold stand in none."""

    pattern: str
    file: str = ""
    line: int = 0


class Ignored:
    """The patterns of an ignore file. As in git the last one that names an entry decides; a directory left out is not looked into."""

    def __init__(self, rules: Iterable[Rule]) -> None:
        import pathspec  # noqa: PLC0415  # 30 ms that only a submit should pay

        self._patterns: list[tuple[re.Pattern[str], bool, Rule]] = []
        for rule in rules:
            try:
                patterns = pathspec.GitIgnoreSpec.from_lines([rule.pattern]).patterns
            except ValueError:
                continue  # git passes over what it can make nothing of
            self._patterns += [(p.regex, p.include, rule) for p in patterns if p.regex and p.include is not None]

    def leaves_out(self, path: str, *, is_directory: bool) -> Rule | None:
        """The rule that leaves the entry itself out, if one does."""
        for pattern, is_left_out, rule in reversed(self._patterns):
            if _matches(pattern, path) or (is_directory and _matches_directory(pattern, f"{path}/")):
                return rule if is_left_out else None
        return None

    def leaves_out_file(self, path: PurePosixPath) -> Rule | None:
        """The rule that leaves a file out, or a directory that it is in."""
        for above in reversed(path.parents[:-1]):
            if rule := self.leaves_out(str(above), is_directory=True):
                return rule
        return self.leaves_out(str(path), is_directory=False)


# pathspec's patterns match what is in a directory too; the group ps_d then ends at that directory.


def _matches(pattern: re.Pattern[str], path: str) -> bool:
    return any(match.groupdict().get("ps_d") is None for match in pattern.finditer(path))


def _matches_directory(pattern: re.Pattern[str], path: str) -> bool:
    return any(match.groupdict().get("ps_d") and match.end("ps_d") == len(path) for match in pattern.finditer(path))


def ignored(directory: Path, *, everything: bool = False) -> Ignored:
    """What the copy of the code `directory` leaves out. `everything`: obey no ignore file. Raises OSError if that can't be read."""
    if everything:
        return Ignored([Rule(".tfjob/")])
    rules: list[Rule] = []
    for name in _IGNORE_FILES:
        file = directory / name
        if file.is_file():
            lines = file.read_text(encoding="utf-8-sig", errors="replace").splitlines()
            rules = [Rule(line, name, number) for number, line in enumerate(lines, 1)]
            break
    return Ignored([*rules, *map(Rule, _NEVER)])
