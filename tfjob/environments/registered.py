"""Environments by name: those registered in a workspace, and the curated ones that come with tfjob.

What is registered depends on no file any more: requirements files are read in, a Dockerfile's text is kept, and so is
the directory it copies from, among the workspace's snapshots. The content of an entry is plain data::

    conda: {channels: […], dependencies: […]}    with base: cpu | gpu | IMAGE; `--constraint X` in pip are lines of -c files
    lock: TEXT                                   the lock that stood beside the conda file, if there was one
    dockerfile: TEXT                             with context: DIGEST of the snapshot, and build_arguments
    image: IMAGE
    environment_variables: {NAME: VALUE}
"""

from __future__ import annotations

import hashlib
import re
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from tfjob.assets import LATEST, Assets, Entry, split_name
from tfjob.durable import digest_of, replace_text
from tfjob.environments import curated
from tfjob.environments.definition import definition_of
from tfjob.environments.requirements import CONSTRAINT
from tfjob.environments.resolved import lock_beside
from tfjob.errors import NotFound, PreparationError, UsageError
from tfjob.spec.job import EnvironmentSpec
from tfjob.values import Pairs
from tfjob.workspace import Workspace

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from tfjob.environments.definition import Definition
    from tfjob.spec.environment_file import EnvironmentFile

__all__ = ["NamedEnvironment", "clone", "entries", "entry", "find", "register", "remove"]

KIND = "environment"
_FILES = ".files"  # of the registry: texts of entries that must be files to be used, by content
_LOCK_OF = re.compile(r"""(?m)^definition:[ \t]*["']?(\w+)""")


@dataclass(frozen=True)
class NamedEnvironment:
    """What a name stands for: `spec` as a job's environment section would say it, and the version that was meant.

    `variables` are set in every task that uses it; those of the job win. `lock` is the text of its lock, to be used
    instead of solving. The Dockerfile and the build context of `spec` are the registry's own copies.
    """

    spec: EnvironmentSpec
    full_name: str
    variables: Pairs = ()
    lock: str | None = None
    description: str = ""
    tags: Pairs = ()


def register(
    file: EnvironmentFile,
    root: Path,
    *,
    keep_context: Callable[[Path], str],
    name: str | None = None,
    version: str | None = None,
    new_version: bool = False,
) -> Entry:
    """Register an environment file in the registry `root` and return its entry; see `Assets.register` for versions.

    `name` and `version` win over those of the file. `keep_context` keeps a Dockerfile's directory among the snapshots
    and returns its digest. Raises UsageError for what `Assets.register` refuses and for a file without a name,
    PreparationError for packages that cannot be an environment. Nothing has been registered then.
    """
    chosen = name or file.name
    if chosen is None:
        raise UsageError("the environment file has no name", "Give one: --name NAME, or name: NAME in the file.")
    content = _content(file, keep_context)
    return _assets(root).register(
        chosen,
        content,
        version=version or file.version,
        new_version=new_version,
        description=file.description,
        tags=file.tags,
    )


def find(name: str, root: Path | None) -> NamedEnvironment:
    """Return what ``name`` or ``name@version`` stands for: a curated environment, or one of the registry `root`.

    Raises NotFound with the name that is probably meant, PreparationError when a build context is no longer kept.
    """
    return _named(entry(name, root), root)


def entry(name: str, root: Path | None) -> Entry:
    """Return the entry of ``name`` or ``name@version``, curated or registered. Raises NotFound as `find` does."""
    bare, version = split_name(name)
    if bare.startswith(curated.PREFIX):
        found = _curated(bare)
        if version not in {None, LATEST, found.version}:
            raise NotFound(
                f"the environment {bare} has no version {version!r} in this version of tfjob",
                f"Use {found.full_name}, or {bare} for whatever comes with tfjob.",
            )
        return found
    if root is None:
        raise NotFound(
            f"there is no environment {bare!r}: there is no workspace to have it registered in",
            f"Register it: tfjob env create -f FILE. These come with tfjob: {', '.join(curated.names())}.",
        )
    return _assets(root).find(name, also=curated.names())


def entries(root: Path | None, *, all_versions: bool = False) -> tuple[Entry, ...]:
    """Return what is registered in `root`, by name, and then the curated environments."""
    own = _assets(root).list(all_versions=all_versions) if root is not None else ()
    return (*own, *map(_curated, curated.names()))


def clone(name: str, new: str, root: Path, *, version: str | None = None, new_version: bool = False) -> Entry:
    """Register what ``name`` or ``name@version`` stands for, curated or not, under the name `new` as well.

    Raises NotFound, and UsageError as `register` does.
    """
    found = entry(name, root)
    return _assets(root).register(
        new,
        found.content,
        version=version,
        new_version=new_version,
        description=found.description,
        tags=found.tags,
    )


def remove(name: str, root: Path) -> tuple[Entry, ...]:
    """Forget ``name`` with all its versions, or ``name@version``; return what was forgotten.

    Raises NotFound where there is none, and UsageError for a curated environment.
    """
    if name.startswith(curated.PREFIX):
        raise UsageError(f"{name} comes with tfjob and can't be removed")
    return _assets(root).remove(name)


