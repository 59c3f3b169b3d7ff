"""Files on the web: one request after another over a connection that is kept, and every way it can fail, in words.

HTTP/1.1 as RFC 9110 and 9112 have it: redirects, conditional and range requests. Proxies are those of HTTP_PROXY,
HTTPS_PROXY and NO_PROXY; names and passwords those of ~/.netrc (or NETRC), which are sent to no host but their own.
"""

from __future__ import annotations

import base64
import contextlib
import functools
import re
import socket
import ssl
import string
import time
import urllib.request
from collections.abc import Mapping
from dataclasses import dataclass
from email.utils import parsedate_to_datetime
from typing import Final, NamedTuple
from urllib.parse import SplitResult, quote, urljoin, urlsplit

from tfjob.datasets.connections import PATIENCE, tag_from
from tfjob.datasets.passwords import passwords
from tfjob.datasets.wire import Garbled, Head, Wire, connect
from tfjob.errors import PreparationError
from tfjob.spec.addresses import shown_address
from tfjob.version import __version__

__all__ = ["Answer", "Session", "Transient", "common_headers", "is_direct", "split_address", "tag_of"]

_REDIRECTS: Final = {301, 302, 303, 307, 308}
_MOST_REDIRECTS: Final = 10
_LONGEST_WAIT_S: Final = 60.0
_KEEPABLE_BYTES: Final = 64 * 1024
_PLAIN: Final = re.compile(r"(https?://[A-Za-z0-9_.:-]+)(/[A-Za-z0-9_./~-]*)")
"""Addresses that need no quoting and no library to take them apart; it takes longer than a near server to answer."""


class Transient(Exception):
    """A failure that may be over at the next try, in words; `wait_s` is how long the server asked to wait."""

    def __init__(self, message: str, wait_s: float = 0) -> None:
        super().__init__(message)
        self.message = message
        self.wait_s = wait_s


@dataclass
class Answer:
    """The head of a server's answer, and the body to be read from it. `address` is where redirects led.

    `length` is the bytes of the body; None where the server does not say. Names of headers are in lower case.
    """

    address: str
    head: Head
    wire: Wire

    @property
    def status(self) -> int:
        """The status code."""
        return self.head.status

    @property
    def length(self) -> int | None:
        """Bytes of the body; None where the server does not say."""
        return self.wire.length

    def header(self, name: str) -> str:
        """A header by its name in lower case; empty where there is none."""
        return self.head.headers.get(name, "")

    def read_into(self, room: memoryview) -> int:
        """Read what is there of the body, as far as there is room; how much that was: 0 at its end. Raises Transient when it breaks."""
        try:
            return self.wire.read_into(room)
        except (OSError, Garbled) as error:
            raise _in_words(error, self.address) from error

    def skip(self) -> None:
        """Leave the body. A short one is read, so that the connection can be used again."""
        with contextlib.suppress(OSError, Garbled):
            if self.length is not None and self.length <= _KEEPABLE_BYTES:
                room = memoryview(bytearray(_KEEPABLE_BYTES))
                while self.wire.read_into(room):
                    pass
        self.drop()

    def drop(self) -> None:
        """Leave the body, and the connection with it if there is anything left of the body."""
        if not self.wire.is_free:
            self.wire.close()


def tag_of(answer: Answer) -> str:
    """What tells this content from another at the same address: a strong ETag, or else the time of change; empty without."""
    return tag_from(answer.header("etag"), answer.header("last-modified"))


def split_address(address: str) -> tuple[str, str]:
    """The origin (``http://host:port``) and the target of a request: path and query, quoted where they must be."""
    plain = _PLAIN.fullmatch(address)
    if plain:
        return plain[1], plain[2]
    parts = urlsplit(address)
    return f"{parts.scheme}://{parts.netloc}", _target(parts)


def is_direct(origin: str) -> bool:
    """Whether no proxy is between us and an origin."""
    return _proxy(urlsplit(origin)) is None


def common_headers(origin: str, *, own: bool = True) -> dict[str, str]:
    """What stands in all requests to an origin; a name and a password too, where it is the user's `own` address."""
    parts = urlsplit(origin)
    host = parts.netloc.rpartition("@")[2].encode("idna" if not parts.netloc.isascii() else "ascii").decode()
    common = {
        "Host": host,
        "User-Agent": f"tfjob/{__version__}",
        "Accept": "*/*",
        "Accept-Encoding": "identity",
    }
    return common | _authorization(parts) if own else common


class _Place(NamedTuple):
    """What all requests to a host have in common: what stands before the path, and headers."""

    before: str
    headers: dict[str, str]


