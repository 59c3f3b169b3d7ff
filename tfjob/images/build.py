"""A user's Dockerfile built to an image: once for its content, by BuildKit where Docker's command line has it.

The image is found again by a tag made of all that goes in: the Dockerfile, the files of the context that
``.dockerignore`` leaves, the build arguments, and the images it starts from.
"""

from __future__ import annotations

import contextlib
import os
import re
import shutil
import subprocess
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tfjob.durable import digest_of, file_digest, replace_json
from tfjob.environments import processes
from tfjob.environments.prefix import read_json
from tfjob.errors import PreparationError, TargetError
from tfjob.images.added import proxies
from tfjob.images.dockerfile_text import line_of, parents
from tfjob.images.engine import address, connected, find_image, find_or_pull

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

__all__ = ["build"]

_REPOSITORY = "tfjob/build"
_LINES_MAX = 8
# The builder's words and the program's go to one place, stderr, in their order.
_TO_STDERR = ("/bin/sh", "-c", 'exec "$@" >&2', "sh")
_BUILDKIT_STEP = re.compile(r"#(\d+) \[(?:([^\]\s]+) )?(?:stage-\d+ )?(\d+)/(\d+)\] (.*)")
_BUILDKIT_LINE = re.compile(r"#(\d+) (?:[\d.]+ )?(.*)")
_CLASSIC_STEP = re.compile(r"Step (\d+)/(\d+) : (.*)")
_PARSE_LINE = re.compile(r"parse error (?:on )?line (\d+)|Dockerfile:(\d+)\b", re.IGNORECASE)
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
        text = dockerfile.read_text(encoding="utf-8")
        content = _content(dockerfile, context, store_root)
    except (OSError, UnicodeDecodeError) as error:
        raise PreparationError(
            f"the Dockerfile {dockerfile} and its context {context} cannot be read: {error}",
            "Leave out what is not yours to read with a `.dockerignore` file.",
        ) from error
    # Found or pulled before, by tfjob, so that a missing image is explained and an image of another content is noticed.
    from_images = {one: find_or_pull(one, log=log, progress=progress) for one in parents(text, arguments)}
    key = digest_of([text, content, sorted(arguments.items()), sorted(from_images.items())])[:32]
    tag = f"{_REPOSITORY}:{key}"
    found = find_image(tag)
    if found is None:
        progress(f"building {dockerfile.name}")
        building = _Building(dockerfile, text, log, progress)
        program = _buildkit()
        if program is not None:
            building.by_command_line(program, context, arguments, tag)
        else:
            log("no Docker command line with BuildKit was found: the engine's classic builder is used")
            building.by_engine(context, arguments, tag)
        found = find_image(tag)
    if found is None:
        raise PreparationError(f"the image of {dockerfile} was removed while it was made", "Submit again.")
    return str(found["Id"])


