"""What the sections of a job file must not say together, and names and paths that cannot be. Pure."""

from __future__ import annotations

import re
from pathlib import PurePosixPath
from typing import TYPE_CHECKING

from tfjob.spec import schema as schemas
from tfjob.spec import unsupported
from tfjob.spec.data_paths import against_rules
from tfjob.spec.nearest import nearest
from tfjob.spec.tree import ListNode, MapNode, ScalarNode, Where, quoted
from tfjob.spec.view import View

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from tfjob.errors import Problem
    from tfjob.spec.tree import Node, Place

__all__ = ["check", "image_objection", "leaves", "reserved"]

_SOURCES = ("conda_file", "conda", "dockerfile", "image", "name")
_FILES = {
    "conda_file": re.compile(r".+\.ya?ml", re.IGNORECASE),
    "dockerfile": re.compile(r"(?:.+\.)?Dockerfile(?:\..+)?", re.IGNORECASE),
}
_REGISTRY = r"(?:localhost|[\w-]+(?:\.[\w-]+)+|[\w.-]+(?=:\d)|\[[0-9a-fA-F:]+\])(?::\d+)?"
_IMAGE = re.compile(
    rf"(?:{_REGISTRY}/)?[a-z0-9]+(?:[._/-]+[a-z0-9]+)*(?::\w[\w.-]{{0,127}})?(?:@[a-z0-9]+:[0-9a-f]{{32,}})?", re.ASCII
)
_MAX_IMAGE = 500  # a name is at most 255 characters, before tag and digest
_SCHEME = re.compile(r"[a-z][a-z0-9+.-]*://", re.IGNORECASE)
_WORDS_IN_ONE = re.compile(r"(--?[A-Za-z][\w-]*)\s+(\S.*)", re.DOTALL)
_OWN_VARIABLES = {"TF_CONFIG": "distribution", "CUDA_VISIBLE_DEVICES": "compute.gpus_per_node"}
_NO_PYTHON = re.compile(r".+\.(?:sh|bash|ya?ml|json|toml|txt|md|ipynb)", re.IGNORECASE)
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
    environment = (_registered, _environment, _images)
    parts = (_work, *environment, _datasets, _docker, _distribution, _gpus, _outputs, _names, unsupported.check)
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
    elif script is not None and _NO_PYTHON.fullmatch(script):
        message = f"found {quoted(script)}, which is no Python file by its name; a Python file is allowed"
        yield view.problem_at_value(
            ("script",), message, "For another program, write a command, such as command: bash run.sh"
        )


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


def _registered(view: View) -> Iterator[Problem]:
    """An environment's name that is a file's."""
    named = view.node("environment")
    for key, looks in _FILES.items():
        if isinstance(named, ScalarNode) and not named.bad and looks.fullmatch(named.text):
            message = f"found the registered environment {quoted(named.text)}, which looks like a file"
            hint = f"Did you mean environment: {{{key}: {named.text}}}?"
            allowed = "a registered name, or name@version, is allowed"
            yield named.place.problem(("environment",), f"{message}; {allowed}", hint)


def _environment(view: View) -> Iterator[Problem]:
    """What an environment is made of: one thing, and what goes with it."""
    given = [source for source in _SOURCES if view.has("environment", source)]
    if "image" in given and given[0].startswith("conda"):
        given.remove("image")  # packages on an image, as Azure ML writes it
        if view.has("environment", "base"):
            message = f"found both base and image with {given[0]}; one image to put the packages on is allowed"
            yield view.problem_at_key(("environment", "image"), message, "Remove base or image.")
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
    if view.text("compute", "runtime") == "process" and others and others[0] in {"dockerfile", "image"}:
        message = f"found process with environment.{others[0]}, which needs a container; docker or auto is allowed"
        yield view.problem_at_value(("compute", "runtime"), message, "Set it to docker, or leave it out.")


def _images(view: View) -> Iterator[Problem]:
    for key in ("base", "image"):
        if objection := image_objection(view.text("environment", key) or ""):
            yield view.problem_at_value(("environment", key), *objection)


