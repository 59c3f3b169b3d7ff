"""What the sections of a job file must not say together, and names and paths that cannot be. Pure."""

from __future__ import annotations

from pathlib import PurePosixPath
from typing import TYPE_CHECKING

from tfjob.spec import schema as schemas
from tfjob.spec import unsupported
from tfjob.spec.nearest import nearest
from tfjob.spec.tree import MapNode, ScalarNode, Where, quoted
from tfjob.spec.view import View

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from tfjob.errors import Problem
    from tfjob.spec.tree import Node

__all__ = ["check", "leaves"]

_SOURCES = ("conda_file", "conda", "dockerfile", "image", "name")
_OWN_VARIABLES = {"TF_CONFIG": "distribution", "CUDA_VISIBLE_DEVICES": "compute.gpus_per_node"}
_ONLY_WITH = {
    "process_count_per_node": "mpi",
    "worker_count": "tensorflow",
    "parameter_server_count": "tensorflow",
    "evaluator": "tensorflow",
}


def check(root: Node, environ: Mapping[str, str]) -> list[Problem]:
    """Return the contradictions in the tree `root` of a job file, given the variables of the submitting shell."""
    view = View(root)
    if not isinstance(root, MapNode):
        return []
    parts = (_work, _environment, _datasets, _docker, _distribution, _gpus, _outputs, _names, unsupported.check)
    return [problem for part in parts for problem in part(view)] + list(_variables(view, environ))


def _work(view: View) -> Iterator[Problem]:
    """Script or command, and the code they need."""
    if view.has("script") and view.has("command"):
        message = "found both script and command; one of the two is allowed"
        yield view.problem_at_key(("command",), message, "Remove command, or remove script and arguments.")
    elif view.has("command") and view.has("arguments"):
        message = "found arguments with command; arguments are allowed with script"
        yield view.problem_at_key(("arguments",), message, "Write them into the command.")
    elif not view.has("script") and not view.has("command"):
        hint = "Add script: train.py (with code: DIRECTORY), or command: …"
        yield view.root.place.problem((), "found neither script nor command; one of the two is required", hint)
    if view.has("script") and not view.has("code"):
        message = "found script without code; the directory that holds the script is required"
        yield view.problem_at_key(("script",), message, "Add code: DIRECTORY, such as code: src.")
    script = view.text("script")
    if script is not None and not unsupported.ADDRESS.match(script) and (leaving := leaves(script)):
        hint = "Write it relative to code."
        yield view.problem_at_value(("script",), f"found {leaving}; a path inside the code directory is allowed", hint)


def leaves(path: str) -> str:
    """Say how `path` leaves the directory it is relative to; empty if it stays."""
    if path.startswith(("/", "~")):
        return f"the absolute path {quoted(path)}"
    depth = 0
    for part in PurePosixPath(path).parts:
        depth += -1 if part == ".." else 1
        if depth < 0:
            return f"the path {quoted(path)}, which leaves it by .."
    return ""


def _environment(view: View) -> Iterator[Problem]:
    given = [source for source in _SOURCES if view.has("environment", source)]
    for source in given[1:]:
        message = f"found both {given[0]} and {source}; one of {', '.join(_SOURCES)} is allowed"
        yield view.problem_at_key(("environment", source), message, f"Remove {given[0]} or {source}.")
    for key in ("build_context", "build_arguments"):
        if view.has("environment", key) and "dockerfile" not in given:
            message = f"found {key} without dockerfile; it is allowed with dockerfile"
            yield view.problem_at_key(("environment", key), message, "Add dockerfile, or remove it.")
    others = [source for source in given if not source.startswith("conda")]
    if view.has("environment", "base") and others:
        message = f"found base with {others[0]}; it is allowed with conda_file or conda"
        yield view.problem_at_key(("environment", "base"), message, "Remove it.")


def _datasets(view: View) -> Iterator[Problem]:
    for name, node in view.entries("dataset").items():
        where = ("dataset", name)
        if isinstance(node, MapNode) and view.has(*where, "name") == view.has(*where, "paths"):
            found = "found both name and paths" if view.has(*where, "name") else "found neither name nor paths"
            hint = "Give paths: [PATH]."
            yield view.problem_at_key(where, f"{found}; one of the two is required", hint)


def _docker(view: View) -> Iterator[Problem]:
    import shlex  # noqa: PLC0415  # 5 ms, rarely needed

    where = ("compute", "docker_args")
    node = view.node(*where)
    try:
        shlex.split(node.text if isinstance(node, ScalarNode) else "")
    except ValueError:
        message = "found a quote that is not closed; a line for the shell is allowed"
        yield view.problem_at_value(where, message, "Close the quote, or write a list: [ ].")


def _distribution(view: View) -> Iterator[Problem]:
    kind = view.text("distribution", "type")
    for key, needed in _ONLY_WITH.items():
        node = view.node("distribution", key)
        is_default = isinstance(node, ScalarNode) and node.value == schemas.default("distribution", key)
        if kind is not None and kind != needed and node is not None and not is_default:  # editors insert defaults
            message = f"found {key} with type {kind}; it is allowed with type {needed}"
            hint = f"Set distribution.type to {needed}, or remove it."
            yield view.problem_at_key(("distribution", key), message, hint)
    nodes, most = view.count("compute", "node_count"), view.count("compute", "max_node_count")
    if nodes is not None and most is not None and most < nodes:
        message = f"found {most}, below node_count ({nodes}); a whole number of at least {nodes} is allowed"
        yield view.problem_at_value(("compute", "max_node_count"), message)


