"""A user's Dockerfile built to an image: once for its content, by BuildKit where Docker's command line has it.

The image is found again by a tag made of all that goes in: the Dockerfile, the files of the context that
``.dockerignore`` leaves, the build arguments, and the images it is made of. Where these cannot all be known, the builder
is asked each time: its own cache is right.
"""

from __future__ import annotations

import contextlib
import errno
import os
import re
import shutil
import subprocess
import sys
from typing import TYPE_CHECKING

from tfjob.durable import digest_of
from tfjob.environments import processes
from tfjob.environments.building import Building
from tfjob.errors import PreparationError, TargetError
from tfjob.images import guarded
from tfjob.images.added import proxies
from tfjob.images.context import Context
from tfjob.images.dockerfile_text import line_of, parents
from tfjob.images.engine import address, connected, find_image, find_or_pull

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping
    from pathlib import Path

__all__ = ["build"]

_REPOSITORY = "tfjob/build"
_LINES_MAX = 8
# A registry's host, a path in lower case, a tag, a digest; also an image's id.
_REFERENCE = re.compile(
    r"(?:(?:[\w.-]+|\[[0-9a-fA-F:]+\])(?::\d+)?/)?[a-z0-9]+(?:[._/-]+[a-z0-9]+)*(?::\w[\w.-]{0,127})?(?:@\w+:[0-9a-f]{32,})?",
    re.ASCII,
)
_BUILDKIT_STEP = re.compile(r"#(\d+) \[(?:([^\]\s]+) )?(?:stage-\d+ )?(\d+)/(\d+)\] (.*)")
_BUILDKIT_LINE = re.compile(r"#(\d+) (?:[\d.]+ )?(.*)")
_CLASSIC_STEP = re.compile(r"Step (\d+)/(\d+) : (.*)")
_PARSE_LINE = re.compile(r"parse error (?:on )?line (\d+)|Dockerfile:(\d+)\b", re.IGNORECASE)
_NOT_OF_IMAGES = re.compile(r"parse error|stopped answering|no space left", re.IGNORECASE)
_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EROFS)
_NATIVE_BUILDKIT_BEFORE = 23


def build(
    dockerfile: Path,
    context: Path,
    arguments: Mapping[str, str],
    *,
    store_root: Path,
    log: Callable[[str], None],
    progress: Callable[[str], None],
) -> str:
    """Return the id of the image a Dockerfile makes, built unless the same was built before.

    Build arguments can be read from the image by anybody who has it: they are no place for secrets. Raises
    PreparationError with the instruction that failed and its line, TargetError when no engine answers.
    """
    try:
        files = Context.read(dockerfile, context, store_root)
        content = files.content(store_root)
    except (OSError, UnicodeDecodeError) as error:
        raise _unreadable(dockerfile, context, store_root, error) from error
    # Found or pulled before, by tfjob, so that an image of another content is noticed.
    from_images = _Parents()
    for one in parents(files.text, arguments, needed_only=True):
        from_images.find(one, log, progress)
    key = digest_of([files.text, content, sorted(arguments.items()), sorted(from_images.known.items())])[:32]
    tag = f"{_REPOSITORY}:{key}"
    found = find_image(tag) if from_images.all_known else None
    if found is None:
        try:
            folder = store_root / "building"
            folder.mkdir(parents=True, exist_ok=True)
            with Building(folder).holding(key, progress) as (work, holds):
                found = find_image(tag) if from_images.all_known else None
                if found is None:
                    building = _Building(
                        files, arguments=arguments, tag=tag, work=work, holds=holds, log=log, progress=progress
                    )
                    _build(building, from_images)
                    found = find_image(tag)
        except OSError as error:
            raise _unwritable(dockerfile, store_root, error) from error
    if found is None:
        raise PreparationError(f"the image of {dockerfile} was removed while it was made", "Submit again.")
    return str(found["Id"])


def _unwritable(dockerfile: Path, store_root: Path, error: OSError) -> PreparationError:
    return PreparationError(
        f"{dockerfile} could not be built: the store {store_root} cannot be written: {error.strerror or error}",
        "Free space in it, or make it writable, and submit again.",
    )


def _unreadable(
    dockerfile: Path, context: Path, store_root: Path, error: OSError | UnicodeDecodeError
) -> PreparationError:
    if isinstance(error, OSError) and (
        error.errno in _FULL or str(error.filename or "").startswith(f"{store_root / 'builds'}")
    ):
        return _unwritable(dockerfile, store_root, error)
    if isinstance(error, FileNotFoundError) and not dockerfile.exists():
        return PreparationError(
            f"there is no Dockerfile {dockerfile}", "Correct its path (`dockerfile:`), or write it."
        )
    if isinstance(error, FileNotFoundError | NotADirectoryError) and not context.is_dir():
        return PreparationError(
            f"there is no folder {context} to build {dockerfile} with", "Correct the path of the build context."
        )
    if isinstance(error, FileNotFoundError):
        return PreparationError(f"a file of {context} went away while it was read: {error}", "Submit again.")
    message = f"the Dockerfile {dockerfile} and its context {context} cannot be read: {error}"
    if isinstance(error, UnicodeDecodeError):
        return PreparationError(message, "Write the Dockerfile and `.dockerignore` in UTF-8.")
    return PreparationError(message, "Leave out what is not yours to read with a `.dockerignore` file.")