def _content(dockerfile: Path, context: Path, store_root: Path) -> list[list[str]]:
    """Return each file of the context that is sent, by its path, kind and digest; one not touched is not read again."""
    from docker.utils.build import exclude_paths  # noqa: PLC0415  # 100 ms, only for those who build

    ignore = dockerfile.with_name(f"{dockerfile.name}.dockerignore")
    ignore = ignore if ignore.exists() else context / ".dockerignore"
    patterns = ignore.read_text(encoding="utf-8").splitlines() if ignore.exists() else []
    patterns = [line.strip() for line in patterns if line.strip() and not line.startswith("#")]
    patterns += [".tfjob", "**/.tfjob"]  # a workspace changes with every run, and is nothing an image is made of
    kept = store_root / "builds" / f"{digest_of(str(context.absolute()))[:32]}.json"
    before = read_json(kept) or {}
    now: dict[str, list[Any]] = {}
    found: list[list[str]] = []
    for relative in sorted(exclude_paths(str(context), patterns)):
        path = context / relative
        status = path.lstat()
        program = "program" if status.st_mode & 0o111 else "file"
        if path.is_symlink():
            found.append([relative, "link", os.readlink(path)])
        elif path.is_dir():
            found.append([relative, "folder"])
        elif path.is_file():
            seen = [status.st_ino, status.st_size, status.st_mtime_ns, status.st_ctime_ns]
            known = before.get(relative, [])
            now[relative] = known if known[:4] == seen else [*seen, file_digest(path)]
            found.append([relative, program, now[relative][4]])
    if now != before:
        kept.parent.mkdir(parents=True, exist_ok=True)
        replace_json(kept, now, force=False)
    return found


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
        self, dockerfile: Path, text: str, log: Callable[[str], None], progress: Callable[[str], None]
    ) -> None:
        self.dockerfile = dockerfile
        self.text = text
        self.log = log
        self.progress = progress
        self.step = ""  # the instruction under way, as the builder shows it
        self.lines: list[str] = []  # everything it said
        self.steps: dict[str, str] = {}  # BuildKit's: number of a vertex → instruction
        self.said: dict[str, list[str]] = {}  # BuildKit's: number of a vertex → what it printed
        self.failed = ""  # BuildKit's: number of the vertex that failed

    def by_command_line(self, program: str, context: Path, arguments: Mapping[str, str], tag: str) -> None:
        """Build with BuildKit."""
        command = [program, "build", "--tag", tag, "--file", str(self.dockerfile.absolute())]
        command += ["--network=host"] if not _has_bridge() else []
        for name, value in {**proxies(os.environ), **arguments}.items():
            command += ["--build-arg", f"{name}={value}"]
        command.append(str(context.absolute()))
        with Path(os.devnull).open() as nothing:
            code = processes.run(
                [*_TO_STDERR, *command],
                environment=_environment(),
                cwd=context,
                on_line=self._take,
                holds=nothing.fileno(),
            )
        if code:
            errors = [line for line in self.lines if re.search(r"\b(error|ERROR|failed)\b", line)]
            raise self._failure(errors[-1] if errors else f"docker build ended with {code}")

    def by_engine(self, context: Path, arguments: Mapping[str, str], tag: str) -> None:
        """Build with the engine's classic builder."""
        from docker.errors import APIError  # noqa: PLC0415  # 100 ms, only for those who build

        with connected(f"build {self.dockerfile}", patient=True) as client:
            try:
                stream = client.api.build(
                    path=str(context.absolute()),
                    dockerfile=str(self.dockerfile.absolute()),
                    tag=tag,
                    rm=True,
                    forcerm=True,
                    decode=True,
                    buildargs={**proxies(os.environ), **arguments},
                    network_mode=None if _has_bridge() else "host",
                )
                for message in stream:
                    for line in str(message.get("stream") or message.get("status") or "").splitlines():
                        self._take(line)
                    if said := message.get("error"):
                        raise self._failure(str(said))
            except APIError as error:
                raise self._failure(str(error.explanation or error)) from error

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
        step = self.steps.get(self.failed, self.step)
        last = self.said.get(self.failed, []) if self.steps else [] if not step else self._after_step(step)
        where = _PARSE_LINE.search("\n".join([*self.lines[-20:], reason]))
        number = (where[1] or where[2]) if where else line_of(self.text, step) if step else None
        place = f"{self.dockerfile}:{number}" if number else str(self.dockerfile)
        shown = f": {step}" if step and not (where and where[1]) else ""
        words = "".join(f"\n  {line}" for line in [*last[-_LINES_MAX:], reason])
        everything = "\n".join([*self.lines[-50:], reason]).lower()
        if "no space left on device" in everything:
            hint = "Free space in the Docker Engine's data root (`docker system df`, `docker image prune`)."
        elif not self.steps and not self.step and re.match(r"#\s*syntax\s*=", self.text):
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
        return bool(client.api.networks(names=["bridge"]))
