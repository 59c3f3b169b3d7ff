"""The stages of a Dockerfile: which images they are made of, and which of them the last one needs.

Only the key of a build needs this. What is not understood here is never an error: it is left to the builder.
"""

from __future__ import annotations

import os
import re
import shlex
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Mapping

__all__ = ["Stages"]

_FROM = re.compile(r"((?:--\S+\s+)*)(\S+)(?:\s+AS\s+(\S+))?\s*", re.IGNORECASE)
_FLAG = re.compile(r"--(\S+)\s*")
_FROM_OF_COPY = re.compile(r"from=(.+)", re.IGNORECASE)
_FROM_OF_MOUNT = re.compile(r"(?:^|,)\"?from=([^,\"]+)", re.IGNORECASE)
_PLATFORM = re.compile(r"--platform=(\S+)", re.IGNORECASE)
# NAME, or what stands in braces: NAME, the operator, and what follows it.
_NAME = re.compile(r"[A-Za-z_]\w*")
_BRACED = re.compile(r"(\w+)(?:(:?[-+?])(.*))?", re.DOTALL)
# The machine's names in Docker's words: architecture and variant.
_ARCHITECTURES = {"x86_64": ("amd64", ""), "aarch64": ("arm64", ""), "ppc64le": ("ppc64le", ""), "s390x": ("s390x", "")}


class _NotKnownError(Exception):
    """The text means what only the builder can tell."""


@dataclass
class _Stage:
    name: str
    start: str
    sources: list[str] = field(default_factory=list)


class Stages:
    """Takes a Dockerfile's instructions one after the other."""

    def __init__(self, arguments: Mapping[str, str]) -> None:
        self._arguments = arguments
        self._values = {name: arguments.get(name, value) for name, value in _platform().items()}
        self._native = {self._values["TARGETPLATFORM"], self._values["BUILDPLATFORM"]}
        self._stages: list[_Stage] = []

    def take(self, verb: str, rest: str) -> None:
        """Take one instruction: its verb in capitals, and the rest of it."""
        if verb == "ARG" and not self._stages:
            self._declare(rest)
        elif verb == "FROM" and (match := _FROM.fullmatch(rest)) is not None:
            start = self._filled_or_not(match[2])
            platform = _PLATFORM.search(match[1])
            if platform is not None and self._filled_or_not(platform[1]) not in self._native:
                start = f"{start}$"  # the engine may have it for another platform under the same name
            self._stages.append(_Stage((match[3] or "").lower(), start))
        elif verb == "FROM":
            self._stages.append(_Stage("", "$"))
        elif self._stages and verb in {"COPY", "ADD", "RUN"}:
            self._stages[-1].sources += _sources(verb, rest)

    def images(self, *, needed_only: bool) -> tuple[str, ...]:
        """Return the images of all stages, or of the last one and those it needs, in the order of the stages."""
        needed = {len(self._stages) - 1} if needed_only else set(range(len(self._stages)))
        found: list[list[str]] = []
        for at in range(len(self._stages) - 1, -1, -1):
            stage = self._stages[at]
            images: list[str] = []
            for number, name in enumerate([stage.start, *stage.sources]):
                other = self._index(name, at, copies=number > 0)
                if other is not None:
                    needed.add(other)
                elif name != "scratch":
                    images.append(name)
            if at in needed:
                found.append(images)
        return tuple(dict.fromkeys(one for images in reversed(found) for one in images))

    def _index(self, name: str, at: int, *, copies: bool) -> int | None:
        """The stage that stage number `at` means by a name; where it `copies`, a number too, and itself, a mistake."""
        known = self._stages[: at + copies]
        if copies and name.isdecimal() and int(name) < len(known):
            return int(name)
        return next((at for at in reversed(range(len(known))) if known[at].name == name.lower() != ""), None)

    def _declare(self, rest: str) -> None:
        """Take the arguments of one ARG, of which there may be several."""
        try:
            words = shlex.split(rest)
        except ValueError:
            return
        for word in words:
            name, has_default, default = word.partition("=")
            if name in self._arguments:
                self._values[name] = self._arguments[name]
            elif has_default:
                self._values[name] = self._filled_or_not(default)

    def _filled_or_not(self, text: str) -> str:
        try:
            return _filled(text.strip("\"'"), self._values)
        except _NotKnownError:
            return text


def _sources(verb: str, rest: str) -> list[str]:
    """Return what an instruction takes files from, by its flags."""
    found = []
    at = 0
    while (flag := _FLAG.match(rest, at)) is not None:
        at = flag.end()
        if verb == "RUN":
            found += _FROM_OF_MOUNT.findall(flag[1].partition("=")[2]) if flag[1].lower().startswith("mount=") else []
        elif (match := _FROM_OF_COPY.fullmatch(flag[1])) is not None:
            found.append(match[1].strip("\"'"))
    return found


def _filled(text: str, values: Mapping[str, str]) -> str:
    """Put variables into a text as the builder does: ``$NAME``, ``${NAME}``, and ``${NAME:-other}`` with - + or ?."""
    parts: list[str] = []
    at = 0
    while (dollar := text.find("$", at)) >= 0:
        parts.append(text[at:dollar])
        if text.startswith("${", dollar):
            end = _closing(text, dollar + 2)
            parts.append(_braced(text[dollar + 2 : end], values))
            at = end + 1
        elif (name := _NAME.match(text, dollar + 1)) is not None:
            parts.append(values.get(name[0], ""))
            at = name.end()
        else:
            raise _NotKnownError
    return "".join([*parts, text[at:]])


def _closing(text: str, at: int) -> int:
    depth = 1
    for number in range(at, len(text)):
        depth += 1 if text.startswith("${", number) else -1 if text[number] == "}" else 0
        if depth == 0:
            return number
    raise _NotKnownError


def _braced(text: str, values: Mapping[str, str]) -> str:
    match = _BRACED.fullmatch(text)
    if match is None:
        raise _NotKnownError
    name, how, other = match[1], match[2] or "", match[3] or ""
    is_set = bool(values.get(name)) if how.startswith(":") else name in values
    if how.endswith("?") and not is_set:
        raise _NotKnownError
    if how.endswith("+"):
        return _filled(other, values) if is_set else ""
    if how.endswith("-") and not is_set:
        return _filled(other, values)
    return values.get(name, "")


def _platform() -> dict[str, str]:
    """Return the arguments that are there without being declared, for an engine on a machine such as this one."""
    architecture, variant = _ARCHITECTURES.get(os.uname().machine, (os.uname().machine, ""))
    parts = {"PLATFORM": f"linux/{architecture}", "OS": "linux", "ARCH": architecture, "VARIANT": variant}
    return {f"{whose}{name}": value for whose in ("TARGET", "BUILD") for name, value in parts.items()}