class _Parents:
    """The images a Dockerfile is made of: what the engine has of them, and what only the builder can tell."""

    def __init__(self) -> None:
        self.known: dict[str, str] = {}  # reference → id
        self.all_known = True
        self.missing: dict[str, PreparationError] = {}  # reference → why it cannot be had

    def find(self, reference: str, log: Callable[[str], None], progress: Callable[[str], None]) -> None:
        """Find an image, or pull it. What is no name of an image, or cannot be had, is left to the builder."""
        if _REFERENCE.fullmatch(reference) is None:
            self.all_known = False
            return
        try:
            self.known[reference] = find_or_pull(reference, log=log, progress=progress)
        except PreparationError as error:
            self.missing[reference] = error
            self.all_known = False
            return
        # What the image does in every build on it may be made of still other images.
        triggers = ((find_image(reference) or {}).get("Config") or {}).get("OnBuild") or []
        self.all_known &= not any("from=" in str(one) for one in triggers)

    def explains(self, said: str, step: str) -> PreparationError | None:
        """Return why an image cannot be had, when it is that which a builder failed for, with these words, at a step."""
        if _NOT_OF_IMAGES.search(said):
            return None
        named = [why for one, why in self.missing.items() if one in said]
        if not named and not re.match(r"FROM\b|$", step, re.IGNORECASE):
            return None
        return next(iter([*named, *self.missing.values()]), None)


def _build(building: _Building, from_images: _Parents) -> None:
    """Build by what there is to build with."""
    building.progress(f"building {building.dockerfile.name}")
    program = _buildkit()
    try:
        if program is not None:
            building.by_command_line(program)
        else:
            building.log("no Docker command line with BuildKit was found: the engine's classic builder is used")
            building.by_engine()
    except PreparationError as error:
        why = from_images.explains(error.message, building.failed_step)
        if why is not None:
            raise why from error
        raise


def _buildkit() -> str | None:
    """Return the first ``docker`` on PATH that can build with BuildKit; a new one needs a plugin that may be missing."""
    for folder in os.environ.get("PATH", os.defpath).split(os.pathsep):
        program = shutil.which("docker", path=folder) if folder else None
        if program is not None and _has_buildkit(program):
            return program
    return None


def _has_buildkit(program: str) -> bool:
    with contextlib.suppress(OSError):
        if subprocess.run([program, "buildx", "version"], check=False, capture_output=True).returncode == 0:
            return True
        command = [program, "version", "--format", "{{.Client.Version}}"]
        said = subprocess.run(command, check=False, capture_output=True, text=True, env=_environment()).stdout
        major = re.match(r"\d+", said)
        return major is not None and int(major[0]) < _NATIVE_BUILDKIT_BEFORE
    return False


def _environment() -> dict[str, str]:
    """Return the variables for Docker's command line: the same engine that everything else here talks to."""
    environment = {name: value for name, value in os.environ.items() if name != "DOCKER_CONTEXT"}
    return {**environment, "DOCKER_HOST": address(), "DOCKER_BUILDKIT": "1", "BUILDKIT_PROGRESS": "plain"}


