"""An environment file → an `EnvironmentFile`, or every problem it has, each with its place.

Two forms are read: an environment file with the keys of `environment_file.schema.json`, and a plain conda file (one
with ``dependencies:`` at its top), whose name is the environment's. An environment file of Azure ML is of the first
form: ``image`` with ``conda_file`` are packages on a base image, ``build`` is a Dockerfile with its directory.

Keys that a job's environment section has too are the job schema's own.
"""

from __future__ import annotations

import copy
import functools
import json
import os
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tfjob.errors import InvalidFile, Problem, UsageError
from tfjob.spec import conda, files
from tfjob.spec import schema as schemas
from tfjob.spec import text as texts
from tfjob.spec.job import EnvironmentSpec
from tfjob.spec.messages import check
from tfjob.spec.mistaken import mistaken_for_conda
from tfjob.spec.tree import MapNode, Node, ScalarNode, Where, find, key_place, quoted
from tfjob.spec.unsupported import ADDRESS
from tfjob.spec.view import View
from tfjob.values import Pairs

if TYPE_CHECKING:
    from collections.abc import Iterator

__all__ = ["EnvironmentFile", "environment_file_schema", "load"]

_SOURCES = ("conda_file", "conda", "dockerfile", "build", "image")
_SECTION = ("conda_file", "dockerfile", "build_context")
_OWN_VARIABLES = {"TF_CONFIG", "CUDA_VISIBLE_DEVICES"}


@dataclass(frozen=True)
class EnvironmentFile:
    """An environment as asked: who it is, and what it is made of, as a job's environment section would say it.

    Paths in `spec` are absolute; those inside of its packages (``-r requirements.txt``) are relative to the conda file,
    or to `base_dir` where the packages stand in the file itself.
    """

    spec: EnvironmentSpec
    name: str | None = None
    version: str | None = None
    description: str = ""
    tags: Pairs = ()
    variables: Pairs = ()
    base_dir: Path = Path()


def load(path: Path | str) -> EnvironmentFile:
    """Return the environment in the file at `path`.

    Raises InvalidFile with every problem of the file and of those it names, and UsageError where there is no file.
    """
    path = Path(path)
    data = _bytes(path)
    shown = str(path)
    if problem := mistaken_for_conda(data, shown):
        raise InvalidFile([problem._replace(message=problem.message.replace("a conda file", "an environment file"))])
    text, problems = texts.decode(data, shown)
    if problems:
        raise InvalidFile(problems)
    root, problems = texts.read(text, shown)
    if root is None:
        raise InvalidFile(problems)
    base_dir = Path(os.path.abspath(path)).parent
    if isinstance(root, MapNode) and "dependencies" in root.entries and not set(root.entries) & set(_SOURCES):
        return _of_conda_file(conda.load(path), Path(os.path.abspath(path)))
    if problem := _other_file(root):
        raise InvalidFile([problem])
    against_schema, sound = check(root, environment_file_schema())
    data_of_file, conda_problems = _conda(sound, base_dir, os.path.dirname(shown))
    problems += [*map(_with_keys, against_schema), *_rules(sound), *_on_disk(sound, base_dir), *conda_problems]
    if problems:
        raise InvalidFile(sorted(dict.fromkeys(problems), key=lambda one: (one.file != shown, *one[:3])))
    return _build(sound, base_dir, data_of_file)


def environment_file_schema() -> dict[str, Any]:
    """Return the JSON Schema (draft 2020-12) of the environment file, complete in itself."""
    return copy.deepcopy(_schema())


@functools.cache
def _schema() -> dict[str, Any]:
    content = Path(__file__).with_name("environment_file.schema.json").read_text(encoding="utf-8")
    filled: dict[str, Any] = _filled(json.loads(content))
    return filled


def _filled(said: Any) -> Any:
    """Return a part of the schema with every ``$ref`` replaced by what it names; keys beside it win."""
    if not isinstance(said, dict):
        return said
    own = {key: _filled(value) for key, value in said.items() if key != "$ref"}
    if "$ref" not in said:
        return own
    name, _, pointer = str(said["$ref"]).partition("#/")
    found: Any = schemas.schema() if name == "job.schema.json" else schemas.environment_schema()
    for part in pointer.split("/"):
        found = found[part]
    return {**found, **own}


