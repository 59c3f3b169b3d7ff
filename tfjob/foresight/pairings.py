"""Pairings of packages, code and kind of job that are known to fail, told before a job is submitted. Pure.

The rules are rows of `pairings.yml`, where their form is described; here they are applied to facts. What a lock says is
certain. Without one, only what the listed requirements leave no choice about is taken for certain. Code is read as text:
what it seems to do is never more than a warning.
"""

from __future__ import annotations

import functools
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import IntEnum
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from tfjob.foresight.cuda import row_of
from tfjob.foresight.ranges import exact, listed, normal, parse

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

__all__ = ["Facts", "Finding", "check"]

_TENSORFLOWS = ("tensorflow", "tensorflow-cpu")
_KERAS_3 = {"tensorflow": ">=2.16", "tensorflow-cpu": ">=2.16", "keras": ">=3"}
_YES = {"1", "true", "True"}  # what TensorFlow takes for a yes in TF_USE_LEGACY_KERAS
_COMMENT = re.compile(r"#[^\n]*")


@dataclass(frozen=True)
class Facts:
    """What is known of a job and its environment.

    `packages` are those of a lock, name → version; without a lock, `requirements` are the lines of the pip list and the
    conda packages. `python` is a version (``3.11.7``), or a PEP 440 specifier. `workers` counts all that train, the
    chief too. `code` is path → text. `has_mpi` says whether there is an mpirun outside of the environment; None: not known.
    """

    packages: Mapping[str, str] | None = None
    requirements: tuple[str, ...] = ()
    python: str | None = None
    distribution: Literal["none", "mpi", "tensorflow"] = "none"
    workers: int = 1
    parameter_servers: int = 0
    variables: Mapping[str, str] = field(default_factory=dict)
    code: Mapping[str, str] = field(default_factory=dict)
    has_mpi: bool | None = None


@dataclass(frozen=True)
class Finding:
    """A rule that applies: what fails, how to get around it, and where that is known from (an address)."""

    rule: str
    severity: Literal["error", "warning"]
    message: str
    way_out: str
    source: str


class _Holds(IntEnum):
    NO = 0
    LIKELY = 1
    CERTAINLY = 2


def check(facts: Facts) -> tuple[Finding, ...]:
    """Return the rules that apply, errors first."""
    known = _Known(facts)
    findings = [finding for rule in _table()["rules"] if (finding := _finding(rule, known)) is not None]
    return tuple(sorted(findings, key=lambda finding: finding.severity))


def _finding(rule: Mapping[str, Any], known: _Known) -> Finding | None:
    holds = known.holds(rule["when"])
    if holds is _Holds.NO:
        return None
    is_error = rule["severity"] == "error" or ("error_when" in rule and known.holds(rule["error_when"]) > _Holds.NO)
    said = known.words()
    return Finding(
        rule=rule["id"],
        severity="error" if is_error and holds is _Holds.CERTAINLY else "warning",
        message=" ".join(rule["message"].format_map(said).split()),
        way_out=" ".join(rule["way_out"].format_map(said).split()),
        source=rule["source"],
    )


