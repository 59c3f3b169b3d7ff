"""The lines of a conda specification that an environment can be made of, as far as a line alone tells it.

`tfjob.environments` makes environments of the lines that pass here, and refuses the same lines of a pip list, wherever
they come from; a test keeps the two in step. Of a conda package it takes more: whether there is such a version, and
what odd versions mean, is for the channel to say.
"""

from __future__ import annotations

import re
from typing import NamedTuple

from tfjob.spec.tree import quoted
from tfjob.spec.unsupported import UNSUPPORTED

__all__ = ["Objection", "conda_package", "file_of", "is_requirement", "needs_channel", "password", "pip_line"]

_PACKAGE = re.compile(r"(?:[^\s:=<>!~]+::)?(?P<name>[A-Za-z0-9_][A-Za-z0-9._-]*)\s*(?P<version>.*)", re.DOTALL)
_CLAUSE = re.compile(r"(?:==|>=|<=|!=|~=|=|<|>)?\d[A-Za-z0-9.!+]*?(?:\.?\*)?")
# A match specification after its name, as conda reads it: versions, a build string, and more in brackets.
_ONE_VERSION = r"(?:==|>=|<=|!=|~=|=|<|>)?\s*[\w*]+(?:[.+!-][\w*]+)*"
_VERSIONS = rf"\(?{_ONE_VERSION}(?:\s*[,|]\s*{_ONE_VERSION})*\)?"
_REST = re.compile(rf"(?:{_VERSIONS})?(?:(?:\s*=|\s+)[\w.*+-]+)?\s*(?:\[\s*\w+\s*=[^\[\]]*\])?")
_MAX_LENGTH = 1000  # longer texts are no packages, and comparing them takes long
_ANY_VERSION = {"", "*", "=*", "==*"}

_PASSWORD = re.compile(r"://[^/@\s:]*:(?P<secret>[^/@\s]+)@")
_TOKEN = re.compile(r"://[^\s]*/t/(?P<secret>[^/\s]+)/")
_VARIABLE = re.compile(r"\$\{\w+\}")
_COMMENT = re.compile(r"(^|\s)#.*$")
_OPTION = re.compile(r"(--[\w-]+)(?:\s*=\s*|\s+|$)(.*)|(-\w)\s*(.*)")
_NAME_BEFORE_ADDRESS = re.compile(r"^[\w.-]+(\[[^]]*\])?@")
_FILES = {"-r", "--requirement", "-c", "--constraint"}
_EDITABLE = {"-e", "--editable"}
_OPTIONS = {
    *("-i", "--index-url", "--pypi-url", "--extra-index-url", "--no-index", "-f", "--find-links"),
    *("--no-binary", "--only-binary", "--trusted-host", "--pre"),
}
_PLAIN_VERSION = r"\s*(?:[=!<>]=|[<>])\s*\d+(?:\.\d+)*"
_PLAIN = re.compile(rf"[A-Za-z0-9]+(?:[._-]+[A-Za-z0-9]+)*(?:{_PLAIN_VERSION}(?:\s*,{_PLAIN_VERSION})*)?")
_ARCHIVES = (".whl", ".zip", ".tar.gz", ".tar.bz2", ".tgz")


class Objection(NamedTuple):
    """What is wrong with a line, in words, and what works instead."""

    message: str
    hint: str


def conda_package(text: str) -> Objection | None:
    """Return what is wrong with the conda package `text`: it is a name, then versions and a build string if need be."""
    match = _PACKAGE.fullmatch(text.strip())
    if match is None or len(text) > _MAX_LENGTH or not _REST.fullmatch(match["version"]):
        message = f"found {quoted(text)}, which is no conda package; a name, with a version if need be, is allowed"
        hint = "Write it as python=3.11 or numpy>=1.26,<2; a line of a requirements file belongs into the pip list."
        return Objection(message, hint)
    return None


