"""What a job file says of the disk, checked against the disk: code, script, data, conda file and Dockerfile.

Relative paths are from the directory of the job file; ``~`` is the home directory. Questions to the disk are asked
through os.path, which answers no where pathlib raises (a name too long, a directory that cannot be entered).
"""

from __future__ import annotations

import os
import re
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING

from tfjob.spec.nearest import nearest
from tfjob.spec.rules import leaves
from tfjob.spec.tree import MapNode, ScalarNode, Where, quoted
from tfjob.spec.unsupported import ADDRESS
from tfjob.spec.view import View

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from tfjob.errors import Problem
    from tfjob.ignored import Rule
    from tfjob.spec.tree import Node

__all__ = ["absolute", "absolute_pattern", "check", "holds_line", "missing", "shown"]

_DEPENDENCIES = re.compile(rb"(?m)^dependencies[ \t]*:")
_MAX_NAMES = 1000  # of one directory, to look for a name like the one that is missing


def check(root: Node, base_dir: Path) -> list[Problem]:
    """Return what the tree `root` of a job file in `base_dir` names and the disk does not have."""
    view = View(root)
    return [*_code(view, base_dir), *_keep(view, base_dir), *_data(view, base_dir), *_environment(view, base_dir)]


def absolute(base_dir: Path, text: str) -> Path:
    """Return the path `text` of a job file in `base_dir` as an absolute one, without ``..``."""
    path = base_dir / os.path.expanduser(text)
    if ".." not in path.parts:
        return path
    try:
        return Path(os.path.realpath(path))
    except ValueError:  # a NUL character, which has a problem of its own
        return path


def absolute_pattern(base_dir: Path, text: str) -> str:
    """Return the path or glob `text` as an absolute glob; the name of an existing file stands for itself."""
    import glob  # noqa: PLC0415  # 6 ms

    if os.path.lexists(path := absolute(base_dir, text)):
        return glob.escape(str(path))
    parts = Path(os.path.expanduser(text)).parts
    split = next((index for index, part in enumerate(parts) if glob.has_magic(part)), len(parts))
    head = absolute(base_dir, str(Path(*parts[:split])))
    return str(Path(glob.escape(str(head)), *parts[split:]))


def _code(view: View, base_dir: Path) -> Iterator[Problem]:
    code, script = view.text("code"), view.text("script")
    if code is None or ADDRESS.match(code):
        return
    directory = absolute(base_dir, code)
    if not os.path.isdir(directory):
        yield _missing(view, ("code",), directory, "directory", os.path.isdir)
    elif script is not None and not leaves(script) and not os.path.isfile(directory / script):
        message = f"found {quoted(script)}, which is not in {quoted(code)}; a file of the code directory is allowed"
        guess = _nearest_file(directory, script)
        hint = f"Did you mean {guess}?" if guess else ""
        program, _, rest = script.strip().partition(" ")
        if rest and os.path.isfile(directory / program):
            hint = f"Write script: {program}, and the rest under arguments: a list, one argument an item."
        yield view.problem_at_value(("script",), message, hint)
    elif script is not None and not leaves(script) and (rule := _left_out(directory, script)):
        if rule.file:
            what = f"which line {rule.line} of its {rule.file} ({quoted(rule.pattern)}) leaves out"
            hint = "Remove that line."
            if rule.file != ".tfjobignore":
                hint = f"Write a .tfjobignore there, which is read instead of {rule.file}: with the other lines, if need be."
        else:
            what = f"and {rule.pattern.strip('/')} is never part of the code"
            hint = "Move it to another directory."
        message = f"found {quoted(script)}, {what}; a file that the copy of the code has is allowed"
        yield view.problem_at_value(("script",), message, hint)


def _left_out(directory: Path, name: str) -> Rule | None:
    """Return the rule by which the copy of the code `directory` has no `name`."""
    from tfjob.ignored import ignored  # noqa: PLC0415  # only jobs with code

    try:
        return ignored(directory).leaves_out_file(PurePosixPath(os.path.normpath(name)))
    except OSError:  # told when the code is read
        return None