class _Known:
    """The facts, with the questions that conditions ask of them. Each answer says how far it is certain."""

    def __init__(self, facts: Facts) -> None:
        self._facts = facts
        self._is_locked = facts.packages is not None
        locked = {normal(name): exact(version) for name, version in (facts.packages or {}).items()}
        self._ranges = locked if self._is_locked else listed(facts.requirements)
        self._text = "\n".join(_COMMENT.sub("", text) for path, text in facts.code.items() if path.endswith(".py"))
        self._questions: dict[str, Callable[[Any], _Holds]] = {
            "packages": self._packages,
            "any_package": self._any_package,
            "newest": self._newest,
            "locked": lambda wanted: _certain(self._is_locked is wanted),
            "lacks": self._lacks,
            "other_minor": self._other_minor,
            "keras": lambda _: self._keras_3(),
            "legacy_keras": lambda wanted: _certain(self._is_legacy_keras() is wanted),
            "python": lambda _: _certain(self._other_pythons() is not None),
            "code": lambda marks: _certain(all(self._has(mark) for mark in marks)),
            "distribution": lambda kind: _certain(facts.distribution == kind),
            "workers": lambda count: _certain(facts.workers >= count),
            "parameter_servers": lambda count: _certain(facts.parameter_servers >= count),
            "mpi": lambda wanted: _certain(facts.has_mpi is wanted),
        }

    def holds(self, when: Mapping[str, Any]) -> _Holds:
        """Return whether every condition holds; as certain as the least certain of them."""
        return min(self._questions[key](value) for key, value in when.items())

    def words(self) -> dict[str, str]:
        """Return the versions that messages may name; empty ones of what is not there."""
        words = _Words({name.replace("-", "_"): one.text for name, one in self._ranges.items()})
        words["tensorflow"] = next((self._ranges[name].text for name in _TENSORFLOWS if name in self._ranges), "")
        words["python"] = (self._facts.python or "").removeprefix("==").removesuffix(".*")
        if (outside := self._other_pythons()) is not None:
            words["first"], words["last"] = outside
        return words

    def _packages(self, ranges: Mapping[str, str]) -> _Holds:
        return _certain(all(self._is_within(name, text) for name, text in ranges.items()))

    def _any_package(self, ranges: Mapping[str, str]) -> _Holds:
        return _certain(any(self._is_within(name, text) for name, text in ranges.items()))

    def _newest(self, ranges: Mapping[str, str]) -> _Holds:
        answers = []
        for name, text in ranges.items():
            there = self._ranges.get(name)
            is_free = not self._is_locked and (there is None or there.upper is None)
            answers.append(_Holds.CERTAINLY if self._is_within(name, text) else _Holds(is_free))
        return min(answers)

    def _lacks(self, names: Iterable[str]) -> _Holds:
        if any(name in self._ranges for name in names):
            return _Holds.NO
        return _Holds.CERTAINLY if self._is_locked else _Holds.LIKELY

    def _other_minor(self, names: Iterable[str]) -> _Holds:
        first, *others = (self._ranges[name].minor if name in self._ranges else None for name in names)
        return _certain(first is not None and any(other is not None and other != first for other in others))

    def _keras_3(self) -> _Holds:
        if self._is_legacy_keras() or self._has("chooses_keras"):
            return _Holds.NO
        return self._any_package(_KERAS_3)

    def _is_legacy_keras(self) -> bool:
        return self._facts.variables.get("TF_USE_LEGACY_KERAS") in _YES

    def _is_within(self, name: str, text: str) -> bool:
        there = self._ranges.get(name)
        return there is not None and there.is_within(parse(text))

    def _has(self, mark: str) -> bool:
        return _marks()[mark].search(self._text) is not None

    def _other_pythons(self) -> tuple[str, str] | None:
        """Return the first and last Python of the TensorFlow, if the environment's is certainly another."""
        minor = next((one.minor for name in _TENSORFLOWS if (one := self._ranges.get(name)) is not None), None)
        row = row_of(minor) if minor else None
        if row is None or self._facts.python is None:
            return None
        text = self._facts.python
        python = exact(text) if text[:1].isdigit() else parse(text)
        first, last = exact(row.python[0]), parse(f"=={row.python[1]}.*")
        is_older = python.upper is not None and python.upper <= first.lower
        is_newer = last.upper is not None and python.lower >= last.upper
        return row.python if is_older or is_newer else None


class _Words(dict[str, str]):
    """What messages may name; what is not known is empty."""

    def __missing__(self, key: str) -> str:
        return ""


def _certain(answer: bool) -> _Holds:
    return _Holds.CERTAINLY if answer else _Holds.NO


@functools.cache
def _marks() -> dict[str, re.Pattern[str]]:
    return {name: re.compile(pattern) for name, pattern in _table()["marks"].items()}


@functools.cache
def _table() -> Any:
    import yaml  # noqa: PLC0415  # 20 ms that commands without a job do not pay

    return yaml.safe_load(Path(__file__).with_suffix(".yml").read_text(encoding="utf-8"))
