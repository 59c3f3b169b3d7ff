"""A place is where a prefix is used: it has certain Pythons, a C library, and programs are run in it.

A prefix fits only the place it was made for. `Machine` is this machine, where a prefix is used where the store keeps
it; a base image is another place (`tfjob.images.base`), where it is seen at ``/opt/env``; and so is a cluster that is used
from elsewhere (`tfjob.engines.slurm.place`): its prefixes are made on this machine, and sent.
"""

from __future__ import annotations

import os
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Protocol

from tfjob.environments import processes
from tfjob.environments.interpreters import Interpreter, installed
from tfjob.environments.prefix import platform_name

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence
    from pathlib import Path

__all__ = ["Machine", "Place"]


class Place(Protocol):
    """What environments need to know of where they will be used."""

    @property
    def name(self) -> str:
        """The place in words, for messages: ``this machine``, ``the base image debian:12``."""
        ...

    @property
    def identity(self) -> str:
        """What tells this place from others of the same platform: the image's digest; empty for the machine."""
        ...

    @property
    def pinned(self) -> str:
        """The name by which a lock gets this very place again: ``IMAGE@sha256:…``, or an image's id; empty for the machine."""
        ...

    @property
    def platform(self) -> str:
        """The kind of machine as far as packages know it: ``linux-x86_64-glibc2.36``."""
        ...

    @property
    def interpreters(self) -> tuple[Interpreter, ...]:
        """The Pythons that are there, newest first. A Python's path is one in this place."""
        ...

    @property
    def virtual_packages(self) -> Mapping[str, str]:
        """What conda packages may ask of a system, by name (conda's virtual packages).

        ``{"__glibc": "2.36", "__cuda": "12.4", "__archspec": "1=x86_64_v3"}``: a version, and a build after ``=``.
        """
        ...

    @property
    def has_own_programs(self) -> bool:
        """Whether programs that are run in it find its own compilers and MPI. Not where prefixes are made on another machine."""
        ...

    def uv_arguments(self, interpreter: Interpreter | None) -> tuple[str, ...]:
        """What uv must be told to choose packages for it and that Python of it; nothing where uv sees that."""
        ...

    def starts(self, interpreter: Interpreter) -> bool:
        """Whether that Python, or one that compiles to the same bytecode, can be started while a prefix is made."""
        ...

    def final(self, prefix: Path) -> Path:
        """Where the prefix that the store keeps at `prefix` is seen by the tasks that use it."""
        ...

    def settle(self, stage: Path, interpreter: Interpreter | None) -> None:
        """Change what in a prefix is of the machine it was made on, as the last step. Raises PreparationError where it can't be used."""
        ...

    def has(self, interpreter: Mapping[str, object]) -> bool:
        """Whether the Python that `identity_of` once described is still there unchanged. Starts no program."""
        ...

    def identity_of(self, interpreter: Interpreter) -> Mapping[str, object]:
        """What changes when a Python of this place is replaced. A JSON object."""
        ...

    def builder(self, python: str, *, log: Callable[[str], None], progress: Callable[[str], None]) -> Place:
        """This place with compilers, to build source packages in by a Python (a path): itself where they are nobody's to add."""
        ...

    def run(
        self,
        command: Sequence[str],
        *,
        environment: Mapping[str, str],
        cwd: Path,
        on_line: Callable[[str], None],
        holds: int,
        stdin: str = "",
    ) -> int:
        """Run a program there to its end, as `tfjob.environments.processes.run` does. The store is at the same path."""
        ...


@dataclass(frozen=True)
class Machine:
    """This machine, without containers."""

    @property
    def name(self) -> str:
        """Itself, in words."""
        return "this machine"

    @property
    def identity(self) -> str:
        """Nothing: a store serves one kind of machine at a time, and the platform tells those apart."""
        return ""

    @property
    def pinned(self) -> str:
        """Nothing: a machine is not had again by a name."""
        return ""

    @property
    def platform(self) -> str:
        """The kind of this machine."""
        return platform_name()

    @cached_property
    def interpreters(self) -> tuple[Interpreter, ...]:
        """Every Python of this machine, newest first; each is started once to ask."""
        return installed(os.environ)

    @cached_property
    def virtual_packages(self) -> Mapping[str, str]:
        """What conda's own detection finds, such as ``__glibc`` and, with an NVIDIA driver, ``__cuda``."""
        from rattler import VirtualPackage  # noqa: PLC0415  # 50 ms, only for those who solve

        found = (one.into_generic() for one in VirtualPackage.detect())
        return {one.name.normalized: f"{one.version}={one.build_string}" for one in found}

    @property
    def has_own_programs(self) -> bool:
        """They are this machine's."""
        return True

    def uv_arguments(self, interpreter: Interpreter | None) -> tuple[str, ...]:  # noqa: ARG002
        """None: uv sees what this machine is."""
        return ()

    def starts(self, interpreter: Interpreter) -> bool:  # noqa: ARG002
        """They are this machine's."""
        return True

    def final(self, prefix: Path) -> Path:
        """Where the store keeps it."""
        return prefix

    def settle(self, stage: Path, interpreter: Interpreter | None) -> None:
        """Nothing is to be done: it was made here."""

    def has(self, interpreter: Mapping[str, object]) -> bool:
        """Whether that file still has the same size and time."""
        try:
            return dict(interpreter) == _stat(str(interpreter["path"]))
        except (KeyError, OSError):
            return False

    def identity_of(self, interpreter: Interpreter) -> Mapping[str, object]:
        """Its path, size and time. Raises OSError when it is gone."""
        return _stat(str(interpreter.path))

    def builder(self, python: str, *, log: Callable[[str], None], progress: Callable[[str], None]) -> Place:  # noqa: ARG002
        """Itself: what a machine lacks is installed by whoever it belongs to."""
        return self

    def run(
        self,
        command: Sequence[str],
        *,
        environment: Mapping[str, str],
        cwd: Path,
        on_line: Callable[[str], None],
        holds: int,
        stdin: str = "",
    ) -> int:
        """Run a program here."""
        return processes.run(command, environment=environment, cwd=cwd, on_line=on_line, holds=holds, stdin=stdin)


def _stat(path: str) -> dict[str, object]:
    status = os.stat(path)
    return {"path": path, "size": status.st_size, "modified_ns": status.st_mtime_ns}
