"""Object stores and file servers, by fsspec: what an address names there, and one file of it into the cache.

Each kind of store needs a package of its own; one that is missing is named with what to install. Credentials are those
that the packages find by themselves: variables of the shell, and their own files.
"""

from __future__ import annotations

import logging
import posixpath
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, Final

from tfjob.datasets.files import Remote
from tfjob.datasets.sftp import UnreachableError
from tfjob.datasets.wanted import changed, lost
from tfjob.datasets.web import Transient
from tfjob.datasets.web_fetch import Sink
from tfjob.errors import PreparationError, TfjobError
from tfjob.spec.addresses import scheme_of, shown_address

if TYPE_CHECKING:
    from collections.abc import Iterator

    from tfjob.datasets.index import Known
    from tfjob.datasets.wanted import Partial, Transfer, Wanted

__all__ = ["PACKAGES", "StoreFetcher", "list_store", "signed_address"]

PACKAGES: Final = {
    "s3": ("s3", "s3fs"),
    "gs": ("gs", "gcsfs"),
    "az": ("az", "adlfs"),
    "abfs": ("az", "adlfs"),
    "abfss": ("az", "adlfs"),
    "sftp": ("sftp", "fsspec and paramiko"),
    "hdfs": ("hdfs", "fsspec and hdfs-native"),
}
"""Scheme → the extra of tfjob that reads it, and the packages in it."""

_BLOCK_BYTES: Final = 8 << 20
_KINDS: Final = {
    "NoCredentialsError": "no credentials were found",
    "PartialCredentialsError": "the credentials are not complete",
    "EndpointConnectionError": "the store can't be reached",
}
_OF_ACCOUNTS: Final = ("az", "abfs", "abfss")
_ACCOUNT: Final = ".dfs.core.windows.net"
"""Of a host that is an account; its container is then the first part of the path (adlfs)."""
_TALKATIVE: Final = ("adlfs", "azure", "fsspec", "gcsfs", "paramiko", "s3fs")
"""Libraries that log what they then raise, with a traceback. Where nobody has set up logging, that went to stderr."""
_NOWHERE: Final = logging.NullHandler()
_GONE: Final = (FileNotFoundError, NotADirectoryError)


def list_store(address: str) -> list[Remote]:
    """The files that an address of a store names, as they are now: a file, all below a directory, or the matches of a glob.

    Raises PreparationError when there are none, when the store can't be asked, and when its package is missing.
    """
    shown = shown_address(address)
    files, path = _file_system(address)
    try:
        found = list(_found(files, path))
    except TfjobError:  # Ctrl-C, too
        raise
    except Exception as error:
        raise _in_words(error, shown) from error
    if not found:
        raise PreparationError(
            f"there is no file {shown}", "Check the address, and whether the credentials in this shell may see it."
        )
    return [
        Remote(_full(address, str(facts["name"])), name, int(facts.get("size") or 0), f"tag:{_tag(facts)}")
        for facts, name in found
    ]


def _full(address: str, path_there: str) -> str:
    """The address of a file that was found by `address`, on the same server and in the same account."""
    start, _, rest = address.partition("://")
    scheme, place = start.lower(), rest.partition("/")[0]
    if scheme == "sftp":
        return f"{start}://{place}{path_there.replace('%', '%25')}"
    if scheme == "hdfs":
        return f"{start}://{place}{path_there}"
    container, _, key = path_there.partition("/")
    if scheme in _OF_ACCOUNTS and "@" in place:  # CONTAINER@ACCOUNT
        return f"{start}://{place}/{key}"
    if scheme in _OF_ACCOUNTS and place.endswith(_ACCOUNT):
        return f"{start}://{place}/{container}/{key}"
    return f"{start}://{path_there}"


def signed_address(address: str, life_s: int) -> str | None:
    """An address of the web by which anybody can read a file of a store for a while; None where the store signs none for us."""
    files, path = _file_system(address)
    try:
        signed = str(files.sign(path, expiration=life_s))
    except Exception:  # noqa: BLE001  # no credentials, or none that can sign: each library has its own errors
        return None
    return signed if signed.startswith(("https://", "http://")) else None


