"""A base image as a place for packages: what it has, and programs run in it to build there.

An image is looked into once, in a container of it; what was found is kept in the store under the image's id, which is
the digest of its configuration and so of all its content. From then on, knowing an image is one request to the engine.
"""

from __future__ import annotations

import contextlib
import os
import re
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tfjob.durable import replace_json
from tfjob.environments import looking
from tfjob.environments.prefix import read_json
from tfjob.errors import PreparationError
from tfjob.images.container import Mount, needs_local, run_in_container
from tfjob.images.engine import find_image, find_or_pull
from tfjob.images.mounts import mounts_for, passed_on

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from tfjob.environments.interpreters import Interpreter

__all__ = ["DEFAULT_PATH", "BaseImage", "base_image"]

# PATH in a container whose image sets none: Docker's own.
DEFAULT_PATH = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
_FINAL = Path("/opt/env")
# Raise it when the inspection finds more than it did.
_INSPECTION = 2


@dataclass(frozen=True)
class BaseImage:
    """An image that packages are made for, and what is in it.

    `image` is its id, `reference` how it was asked for, `pinned` the name that gets the same from a registry (its
    id, for an image that came from none). `search_path` is its PATH, empty when it sets none. `tools` are the programs of
    interest it has: sshd, ssh, bash, tar, apt-get, and so on. `cuda` is the version of CUDA it says it holds.
    """

    reference: str
    image: str
    pinned: str
    system: str
    platform: str
    search_path: str
    user: str
    interpreters: tuple[Interpreter, ...]
    tools: frozenset[str]
    cuda: str
    store_root: Path

    @property
    def name(self) -> str:
        """The image in words."""
        return f"the base image {self.reference}"

    @property
    def identity(self) -> str:
        """The image's id."""
        return self.image

    @property
    def virtual_packages(self) -> Mapping[str, str]:
        """What conda packages may ask of a container of this image.

        The kernel is this machine's, as in every container. The processor is the plainest of its kind, because the image
        may run on any node.
        """
        glibc = self.platform.rpartition("glibc")[2]
        kernel = re.match(r"\d+(\.\d+)*", os.uname().release)
        found = {"__unix": "0", "__linux": kernel[0] if kernel else "0", "__glibc": glibc, "__archspec": "1"}
        return {**found, "__cuda": self.cuda} if self.cuda else found

    @property
    def has_own_programs(self) -> bool:
        """They run in it."""
        return True

    def uv_arguments(self, interpreter: Interpreter | None) -> tuple[str, ...]:  # noqa: ARG002
        """None: uv runs in it and sees what it is."""
        return ()

    def starts(self, interpreter: Interpreter) -> bool:  # noqa: ARG002
        """In a container."""
        return True

    def final(self, prefix: Path) -> Path:  # noqa: ARG002  # the same for every prefix
        """``/opt/env``, in every container."""
        return _FINAL

    def settle(self, stage: Path, interpreter: Interpreter | None) -> None:
        """Nothing is to be done: it was made in the image."""

    def has(self, interpreter: Mapping[str, object]) -> bool:
        """Whether it is a Python of this very image."""
        return any(dict(interpreter) == self.identity_of(one) for one in self.interpreters)

    def identity_of(self, interpreter: Interpreter) -> Mapping[str, object]:
        """Its path, its version and the image's id: an image never changes."""
        return {"path": str(interpreter.path), "version": interpreter.version_text, "image": self.image}

    def builder(self, python: str, *, log: Callable[[str], None], progress: Callable[[str], None]) -> BaseImage:  # noqa: ARG002
        """The image with compilers in one more layer. What is built there runs on the image itself."""
        from tfjob.images.added import COMPILERS, added  # noqa: PLC0415  # it needs this module's class

        image = added(self, COMPILERS, log=log, progress=progress)
        if image == self.image:
            return self
        return base_image(image, store_root=self.store_root, log=log, progress=progress)

    def run(
        self,
        command: Sequence[str],
        *,
        environment: Mapping[str, str],
        cwd: Path,
        on_line: Callable[[str], None],
        holds: int,  # noqa: ARG002  # a container cannot inherit it; it ends with this process instead
        stdin: str = "",
    ) -> int:
        """Run a program in a throw-away container of the image; see `tfjob.images.container`.

        The store is mounted at its own path, with what uv needs of this machine read-only. Of `environment`, what the
        caller set and what concerns packages and certificates is passed on, nothing else of this process's own.
        """
        needs_local("build")
        listed: Path | None = None
        try:
            if stdin:
                descriptor, name = tempfile.mkstemp(prefix=".stdin-", dir=cwd)
                listed = Path(name)
                with os.fdopen(descriptor, "w", encoding="utf-8") as file:
                    file.write(stdin)
            return run_in_container(
                self.image,
                [str(part) for part in command],
                doing=f"run {Path(command[0]).name} in {self.reference}",
                environment=passed_on(environment, self.search_path or DEFAULT_PATH, self.store_root),
                on_line=on_line,
                mounts=[Mount(self.store_root, writable=True), *mounts_for(environment, command, cwd, self.store_root)],
                cwd=cwd,
                stdin=listed,
            )
        finally:
            if listed is not None:
                with contextlib.suppress(OSError):
                    listed.unlink()


