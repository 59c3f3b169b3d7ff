"""Objects of the cache made of small contents that are in memory, by the program that fetches them (`small_files.py`).

A file is made without a name, written, and only then linked to its name: one change of a directory for each, and who is killed
leaves nothing. Where a file system has no files without a name (NFS, FUSE, old overlays), it is made below ``partial`` and renamed.
"""

from __future__ import annotations

import errno
import os

TYPE_CHECKING = False  # typing.TYPE_CHECKING, without importing typing
if TYPE_CHECKING:
    from collections.abc import Callable

_OBJECT = 0o444
_DEFAULT_ACL = "system.posix_acl_default"
_OWN_FILES = "/proc/self/fd"
_NAMELESS = os.O_RDWR | os.O_TMPFILE | os.O_CLOEXEC
_NAMED = os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC
_FULL = (errno.ENOSPC, errno.EDQUOT)


class Objects:
    """The objects of the cache in the working directory. All it makes can be read by everybody: it takes the umask to 0."""

    def __init__(self, time_ns: int) -> None:
        """`time_ns` is the time of change that says that an object is whole."""
        self._times = (time_ns, time_ns)
        self._directory_mode = 0o777 & ~os.umask(0)
        self._directories: dict[str, int] = {}
        self._with_acl: set[int] = set()  # of these, the ones that may take readers from a file that is made in them
        self._unique = os.urandom(8).hex()
        self._descriptors = -1
        self.keep: Callable[[str, bytes], None] = self._keep_named
        try:
            self._descriptors = os.open(_OWN_FILES, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
            self.keep = self._keep_nameless
        except OSError:
            pass

    def _keep_nameless(self, sha256: str, body: bytes) -> None:
        """Have the content among the objects. Raises OSError."""
        try:
            directory = self._directories.get(sha256[:2]) or self._open(sha256[:2])
            file = os.open(".", _NAMELESS, _OBJECT, dir_fd=directory)
            try:
                self._fill(file, body)
                if directory in self._with_acl:
                    os.fchmod(file, _OBJECT)
                os.link(f"{file}", sha256, src_dir_fd=self._descriptors, dst_dir_fd=directory, follow_symlinks=True)
            finally:
                os.close(file)
        except FileExistsError:
            if not self._is_whole(sha256, len(body)):
                self._keep_named(sha256, body)
        except OSError as error:
            if error.errno in _FULL:
                raise
            self._change()
            self._keep_named(sha256, body)

    def _change(self) -> None:
        """Go the other way from now on: it is the file system that can't do it, or there are no more descriptors."""
        self.keep = self._keep_named
        for descriptor in self._directories.values():
            os.close(descriptor)
        self._directories.clear()

    def _keep_named(self, sha256: str, body: bytes) -> None:
        """Have the content among the objects by way of a name that nobody else uses. Raises OSError."""
        path, partial = f"objects/{sha256[:2]}/{sha256}", f"partial/{sha256[:40]}-{self._unique}"
        file = os.open(partial, _NAMED, 0o644)
        try:
            try:
                self._fill(file, body)
                os.fchmod(file, _OBJECT)
            finally:
                os.close(file)
            try:
                os.rename(partial, path)
            except FileNotFoundError:
                self._make_directory(sha256[:2])
                os.rename(partial, path)
        except OSError:
            try:  # noqa: SIM105  # contextlib takes 4 ms to load
                os.unlink(partial)
            except OSError:
                pass
            raise

    def _fill(self, file: int, body: bytes) -> None:
        if os.write(file, body) != len(body):
            raise OSError(errno.ENOSPC, "No space left on device")
        os.utime(file, ns=self._times)

    def _is_whole(self, sha256: str, size: int) -> bool:
        """Whether an object is there and nobody has written to it since it was made."""
        try:
            status = os.stat(f"objects/{sha256[:2]}/{sha256}")
        except FileNotFoundError:
            return False
        return status.st_size == size and status.st_mtime_ns == self._times[0]

    def _open(self, name: str) -> int:
        """The descriptor of a directory of objects, made if it is not there; kept for all that will lie in it."""
        flags = os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC
        try:
            directory = os.open(f"objects/{name}", flags)
        except FileNotFoundError:
            self._make_directory(name)
            directory = os.open(f"objects/{name}", flags)
        self._directories[name] = directory
        try:
            os.getxattr(directory, _DEFAULT_ACL)
            self._with_acl.add(directory)
        except OSError:  # it has none, as nearly always
            pass
        return directory

    def _make_directory(self, name: str) -> None:
        try:  # noqa: SIM105  # the same
            os.mkdir(f"objects/{name}", self._directory_mode)
        except FileExistsError:
            pass
