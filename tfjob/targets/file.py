"""A target file → the definition of a compute target, or every problem the file has, each with its place.

The keys are those of `tfjob/spec/target.schema.json`; which of them are allowed depends on `kind`.
"""

from __future__ import annotations

import os
import re
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tfjob.errors import InvalidFile, UsageError
from tfjob.spec import text as texts
from tfjob.spec.files import absolute
from tfjob.spec.messages import check
from tfjob.spec.nearest import nearest
from tfjob.spec.schema import target_schema
from tfjob.spec.tree import ListNode, MapNode, Node, ScalarNode, Where, find, key_place, quoted, show
from tfjob.targets.address import address_of
from tfjob.targets.definition import ClusterDefinition, NodeDefinition, SlurmDefinition
from tfjob.targets.local import LOCAL

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from tfjob.errors import Problem
    from tfjob.values import Pairs

__all__ = ["load"]

_KINDS = ("docker", "slurm")
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]{0,62}")
_ALLOWED = "at most 63 letters, digits, _, . and -, starting with a letter or digit"
_PEM_FILES = ("ca.pem", "cert.pem", "key.pem")
_MOST_PORT = 65535
_MOST_VALUES = 50_000  # a thousand nodes with all their keys, and then some
_BARE_HOST = re.compile(r"(?:[A-Za-z0-9_][A-Za-z0-9_.-]*@)?[A-Za-z0-9_][A-Za-z0-9_.-]*")
_HOST_AND_PORT = re.compile(r"(?:https?://)?([A-Za-z0-9_][A-Za-z0-9_.-]*:[0-9]{1,5})/?")
_WITH_PASSWORD = re.compile(r"(ssh|tcp)://[^@/:]+:[^@/]*@")
_OWN_SBATCH_OPTIONS = {
    **dict.fromkeys(("nodes", "ntasks", "ntasks-per-node", "ntasks-per-gpu"), "compute.node_count"),
    **dict.fromkeys(("gres", "gpus", "gpus-per-node", "gpus-per-task", "gpus-per-socket"), "compute.gpus_per_node"),
    **dict.fromkeys(("tres-per-node", "tres-per-task"), "compute.gpus_per_node"),
    **{name: name for name in ("partition", "account", "qos", "constraint")},
    "time": "limits.timeout_s",
    "requeue": "retries",
    "no-requeue": "retries",
    **dict.fromkeys(
        ("job-name", "output", "error", "input", "open-mode", "chdir", "export", "export-file", "array", "wait", "wrap")
    ),
    **dict.fromkeys(
        ("parsable", "test-only", "hold", "signal", "kill-on-bad-exit", "comment", "help", "usage", "version")
    ),
    **dict.fromkeys(("cluster", "clusters"), "login"),
}
"""What tfjob decides: the option of sbatch, and the key that says it where there is one. Source: sbatch(1)."""


def load(path: Path | str, *, name: str | None = None) -> ClusterDefinition | SlurmDefinition:
    """Return the target in the file at `path`, under `name` if one is given, or under the name in the file.

    Raises InvalidFile with every problem of the file, and UsageError where there is no file or no name.
    """
    path = Path(path)
    _refuse_name(name)
    root, problems = _tree(path)
    kind, of_kind = _kind(root)
    against_schema, sound = check(root, target_schema(kind))
    problems += [*of_kind, *(_with_hint(problem, root, kind) for problem in against_schema if problem.path != "kind")]
    base_dir = Path(os.path.abspath(path)).parent
    problems += [*(_cluster_rules(sound, base_dir) if kind == "docker" else _slurm_rules(sound))]
    named = name or _text(sound, "name")
    if named == LOCAL and name is None:
        message = f"found {LOCAL}, which is this machine and needs no file; any other name is allowed"
        problems.append(_at(sound, ("name",), message, "Choose another name."))
    if problems:
        raise InvalidFile(sorted(dict.fromkeys(problems), key=lambda problem: problem[:3]))
    if named is None:
        raise UsageError(
            f"the target in {path} has no name", f"Add name: NAME to it, or: tfjob compute create NAME -f {path}"
        )
    return _cluster(sound, named, base_dir) if kind == "docker" else _slurm(sound, named)