class _Building:
    """One build: what the builder says is passed on, and kept for the message when it fails."""

    def __init__(
        self,
        context: Context,
        *,
        arguments: Mapping[str, str],
        tag: str,
        work: Path,
        holds: int,
        log: Callable[[str], None],
        progress: Callable[[str], None],
    ) -> None:
        self.context = context
        self.dockerfile = context.dockerfile
        self.arguments = {**proxies(os.environ), **arguments}
        self.tag = tag
        self.work = work  # an empty folder
        self.holds = holds  # the descriptor of the lock of this build
        self.log = log
        self.progress = progress
        self.step = ""  # the instruction under way, as the builder shows it
        self.lines: list[str] = []  # everything it said
        self.steps: dict[str, str] = {}  # BuildKit's: number of a vertex → instruction
        self.said: dict[str, list[str]] = {}  # BuildKit's: number of a vertex → what it printed
        self.failed = ""  # BuildKit's: number of the vertex that failed

    def by_command_line(self, program: str) -> None:
        """Build with BuildKit."""
        dockerfile = self.context.write_dockerfile(self.work)
        command = [program, "build", "--tag", self.tag, "--file", str(dockerfile.absolute())]
        command += ["--network=host"] if not _has_bridge() else []
        for name, value in self.arguments.items():
            command += ["--build-arg", f"{name}={value}"]
        command.append(str(self.context.folder.absolute()))
        code = processes.run(
            # It ends when this process is killed, and the engine ends a build whose client is gone.
            [sys.executable, "-I", "-S", guarded.__file__, str(os.getpid()), *command],
            environment=_environment(),
            cwd=self.context.folder,
            on_line=self._take,
            holds=self.holds,
        )
        if code:
            errors = [line for line in self.lines if re.search(r"\b(error|ERROR|failed)\b", line)]
            raise self._failure(errors[-1] if errors else f"docker build ended with {code}")

    def by_engine(self) -> None:
        """Build with the engine's classic builder."""
        from docker.errors import APIError  # noqa: PLC0415  # 100 ms, only for those who build

        archive = self.work / "context.tar"
        try:
            name = self.context.write_archive(archive)
        except (OSError, UnicodeDecodeError) as error:
            raise PreparationError(
                f"the context {self.context.folder} of {self.dockerfile} cannot be packed: {error}",
                "Submit again; leave out what changes meanwhile with a `.dockerignore` file.",
            ) from error
        with connected(f"build {self.dockerfile}", patient=True) as client, archive.open("rb") as file:
            try:
                stream = client.api.build(
                    fileobj=file,
                    custom_context=True,
                    dockerfile=name,
                    tag=self.tag,
                    rm=True,
                    forcerm=True,
                    decode=True,
                    buildargs=self.arguments,
                    network_mode=None if _has_bridge() else "host",
                )
                for message in stream:
                    for line in str(message.get("stream") or message.get("status") or "").splitlines():
                        self._take(line)
                    if said := message.get("error"):
                        raise self._failure(str(said))
            except APIError as error:
                raise self._failure(str(error.explanation or error)) from error

    @property
    def failed_step(self) -> str:
        """The instruction that failed, empty when it was none."""
        return self.steps.get(self.failed, self.step)

    def _take(self, line: str) -> None:
        self.lines.append(line)
        self.log(line)
        if (match := _CLASSIC_STEP.match(line)) is not None:
            self.step = match[3]
            self.progress(f"step {match[1]}/{match[2]}: {match[3]}")
        elif (match := _BUILDKIT_STEP.match(line)) is not None:
            self.steps[match[1]] = match[5]
            self.progress(f"step {match[3]}/{match[4]}: {match[5]}")
        elif (match := _BUILDKIT_LINE.match(line)) is not None:
            if match[2].startswith("ERROR"):
                self.failed = match[1]
            elif not match[2].startswith(("DONE", "CACHED", "sha256:")):
                self.said.setdefault(match[1], []).append(match[2])

    def _failure(self, reason: str) -> PreparationError:
        """Return the error for a build that failed: the instruction, where it stands, and its last words."""
        try:
            find_image(_REPOSITORY)
        except TargetError as error:
            return PreparationError(
                f"the Docker Engine at {address()} stopped answering while it built {self.dockerfile}", error.hint
            )
        reason = reason.strip().removeprefix("ERROR: ")
        step = self.failed_step
        last = self.said.get(self.failed, []) if self.steps else [] if not step else self._after_step(step)
        where = _PARSE_LINE.search("\n".join([*self.lines[-20:], reason]))
        number = (where[1] or where[2]) if where else line_of(self.context.text, step) if step else None
        place = f"{self.dockerfile}:{number}" if number else str(self.dockerfile)
        shown = f": {step}" if step and not (where and where[1]) else ""
        words = "".join(f"\n  {line}" for line in [*last[-_LINES_MAX:], reason])
        everything = "\n".join([*self.lines[-50:], reason]).lower()
        if "no space left on device" in everything:
            hint = "Free space in the Docker Engine's data root (`docker system df`, `docker image prune`)."
        elif not self.steps and not self.step and re.match(r"#\s*syntax\s*=", self.context.text):
            hint = "Its first line names a frontend that the engine must pull; without a registry, take that line out."
        else:
            hint = "Correct the Dockerfile or its context and submit again; the steps before are kept by the engine."
        return PreparationError(f"{place} could not be built{shown}{words}", hint)

    def _after_step(self, step: str) -> list[str]:
        at = max((number for number, line in enumerate(self.lines) if line.endswith(step)), default=-1)
        return [line for line in self.lines[at + 1 :] if line.strip() and not line.lstrip().startswith("--->")]


def _has_bridge() -> bool:
    """Whether the engine has its usual network; without, build steps use the machine's own."""
    with connected("list its networks") as client:
        # The engine's own filter also finds parts of names.
        return any(one["Name"] == "bridge" for one in client.api.networks())