def base_image(
    reference: str,
    *,
    store_root: Path,
    log: Callable[[str], None],
    progress: Callable[[str], None],
    for_packages: bool = True,
    called: str = "",
) -> BaseImage:
    """Return an image as a place, pulled when the engine does not have it, looked into when it is new.

    Messages name it as `called`, such as "the image of DOCKERFILE", where `reference` is nothing its user wrote. Raises
    PreparationError when it cannot be had, or, `for_packages`, is not one that packages can be made for (musl, no
    shell), TargetError when no engine answers.
    """
    called = called or f"the image {reference}"
    found = find_image(reference)
    if found is None:
        found = find_image(find_or_pull(reference, log=log, progress=progress))
    if found is None:
        raise PreparationError(f"{called} was removed while it was looked at", "Submit again.")
    image = str(found["Id"])
    store_root = store_root.absolute()
    file = store_root / "bases" / f"{image.rpartition(':')[2]}.json"
    facts = read_json(file)
    if facts is None or facts.get("inspection") != _INSPECTION:
        progress(f"looking into {called}")
        facts = {"inspection": _INSPECTION, **_inspect(image, called, log)}
        file.parent.mkdir(parents=True, exist_ok=True)
        replace_json(file, facts)
    if for_packages and not facts.get("shell", True):
        raise PreparationError(
            f"{called} has no shell (/bin/sh), so nothing can be built in it",
            "Choose a base image with a shell, such as one of Debian, Ubuntu or Red Hat.",
        )
    if for_packages and facts["libc"] != "glibc":
        raise PreparationError(
            f"{called} has {facts['libc']}; packages for it are not made",
            "Choose a base image with glibc, such as one of Debian, Ubuntu or Red Hat (Alpine has musl).",
        )
    return _described(reference, found, facts, store_root)


def _inspect(image: str, called: str, log: Callable[[str], None]) -> dict[str, Any]:
    """Look into an image by a container of it. Raises PreparationError when the engine cannot run one."""
    lines: list[str] = []
    errors: list[str] = []

    def take(line: str) -> None:
        errors.append(line)
        log(line)

    try:
        code = run_in_container(
            image,
            ["/bin/sh", "-c", looking.script(), "sh", looking.QUESTION],
            doing=f"look into {called}",
            environment={},
            on_line=take,
            on_output=lines.append,
        )
    except PreparationError as error:
        # The engine's own words, or those of the init process it puts first.
        if any("/bin/sh" in said and "no such file" in said.lower() for said in [error.message, *errors]):
            return _without_shell(image, called, log)
        raise
    found = looking.answered(lines)
    if code and found["libc"] == "glibc":
        found["libc"] = "no GNU C library that tells its version"
    return found


def _without_shell(image: str, called: str, log: Callable[[str], None]) -> dict[str, Any]:
    """Look into an image that has no shell: only for a Python, which is all that an image used as it is needs."""
    from tfjob.images.without_shell import answer_without_shell  # noqa: PLC0415  # only for such an image

    python = looking.python_of(answer_without_shell(image, looking.QUESTION, doing=f"look into {called}", log=log))
    return {
        "shell": False,
        "machine": os.uname().machine,
        "libc": "no GNU C library that tells its version",
        "glibc": "",
        "system": "",
        "tools": [],
        "pythons": [python] if python is not None else [],
    }


def _described(reference: str, found: Mapping[str, Any], facts: Mapping[str, Any], store_root: Path) -> BaseImage:
    """Put together what the engine says of an image and what was found in it."""
    config = found.get("Config") or {}
    variables = dict(one.partition("=")[::2] for one in config.get("Env") or [])
    labels = config.get("Labels") or {}
    cuda = (
        variables.get("CUDA_VERSION") or labels.get("com.nvidia.cudnn.cuda.version") or labels.get("cuda.version", "")
    )
    version = re.match(r"\d+\.\d+", str(cuda))
    return BaseImage(
        reference=reference,
        image=str(found["Id"]),
        pinned=next(iter(found.get("RepoDigests") or []), str(found["Id"])),
        system=facts["system"],
        platform=looking.platform_of(facts),
        search_path=variables.get("PATH", ""),
        user=str(config.get("User") or ""),
        interpreters=looking.interpreters_of(facts),
        tools=frozenset(facts["tools"]),
        cuda=version[0] if version else "",
        store_root=store_root,
    )