def _refuse_name(name: str | None) -> None:
    if name == LOCAL:
        raise UsageError(f"{LOCAL!r} can't be created: it is this machine, and always there", "Choose another name.")
    if name is not None and not _NAME.fullmatch(name):
        raise UsageError(f"{name!r} can't be the name of a compute target", f"A name is {_ALLOWED}.")


def _tree(path: Path) -> tuple[Node, list[Problem]]:
    """Return the content of the file as a tree with what is wrong with its text. Raises InvalidFile where there is none."""
    try:
        with path.open("rb") as file:
            data = file.read(texts.MAX_BYTES + 1)
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or error
        raise UsageError(f"the target file {path} cannot be read: {reason}", "Give the path of a file.") from None
    text, problems = texts.decode(data, str(path))
    if problems:
        raise InvalidFile(problems)
    root, problems = texts.read(text, str(path), most_values=_MOST_VALUES)
    if root is None:
        raise InvalidFile(problems)
    if isinstance(root, MapNode) and {"script", "command"} & set(root.entries):
        message = "this looks like a job file, not a target file"
        raise InvalidFile(
            [root.place.problem((), message, "A target file has kind: docker with nodes, or kind: slurm.")]
        )
    return root, problems


def _kind(root: Node) -> tuple[str, Iterator[Problem]]:
    """Return the kind to hold the file against, the one that is probably meant if need be, and what is wrong with it."""
    node = find(root, ("kind",))
    said = node.text if isinstance(node, ScalarNode) else ""
    if said in _KINDS:
        return said, iter(())
    guess = "docker" if find(root, ("nodes",)) is not None else nearest(said, _KINDS) or "docker"
    if node is None:
        if not isinstance(root, MapNode):
            return guess, iter(())  # which the schema says
        is_sure = bool({"nodes", "login", "partition"} & set(root.entries))
        example = f"kind: {_kind_like(root)}" if is_sure else "kind: docker, or kind: slurm"
        return _kind_like(root), iter(
            [root.place.problem((), "the key kind is missing; it is required", f"Add {example}.")]
        )
    found = f"found {quoted(said)}" if isinstance(node, ScalarNode) else "found no text"
    hint = f"Did you mean {guess}?" if nearest(said, _KINDS) else ""
    return guess, iter([node.place.problem(("kind",), f"{found}; docker or slurm is allowed", hint)])


def _kind_like(root: MapNode) -> str:
    return "slurm" if {"login", "partition"} & set(root.entries) and "nodes" not in root.entries else "docker"


def _with_hint(problem: Problem, root: Node, kind: str) -> Problem:
    """Return a problem that the schema found, with a hint where tfjob knows more than the schema does."""
    other = "slurm" if kind == "docker" else "docker"
    if isinstance(root, MapNode) and "unknown key" in problem.message:
        key = next((key for key in root.entries if show((key,)) == problem.path), None)
        if key in target_schema(other)["properties"]:
            return problem._replace(hint=f"It belongs to kind: {other}.")
    if problem.hint or "ssh://" not in problem.message:
        return problem
    node = next((node for where, node in _engines(root) if show(where) == problem.path), None)
    return problem if node is None else problem._replace(hint=_engine_hint(node.text))


def _engine_hint(text: str) -> str:
    if _WITH_PASSWORD.match(text):
        return "No password can stand in a file: let ssh use a key."
    if match := _HOST_AND_PORT.fullmatch(text):
        return f"Did you mean tcp://{match[1]}?"
    return f"Did you mean ssh://{text}?" if _BARE_HOST.fullmatch(text) else ""