def image_objection(text: str) -> tuple[str, str] | None:
    """Return message and hint for `text` that is no name of an image, as a registry and a Docker Engine have them."""
    if not text or (len(text) <= _MAX_IMAGE and _IMAGE.fullmatch(text)):
        return None
    meant = (_SCHEME.sub("", text), text.lower()) if len(text) <= _MAX_IMAGE else ()
    guess = next((one for one in meant if _IMAGE.fullmatch(one)), None)
    message = f"found {quoted(text)}, which is no name of an image; NAME:TAG or REGISTRY/NAME:TAG is allowed"
    return message, f"Did you mean {guess}?" if guess else ""


def _datasets(view: View) -> Iterator[Problem]:
    for name, node in view.entries("dataset").items():
        where = ("dataset", name)
        if isinstance(node, MapNode) and view.has(*where, "name") == view.has(*where, "paths"):
            found = "found both name and paths" if view.has(*where, "name") else "found neither name nor paths"
            hint = "Give paths: [PATH]."
            yield view.problem_at_key(where, f"{found}; one of the two is required", hint)
        yield from against_rules(view.root, (*where, "paths"))


def _docker(view: View) -> Iterator[Problem]:
    """Arguments of `docker run` that cannot be passed on."""
    where: Where = ("compute", "docker_args")
    node = view.node(*where)
    if node is None or node.bad:
        return
    from tfjob.spec import docker_arguments  # noqa: PLC0415  # rarely needed

    if isinstance(node, ListNode):
        items = [item for item in node.items if isinstance(item, ScalarNode) and not item.bad]
        if len(items) < len(node.items):
            return  # one that has a problem already may belong to its neighbours
        arguments: list[str] = []
        standing: list[tuple[Place, Where]] = []
        for index, item in enumerate(items):
            words = [item.text]
            if match := _WORDS_IN_ONE.fullmatch(item.text):
                message = f"found {quoted(item.text)}, two arguments in one item; one argument is allowed"
                hint = f"Write {match[1]}={match[2]}, or make it two items."
                yield item.place.problem((*where, index), message, _on_one_line(hint))
                words = [match[1], match[2]]
            arguments += words
            standing += [(item.place, (*where, index))] * len(words)
    else:
        import shlex  # noqa: PLC0415  # 5 ms, rarely needed

        try:
            arguments = shlex.split(node.text if isinstance(node, ScalarNode) else "")
        except ValueError:
            message = "found a quote that is not closed; a line for the shell is allowed"
            yield node.place.problem(where, message, "Close the quote, or write a list: [ ].")
            return
        standing = [(node.place, where)] * len(arguments)
    for index, message, hint in docker_arguments.problems(tuple(arguments)):
        place, at = standing[index]
        yield place.problem(at, _on_one_line(message), _on_one_line(hint))


def _on_one_line(text: str) -> str:
    """Return `text`, which quotes the file, with what no terminal should see as escapes."""
    return "".join(char if char.isprintable() else repr(char)[1:-1] for char in text)


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
        elif PurePosixPath(path).parts[0] == "logs":
            message = (
                f"found {quoted(path)}, and logs is kept already, as the run's logs/user; another directory is allowed"
            )
            yield node.place.problem(where, message, "Remove it.")
            continue
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
    if objection := reserved(name):
        yield view.problem_at_key(where, *objection) if at_key else view.problem_at_value(where, *objection)


def reserved(name: str) -> tuple[str, str] | None:
    """Return message and hint for the variable `name` if tfjob sets it itself, else None."""
    if name not in _OWN_VARIABLES and not name.startswith("TFJOB_"):
        return None
    allowed = "names other than TF_CONFIG, CUDA_VISIBLE_DEVICES and TFJOB_* are allowed"
    hint = f"See {_OWN_VARIABLES[name]}." if name in _OWN_VARIABLES else "Choose another name."
    return f"found {name}, which tfjob sets itself; {allowed}", hint
