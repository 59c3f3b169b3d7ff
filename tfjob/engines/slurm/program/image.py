"""The image of a job on a node: found, loaded, fetched, or converted. Standard library only; any Python from 3.8; no tfjob.

tfjob has put the image as `docker save` writes it on the shared file system, by its content; or nothing, where it has no Docker
Engine, and the node's runtime is to fetch the image by its name. Podman and Docker load it into their own storage. Apptainer
and enroot run a file: the first node that needs it makes it beside the archive, once for all jobs and nodes.

A lock keeps others from making the same meanwhile. Where the file system has none, each makes its own, and the last one's stays:
it is there whole or not at all.
"""

from __future__ import annotations

import fcntl
import hashlib
import json
import os
import shutil
import subprocess
import tarfile
import tempfile
import time

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import Any

    from tfjob.engines.slurm.program import runtimes
else:  # it lies beside this file
    import runtimes

PATIENCE_S = 30.0
LAST_LINES = 3
WHITEOUT, OPAQUE = ".wh.", ".wh..wh..opq"


class Trouble(Exception):
    """The container can't be made on this node; the text says why."""


class Images:
    """The images of one runtime on this node. `spec` is what the job says of its containers; `tell` hears of what takes long."""

    def __init__(
        self, runtime: str, program: str, *, spec: dict[str, Any], environ: dict[str, str], tell: Callable[[str], None]
    ) -> None:
        self.runtime, self.program = runtime, program
        self.spec, self.environ, self.tell = spec, environ, tell
        self.called = runtimes.CALLED[runtime]

    def make_ready(self) -> str:
        """See to it that the runtime can start the image; returns what it calls it. Raises Trouble, in the runtime's words."""
        if self.runtime in ("podman", "docker"):
            return self.stored()
        directory = self.spec["directory"]
        if not self.spec["archive"]:
            name = hashlib.sha256(self.spec["reference"].encode()).hexdigest()[:32]
            directory = os.path.join(directory, "named-" + name)
            os.makedirs(directory, exist_ok=True)
        try:
            os.utime(directory)  # by which `tfjob env prune` knows that it is used
        except OSError:
            pass
        path = os.path.join(directory, runtimes.FILES[self.runtime])
        if not os.path.exists(path):
            with Lock(path + ".lock"):
                if not os.path.exists(path):
                    self.convert(path)
        return path

    def stored(self) -> str:
        """The image in the storage of Podman or of a Docker Engine."""
        name: str = self.spec["image"] or self.spec["reference"]
        if self.has(name):
            return name
        if not self.spec["archive"]:
            self.tell(f"{self.called} fetches the image {name}")
            self.run([self.program, "pull", name], f"{self.called} could not fetch the image {name}")
            return name
        self.tell(f"{self.called} loads the image")
        load = [self.program, "load", "--input", self.spec["archive"]]
        said = self.run(load, f"{self.called} could not load the image")
        if self.has(name):
            return name
        found = said.rpartition("sha256:")[2].split()  # an engine that numbers images in another way
        if not found:
            raise Trouble(f"{self.called} has loaded the image {name}, and does not know it")
        return found[0]

    def has(self, name: str) -> bool:
        """Whether the runtime has an image."""
        return ask([self.program, "image", "inspect", "--format={{.Id}}", name], self.environ) is not None

    def convert(self, path: str) -> None:
        """Make the file that Apptainer or enroot runs."""
        archive, reference = self.spec["archive"], self.spec["reference"]
        what = reference if not archive else "the image"
        self.tell(f"{self.called} makes its file of {what}")
        part = f"{path}.{os.uname().nodename}.{os.getpid()}"
        failed = f"{self.called} could not make its file of {what}"
        try:
            if self.runtime == "apptainer":
                source = "docker-archive:" + archive if archive else "docker://" + reference
                self.run([self.program, "build", part, source], failed)
            elif archive:
                with tempfile.TemporaryDirectory(prefix="tfjob-image-") as directory:
                    unpack(archive, directory)
                    self.run(["mksquashfs", directory, part, "-all-root", "-no-progress", "-quiet"], failed)
            else:
                self.run([self.program, "import", "--output", part, "docker://" + registry(reference)], failed)
            os.rename(part, path)
        finally:
            if os.path.exists(part):
                os.unlink(part)

    def unpack(self, path: str, name: str) -> str:
        """A root file system of enroot's, as Pyxis makes them for a job; returns its name.

        Enroot can start an image file itself. What it mounts that with ends when Slurm signals a job (SIGCONT), before the
        tasks have had their grace.
        """
        self.tell(f"{self.called} unpacks the image")
        self.run([self.program, "create", "--name", name, path], f"{self.called} could not unpack the image")
        return name

    def run(self, argv: list[str], failed: str) -> str:
        """What a command says that takes its time. Raises Trouble, with what it said last, when it fails."""
        try:
            done = subprocess.run(
                argv,
                env=self.environ,
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT,
                check=False,
            )
        except OSError as error:
            raise Trouble(f"{failed}: {argv[0]} can't be run: {error.strerror}") from None
        said = done.stdout.decode("utf-8", "replace")
        if done.returncode != 0:
            lines = [line.strip() for line in said.splitlines() if line.strip()]
            raise Trouble("{}: {}".format(failed, "; ".join(lines[-LAST_LINES:]) or "it did not say why"))
        return said