def needs_channel(text: str) -> bool:
    """Whether the conda package `text` can only come from a channel that the file lists.

    python and pip with a plain version need none, and what names its own channel (``conda-forge::numpy``) does not either.
    """
    match = _PACKAGE.fullmatch(text.strip())
    if match is None or "::" in text:
        return False
    version = re.sub(r"\s*([,=<>!~]+)\s*", r"\1", match["version"].strip())
    is_plain = version in _ANY_VERSION or all(map(_CLAUSE.fullmatch, version.split(",")))
    return match["name"].lower() not in {"python", "pip"} or not is_plain


def pip_line(text: str) -> Objection | None:
    """Return what this version has against the line `text` of a pip list: an environment must be the same every time.

    The files that the line names are not looked at.
    """
    line = " ".join(_COMMENT.sub("", text).split())
    if secret := password(line, "pip's configuration or ~/.netrc, or name a variable: https://NAME:${TOKEN}@HOST"):
        return secret
    if line.startswith("-"):
        return _option(line)
    if _is_local(line):
        hint = "Name the folder of a wheel with --find-links FOLDER, and the package by its name and version."
        return Objection(f"found {quoted(line)}, a path of this machine, which is {UNSUPPORTED}", hint)
    if line and not is_requirement(line):
        message = f"found {quoted(line)}, which is no requirement of pip; a name, with versions if need be, is allowed"
        return Objection(message, "Write it as numpy==1.26.4 or numpy>=1.26,<2.")
    return None


def is_requirement(line: str) -> bool:
    """Whether the line, which is no option, can be read as a requirement (PEP 508); of addresses and variables only pip can tell.

    >>> is_requirement("numpy>=1.26,<2"), is_requirement("numpy>=>1")
    (True, False)
    """
    asked = line.partition(" --")[0]  # options of one requirement, such as --hash
    if _PLAIN.fullmatch(asked) or "://" in asked or "${" in asked:
        return True
    from packaging.requirements import InvalidRequirement, Requirement  # noqa: PLC0415  # 40 ms for what is not plain

    try:
        Requirement(asked)
    except InvalidRequirement:
        return False
    return True


def password(text: str, where: str, *, is_channel: bool = False) -> Objection | None:
    """Return what is wrong with a text that has a password in an address, or a channel's token; `where` it belongs instead.

    What a job asks for is kept with every run, printed and passed on; a secret must not be in it.
    """
    found = _PASSWORD.search(text) or (_TOKEN.search(text) if is_channel else None)
    if found is None or _VARIABLE.fullmatch(found["secret"]):
        return None
    shown = quoted(text.replace(found["secret"], "***"))
    message = f"found {shown}, with a password that would be kept with every run; an address without one is allowed"
    return Objection(message, f"Put it into {where}.")


def file_of(text: str) -> str | None:
    """Return the name of the requirements or constraints file that the line `text` of a pip list asks for."""
    name, value = _split(" ".join(_COMMENT.sub("", text).split()))
    return value.strip("\"'") if name in _FILES else None


def _split(line: str) -> tuple[str, str]:
    match = _OPTION.fullmatch(line)
    return (match[1] or match[3], match[2] or match[4] or "") if match else (line, "")


def _option(line: str) -> Objection | None:
    name, value = _split(line)
    if name in _FILES:
        if "://" in value:
            message = f"found {quoted(line)}, a file from the network, which is {UNSUPPORTED}"
            return Objection(message, "Keep the file beside the job.")
        return None
    if name in _EDITABLE:
        hint = "Put the source into the code directory, or make a wheel of it and name its folder with --find-links FOLDER."
        return Objection(f"found {quoted(line)}, an editable install, which is {UNSUPPORTED}", hint)
    if name in _OPTIONS:
        return None
    message = f"found the option {quoted(line)}, which is {UNSUPPORTED}"
    return Objection(message, "Requirements, -r and -c files, and the options that name indexes work.")


def _is_local(line: str) -> bool:
    """Whether a requirement names a file or directory of this machine: ``./x``, ``x.whl``, ``x @ file:…``."""
    target = line.partition(" @ ")[2] or _NAME_BEFORE_ADDRESS.sub("", line)
    target = target.strip().split(" ")[0].partition(";")[0]
    if "://" in target and not target.startswith("file:"):
        return False
    return target.startswith((".", "/", "~", "file:")) or "/" in target or target.endswith(_ARCHIVES)
