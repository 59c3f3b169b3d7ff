"""What a job's environment section stands for: names replaced, files read, the lock beside it found."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from tfjob.durable import digest_of
from tfjob.environments.definition import Definition, definition_of
from tfjob.errors import PreparationError, UsageError
from tfjob.values import Pairs

if TYPE_CHECKING:
    from collections.abc import Callable

    from tfjob.spec.job import EnvironmentSpec

__all__ = ["DockerfileSource", "ResolvedEnvironment", "lock_beside", "resolve_environment"]


_LOCK_OF = re.compile(r"""(?m)^definition:[ \t]*["']?(\w+)""")


@dataclass(frozen=True)
class DockerfileSource:
    """A user's Dockerfile, the directory it may copy from, and its arguments. `text` is what it says now."""

    path: Path
    context: Path
    arguments: Pairs
    text: str

    def digest(self) -> str:
        """Return the SHA-256 (hex) of the Dockerfile and its arguments; what it copies is looked at when it is built."""
        return digest_of([self.text, str(self.context), self.arguments])


@dataclass(frozen=True)
class ResolvedEnvironment:
    """An environment by what it is made of: `definition` (packages) on `base`, a `dockerfile`, or an `image`.

    `name` is the registered name and version it came from. `variables` are set in every task; those of the job win.
    `lock` is the text of a lock to be used instead of solving; `lock_path` where such a lock belongs, there or not.
    """

    name: str | None = None
    definition: Definition | None = None
    base: str | None = None
    dockerfile: DockerfileSource | None = None
    image: str | None = None
    variables: Pairs = ()
    lock: str | None = None
    lock_path: Path | None = None

    @property
    def needs_container(self) -> bool:
        """Whether only a container has this environment."""
        return self.dockerfile is not None or self.image is not None

    def require_fresh_lock(self) -> None:
        """Raise UsageError when the lock is of another definition: one of the two has changed since."""
        if self.lock is None or self.definition is None:
            return
        found = _LOCK_OF.search(self.lock)
        if found is not None and found[1] != self.definition.digest():
            path = self.lock_path
            where, file = (str(path), path.with_suffix(".yml").name) if path is not None else ("the lock", "FILE")
            raise UsageError(
                f"{where} is the lock of another definition: the environment has changed since it was written",
                f"Lock it again: `tfjob env lock {file}`; or remove the lock.",
            )

    def digest(self) -> str:
        """Return the SHA-256 (hex) of what is asked for."""
        if self.dockerfile is not None:
            return self.dockerfile.digest()
        if self.image is not None:
            return digest_of(["image", self.image])
        return self.definition.digest() if self.definition is not None else digest_of(["machine"])


def resolve_environment(
    spec: EnvironmentSpec,
    *,
    base_dir: Path,
    image_of: Callable[[str], str],
    name: str | None = None,
    variables: Pairs = (),
    lock: str | None = None,
) -> ResolvedEnvironment | None:
    """Return what a section asks for, None where it asks for nothing: the machine's own Python.

    `spec` names no registered environment any more; `name`, `variables` and `lock` are those of the one it named.
    `image_of` says which image a `base` stands for. Raises PreparationError for what cannot be read.
    """
    if spec.image is not None:
        return ResolvedEnvironment(name=name, image=spec.image, variables=variables)
    if spec.dockerfile is not None:
        try:
            text = spec.dockerfile.read_text(encoding="utf-8")
        except FileNotFoundError as error:
            raise PreparationError(
                f"there is no Dockerfile {spec.dockerfile}", "It was there when the job file was read; submit again."
            ) from error
        except (OSError, UnicodeDecodeError) as error:
            raise PreparationError(
                f"the Dockerfile {spec.dockerfile} cannot be read: {error}", "Make it readable, or remove it."
            ) from error
        context = spec.build_context or spec.dockerfile.parent
        source = DockerfileSource(spec.dockerfile, context, spec.build_arguments, text)
        return ResolvedEnvironment(name=name, dockerfile=source, variables=variables)
    definition = definition_of(spec, base_dir=base_dir)
    if definition is None:
        return None
    beside = lock_beside(spec.conda_file)
    if lock is None and beside is not None and beside.is_file():
        try:
            lock = beside.read_text(encoding="utf-8")
        except (OSError, UnicodeDecodeError) as error:
            raise UsageError(f"the lock {beside} cannot be read: {error}", "Make it anew, or remove it.") from error
    return ResolvedEnvironment(
        name=name,
        definition=definition,
        base=image_of(spec.base),
        variables=(*definition.variables, *variables),
        lock=lock,
        lock_path=beside,
    )


def lock_beside(conda_file: Path | None) -> Path | None:
    """Name the lock that belongs to a conda file, there or not: ``environment.yml`` has ``environment.lock``."""
    return conda_file.with_suffix(".lock") if conda_file is not None else None