def registry(reference: str) -> str:
    """The name of an image as enroot wants it: what comes before # is the registry (its documentation, "import")."""
    host, slash, rest = reference.partition("/")
    return f"{host}#{rest}" if slash and (set(host) & set(".:") or host == "localhost") else reference


def unpack(archive: str, directory: str, check: Callable[[], None] = lambda: None) -> None:
    """The files of an image as `docker save` writes it, its layers one over the other. `check` raises to give up.

    Owners and devices are left out: who unpacks is no root. Source: the OCI Image Format, "Image Layer Filesystem Changeset".
    Raises Trouble for what is no such image, OSError where a file can't be written.
    """
    try:
        with tarfile.open(archive) as outer:
            manifest = json.loads(read(outer, "manifest.json"))
            for layer in manifest[0]["Layers"]:
                file = outer.extractfile(layer)
                with tarfile.open(fileobj=file) as tar:
                    tar.extraction_filter = lambda member, _path: member  # `lay` has its own rules
                    for member in tar:
                        check()
                        lay(tar, member, directory)
    except (Trouble, OSError):
        raise
    except Exception as error:  # of tarfile, of what decompresses, of json: each has its own
        raise Trouble(f"the image in {archive} is damaged: {error or type(error).__name__}") from error


def lay(tar: tarfile.TarFile, member: tarfile.TarInfo, directory: str) -> None:
    """One entry of a layer over what is there. No name in it leads out of the directory."""
    parts = parts_of(member.name)
    if not parts:
        return
    parent, name = os.path.join(directory, *parts[:-1]), parts[-1]
    path = os.path.join(parent, name)
    hidden = name[len(WHITEOUT) :] if name.startswith(WHITEOUT) else None
    if not inside(parent, directory) or hidden in ("", ".", ".."):
        raise Trouble(f"the image has an entry outside of itself: {member.name}")
    if name == OPAQUE:
        for entry in os.listdir(parent) if os.path.isdir(parent) else ():
            clear(os.path.join(parent, entry))
    elif hidden is not None:
        clear(os.path.join(parent, hidden))
    elif member.islnk():
        link(os.path.join(directory, *parts_of(member.linkname)), path, directory)
    elif not (member.ischr() or member.isblk() or member.isfifo()):
        if not (member.isdir() and os.path.isdir(path) and not os.path.islink(path)):
            clear(path)
        member.name = "/".join(parts)  # extract() takes an absolute name as one of this machine
        member.mode = (member.mode or 0) | (0o700 if member.isdir() else 0o400)  # who packs it must be able to read
        tar.extract(member, directory, set_attrs=not member.issym())


def link(target: str, path: str, directory: str) -> None:
    """A hard link. The target may be a symbolic link itself: only where its name lies is looked at."""
    if not inside(os.path.dirname(target), directory):
        raise Trouble(f"the image has a link to what is outside of itself: {path}")
    if os.path.normpath(target) == os.path.normpath(path) or not os.path.lexists(target):
        return  # a device that was left out
    clear(path)
    os.makedirs(os.path.dirname(path), exist_ok=True)
    os.link(target, path, follow_symlinks=False)


def parts_of(name: str) -> list[str]:
    """The names on the way to an entry, from the image's root. Raises Trouble where one leads up again."""
    parts = [part for part in name.split("/") if part not in ("", ".")]
    if ".." in parts:
        raise Trouble(f"the image has an entry outside of itself: {name}")
    return parts


def inside(path: str, directory: str) -> bool:
    """Whether a path leads to a place in the directory, whatever links are on its way."""
    real, root = os.path.realpath(path), os.path.realpath(directory)
    return real == root or real.startswith(root + os.sep)


def clear(path: str) -> None:
    """Remove what is there."""
    if os.path.isdir(path) and not os.path.islink(path):
        shutil.rmtree(path)
    elif os.path.lexists(path):
        os.unlink(path)


def read(tar: tarfile.TarFile, name: str) -> bytes:
    """A file of an archive."""
    file = tar.extractfile(name)
    return file.read() if file else b""


def ask(argv: list[str], environ: dict[str, str]) -> str | None:
    """What a command says; None when it fails, or says nothing in time."""
    try:
        done = subprocess.run(
            argv,
            env=environ,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            timeout=PATIENCE_S,
            check=False,
        )
    except (OSError, subprocess.TimeoutExpired):
        return None
    return done.stdout.decode("utf-8", "replace") if done.returncode == 0 else None


class Lock:
    """A lock between nodes: of a file, by the file server (fcntl(2), which NFS knows; flock(2) is not the same everywhere)."""

    def __init__(self, path: str) -> None:
        self.path = path

    def __enter__(self) -> None:
        self.file = open(self.path, "ab")
        try:
            fcntl.lockf(self.file, fcntl.LOCK_EX)
        except OSError:
            time.sleep(0)  # a file system without locks

    def __exit__(self, *_: object) -> None:
        self.file.close()