def _assets(root: Path) -> Assets:
    return Assets(root, KIND, reserved_prefix=curated.PREFIX)


def _curated(name: str) -> Entry:
    file = curated.read(name)
    content = _content(file, _no_context)
    return Entry(
        name=name,
        version=file.version or "1",
        created="",
        content=content,
        digest=digest_of(content),
        description=file.description,
        tags=file.tags,
        is_new=False,
    )


def _no_context(path: Path) -> str:
    raise AssertionError(f"a curated environment has a build context: {path}")


def _content(file: EnvironmentFile, keep_context: Callable[[Path], str]) -> dict[str, Any]:
    """Return all that the environment is made of, taken out of the files it names."""
    spec = file.spec
    content: dict[str, Any] = {}
    if spec.image is not None:
        content = {"image": spec.image}
    elif spec.dockerfile is not None:
        context = spec.build_context or spec.dockerfile.parent
        content = {
            "dockerfile": _read(spec.dockerfile),
            "context": keep_context(context),
            "build_arguments": dict(spec.build_arguments),
        }
    elif (definition := definition_of(spec, base_dir=file.base_dir)) is not None:
        content = {"conda": _conda(definition), "base": spec.base}
        if (lock := _lock(spec, definition)) is not None:
            content["lock"] = lock
    if file.variables:
        content["environment_variables"] = dict(file.variables)
    return content


def _conda(definition: Definition) -> dict[str, Any]:
    """Return a conda specification that means `definition` and names no file but folders of channels and wheels."""
    dependencies: list[Any] = []
    if definition.python is not None:
        dependencies.append(f"python {definition.python}")
    if definition.has_pip:
        dependencies.append("pip")
    dependencies += definition.packages
    if definition.requirements:
        dependencies.append({"pip": list(definition.requirements)})
    conda: dict[str, Any] = {"channels": list(definition.channels)} if definition.channels else {}
    conda["dependencies"] = dependencies
    if definition.variables:
        conda["variables"] = dict(definition.variables)
    return conda


def _lock(spec: EnvironmentSpec, definition: Definition) -> str | None:
    """Return the text of the lock beside the conda file, if there is one. Raises UsageError for that of other packages."""
    path = lock_beside(spec.conda_file)
    if path is None or not path.is_file():
        return None
    text = _read(path)
    found = _LOCK_OF.search(text)
    if found is None or found[1] != definition.digest():
        raise UsageError(
            f"the lock {path} is not of the packages in {spec.conda_file}",
            "Lock them again with tfjob env lock, or remove the lock.",
        )
    return text


def _read(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise PreparationError(f"{path} cannot be read: {error}", "Make it a text file that can be read.") from error


def _named(found: Entry, root: Path | None) -> NamedEnvironment:
    content = found.content
    variables: dict[str, str] = content.get("environment_variables", {})
    return NamedEnvironment(
        spec=_spec(found, root),
        full_name=found.full_name,
        variables=tuple(variables.items()),
        lock=content.get("lock"),
        description=found.description,
        tags=found.tags,
    )


def _spec(found: Entry, root: Path | None) -> EnvironmentSpec:
    content = found.content
    if "image" in content:
        return EnvironmentSpec(image=content["image"])
    if "dockerfile" in content:
        if root is None:
            raise AssertionError("a registered environment without a registry")
        context = Workspace(root.parent).snapshots / content["context"]
        if not context.is_dir():
            raise PreparationError(
                f"the environment {found.full_name} can't be built: its build context "
                f"(snapshot {content['context'][:12]}) is no longer in the workspace",
                "Register it again from its folder: tfjob env create -f FILE --new-version",
            )
        arguments: dict[str, str] = content["build_arguments"]
        return EnvironmentSpec(
            dockerfile=_file(root, "Dockerfile", content["dockerfile"]),
            build_context=context,
            build_arguments=tuple(arguments.items()),
        )
    if "conda" in content:
        dependencies = [_entry(one, root) for one in content["conda"]["dependencies"]]
        return EnvironmentSpec(conda={**content["conda"], "dependencies": dependencies}, base=content["base"])
    return EnvironmentSpec()


def _entry(dependency: Any, root: Path | None) -> Any:
    """Return an item of `dependencies` as a conda file has it: lines of constraints files are put into files again."""
    if not isinstance(dependency, dict):
        return dependency
    lines: list[str] = []
    limits: list[str] = []
    for line in [*dependency["pip"], ""]:
        if line.startswith(CONSTRAINT):
            limits.append(line.removeprefix(CONSTRAINT))
            continue
        if limits:
            if root is None:
                raise AssertionError("a curated environment has constraints")
            text = "\n".join([*limits, ""])
            lines.append(f"-c {_file(root, 'constraints.txt', text)}")
        limits.clear()
        lines += [line] if line else []
    return {"pip": lines}


def _file(root: Path, name: str, text: str) -> Path:
    """Return a file of the registry that holds `text`; made if it is not there."""
    path = root / _FILES / hashlib.sha256(text.encode()).hexdigest()[:16] / name
    if not path.is_file():
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            replace_text(path, text)
        except OSError as error:
            raise PreparationError(
                f"{path} can't be written: {error.strerror}", "Free space, or permissions."
            ) from error
    return path