class StoreFetcher:
    """Fetches files of stores for one thread."""

    def abort(self) -> None:
        """Nothing: a store's library is not interrupted; between two blocks it is asked whether to go on."""

    def fetch(self, wanted: Wanted, known: Known | None, transfer: Transfer, partial: Partial) -> Known:  # noqa: ARG002  # a listing says all
        """Have the file among the cache's objects; see `tfjob.datasets.wanted.Fetcher`."""
        tag = wanted.mark.removeprefix("tag:") if wanted.mark.startswith("tag:") else ""
        sink = Sink(wanted, transfer, partial)
        try:
            try:
                files, path = _file_system(wanted.source)
            except UnreachableError as error:
                raise Transient(error.message) from error
            start = sink.size if sink.size and sink.tag == tag and sink.size <= wanted.size else 0
            if start or not _is_small(wanted):  # what is there must not be added to by another content
                _refuse_changed(files, path, wanted, tag, sink)
            sink.begin(start, wanted.size if wanted.size >= 0 else None, tag)
            sink.size = start
            for data in _blocks(files, path, start, wanted):
                sink.write(data)
                if transfer.stop.is_set():
                    raise Transient("stopped")
            if tag or wanted.size not in (-1, sink.size):  # what came may not be what was listed
                _refuse_changed(files, path, wanted, tag, sink)
            if wanted.size not in (-1, sink.size):
                raise Transient(f"{sink.size} of {wanted.size} bytes came")
            return sink.finish(tag)
        finally:
            sink.close()


def _blocks(files: Any, path: str, start: int, wanted: Wanted) -> Iterator[bytes]:
    """The content from `start` on. A small file comes at once."""
    with _told_of(wanted):
        if start == 0 and _is_small(wanted):
            yield files.cat_file(path)
            return
        with files.open(path, "rb", block_size=_BLOCK_BYTES) as file:
            file.seek(start)
            if hasattr(file, "prefetch") and wanted.size > 0:  # SFTP: ask for all of it, not for 32 KiB at a time
                file.prefetch(wanted.size)
            while data := file.read(_BLOCK_BYTES):
                yield data


def _is_small(wanted: Wanted) -> bool:
    return 0 <= wanted.size <= _BLOCK_BYTES


def _refuse_changed(files: Any, path: str, wanted: Wanted, tag: str, sink: Sink) -> None:
    """Refuse a file of which its store says something else than when it was listed. What came of it is thrown away.

    It is one more request for each file: of the libraries only that of S3 can read a content on the condition that it has a tag.
    """
    with _told_of(wanted):
        files.invalidate_cache()
        facts = files.info(path)
    size, now = facts.get("size"), _tag(facts)
    if size is not None and wanted.size not in (-1, size):
        how = f"it had {wanted.size} bytes and has {size}"
    elif tag and now.strip('"') != tag.strip('"'):  # some servers quote it in one answer and not in another
        how = f"its server called it {tag} and calls it {now or 'nothing'} now"
    else:
        return
    sink.discard()
    raise lost(wanted) if wanted.rerun_of else changed(wanted, how)


@contextmanager
def _told_of(wanted: Wanted) -> Iterator[None]:
    """Raise what a store's library raises as an error of ours: some of it may be over at the next try."""
    try:
        yield
    except TfjobError:
        raise
    except Exception as error:
        if isinstance(error, (PermissionError, *_GONE, ImportError)):
            raise _in_words(error, shown_address(wanted.source)) from error
        raise Transient(_reason(error)) from error


def _found(files: Any, path: str) -> Iterator[tuple[dict[str, Any], str]]:
    """What is found of every file, and its name in the dataset."""
    if any(letter in path for letter in "*?["):
        matches: dict[str, dict[str, Any]] = files.glob(path, detail=True)
        base = posixpath.dirname(path[: min(path.find(letter) for letter in "*?[" if letter in path)])
        for at, facts in sorted(matches.items()):
            if facts["type"] == "directory":
                yield from _below(files, at, base)
            else:
                yield _behind(files, at, facts), _relative(at, base)
        return
    facts = files.info(path)
    if facts["type"] != "directory":
        yield facts, posixpath.basename(facts["name"])
        return
    yield from _below(files, path, path)