class Session:
    """Requests of one thread. A connection is kept for each host. Another thread may `abort` what it waits for."""

    def __init__(self, timeout_s: float) -> None:
        """Wait at most `timeout_s` for a connection, and for each part of an answer."""
        self._timeout_s = timeout_s
        self._kept: dict[str, Wire] = {}
        self._places: dict[tuple[str, bool], _Place] = {}
        self._aborted = False

    def request(self, method: str, address: str, headers: Mapping[str, str]) -> Answer:
        """Ask, following redirects. Returns an answer of 200, 206, 304 or 416.

        Raises PreparationError for what will not get better (no such file, not allowed, a circle of redirects), and
        Transient for what may.
        """
        way = [address]
        while True:
            own = len(way) == 1 or _host(way[-1]) == _host(address)
            answer = self._ask(method, way[-1], headers, own=own)
            if answer.status in {200, 206, 304, 416}:
                return answer
            if answer.status in _REDIRECTS and answer.header("location"):
                answer.skip()
                way.append(_next(way, _location(answer)))
                continue
            answer.skip()
            raise _refusal(answer, address)

    def close(self) -> None:
        """Close every connection."""
        for wire in self._kept.values():
            wire.close()
        self._kept.clear()

    def abort(self) -> None:
        """Make the thread that waits for an answer fail at once."""
        self._aborted = True
        for wire in list(self._kept.values()):
            with contextlib.suppress(OSError):
                wire.socket.shutdown(socket.SHUT_RDWR)

    def _ask(self, method: str, address: str, headers: Mapping[str, str], *, own: bool) -> Answer:
        origin, target = split_address(address)
        try:
            place = self._places.get((origin, own)) or self._place(origin, own=own)
        except UnicodeError as error:
            raise _in_words(error, address) from error
        target = place.before + target
        sent = {**place.headers, **headers} if headers else place.headers
        for attempt in (1, 2):
            wire = self._kept.get(origin)
            was_kept = wire is not None and wire.is_free
            try:
                if wire is None or not wire.is_free:
                    self._kept.pop(origin, None)
                    wire = self._kept[origin] = self._connect(urlsplit(origin))
                if self._aborted:
                    wire.close()
                    raise Transient("stopped")
                return Answer(address, wire.ask(method, target, sent), wire)
            except (OSError, Garbled, UnicodeError) as error:
                if wire is not None:
                    wire.close()
                if not was_kept or attempt == 2 or self._aborted:  # a kept connection may have been closed meanwhile
                    raise _in_words(error, address) from error
        raise AssertionError("the second attempt returns or raises")

    def _place(self, origin: str, *, own: bool) -> _Place:
        """What all requests to a host have in common, found once; to a proxy the target is the address (RFC 9112, 3.2.2)."""
        parts, common = urlsplit(origin), common_headers(origin, own=own)
        proxy = _proxy(parts) if parts.scheme == "http" else None
        if proxy is not None:
            common |= _proxy_authorization(proxy)
        place = _Place(f"http://{common['Host']}" if proxy is not None else "", common)
        self._places[origin, own] = place
        return place

    def _connect(self, parts: SplitResult) -> Wire:
        proxy = _proxy(parts)
        host = parts.hostname or ""
        if parts.scheme == "http":
            at = proxy or parts
            return connect(at.hostname or "", at.port or 80, self._timeout_s)
        through = (proxy.hostname or "", proxy.port or 80, _proxy_authorization(proxy)) if proxy else None
        return connect(host, parts.port or 443, self._timeout_s, tls=_tls(), through=through)


def _in_words(error: Exception, address: str) -> Exception:
    """What a socket raised: Transient, or PreparationError where no other try will help."""
    host = urlsplit(address).netloc.rpartition("@")[2]
    if isinstance(error, TimeoutError):
        return Transient(f"{host} sends nothing")
    if isinstance(error, ssl.SSLCertVerificationError):
        return PreparationError(
            f"{host} can't prove who it is: {error.verify_message}",
            "If its certificate is of your own authority, name that in SSL_CERT_FILE.",
        )
    if isinstance(error, UnicodeError):  # as IDNA has it: a label of it is empty, or too long
        return PreparationError(f"{host} is no name of a host", "Check the address.")
    if isinstance(error, socket.gaierror):
        return Transient(f"the host {host} is not known: {error.strerror}")
    if isinstance(error, Garbled):
        return Transient(f"{host} gave an answer that is none: {error}")
    cut = "it ended without an end of TLS" if isinstance(error, ssl.SSLEOFError) else None
    return Transient(f"the connection to {host} broke: {cut or getattr(error, 'strerror', None) or error}")


