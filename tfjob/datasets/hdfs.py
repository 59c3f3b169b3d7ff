"""Files of HDFS: a file system for fsspec over hdfs-native, a client that needs neither Java nor Hadoop's libraries.

Which NameNodes there are, and how they prove who they are, stands in Hadoop's own files below HADOOP_CONF_DIR or
HADOOP_HOME/etc/hadoop; who we are, in HADOOP_USER_NAME or in a ticket of Kerberos (hdfs-native's documentation).
The file system that comes with hdfs-native takes ``#`` and ``?`` in a file's name for the end of it, and can't go on in
the middle of a file.
"""

from __future__ import annotations

import errno
import functools
import itertools
import queue
import re
import threading
from collections.abc import Callable, Iterable, Iterator
from typing import Any, Final, Self

from tfjob.errors import PreparationError
from tfjob.spec.addresses import shown_address

__all__ = ["hdfs_file_system"]

TIMEOUT_S = 30.0
"""So long an answer of a NameNode, or of a DataNode, is waited for."""
_AT_ONCE: Final = 100

_SETTINGS: Final = {
    # Its own 15 attempts take three minutes; what fails for longer is tried again by who fetches.
    "dfs.client.failover.max.attempts": "4",
    "dfs.client.failover.sleep.base.millis": "200",
    "dfs.client.failover.sleep.max.millis": "2000",
    "dfs.client.socket-timeout": str(int(TIMEOUT_S * 1000)),
}
_START: Final = "hdfs://"
_OF_SERVER: Final = re.compile(r'(?:Fatal)?RPCError\("(?P<kind>[\w.$]*)", "(?P<text>.*)"\)', re.DOTALL)
_DENIED: Final = "AccessControlException"
_NO_FOLDER: Final = "(is not a directory)"
_NO_DATA: Final = ("DataTransferError", "BlocksNotFound")
_KERBEROS: Final = ("NoSASLMechanism", "SASLError", "GSSAPIError")


def hdfs_file_system(address: str) -> tuple[Any, str]:
    """The file system that an address is on, and its path there.

    Raises ImportError when hdfs-native or fsspec is missing, and PreparationError for a name service that nobody knows.
    """
    place, _, path = address[len(_START) :].partition("/")
    return _kind()(place), f"/{path.strip('/')}"


@functools.cache
def _kind() -> Any:
    from fsspec.spec import AbstractFileSystem  # noqa: PLC0415  # it may be missing

    class Hdfs(AbstractFileSystem):  # type: ignore[misc]  # the package has no types
        """What one NameNode, or one name service, has."""

        protocol = "hdfs"
        root_marker = "/"
        cachable = False

        def __init__(self, place: str) -> None:
            super().__init__()
            self.client = _client(place)

        def info(self, path: str, **_: Any) -> dict[str, Any]:
            return _facts(_answer(lambda: self.client.get_file_info(path)))

        def ls(self, path: str, detail: bool = True, **_: Any) -> list[Any]:
            found = [_facts(one) for one in _answers(lambda: self.client.list_status(path))]
            return found if detail else [one["name"] for one in found]

        def walk(self, path: str, maxdepth: int | None = None, **options: Any) -> Any:
            """Raises what keeps a directory from being listed. fsspec's own leaves such a directory out."""
            return super().walk(path, maxdepth, **{**options, "on_error": "raise"})

        def _open(self, path: str, mode: str = "rb", **_: Any) -> Any:  # noqa: ARG002  # only read
            return _Reader(_answer(lambda: self.client.read(path)))

    return Hdfs


class _Reader:
    """A file that is read."""

    def __init__(self, inner: Any) -> None:
        self._inner = inner

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        pass

    def seek(self, offset: int) -> None:
        self._inner.seek(offset)

    def read(self, size: int = -1) -> bytes:
        """The next bytes. A DataNode that hangs is given up by the client itself."""
        try:
            return bytes(self._inner.read(size))
        except Exception as error:
            raise _in_our_terms(error) from error


@functools.cache
def _client(place: str) -> Any:
    """One connection for all threads."""
    from hdfs_native import Client  # noqa: PLC0415  # it may be missing

    try:
        return Client(_START + place, dict(_SETTINGS))
    except RuntimeError as error:
        if "No NameNode hosts" in str(error):
            message = f"no file of Hadoop's says where the name service {place} is"
            hint = "Set HADOOP_CONF_DIR to the directory of core-site.xml and hdfs-site.xml"
            host = "" if ":" in place else f", or name a NameNode with its port: {_START}{place}:8020/PATH"
            raise PreparationError(message, f"{hint}{host}.") from error
        if "fs.defaultFS" in str(error):
            raise PreparationError(
                f"{_START}/PATH names no NameNode, and no file of Hadoop's says which is the usual one (fs.defaultFS)",
                f"Set HADOOP_CONF_DIR to the directory of core-site.xml, or name it: {_START}HOST:8020/PATH.",
            ) from error
        raise PreparationError(f"{shown_address(_START + place)} can't be asked: {error}", "") from error


def _facts(status: Any) -> dict[str, Any]:
    return {
        "name": str(status.path),
        "size": int(status.length),
        "type": "directory" if status.isdir else "file",
        "mtime": int(status.modification_time),
    }


def _answer(ask: Callable[[], Any]) -> Any:
    """What a NameNode answers. The client itself waits for ever for one that hangs."""
    return next(_answers(lambda: [ask()]))


def _answers(ask: Callable[[], Iterable[Any]]) -> Iterator[Any]:
    """The same where it answers one thing after the other, as a large directory comes in parts: each is waited for anew."""
    said: queue.SimpleQueue[tuple[list[Any], bool] | Exception] = queue.SimpleQueue()

    def work() -> None:
        try:
            answers = iter(ask())
            while some := list(itertools.islice(answers, _AT_ONCE)):
                said.put((some, False))
            said.put(([], True))
        except Exception as error:  # noqa: BLE001  # raised again below
            said.put(error)

    threading.Thread(target=work, daemon=True).start()
    is_all = False
    while not is_all:
        try:
            answer = said.get(timeout=TIMEOUT_S)
        except queue.Empty:
            raise TimeoutError(f"the NameNode has said nothing for {TIMEOUT_S:g} s") from None
        if isinstance(answer, Exception):
            raise _in_our_terms(answer) from answer
        some, is_all = answer
        yield from some


def _in_our_terms(error: Exception) -> Exception:
    """An error of the client's: nearly all of them are a RuntimeError that shows a value of Rust's."""
    if isinstance(error, FileNotFoundError):
        return FileNotFoundError(errno.ENOENT, "no such file")
    if isinstance(error, OSError):
        return OSError(str(error).partition(" (os error")[0].partition("\n")[0])
    text = str(error)
    if (found := _OF_SERVER.match(text)) is not None:
        return _of_server(found["kind"], found["text"].partition(r"\n")[0].replace(r"\"", '"'))
    if text.startswith(_KERBEROS):
        kind = text.partition("(")[0]
        return PermissionError(
            f"it wants a proof by Kerberos, and there is none that it takes ({kind}); see klist and kinit"
        )
    return OSError("none of its DataNodes gives it" if text.startswith(_NO_DATA) else text)


def _of_server(kind: str, said: str) -> Exception:
    """An error of the server's: the class of Java's, and the first line of what it says."""
    if _NO_FOLDER in said:
        return NotADirectoryError(errno.ENOTDIR, said)
    return PermissionError(said) if kind.endswith(_DENIED) else OSError(said)
