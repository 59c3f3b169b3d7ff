"""A cluster that is used from elsewhere, as a place for packages: prefixes are made on this machine, and used over there.

The login node is asked what it is: the nodes of a cluster are taken to be like it, as those who work there take them to be.
Programs that make a prefix run here. A Python that the prefix needs over there has a twin here, of the same minor version,
which takes the same files; at the end the prefix is made to name the one over there. Where there is no twin, uv is told for
which version it chooses, and the prefix goes without bytecode.
"""

from __future__ import annotations

import os
import re
import shlex
import subprocess
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, Final

from tfjob.engines.slurm.login import Login
from tfjob.environments import fetched, looking, processes
from tfjob.environments.interpreters import Interpreter
from tfjob.environments.place import Machine, Place
from tfjob.environments.prefix import glibc_of, platform_name, runs_on
from tfjob.errors import PreparationError, TargetError

__all__ = ["LoginNode"]

_PATIENCE_S: Final = 60.0
_MORE: Final = """\
echo "kernel $(uname -r)"
nvidia-smi 2>/dev/null | sed -n 's/.*CUDA Version: *\\([0-9][0-9.]*\\).*/cuda \\1/p'
"""
_MANYLINUX: Final = (17, 28, *range(31, 41))
"""The minor versions of glibc 2 that uv knows platforms of (uv pip install --help, --python-platform)."""
_BUILT_HERE: Final = re.compile(r"^Tag: \S+-linux_\w+\s*$", re.MULTILINE)
_NUMBER: Final = re.compile(r"\d+(\.\d+)*")