def _location(answer: Answer) -> str:
    """Where an answer leads. What is not ASCII there are bytes of a name in UTF-8, or else bytes to be asked for as they are."""
    told = answer.header("location").encode("latin-1")
    try:
        return told.decode()
    except UnicodeDecodeError:
        return quote(told, safe=string.printable)


def _next(way: list[str], location: str) -> str:
    """Where a redirect leads. Raises PreparationError for a circle, for too many, and for what is not to be followed."""
    start = shown_address(way[0])
    try:
        address = urljoin(way[-1], location)
        parts = urlsplit(address)
        _ = parts.port
    except ValueError:
        raise PreparationError(
            f"{start} redirects to {shown_address(location)}, which is no web address", "Check the address."
        ) from None
    if address in way:
        circle = " → ".join(map(shown_address, [*way[way.index(address) :], address]))
        raise PreparationError(
            f"{start} redirects in a circle: {circle}", "Check the address; the server never answers with a file."
        )
    if len(way) > _MOST_REDIRECTS:
        raise PreparationError(
            f"{start} redirects more than {_MOST_REDIRECTS} times, the last time to {shown_address(address)}",
            "Give the address that the redirects lead to.",
        )
    if parts.scheme not in {"http", "https"} or not parts.netloc:
        raise PreparationError(
            f"{start} redirects to {shown_address(address)}, which is no web address", "Check the address."
        )
    if parts.scheme == "http" and urlsplit(way[0]).scheme == "https":
        raise PreparationError(
            f"{start} redirects to {shown_address(address)}: from https to http, where anybody can change the file",
            "Give that address itself, with a sha256, if it is to be trusted.",
        )
    return address


def _refusal(answer: Answer, address: str) -> Exception:
    """The error for a status that brings no file."""
    status, shown = answer.status, shown_address(address)
    if answer.address != address:
        shown += f" (redirected to {shown_address(answer.address)})"
    reason = answer.head.reason
    if status in PATIENCE:
        return Transient(f"the server answered {status} {reason}".rstrip(), _wait_s(answer.header("retry-after")))
    if status in {404, 410}:
        hint = "The web knows no globs: give the address of each file." if "*" in address else "Check the address."
        return PreparationError(f"there is no file {shown} ({status} {reason})", hint)
    if status in {401, 403, 407}:
        return PreparationError(
            f"the server does not give {shown} to us ({status} {reason})",
            "Check the address and who may read it. A name and password for the host can stand in ~/.netrc.",
        )
    return PreparationError(f"the server does not give {shown}: it answered {status} {reason}", "Check the address.")


def _wait_s(text: str | None) -> float:
    """The seconds that Retry-After asks for (RFC 9110, 10.2.3: a number, or a date), at most a minute."""
    if not text:
        return 0
    if text.strip().isdecimal():
        return min(float(text), _LONGEST_WAIT_S)
    with contextlib.suppress(ValueError, TypeError):
        return min(max(parsedate_to_datetime(text).timestamp() - time.time(), 0), _LONGEST_WAIT_S)
    return 0


def _target(parts: SplitResult) -> str:
    """The path and query, with everything quoted that must be."""
    path = quote(parts.path or "/", safe="/%:@!$&'()*+,;=~-._")
    return f"{path}?{quote(parts.query, safe='/%:@!$&()*+,;=~-._?[]')}" if parts.query else path


def _host(address: str) -> tuple[str, str]:
    parts = urlsplit(address)
    return parts.scheme, parts.netloc


@functools.cache
def _proxies() -> dict[str, str]:
    return urllib.request.getproxies_environment()


@functools.cache
def _proxy_of(scheme: str, host: str) -> SplitResult | None:
    named = _proxies().get(scheme) or _proxies().get("all")
    if not named or urllib.request.proxy_bypass(host):
        return None
    return urlsplit(named if "://" in named else f"http://{named}")


def _proxy(parts: SplitResult) -> SplitResult | None:
    return _proxy_of(parts.scheme, parts.netloc.rpartition("@")[2])


def _proxy_authorization(proxy: SplitResult) -> dict[str, str]:
    if proxy.username is None:
        return {}
    return {"Proxy-Authorization": _basic(proxy.username, proxy.password or "")}


def _authorization(parts: SplitResult) -> dict[str, str]:
    found = passwords().get(parts.hostname or "")
    return {"Authorization": _basic(*found)} if found else {}


def _basic(name: str, password: str) -> str:
    return "Basic " + base64.b64encode(f"{name}:{password}".encode()).decode()


@functools.cache
def _tls() -> ssl.SSLContext:
    return ssl.create_default_context()