def _below(files: Any, directory: str, base: str) -> Iterator[tuple[dict[str, Any], str]]:
    for at, facts in sorted(files.find(directory, detail=True).items()):
        if facts["type"] != "directory" and not at.endswith("/"):
            yield _behind(files, at, facts), _relative(at, base)


def _behind(files: Any, at: str, facts: dict[str, Any]) -> dict[str, Any]:
    """What a file is; of a link an SFTP server says what it is itself, and then gives what it leads to."""
    if facts["type"] != "link":
        return facts
    try:
        behind: dict[str, Any] = files.info(at)
    except _GONE as error:
        raise PreparationError(f"{at!r} is a link to nothing", "Remove it there, or name what is wanted.") from error
    if behind["type"] == "directory":
        raise PreparationError(
            f"{at!r} is a link to a directory; links to files are followed on a server", "Name the directory itself."
        )
    return {**behind, "name": facts["name"]}


def _relative(at: str, base: str) -> str:
    """The rest of a path behind `base`, as it stands: `..` and empty parts are letters in a key, and are refused as a file's name."""
    at = at.removeprefix("/")
    for above in dict.fromkeys(
        (base.strip("/"), posixpath.normpath(base).strip("/"))
    ):  # servers tidy up what they are asked
        if not above:
            return at
        if at.startswith(f"{above}/"):
            return at[len(above) + 1 :]
    raise PreparationError(f"the store says of {at!r} that it is in {base!r}", "Name the directory as the store does.")


def _tag(facts: dict[str, Any]) -> str:
    """What tells this content from another at the same place, as far as the store says."""
    for key in ("ETag", "etag", "md5Hash", "content_md5", "checksum"):
        if facts.get(key):
            return str(facts[key])
    for key in ("mtime", "LastModified", "last_modified", "updated", "modificationTime"):
        if facts.get(key) is not None:
            return f"{facts.get('size')} {facts[key]}"
    return ""


def _file_system(address: str) -> tuple[Any, str]:
    for name in _TALKATIVE:
        logging.getLogger(name).addHandler(_NOWHERE)
    scheme = scheme_of(address) or ""
    extra, packages = PACKAGES[scheme]
    try:
        import fsspec.core  # noqa: PLC0415  # only where it is needed, and it may be missing

        if scheme == "sftp":
            from tfjob.datasets.sftp import sftp_file_system  # noqa: PLC0415  # the same

            return sftp_file_system(address)
        if scheme == "hdfs":
            from tfjob.datasets.hdfs import hdfs_file_system  # noqa: PLC0415  # the same

            return hdfs_file_system(address)
        files: Any
        path: str
        files, path = fsspec.core.url_to_fs(address, **_options(scheme))
    except ImportError as error:
        raise PreparationError(
            f"{scheme}:// needs {packages}, which tfjob's Python does not have ({error})",
            f"Install it beside tfjob: pip install 'tfjob[{extra}]'",
        ) from error
    except TfjobError:
        raise
    except Exception as error:
        raise _in_words(error, shown_address(address)) from error
    return files, path


def _options(scheme: str) -> dict[str, Any]:
    """What each library must be told: not to keep listings, which would hide changes; and not to ask for the size of each file first."""
    if scheme not in {"s3", "gs"}:
        return {}
    options: dict[str, Any] = {"use_listings_cache": False, "skip_instance_cache": False}
    return {**options, "max_concurrency": 1} if scheme == "s3" else options


def _in_words(error: Exception, shown: str) -> PreparationError:
    """The error that a store's library raised, as one of ours."""
    if isinstance(error, _GONE):
        return PreparationError(f"there is no file {shown}", "Check the address.")
    if isinstance(error, PermissionError):
        return PreparationError(
            f"the store does not give {shown} to us: {error}",
            "Check the address, and that the credentials in this shell may read it.",
        )
    return PreparationError(
        f"{shown} can't be read: {_reason(error)}",
        "Check the address and the network; credentials are taken from where the store's own library looks for them.",
    )


def _reason(error: Exception) -> str:
    plain = type(error) in {OSError, TimeoutError}
    return _KINDS.get(type(error).__name__) or (str(error) if plain else f"{type(error).__name__}: {error}")