def _keep(view: View, base_dir: Path) -> Iterator[Problem]:
    """Find directories to keep that the code has as files."""
    code = view.text("code")
    if code is None or ADDRESS.match(code):
        return
    directory = absolute(base_dir, code)
    for where, node in view.texts("outputs", "keep"):
        path = PurePosixPath(node.text)
        if path.is_absolute() or ".." in path.parts:
            continue
        for part in (path, *path.parents):
            at = directory / part
            is_kept = os.path.isdir(at) and not (part == path and os.path.islink(at))
            if os.path.lexists(at) and not is_kept and not _left_out(directory, str(part)):
                what = "a link" if os.path.islink(at) else "no directory"
                message = f"found {quoted(node.text)}, and {quoted(str(part))} of the code is {what}"
                allowed = "a directory that the job makes or the code has is allowed"
                hint = "Name another directory, and write there."
                yield node.place.problem(where, f"{message}; {allowed}", hint)
                break


def _nearest_file(directory: Path, script: str) -> str | None:
    """Return the file of `directory` that `script` probably means: of the same name a level below, or a similar one."""
    below = [f"{name}/" for name in _names(directory) if os.path.isdir(directory / name) and not name.startswith(".")]
    parent = os.path.dirname(script)
    for folder in ("", *below):
        if os.path.isfile(directory / folder / os.path.basename(script)):
            return folder + os.path.basename(script)
    files = [os.path.join(parent, name) for name in _names(directory / parent)]
    return nearest(script, [file for file in files if os.path.isfile(directory / file)])


def _names(directory: Path) -> list[str]:
    try:
        return sorted(os.listdir(directory))[:_MAX_NAMES]
    except OSError:
        return []


def _data(view: View, base_dir: Path) -> Iterator[Problem]:
    from tfjob.spec.data_paths import against_disk  # noqa: PLC0415  # only jobs with data

    for name, node in view.entries("dataset").items():
        if isinstance(node, MapNode):
            yield from against_disk(view.root, ("dataset", name, "paths"), base_dir)


def _environment(view: View, base_dir: Path) -> Iterator[Problem]:
    for key, exists, what, suits in (
        ("conda_file", os.path.isfile, "file", _is_conda_file),
        ("dockerfile", os.path.isfile, "file", os.path.isfile),
        ("build_context", os.path.isdir, "directory", os.path.isdir),
    ):
        text = view.text("environment", key) if isinstance(view.node("environment"), MapNode) else None
        if text is not None and not exists(path := absolute(base_dir, text)):
            yield _missing(view, ("environment", key), path, what, suits)


def _is_conda_file(path: Path) -> bool:
    return holds_line(path, _DEPENDENCIES)


def holds_line(path: Path, line: re.Pattern[bytes]) -> bool:
    """Whether `path` is a file whose first 64 KiB hold `line`; one that cannot be read does not."""
    try:
        if not os.path.isfile(path):
            return False
        with path.open("rb") as file:
            return line.search(file.read(1 << 16)) is not None
    except (OSError, ValueError):
        return False


def _missing(view: View, where: Where, path: Path, what: str, suits: Callable[[Path], bool]) -> Problem:
    """Return the problem of the text at `where`, see `missing`."""
    node = view.node(*where)
    if not isinstance(node, ScalarNode):
        raise TypeError(f"a path that is no text, at {where}")
    return missing(node, where, path, what, suits)


def missing(node: ScalarNode, where: Where, path: Path, what: str, suits: Callable[[Path], bool]) -> Problem:
    """Return the problem that `path`, which `node` names, does not exist, or is no file or directory, as `what` says.

    Only what `suits` is suggested in its place.
    """
    found = f"is no {what}" if os.path.lexists(path) else "does not exist"
    guess = None
    if found == "does not exist":
        guess = nearest(path.name, _names(path.parent), lambda name: suits(path.parent / name))
    hint = f"Did you mean {guess}?" if guess else f"It is looked for as {shown(str(path))}"
    message = f"found {quoted(node.text)}, which {found}; an existing {what} is allowed"
    return node.place.problem(where, message, hint)


def shown(path: str) -> str:
    """Return a path as it can stand in a line."""
    return path if path.isprintable() else quoted(path)
