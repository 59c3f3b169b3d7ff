"""The image of a job on a node: found, loaded, fetched, or converted. Standard library only; any Python from 3.8; no tfjob.

tfjob has put the image as `docker save` writes it on the shared file system, by its content; or nothing, where it has no Docker
Engine, and the node's runtime is to fetch the image by its name. Podman and Docker load it into their own storage. Apptainer
and enroot run a file: the first node that needs it makes it beside the archive, once for all jobs and nodes.

A lock keeps others from making the same meanwhile. Where the file system has none, each makes its own, and the last one's stays:
it is there whole or not at all. Nothing here is waited for without a limit, and all of it can be given up.
"""

from __future__ import annotations

import errno
import fcntl
import hashlib
import json
import os
import shutil
import signal
import stat
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
LIMIT_S = 3 * 3600.0  # for a command that fetches or converts an image, and for another job that does
LOOK_S = 0.1
GRACE_S = 3.0  # for a command to clear up after itself
UNPACKED = "tfjob-image-"
LAST_LINES = 3
WHITEOUT, OPAQUE = ".wh.", ".wh..wh..opq"


class Trouble(Exception):
    """The container can't be made on this node; the text says why."""


class Images:
    """The images of one runtime on this node. `spec` is what the job says of its containers.

    `tell` hears of what takes long; `check` is called all the while, and raises to give up.
    """

    def __init__(
        self,
        runtime: str,
        program: str,
        *,
        spec: dict[str, Any],
        environ: dict[str, str],
        tell: Callable[[str], None],
        check: Callable[[], None],
    ) -> None:
        self.runtime, self.program = runtime, program
        self.spec, self.environ, self.tell, self.check = spec, environ, tell, check
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
            with Lock(path + ".lock", self.wait_for_another):
                if not os.path.exists(path):
                    remove_parts(path)
                    self.convert(path)
        return path

    def wait_for_another(self, waited_s: float) -> None:
        """Another job makes the file: what is done while its lock is waited for."""
        if not waited_s:
            self.tell(f"another job makes {self.called}'s file of the image")
        self.check()
        if waited_s > LIMIT_S:
            raise Trouble(f"another job has made {self.called}'s file of the image for {LIMIT_S / 3600:g} h")

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
        part = f"{path}.{os.uname().nodename}.{os.getpid()}"  # see remove_parts
        failed = f"{self.called} could not make its file of {what}"
        try:
            if self.runtime == "apptainer":
                source = "docker-archive:" + archive if archive else "docker://" + reference
                # Its cache, in the home directory, would hold the image once more.
                self.run([self.program, "build", "--disable-cache", part, source], failed)
            elif archive:
                with tempfile.TemporaryDirectory(prefix=unpacked_prefix()) as directory:
                    unpack(archive, directory, self.check)
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

    def lay_out(self, path: str, directory: str) -> str:
        """The image as a directory of this node's, for Apptainer; returns it."""
        self.tell(f"{self.called} unpacks the image")
        argv = [self.program, "build", "--disable-cache", "--sandbox", directory, path]
        self.run(argv, f"{self.called} could not unpack the image")
        return directory

    def run(self, argv: list[str], failed: str) -> str:
        """What a command says that takes its time. Raises Trouble, with what it said last, when it fails, or takes too long."""
        try:
            command = subprocess.Popen(
                argv,
                env=self.environ,
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT,
                start_new_session=True,  # it is ended with all that it started
            )
        except OSError as error:
            raise Trouble(f"{failed}: {argv[0]} can't be run: {error.strerror}") from None
        until = time.monotonic() + LIMIT_S
        try:
            while True:
                try:
                    said = command.communicate(timeout=LOOK_S)[0].decode("utf-8", "replace")
                    break
                except subprocess.TimeoutExpired:
                    self.check()
                    if time.monotonic() > until:
                        raise Trouble(f"{failed}: it took longer than {LIMIT_S / 3600:g} h") from None
        except BaseException:
            end(command)
            raise
        if command.returncode != 0:
            lines = [line.strip() for line in said.splitlines() if line.strip()]
            raise Trouble("{}: {}".format(failed, "; ".join(lines[-LAST_LINES:]) or "it did not say why"))
        return said


def end(command: subprocess.Popen[bytes]) -> None:
    """End a command and all that it started; it has a session of its own."""
    for number, wait_s in ((signal.SIGTERM, GRACE_S), (signal.SIGKILL, GRACE_S)):
        try:
            os.killpg(command.pid, number)
            command.wait(wait_s)
        except (ProcessLookupError, subprocess.TimeoutExpired):
            pass  # one that the kernel does not let go is left to it
    if command.stdout is not None:
        command.stdout.close()


def remove_parts(path: str) -> None:
    """Remove what was left of making the file `path` here by a process that was killed."""
    directory, name = os.path.split(path)
    start = f"{name}.{os.uname().nodename}."
    for entry in os.listdir(directory):
        if entry.startswith(start) and is_over(entry[len(start) :]):
            clear(os.path.join(directory, entry))


def unpacked_prefix() -> str:
    """How the directory begins into which this process unpacks an image. It names the node: TMPDIR may be one for all nodes."""
    return f"{UNPACKED}{os.uname().nodename}.{os.getpid()}-"


def remove_unpacked() -> None:
    """Remove what this user's killed processes have left of images that they unpacked on this node."""
    directory, start = tempfile.gettempdir(), f"{UNPACKED}{os.uname().nodename}."
    for entry in os.listdir(directory):
        if entry.startswith(start) and is_over(entry[len(start) :].partition("-")[0]):
            path = os.path.join(directory, entry)
            try:
                status = os.lstat(path)
                if status.st_uid == os.getuid() and stat.S_ISDIR(status.st_mode):
                    remove_tree(path)
            except OSError:
                pass  # somebody else removes it too


def remove_tree(directory: str) -> None:
    """Remove a directory with what an image had in it: directories that their owner may not write."""
    for top, names, _ in os.walk(directory):
        for name in names:
            path = os.path.join(top, name)
            try:
                if not os.path.islink(path):
                    os.chmod(path, 0o700)
            except OSError:
                pass  # it stays, as does what can't be removed
    if directory:
        shutil.rmtree(directory, ignore_errors=True)


def is_over(pid: str) -> bool:
    """Whether a process, whose number is in a name, is there no more."""
    if not pid.isdigit():
        return False
    try:
        os.kill(int(pid), 0)
    except ProcessLookupError:
        return True
    except (OSError, OverflowError):
        pass
    return False


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
        raise Trouble(f"the image in {archive} is damaged: {str(error) or type(error).__name__}") from error


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

    def __init__(self, path: str, wait: Callable[[float], None]) -> None:
        self.path, self.wait = path, wait

    def __enter__(self) -> None:
        """Take it. While another has it, `wait` is called with how long that has been, in seconds; it raises to give up."""
        self.file = open(self.path, "ab")
        began = None
        while True:
            try:
                fcntl.lockf(self.file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except OSError as error:
                if error.errno not in (errno.EACCES, errno.EAGAIN):
                    return  # a file system without locks
            else:
                return
            now = time.monotonic()
            began = now if began is None else began
            try:
                self.wait(now - began)
            except BaseException:
                self.file.close()
                raise
            time.sleep(LOOK_S)

    def __exit__(self, *_: object) -> None:
        self.file.close()