def _engines(root: Node) -> Iterator[tuple[Where, ScalarNode]]:
    """Yield the scalar that says how each node's engine is reached, with the way to it; sound or not."""
    nodes = find(root, ("nodes",))
    for index, node in enumerate(nodes.items if isinstance(nodes, ListNode) else ()):
        where: Where = ("nodes", index)
        engine = node.entries.get("engine") if isinstance(node, MapNode) else node
        if isinstance(engine, ScalarNode):
            yield ((*where, "engine") if isinstance(node, MapNode) else where), engine


def _at(root: Node, where: Where, message: str, hint: str = "") -> Problem:
    """Return a problem at the value of `where`."""
    node = find(root, where)
    return (root if node is None else node).place.problem(where, message, hint)


def _text(root: Node, *where: str | int) -> str | None:
    """Return the sound text at `where` as written, None where nothing is given."""
    node = find(root, where)
    return node.text if isinstance(node, ScalarNode) and not node.bad and node.value is not None else None


def _number(root: Node, key: str) -> float | None:
    node = find(root, (key,))
    value = node.value if isinstance(node, ScalarNode) and not node.bad else None
    return value if isinstance(value, int | float) and not isinstance(value, bool) else None


def _cluster_rules(root: Node, base_dir: Path) -> Iterator[Problem]:
    """Yield what the schema does not say: nodes that can be told apart, and numbers that fit each other."""
    names: dict[str, int] = {}
    engines: dict[str, int] = {}
    for where, node in _engines(root):
        if node.bad:
            continue
        index = int(where[1])
        if (first := engines.setdefault(node.text, index)) != index:
            message = f"found {node.text}, which is nodes[{first}] too; each engine once is allowed"
            yield node.place.problem(where, message, "Remove one of the two.")
            continue
        port = address_of(node.text).port
        if port is not None and not 0 < port <= _MOST_PORT:
            yield node.place.problem(where, f"found the port {port}; a port from 1 to {_MOST_PORT} is allowed")
        yield from _name_rules(root, where, node, names)
        yield from _tls_rules(root, index, node.text, base_dir)
    yield from _count_rules(root)


def _name_rules(root: Node, where: Where, node: ScalarNode, names: dict[str, int]) -> Iterator[Problem]:
    index = int(where[1])
    given = find(root, ("nodes", index, "name"))
    if isinstance(given, ScalarNode) and given.bad:
        return
    name = given.text if isinstance(given, ScalarNode) else _name_of(node.text)
    example = f"{{name: NAME, engine: {quoted(node.text) if '[' in node.text else node.text}}}"
    if not name:
        message = f"found {node.text}, which gives the node no name; a name of its own is needed"
        yield node.place.problem(where, message, f"Write {example}.")
    elif (first := names.setdefault(name, index)) != index:
        message = f"found a second node of the name {name}, beside nodes[{first}]; each name once is allowed"
        place = given.place if isinstance(given, ScalarNode) else node.place
        hint = "Rename one of them." if given else f"Write {example}."
        yield place.problem(("nodes", index, "name") if given else where, message, hint)


def _name_of(engine: str) -> str:
    """Return what a node is called whose file says nothing but how its engine is reached; empty where that is no name."""
    address = address_of(engine)
    name = address.host or (LOCAL if address.scheme == "local" else address.rest if address.scheme == "context" else "")
    name = name.replace(":", "-").replace("+", "-")[:63]
    return name if _NAME.fullmatch(name) else ""


def _tls_rules(root: Node, index: int, engine: str, base_dir: Path) -> Iterator[Problem]:
    where: Where = ("nodes", index, "tls")
    directory = _text(root, *where)
    if directory is None:
        return
    if address_of(engine).scheme != "tcp":
        message = f"found tls with {engine}; it is allowed with tcp://HOST:PORT"
        yield key_place(root, where).problem(where, message, "Remove it.")
        return
    path = absolute(base_dir, directory)
    missing = [name for name in _PEM_FILES if not os.path.isfile(path / name)]
    if missing:
        lack = f"{path} has no {' and no '.join(missing)}" if path.is_dir() else f"there is no directory {path}"
        message = f"found {quoted(directory)}, and {lack}"
        yield _at(root, where, f"{message}; a directory with {', '.join(_PEM_FILES)} is allowed")