def _gpus(view: View) -> Iterator[Problem]:
    """Every task that trains needs a GPU of its own, if the job takes any."""
    kind, nodes = view.text("distribution", "type"), view.count("compute", "node_count")
    gpus = view.count("compute", "gpus_per_node")
    if not gpus or nodes is None:
        return
    processes = view.count("distribution", "process_count_per_node")
    if kind == "mpi" and processes is not None and processes > gpus:
        message = f"found {processes} processes on a node with {gpus} GPU{'s'[: gpus > 1]}; at most {gpus} {_are(gpus)} allowed"
        hint = "Lower it, or raise compute.gpus_per_node."
        yield view.problem_at_value(("distribution", "process_count_per_node"), message, hint)
    if kind != "tensorflow":
        return
    workers = view.count("distribution", "worker_count") if view.has("distribution", "worker_count") else nodes
    servers, evaluator = view.count("distribution", "parameter_server_count"), view.flag("distribution", "evaluator")
    if workers is None or servers is None or evaluator is None:
        return
    tasks = [f"{workers} worker{'s'[: workers > 1]}", *["a chief"] * (servers > 0), *["an evaluator"] * evaluator]
    needed = workers + (servers > 0) + evaluator
    if needed > nodes * gpus:
        message = (
            f"found {needed} tasks that need a GPU each ({', '.join(tasks)}) on {nodes} x {gpus} GPUs; "
            f"at most {nodes * gpus} {_are(nodes * gpus)} allowed"
        )
        key = next(
            key
            for key in ("worker_count", "parameter_server_count", "evaluator", "type")
            if view.has("distribution", key)
        )
        hint = "Raise compute.node_count or compute.gpus_per_node, or have fewer tasks."
        yield view.problem_at_value(("distribution", key), message, hint)


def _are(count: int) -> str:
    return "is" if count == 1 else "are"


def _outputs(view: View) -> Iterator[Problem]:
    for where, node in view.texts("outputs", "keep"):
        path = node.text
        if path.startswith(("/", "~")) or ".." in PurePosixPath(path).parts:
            found = f"found {quoted(path)}"
        elif not PurePosixPath(path).parts or not path.strip():
            found = f"found {quoted(path)}, the working directory itself"
        else:
            continue
        message = f"{found}; a directory inside the working directory is allowed"
        yield node.place.problem(where, message, "Write outputs, or another name without / before it or .. in it.")


def _names(view: View) -> Iterator[Problem]:
    """Names that tasks could not tell apart: each dataset and output is a variable in capitals, and an expression."""
    for where, what, prefix in ((("dataset",), "dataset", "DATASET"), (("outputs", "named"), "output", "OUTPUTS")):
        first: dict[str, str] = {}
        for name in view.entries(*where):
            other = first.setdefault(name.upper(), name)
            if other != name:
                message = (
                    f"found the {what} {name} beside {other}, both TFJOB_{prefix}_{name.upper()} in a task; "
                    "names that differ in more than capital letters are allowed"
                )
                yield view.problem_at_key((*where, name), message, "Rename one of them.")
    if view.has("outputs", "named", "dir"):
        message = (
            "found an output of the name dir, which is reserved: ${{ outputs.dir }} is the directory of all outputs"
        )
        yield view.problem_at_key(("outputs", "named", "dir"), f"{message}; any other name is allowed", "Rename it.")


def _variables(view: View, environ: Mapping[str, str]) -> Iterator[Problem]:
    own = view.entries("environment_variables")
    for name in own:
        yield from _reserved(view, ("environment_variables", name), name, at_key=True)
    for where, node in view.texts("secrets"):
        name = node.text
        yield from _reserved(view, where, name, at_key=False)
        if name in own:
            message = f"found {name} also under environment_variables; one of the two is allowed"
            yield node.place.problem(where, message, "A secret belongs here only: remove it there.")
        if name not in environ:
            guess = nearest(name, environ)
            hint = f"Did you mean {guess}?" if guess else f"Set it: export {name}=…"
            message = f"found {name}, which is not set in this shell; a variable that is set is allowed"
            yield node.place.problem(where, message, hint)


def _reserved(view: View, where: Where, name: str, *, at_key: bool) -> Iterator[Problem]:
    if name not in _OWN_VARIABLES and not name.startswith("TFJOB_"):
        return
    allowed = "names other than TF_CONFIG, CUDA_VISIBLE_DEVICES and TFJOB_* are allowed"
    message = f"found {name}, which tfjob sets itself; {allowed}"
    hint = f"See {_OWN_VARIABLES[name]}." if name in _OWN_VARIABLES else "Choose another name."
    yield view.problem_at_key(where, message, hint) if at_key else view.problem_at_value(where, message, hint)