def _bytes(path: Path) -> bytes:
    try:
        with path.open("rb") as file:
            return file.read(texts.MAX_BYTES + 1)
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or error
        raise UsageError(f"the environment file {path} cannot be read: {reason}", "Give the path of a file.") from None


def _of_conda_file(data: dict[str, Any], path: Path) -> EnvironmentFile:
    name = data.get("name")
    spec = EnvironmentSpec(conda=data, conda_file=path)
    return EnvironmentFile(spec, name=None if name is None else str(name), base_dir=path.parent)


def _other_file(root: Node) -> Problem | None:
    if isinstance(root, MapNode) and {"script", "command"} & set(root.entries):
        message = "this looks like a job file, not an environment file"
        return root.place.problem((), message, "Put what stands under its environment: into a file of its own.")
    return None


def _text(root: Node, *where: str) -> str | None:
    """Return the sound text at `where` as written."""
    node = find(root, where)
    return node.text if isinstance(node, ScalarNode) and not node.bad and node.value is not None else None


def _with_keys(problem: Problem) -> Problem:
    """Return a problem that points at `tfjob schema`, which is of job files, with the keys themselves in its place."""
    keys = [key for key in _schema()["properties"] if not key.startswith("$")]
    listed = f"{', '.join(keys[:-1])} or {keys[-1]} is allowed"
    return problem._replace(message=problem.message.replace("see `tfjob schema` for the allowed ones", listed))


def _conda(root: Node, base_dir: Path, shown_dir: str) -> tuple[dict[str, Any] | None, list[Problem]]:
    """Return the content of the conda file that is named, and the problems of it or of what stands in its place."""
    named = _text(root, "conda_file")
    if named is not None:
        path = files.absolute(base_dir, named)
        return conda.read(path, shown=os.path.join(shown_dir, named)) if os.path.isfile(path) else (None, [])
    problems = [
        problem for key in ("conda_file", "conda") for problem in conda.rules(root, (key,), base_dir, shown_dir)
    ]
    return None, problems


def _rules(root: Node) -> Iterator[Problem]:
    """Yield what the schema does not say: one source of packages, and what goes with what."""
    if not isinstance(root, MapNode):
        return
    given = [key for key in _SOURCES if key in root.entries]
    sources = given[:-1] if "image" in given and given[0].startswith("conda") else given
    if not given and not any(key in root.entries for key in ("dependencies", "base")):
        message = f"found none of {', '.join(_SOURCES)}; one of them is required"
        yield root.place.problem((), message, "Add conda_file: environment.yml, or image: IMAGE.")
    for key in sources[1:]:
        message = f"found both {sources[0]} and {key}; one of {', '.join(_SOURCES)} is allowed"
        yield _at_key(root, (key,), message, f"Remove {sources[0]} or {key}.")
    yield from _misplaced(root, given)
    yield from _variables(root)
    if ADDRESS.match(_text(root, "build", "path") or ""):
        message = f"found {quoted(_text(root, 'build', 'path') or '')}; a directory of this machine is allowed"
        yield _at_value(root, ("build", "path"), message, "Fetch it first and give its path.")


def _misplaced(root: MapNode, given: list[str]) -> Iterator[Problem]:
    has_packages = any(key.startswith("conda") for key in given)
    for key in ("build_context", "build_arguments"):
        if key in root.entries and not {"dockerfile", *(["build"] if key == "build_arguments" else [])} & set(given):
            message = f"found {key} without dockerfile; it is allowed with dockerfile"
            yield _at_key(root, (key,), message, "Add dockerfile, or remove it.")
    if "base" not in root.entries:
        return
    if not has_packages:
        message = "found base without packages; it is allowed with conda_file or conda"
        yield _at_key(root, ("base",), message, f"Remove it{'' if given else ', or add conda_file'}.")
    elif "image" in given:
        message = "found image with base and packages; one of the two images is allowed"
        yield _at_key(root, ("image",), message, "Remove it, or remove base.")