def _count_rules(root: Node) -> Iterator[Problem]:
    nodes = find(root, ("nodes",))
    least, most = _number(root, "least_nodes"), _number(root, "most_nodes")
    there = len(nodes.items) if isinstance(nodes, ListNode) and not nodes.bad else None
    for key, number in (("least_nodes", least), ("most_nodes", most)):
        if number is not None and there and number > there:
            message = (
                f"found {number:g}, and the target has {there} node{'s'[: there != 1]}; at most {there} is allowed"
            )
            yield _at(root, (key,), message)
    if least is not None and most is not None and least > most:
        message = f"found {least:g}, above most_nodes ({most:g}); at most {most:g} is allowed"
        yield _at(root, ("least_nodes",), message)


def _slurm_rules(root: Node) -> Iterator[Problem]:
    """Yield the options of sbatch that tfjob decides itself."""
    options = find(root, ("sbatch_options",))
    for index, node in enumerate(options.items if isinstance(options, ListNode) else ()):
        if not isinstance(node, ScalarNode) or node.bad:
            continue
        name = node.text.removeprefix("--").partition("=")[0]
        # sbatch takes beginnings of names (getopt_long(3)); none of its other options is the beginning of one of these.
        meant = min((own for own in _OWN_SBATCH_OPTIONS if own.startswith(name)), key=len, default=None)
        if meant is not None:
            instead = _OWN_SBATCH_OPTIONS[meant]
            found = f"--{name}" if name == meant else f"--{name}, the beginning of --{meant}"
            message = f"found {found}, which tfjob sets itself; other options are allowed"
            hint = f"Say it with {instead}." if instead else "Remove it."
            yield node.place.problem(("sbatch_options", index), message, hint)


def _given(root: Node, keys: Mapping[str, type]) -> dict[str, Any]:
    """Return the values of those `keys` that are given, each of its type."""
    found: dict[str, Any] = {}
    for key, kind in keys.items():
        node = find(root, (key,))
        if isinstance(node, ListNode):
            found[key] = tuple(item.text for item in node.items if isinstance(item, ScalarNode))
        elif isinstance(node, ScalarNode):
            found[key] = node.text.strip() if kind is str else kind(node.value)
    return found


def _cluster(root: Node, name: str, base_dir: Path) -> ClusterDefinition:
    nodes = find(root, ("nodes",))
    keys = {"description": str, "least_nodes": int, "most_nodes": int, "shared": tuple}
    keys |= dict.fromkeys(("wait_s", "node_lost_s", "merge_interval_s", "kept_limit_gib"), float)
    given = _given(root, keys)
    given["shared"] = tuple(dict.fromkeys(os.path.normpath(path) for path in given.get("shared", ())))
    items = nodes.items if isinstance(nodes, ListNode) else ()
    return ClusterDefinition(name, tuple(_node(node, base_dir) for node in items), **given)


def _node(node: Node, base_dir: Path) -> NodeDefinition:
    if isinstance(node, ScalarNode):
        return NodeDefinition(_name_of(node.text), node.text)
    given = _given(node, {"name": str, "engine": str, "address": str, "gpus": int, "tls": str})
    if "tls" in given:
        given["tls"] = str(absolute(base_dir, given["tls"]))
    return NodeDefinition(**{"name": _name_of(given["engine"]), **given}, labels=_labels(node))


def _labels(node: Node) -> Pairs:
    labels = find(node, ("labels",))
    entries = labels.entries if isinstance(labels, MapNode) else {}
    return tuple((key, value.text) for key, value in entries.items() if isinstance(value, ScalarNode))


def _slurm(root: Node, name: str) -> SlurmDefinition:
    texts_of = ("login", "directory", "partition", "account", "qos", "constraint", "runtime", "description")
    keys = {**dict.fromkeys(texts_of, str), "sbatch_options": tuple, "setup": tuple, "kept_limit_gib": float}
    return SlurmDefinition(name, **_given(root, keys))