@dataclass(frozen=True)
class LoginNode:
    """The machines behind a login. `directory` is the store on the file system they share, `store_root` the one here.

    `environ` may say what the nodes' GPU driver allows that the login node has not: CONDA_OVERRIDE_CUDA, as conda has it.
    """

    login: Login
    directory: Path
    store_root: Path
    environ: Mapping[str, str]

    @cached_property
    def _facts(self) -> Mapping[str, Any]:
        """What it is, asked once. Raises TargetError when it does not answer."""
        line = f"exec sh -s -- {shlex.quote(looking.QUESTION)}"
        try:
            done = self.login.run(line, told=(_MORE + looking.script()).encode(), patience_s=_PATIENCE_S)
        except subprocess.TimeoutExpired:
            raise TargetError(
                f"{self.login.address} did not say within {_PATIENCE_S:g} s what Pythons it has",
                "Log in by hand and look.",
            ) from None
        lines = done.stdout.decode("utf-8", "replace").splitlines()
        return {**dict(line.partition(" ")[::2] for line in lines), **looking.answered(lines)}

    @property
    def name(self) -> str:
        """The login node in words."""
        return f"the login node {self.login.address}"

    @property
    def identity(self) -> str:
        """Which cluster, and where prefixes are there."""
        return f"{self.login.address} {self.directory}"

    @property
    def pinned(self) -> str:
        """Nothing: a lock is for any machine of the kind."""
        return ""

    @property
    def platform(self) -> str:
        """The kind of the login node."""
        return looking.platform_of(self._facts)

    @property
    def machine(self) -> str:
        """Its processor, such as ``x86_64``."""
        return str(self._facts["machine"])

    @cached_property
    def interpreters(self) -> tuple[Interpreter, ...]:
        """The Pythons that the login node has on its PATH, newest first."""
        return looking.interpreters_of(self._facts)

    @property
    def virtual_packages(self) -> Mapping[str, str]:
        """What conda packages may ask of the nodes: its C library, its kernel, the plainest processor, and its GPU driver's CUDA."""
        kernel = _NUMBER.match(str(self._facts.get("kernel", "")))
        cuda = self.environ.get("CONDA_OVERRIDE_CUDA", str(self._facts.get("cuda", "")))
        found = {"__unix": "0", "__linux": kernel[0] if kernel else "0", "__archspec": "1"}
        found |= {"__glibc": str(self._facts["glibc"])} if self._facts["glibc"] else {}
        return {**found, "__cuda": cuda} if cuda else found

    @property
    def has_own_programs(self) -> bool:
        """They are this machine's."""
        return False

    def uv_arguments(self, interpreter: Interpreter | None) -> tuple[str, ...]:
        """The platform, where it is not this machine's, and the version of a Python that has no twin here.

        Raises PreparationError for a platform that uv has no name for.
        """
        version: tuple[str, ...] = ()
        if interpreter is not None and not self.starts(interpreter):
            version = ("--python-version", interpreter.version_text)
        return (*self._platform_argument, *version)

    @property
    def _platform_argument(self) -> tuple[str, ...]:
        if self.platform == platform_name():
            return ()
        glibc = glibc_of(self.platform)
        known = [minor for minor in _MANYLINUX if (2, minor) <= glibc]
        if not known or self.machine not in ("x86_64", "aarch64"):
            raise PreparationError(
                f"packages can't be chosen from here for {self.name}: it is {self.platform}",
                "Submit from the login node, or name an image.",
            )
        return ("--python-platform", f"{self.machine}-manylinux_2_{known[-1]}")

    @property
    def takes_what_is_built_here(self) -> bool:
        """Whether what this machine's compilers make runs there: on the same processor, with a C library that is not older."""
        return runs_on(platform_name(), self.platform)

    def require_same_processor(self) -> None:
        """Raise PreparationError where a Python from a channel could not be started here, which making its prefix takes."""
        if self.machine != os.uname().machine:
            raise PreparationError(
                f"environments with a Python from a conda channel are made on machines like those that use them; {self.name} "
                f"is {self.machine}, and this machine {os.uname().machine}",
                "Submit from the login node, leave `channels:` out, or name an image.",
            )

    def final(self, prefix: Path) -> Path:
        """Where it is sent: a directory of its key."""
        return self.directory / "prefixes" / prefix.name

    def has(self, interpreter: Mapping[str, object]) -> bool:
        """Whether the login node has that Python, at that path, still; and no twin of it has come, where there was none."""
        kept = dict(interpreter)
        had_twin = kept.pop("twin", None)
        return any(kept == self._told_of(one) and (had_twin or not self.starts(one)) for one in self.interpreters)

    def identity_of(self, interpreter: Interpreter) -> Mapping[str, object]:
        """Its path and version, and where; and whether it has a twin here."""
        return {**self._told_of(interpreter), "twin": self.starts(interpreter)}

    def _told_of(self, interpreter: Interpreter) -> dict[str, object]:
        return {"path": str(interpreter.path), "version": interpreter.version_text, "on": self.login.address}

    def starts(self, interpreter: Interpreter) -> bool:
        """Whether it has a twin here: a Python of the same minor version."""
        return self._twin(interpreter) is not None

    def builder(self, python: str, *, log: Callable[[str], None], progress: Callable[[str], None]) -> Place:  # noqa: ARG002
        """Itself: this machine's compilers. Raises PreparationError where what they make would not run there."""
        for one in self.interpreters:
            if str(one.path) == python and not self.starts(one):
                minor = _minor(one)
                raise PreparationError(
                    f"some of the packages come as source only, and building them for {self.name} takes a Python {minor} here",
                    f"Install it here: `uv python install {minor}`; or take them from a conda channel, or name an image.",
                )
        if not self.takes_what_is_built_here:
            raise self._refused("some of the packages come as source only")
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
        """Run a program here, with a Python of this machine for one of the login node's: its twin, or else another, for uv."""
        there = {str(one.path): one for one in self.interpreters}
        words = [str(self._stand_in(there[part]).path) if part in there else part for part in map(str, command)]
        return processes.run(words, environment=environment, cwd=cwd, on_line=on_line, holds=holds, stdin=stdin)

    def settle(self, stage: Path, interpreter: Interpreter | None) -> None:
        """Name the Python over there; see that nothing was compiled here that would not run there."""
        if not self.takes_what_is_built_here:
            for file in stage.glob("lib/python3*/site-packages/*.dist-info/WHEEL"):
                if _BUILT_HERE.search(file.read_text(encoding="utf-8", errors="replace")):
                    raise self._refused(f"{file.parent.name.removesuffix('.dist-info')} comes as source only")
        if interpreter is None:
            return
        minor, own = _minor(interpreter), _minor(self._stand_in(interpreter))
        if own != minor:
            (stage / "lib" / f"python{own}").rename(stage / "lib" / f"python{minor}")
            (stage / "bin" / f"python{own}").unlink()
            (stage / "bin" / f"python{minor}").symlink_to("python")
        link = stage / "bin" / "python"
        link.unlink()
        link.symlink_to(interpreter.path)
        file = stage / "pyvenv.cfg"
        text = re.sub(
            r"(?m)^home = .*$", lambda _: f"home = {interpreter.path.parent}", file.read_text(encoding="utf-8")
        )
        text = re.sub(r"(?m)^(version_info) = .*$", rf"\1 = {interpreter.version_text}", text)
        file.unlink()  # it may be a link to a cache
        file.write_text(text, encoding="utf-8")

    @cached_property
    def _local(self) -> tuple[Interpreter, ...]:
        machine = Machine()
        return (*machine.interpreters, *fetched.interpreters(self.store_root, machine))

    def _twin(self, interpreter: Interpreter) -> Interpreter | None:
        """The Python of this machine that makes just what one over there uses."""
        same = (
            one
            for one in self._local
            if (one.version[:2], one.cache_tag) == (interpreter.version[:2], interpreter.cache_tag)
        )
        return next(same, None)

    def _stand_in(self, interpreter: Interpreter) -> Interpreter:
        """The Python that uv is started with for one over there. Raises PreparationError where this machine has none at all."""
        if (found := self._twin(interpreter)) is not None or (found := next(iter(self._local), None)) is not None:
            return found
        raise PreparationError("this machine has no Python that tfjob can use", "Install one: `uv python install`.")

    def _refused(self, what: str) -> PreparationError:
        return PreparationError(
            f"{what}, and what is compiled here ({platform_name()}) would not run on {self.name} ({self.platform})",
            "Choose versions with wheels, take them from a conda channel, name an image, or submit from the login node.",
        )


def _minor(interpreter: Interpreter) -> str:
    return ".".join(map(str, interpreter.version[:2]))
