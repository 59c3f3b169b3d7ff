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
_SIGNED = re.compile(r"sig|.*signature|x_amz_security_token")
_SECRET = re.compile(
    r".*(token|secret|password|passwd)|pwd|jwt|auth|authorization|(.*_)?(api|access|secret|private|subscription)_?key"
)
"""Names of what is secret in a query, in lower case and with _ for -. A mere `key` is more often that of a file."""
_SECRET_VALUE = re.compile(
    r"AIza[\w-]{35}|(gh[opsur]_|hf_)[A-Za-z0-9]{20,}|(github_pat_|glpat-|xox[a-z]-)[\w-]{16,}|eyJ[\w-]+\.eyJ[\w-]+\.[\w-]*"
)
"""Secrets that can be told whatever they are called: of Google, GitHub, GitLab, Hugging Face and Slack, and signed tokens."""
_LOGIN = re.compile(r"^([^/]*//)[^/?#]*@")
_LOGIN_AT_MOST = re.compile(r"^([^/]*//).*@", re.DOTALL)
_QUERY = re.compile(r"[?#].*", re.DOTALL)
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
    """Return the address without its query and without a name and password, as it may stand in messages and logs."""
    login = _LOGIN
    try:
        _ = urlsplit(address).port
    except ValueError:
        login = _LOGIN_AT_MOST  # a password with a slash in it looks like a port and a path
    return _QUERY.sub("", login.sub(r"\1", address))


def address_objection(address: str) -> tuple[str, str] | None:
    """Return message and hint for an address that data cannot be read from; None for a good one."""
    scheme = scheme_of(address)
    if scheme not in (*WEB, *STORES):
        allowed = ", ".join(f"{one}://" for one in (*WEB, *STORES))
        return f"found the address {quoted(shown_address(address))}; {allowed} or a path is allowed", ""
    try:
        parts = urlsplit(address)
        _ = parts.port
    except ValueError:  # whose words may have a password in them
        example = f"{scheme}://HOST:PORT/PATH"
        return f"found {quoted(shown_address(address))}, whose host or port can't be read: {example} is allowed", ""
    return _secret(parts, address) or (_web(parts, address) if scheme in WEB else _store(parts, address))


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


def _secret(parts: SplitResult, address: str) -> tuple[str, str] | None:
    """What is secret in an address would be kept with every run that reads it."""
    if not parts.query and "@" not in parts.netloc:  # nearly always, and there may be very many
        return None
    shown = quoted(shown_address(address))
    if parts.username is not None and parts.password is None and parts.scheme in WEB:
        hint = "Keep it in ~/.netrc: machine HOST login NAME password TOKEN"
        return (
            f"found a name or a token before the host of the address {shown}; an address without one is allowed",
            hint,
        )
    if parts.password is not None:
        hint = "Keep it where the library looks for it: ~/.netrc for web addresses, variables of the shell for others."
        return f"found a password in the address {shown}; an address without one is allowed", hint
    for key, value in parse_qsl(parts.query):
        name = key.lower().replace("-", "_")
        if _SIGNED.fullmatch(name):
            hint = "Use the store's own address, such as s3://BUCKET/KEY, and credentials in the shell."
            return f"found a signature ({key}) in the address {shown}; an address without a secret is allowed", hint
        if _SECRET.fullmatch(name) or _SECRET_VALUE.fullmatch(value):
            hint = (
                "If the server takes it as a password, keep it in ~/.netrc: machine HOST login NAME password TOKEN; "
                "if not, fetch the file yourself and give its path."
            )
            return f"found a secret ({key}) in the address {shown}; an address without one is allowed", hint
    return None


def _web(parts: SplitResult, address: str) -> tuple[str, str] | None:
    if not parts.hostname or _CONTROL.search(address):
        return f"found {quoted(shown_address(address))}, which is no address: https://HOST/PATH is allowed", ""
    name = file_name(address)
    if not name:
        hint = "Only files can be read from the web: give the address of each."
        return f"found {quoted(shown_address(address))}, whose last part is no name of a file", hint
    if objection := name_objection(name, is_remote=True):
        allowed = f"a name of up to {LONGEST_NAME} bytes without control characters is allowed"
        hint = "The last part of an address is the file's name: have the file served under another one."
        return f"found {quoted(shown_address(address))}, which gives its file a name that {objection}; {allowed}", hint
    return None


def _store(parts: SplitResult, address: str) -> tuple[str, str] | None:
    if not parts.netloc and parts.scheme.lower() != "hdfs":
        what = "HOST" if parts.scheme.lower() == "sftp" else "BUCKET"
        return (
            f"found {quoted(shown_address(address))}, which names no {what.lower()}: {parts.scheme}://{what}/PATH is allowed",
            "",
        )
    if parts.username and parts.scheme.lower() == "hdfs":
        hint = "The user is HADOOP_USER_NAME in the shell that submits, or that of its Kerberos ticket."
        return f"found the user {quoted(parts.username)} in {quoted(address)}; an address without one is allowed", hint
    return None
