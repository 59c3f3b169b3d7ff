"""What has a place in a job file and no implementation in this version, as far as the file alone tells it. Pure.

A target that nobody has defined and nodes or GPUs that a target lacks are not here: they depend on the workspace.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, NamedTuple

from tfjob.spec.tree import ScalarNode, Where

if TYPE_CHECKING:
    from collections.abc import Iterator

    from tfjob.errors import Problem
    from tfjob.spec.view import View

__all__ = ["ADDRESS", "UNSUPPORTED", "check"]

ADDRESS = re.compile(r"[A-Za-z][A-Za-z0-9+.-]+://|git\+|git@")
UNSUPPORTED = "not supported by this version of tfjob"


class _Row(NamedTuple):
    """Something that may be asked for: whether it is, where, in words, and what works instead."""

    is_there: bool
    where: Where
    what: str
    hint: str


def check(view: View) -> Iterator[Problem]:
    """Yield a problem for everything that the file asks for and this version cannot do."""
    for part in (_job, _datasets, _compute, _outputs):
        for row in part(view):
            if row.is_there:
                yield view.problem_at_key(row.where, f"found {row.what}, which is {UNSUPPORTED}", row.hint)


def _job(view: View) -> Iterator[_Row]:
    yield _Row(
        ADDRESS.match(view.text("code") or "") is not None, ("code",), "code from an address", "Use a directory."
    )
    yield _Row(bool(view.entries("services")), ("services",), "a service", "Remove it.")
    yield _Row(view.has("sweep"), ("sweep",), "a sweep", "Submit the job once for each value, with --set.")


def _datasets(view: View) -> Iterator[_Row]:
    for name, node in view.entries("dataset").items():
        where = ("dataset", name)
        if isinstance(node, ScalarNode):
            continue
        mode = view.text(*where, "mode")
        yield _Row(mode == "direct", (*where, "mode"), "the mode direct", "Use mount or download.")
        yield _type(view, *where)


def _compute(view: View) -> Iterator[_Row]:
    nodes, most = view.count("compute", "node_count"), view.count("compute", "max_node_count")
    grows = nodes is not None and most is not None and most > nodes
    yield _Row(grows, ("compute", "max_node_count"), "a job that grows", "Use node_count.")


def _outputs(view: View) -> Iterator[_Row]:
    for name in view.entries("outputs", "named"):
        where = ("outputs", "named", name)
        yield _type(view, *where)
        is_mode = view.text(*where, "mode") not in {"mount", None}
        yield _Row(is_mode, (*where, "mode"), "this mode", "Use mount, or leave it out.")
        for key, what in (("path", "an output stored elsewhere"), ("register", "registering an output")):
            yield _Row(view.has(*where, key), (*where, key), what, "Remove it; the output is kept with the run.")


def _type(view: View, *where: str) -> _Row:
    kind = view.text(*where, "type")
    is_other = kind not in {"directory", "file", None}
    return _Row(is_other, (*where, "type"), f"the type {kind}", "Use directory or file.")
