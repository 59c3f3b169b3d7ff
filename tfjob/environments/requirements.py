"""The lines of a pip section, as they are meant: files read in, options kept, what cannot be repeated refused.

The format is pip's requirements file format. What is refused is what would make one definition give two different
environments: directories and files of this machine, and editable installs.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

from tfjob.spec.packages import is_requirement

if TYPE_CHECKING:
    from pathlib import Path

__all__ = ["CONSTRAINT", "RequirementsReader", "is_option"]

CONSTRAINT = "--constraint "
# The options that mean the same to pip and to uv, in the spelling that both know.
_OPTIONS = {
    "-i": "--index-url",
    "--index-url": "--index-url",
    "--pypi-url": "--index-url",
    "--extra-index-url": "--extra-index-url",
    "--no-index": "--no-index",
    "--no-binary": "--no-binary",
    "--only-binary": "--only-binary",
    "--trusted-host": "--trusted-host",
    "--pre": "--pre",
}
_COMMENT = re.compile(r"(^|\s)#.*$")
_LONG = re.compile(r"(--[\w-]+)(?:\s*=\s*|\s+|$)(.*)")
_SHORT = re.compile(r"(-\w)\s*(.*)")
_ARCHIVES = (".whl", ".zip", ".tar.gz", ".tar.bz2", ".tgz")


class RequirementsReader:
    """Reads requirement lines, and the files they name, into `requirements` and `problems`.

    A line of a constraints file becomes one that starts with `CONSTRAINT`.
    """

    def __init__(self, folder: Path) -> None:
        """Read paths in the lines relative to `folder`."""
        self.requirements: list[str] = []
        self.problems: list[str] = []
        self._folder = folder
        self._open: list[Path] = []

    def line(self, text: str) -> None:
        """Take one line of the pip section itself; paths in it are relative to the conda file's folder."""
        self._line(text, self._folder, False, "")

    def _line(self, text: str, folder: Path, limits: bool, where: str) -> None:
        line = " ".join(_COMMENT.sub("", text).split())
        if not line:
            return
        shown = f"`{line}`{where}"
        name, value = _option(line) if line.startswith("-") else ("", "")
        if name in {"-r", "--requirement"}:
            self._file(value, folder, limits, shown)
        elif name in {"-c", "--constraint"}:
            self._file(value, folder, True, shown)
        elif name in {"-f", "--find-links"}:
            self.requirements.append(f"--find-links {value if '://' in value else (folder / value).resolve()}")
        elif name in _OPTIONS:
            self.requirements.append(f"{_OPTIONS[name]} {value}".strip())
        elif name in {"-e", "--editable"}:
            self.problems.append(
                f"{shown}: an editable install changes after it was made; put the code into the job's `code:` folder, "
                "or make a wheel of it and name the wheel's folder with `--find-links`"
            )
        elif line.startswith("-"):
            self.problems.append(f"{shown}: this option is not supported in a pip section")
        elif _is_local(line):
            self.problems.append(
                f"{shown}: a path of this machine is not supported yet; name the folder with `--find-links FOLDER` "
                "and the package by its name and version"
            )
        elif not is_requirement(line):
            self.problems.append(
                f"{shown}: this is no requirement of pip; a name, with versions if need be, is allowed"
            )
        else:
            self.requirements.append(f"{CONSTRAINT}{line}" if limits else line)

    def _file(self, name: str, folder: Path, limits: bool, shown: str) -> None:
        """Read the requirements (or constraints) file `name`, and what it names in turn."""
        path = (folder / name).resolve()
        if "://" in name:
            self.problems.append(f"{shown}: a requirements file from the network may change; keep it beside the job")
            return
        if path in self._open:
            self.problems.append(f"{shown}: the file {path} names itself")
            return
        try:
            text = path.read_text(encoding="utf-8-sig")
        except FileNotFoundError:
            self.problems.append(f"{shown}: the file {path} is not there")
            return
        except (OSError, UnicodeDecodeError) as error:
            self.problems.append(f"{shown}: the file {path} cannot be read: {error}")
            return
        self._open.append(path)
        for line in text.replace("\\\r\n", " ").replace("\\\n", " ").splitlines():
            self._line(line, path.parent, limits, f" in {path}")
        self._open.pop()


def is_option(line: str) -> bool:
    """Whether a line of a definition is an option (where to look, what to allow, a limit) and no requirement."""
    return line.startswith("-")


def _option(line: str) -> tuple[str, str]:
    """Split an option line into name and value: ``-r x``, ``-rx``, ``--requirement x``, ``--requirement=x``."""
    match = _LONG.fullmatch(line) or _SHORT.fullmatch(line)
    return (match[1], match[2].strip("\"'")) if match else (line, "")


def _is_local(line: str) -> bool:
    """Whether a requirement names a file or directory of this machine: ``./x``, ``../x``, ``x.whl``, ``x @ file:…``."""
    target = line.partition(" @ ")[2] or re.sub(r"^[\w.-]+(\[[^]]*\])?@", "", line)
    target = target.strip().split(" ")[0].partition(";")[0]
    if "://" in target and not target.startswith("file:"):
        return False
    return target.startswith((".", "/", "~", "file:")) or "/" in target or target.endswith(_ARCHIVES)
