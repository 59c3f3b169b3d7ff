"""A job file → a `JobSpec`, or every problem it has: the story of this room on one page.

Text is read into a tree that knows where everything stands; overrides change the tree; expressions known now are
replaced; the tree is compared with the schema, with itself (rules) and with the disk (files); what is left without a
problem is built. Each step goes on past the problems of the one before, so that all are reported at once.
"""

# os.path keeps links and labels as people wrote them, and answers no where pathlib raises:

from __future__ import annotations

import os
import re
import sys
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tfjob.errors import InvalidFile, UsageError
from tfjob.spec import conda, files, messages, rules, schema, substitution
from tfjob.spec import overrides as changes
from tfjob.spec import text as texts
from tfjob.spec.build import build
from tfjob.spec.mistaken import mistaken_for_job
from tfjob.spec.nearest import nearest
from tfjob.spec.view import View

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from tfjob.errors import Problem
    from tfjob.spec.job import JobSpec
    from tfjob.spec.tree import Node

__all__ = ["load", "load_text"]

_STDIN = ("-", "/dev/stdin")
_SUFFIXES = (".yml", ".yaml")
_MAX_LISTED = 5
_MAX_LOOKED_AT = 200
_LOOKS_LIKE_A_JOB = re.compile(rb"(?m)^(?:script|command)[ \t]*:")


def load(path: Path | str, *, overrides: Sequence[str] = (), environ: Mapping[str, str] | None = None) -> JobSpec:
    """Return the job in the file at `path`, with `overrides` (``compute.node_count=2``) made.

    ``-`` is what comes in by stdin; its paths are from the working directory.
    `environ` holds the variables of the submitting shell, this process's own by default. Raises InvalidFile with every
    problem of the file, and UsageError where there is no file to read.
    """
    path = Path(path)
    is_stdin = str(path) in _STDIN
    data = sys.stdin.buffer.read(texts.MAX_BYTES + 1) if is_stdin else _bytes(path)
    shown = "stdin" if is_stdin else str(path)
    if problem := mistaken_for_job(data, shown):
        raise InvalidFile([problem])
    text, problems = texts.decode(data, shown)
    if problems:
        raise InvalidFile(problems)
    file = None if is_stdin else Path(os.path.abspath(path))
    base_dir = file.parent if file else Path.cwd()
    job = load_text(text, file=shown, base_dir=base_dir, overrides=overrides, environ=environ)
    return replace(job, file=file)


def load_text(
    text: str,
    *,
    file: str,
    base_dir: Path,
    overrides: Sequence[str] = (),
    environ: Mapping[str, str] | None = None,
) -> JobSpec:
    """Return the job in `text`, as `load` does; `file` is its name in problems, `base_dir` where its paths are from.

    Raises InvalidFile with every problem of the text.
    """
    environ = os.environ if environ is None else environ
    base_dir = Path(os.path.abspath(base_dir))
    root, problems = texts.read(text.removeprefix("\ufeff"), file)
    conda_data = None
    if root is not None:
        root, refused = changes.apply(root, overrides)
        root, unknown = substitution.apply(root, environ)
        against_schema, root = messages.check(root, schema.schema())
        conda_data, conda_problems = _conda(root, base_dir, os.path.dirname(file))
        problems += [*refused, *unknown, *against_schema]
        problems += [*rules.check(root, environ), *files.check(root, base_dir), *conda_problems]
    if problems or root is None:
        raise InvalidFile(_in_order(problems, [file, *map(changes.shown, overrides)]))
    stem = Path(file).stem
    return replace(
        build(root, stem=stem, base_dir=base_dir, conda_data=conda_data), source=text, overrides=tuple(overrides)
    )


def _conda(root: Node, base_dir: Path, shown_dir: str) -> tuple[dict[str, Any] | None, list[Problem]]:
    """Return the content of the conda file that the job names, and the problems of it or of what stands inline."""
    view = View(root)
    named = view.text("environment", "conda_file") if view.entries("environment") else None
    if named is not None and os.path.isfile(path := files.absolute(base_dir, named)):
        return conda.read(path, shown=os.path.join(shown_dir, named))
    return None, conda.rules(root, ("environment", "conda"), base_dir, shown_dir)


def _in_order(problems: list[Problem], known: list[str]) -> list[Problem]:
    """Return `problems`, each once, by file (the job, its overrides, other files) and place."""
    order = {name: index for index, name in reversed(list(enumerate(known)))}
    unique = dict.fromkeys(problems)
    return sorted(unique, key=lambda problem: (order.get(problem.file, len(known)), problem[:3]))


def _bytes(path: Path) -> bytes:
    """Return the content of the file at `path`, at most one byte more than is allowed."""
    try:
        with path.open("rb") as file:
            return file.read(texts.MAX_BYTES + 1)
    except IsADirectoryError:
        raise UsageError(f"{path} is a directory; a job file is needed", _jobs_in(path, _jobs_named(path))) from None
    except (FileNotFoundError, NotADirectoryError):
        raise UsageError(f"there is no file {path}", _jobs_in(path.parent, _jobs_named(path), path.name)) from None
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or error
        raise UsageError(f"{path} cannot be read: {reason}", "A job file that can be read is needed.") from None


def _jobs_named(path: Path) -> list[Path]:
    """Return the job files that have the name of `path`, but another ending or none that `path` has."""
    if not path.name:
        return []
    named = dict.fromkeys(path.with_name(name + suffix) for name in (path.name, path.stem) for suffix in _SUFFIXES)
    return [one for one in named if _looks_like_a_job(one)]


def _jobs_in(directory: Path, meant: list[Path], name: str = "") -> str:
    """Return a hint: the file `meant`, else the one like `name`, and the other files of `directory` that are jobs."""
    try:
        paths = sorted(path for path in directory.iterdir() if path.suffix in _SUFFIXES)
    except OSError:
        return ""
    if not meant and (
        guess := nearest(name, [one.name for one in paths], lambda one: _looks_like_a_job(directory / one))
    ):
        meant = [directory / guess]
    jobs = [path for path in paths[:_MAX_LOOKED_AT] if path not in meant[:1] and _looks_like_a_job(path)]
    more = f" and {len(jobs) - _MAX_LISTED} more" if len(jobs) > _MAX_LISTED else ""
    listed = f"{', '.join(map(str, jobs[:_MAX_LISTED]))}{more}."
    if meant:
        return f"Did you mean {meant[0]}?{f' Other job files there: {listed}' if jobs else ''}"
    if not jobs:
        return "There is no job file there either; one has a line script: … or command: …"
    return f"Job files there: {listed}"


def _looks_like_a_job(path: Path) -> bool:
    return files.holds_line(path, _LOOKS_LIKE_A_JOB)
