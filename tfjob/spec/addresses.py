"""Addresses of data: which are read, what of them is refused, and what their files are called. Pure.

Of a web address the last part of the path is the file's name, as RFC 3986 has paths; the query is no part of it.
"""

from __future__ import annotations

import re
from urllib.parse import SplitResult, parse_qsl, unquote, urlsplit

from tfjob.spec.tree import quoted

__all__ = [
    "LONGEST_NAME",
    "MANY",
    "ODD_PARTS",
    "STORES",
    "WEB",
    "address_objection",
    "file_name",
    "is_web",
    "name_objection",
    "scheme_of",
    "shown_address",
]

WEB = ("https", "http")
STORES = ("s3", "gs", "az", "abfs", "abfss", "sftp", "hdfs")
"""Object stores and file servers, which have directories and globs; read by fsspec."""

MANY = 200
"""Web addresses that are asked at every use whether they have changed; more of them are asked once an hour."""

_SCHEME = re.compile(r"([A-Za-z][A-Za-z0-9+.-]*)://")
_GIT = re.compile(r"git\+|git@")
_SIGNED = {"sig", "signature", "x-amz-signature", "x-goog-signature", "x-amz-security-token", "token", "access_token"}
_CONTROL = re.compile(r"[\x00-\x20\x7f]")
_UNREADABLE = re.compile(r"[\x00-\x1f\x7f-\x9f]")

LONGEST_NAME = 255
"""Bytes of a name in a directory (NAME_MAX of Linux's file systems); a letter has up to four."""

ODD_PARTS = ("//", "/./", "/../")
"""What a name has between two slashes if a part of it is none of a path."""


def scheme_of(path: str) -> str | None:
    """Return the scheme of an address in lower case, such as ``https``; None for a path of this machine."""
    if path.startswith("/"):
        return None
    found = _SCHEME.match(path)
    if found:
        return found[1].lower()
    return "git" if _GIT.match(path) else None


def is_web(path: str) -> bool:
    """Return whether a path is an address of the web."""
    return path.startswith(("https://", "http://")) or scheme_of(path) in WEB


def shown_address(address: str) -> str:
    """Return the address without its query and without a password, as it may stand in messages and logs."""
    try:
        parts = urlsplit(address)
    except ValueError:
        return address
    return parts._replace(netloc=parts.netloc.rpartition("@")[2], query="", fragment="").geturl()


def address_objection(address: str) -> tuple[str, str] | None:
    """Return message and hint for an address that data cannot be read from; None for a good one."""
    scheme = scheme_of(address)
    if scheme not in (*WEB, *STORES):
        allowed = ", ".join(f"{one}://" for one in (*WEB, *STORES))
        return f"found the address {quoted(shown_address(address))}; {allowed} or a path is allowed", ""
    try:
        parts = urlsplit(address)
        _ = parts.port
    except ValueError as error:
        return f"found {quoted(address)}, which is no address: {error}", ""
    return _secret(parts) or (_web(parts, address) if scheme in WEB else _store(parts, address))


def file_name(address: str) -> str:
    """Return the name of the file that a web address names; empty if it names none."""
    try:
        # What is no UTF-8 stays apart, as in names of files of this machine (PEP 383).
        name = unquote(urlsplit(address).path.rpartition("/")[2], errors="surrogateescape")
    except ValueError:
        return ""
    return "" if name in {".", ".."} or "/" in name else name


def name_objection(name: str, *, is_remote: bool) -> str:
    """Return what keeps a path in a dataset from being one, in words that follow it; empty for a good one.

    Files of this machine may have control characters in their names, as they have them already.
    """
    enclosed = f"/{name}/"
    if any(odd in enclosed for odd in ODD_PARTS):
        return "is an absolute path" if name.startswith("/") else "has a part that is empty, '.' or '..'"
    if "\0" in name or (is_remote and not name.isprintable() and _UNREADABLE.search(name)):
        return "has a control character"
    if len(name) > LONGEST_NAME // 4 and any(
        len(part.encode("utf-8", "surrogateescape")) > LONGEST_NAME for part in name.split("/")
    ):
        return f"has a part of more than {LONGEST_NAME} bytes"
    return ""


def _secret(parts: SplitResult) -> tuple[str, str] | None:
    """What is secret in an address would be kept with every run that reads it."""
    shown = quoted(shown_address(parts.geturl()))
    if parts.password is not None:
        hint = "Keep it where the library looks for it: ~/.netrc for web addresses, variables of the shell for others."
        return f"found a password in the address {shown}; an address without one is allowed", hint
    signed = next((key for key, _ in parse_qsl(parts.query) if key.lower() in _SIGNED), None)
    if signed is not None:
        hint = "Use the store's own address, such as s3://BUCKET/KEY, and credentials in the shell."
        return f"found a signature ({signed}) in the address {shown}; an address without a secret is allowed", hint
    return None


def _web(parts: SplitResult, address: str) -> tuple[str, str] | None:
    if not parts.hostname or _CONTROL.search(address):
        return f"found {quoted(address)}, which is no address: https://HOST/PATH is allowed", ""
    name = file_name(address)
    if not name:
        hint = "Only files can be read from the web: give the address of each."
        return f"found {quoted(address)}, whose last part is no name of a file", hint
    if objection := name_objection(name, is_remote=True):
        allowed = f"a name of up to {LONGEST_NAME} bytes without control characters is allowed"
        hint = "The last part of an address is the file's name: have the file served under another one."
        return f"found {quoted(address)}, which gives its file a name that {objection}; {allowed}", hint
    return None


def _store(parts: SplitResult, address: str) -> tuple[str, str] | None:
    if not parts.netloc and parts.scheme.lower() != "hdfs":
        what = "HOST" if parts.scheme.lower() == "sftp" else "BUCKET"
        return f"found {quoted(address)}, which names no {what.lower()}: {parts.scheme}://{what}/PATH is allowed", ""
    if parts.username and parts.scheme.lower() == "hdfs":
        hint = "The user is HADOOP_USER_NAME in the shell that submits, or that of its Kerberos ticket."
        return f"found the user {quoted(parts.username)} in {quoted(address)}; an address without one is allowed", hint
    return None