def _variables(root: MapNode) -> Iterator[Problem]:
    for name, node in View(root).entries("environment_variables").items():
        where = ("environment_variables", name)
        if name in _OWN_VARIABLES or name.startswith("TFJOB_"):
            message = f"found {name}, which tfjob sets itself; other names are allowed"
            yield _at_key(root, where, message, "Choose another name.")
        if isinstance(node, ScalarNode) and "${{" in node.text:
            message = f"found the expression {quoted(node.text)}; plain text is allowed"
            yield _at_value(root, where, message, "Expressions belong into job files, under environment_variables.")


def _at_key(root: Node, where: Where, message: str, hint: str) -> Problem:
    return key_place(root, where).problem(where, message, hint)


def _at_value(root: Node, where: Where, message: str, hint: str) -> Problem:
    node = find(root, where)
    return (root if node is None else node).place.problem(where, message, hint)


def _on_disk(root: Node, base_dir: Path) -> Iterator[Problem]:
    """Yield what the file names and the disk does not have, as for a job file."""
    if not isinstance(root, MapNode):
        return
    keys = [key for key in _SECTION if isinstance(root.entries.get(key), ScalarNode)]
    section = MapNode({key: root.entries[key] for key in keys}, {key: root.keys[key] for key in keys}, root.place)
    whole = MapNode({"environment": section}, {"environment": root.keys[keys[0]]} if keys else {}, root.place)
    for problem in files.check(whole, base_dir):
        yield problem._replace(path=problem.path.removeprefix("environment."))
    directory = _text(root, "build", "path")
    if directory is None or ADDRESS.match(directory):
        return
    for key, path, exists, what in (
        ("path", files.absolute(base_dir, directory), os.path.isdir, "directory"),
        ("dockerfile_path", _build_dockerfile(root, base_dir), os.path.isfile, "Dockerfile"),
    ):
        if not exists(path):
            where = ("build", key) if find(root, ("build", key)) else ("build", "path")
            message = f"found {quoted(_text(root, *where) or '')}, and there is no {what} {path}"
            yield _at_value(root, where, f"{message}; an existing {what} is allowed", "")
            return


def _build_dockerfile(root: Node, base_dir: Path) -> Path:
    directory = files.absolute(base_dir, _text(root, "build", "path") or "")
    return files.absolute(directory, _text(root, "build", "dockerfile_path") or "Dockerfile")


def _build(root: Node, base_dir: Path, conda_data: dict[str, Any] | None) -> EnvironmentFile:
    view = View(root)
    return EnvironmentFile(
        spec=_spec(root, base_dir, conda_data),
        name=_text(root, "name"),
        version=_text(root, "version"),
        description=(_text(root, "description") or "").strip(),
        tags=view.pairs("tags"),
        variables=view.pairs("environment_variables"),
        base_dir=base_dir,
    )


def _spec(root: Node, base_dir: Path, conda_data: dict[str, Any] | None) -> EnvironmentSpec:
    def path(key: str) -> Path | None:
        text = _text(root, key)
        return None if text is None else files.absolute(base_dir, text)

    inline = next((node for key in ("conda", "conda_file") if isinstance(node := find(root, (key,)), MapNode)), None)
    packages = conda_data if inline is None else conda.content(inline)
    image = _text(root, "image")
    is_azure_build = find(root, ("build",)) is not None
    return EnvironmentSpec(
        conda=packages,
        conda_file=path("conda_file"),
        base=(image if packages is not None else None) or _text(root, "base") or schemas.default("environment", "base"),
        dockerfile=_build_dockerfile(root, base_dir) if is_azure_build else path("dockerfile"),
        build_context=files.absolute(base_dir, _text(root, "build", "path") or "")
        if is_azure_build
        else path("build_context"),
        build_arguments=View(root).pairs("build_arguments"),
        image=image if packages is None else None,
    )
