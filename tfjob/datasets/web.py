"""Files on the web: one request after another over a connection that is kept, and every way it can fail, in words.

HTTP/1.1 as RFC 9110 and 9112 have it: redirects, conditional and range requests. Proxies are those of HTTP_PROXY,
HTTPS_PROXY and NO_PROXY; names and passwords those of ~/.netrc (or NETRC), which are sent to no host but their own.
"""

from __future__ import annotations

import base64
import contextlib
import functools
import http.client
import netrc
import os
import socket
import ssl
import time
import urllib.request
from collections.abc import Mapping
from dataclasses import dataclass, field
from email.message import Message
from email.utils import parsedate_to_datetime
from typing import Any, Final
from urllib.parse import SplitResult, quote, urljoin, urlsplit

from tfjob.errors import PreparationError
from tfjob.spec.addresses import shown_address
from tfjob.version import __version__

__all__ = ["Answer", "Session", "Transient", "tag_of"]

_REDIRECTS: Final = {301, 302, 303, 307, 308}
_MOST_REDIRECTS: Final = 10
_BUSY: Final = {408, 425, 429, 500, 502, 503, 504}
_LONGEST_WAIT_S: Final = 60.0
_KEEPABLE_BYTES: Final = 64 * 1024


class Transient(Exception):
    """A failure that may be over at the next try, in words; `wait_s` is how long the server asked to wait."""

    def __init__(self, message: str, wait_s: float = 0) -> None:
        super().__init__(message)
        self.message = message
        self.wait_s = wait_s


@dataclass
class Answer:
    """The head of a server's answer, and the body to be read from it. `address` is where redirects led."""

    address: str
    status: int
    headers: Message
    response: http.client.HTTPResponse
    connection: http.client.HTTPConnection
    length: int | None = field(default=None)
    """Bytes of the body; None where the server does not say."""

    def read(self, most: int) -> bytes:
        """Read what is there of the body, at most so many bytes; nothing at its end. Raises Transient when it breaks."""
        try:
            return self.response.read1(most)
        except (OSError, http.client.HTTPException) as error:
            raise _in_words(error, self.address) from error

    def skip(self) -> None:
        """Leave the body. A short one is read, so that the connection can be used again."""
        if self.length is not None and self.length <= _KEEPABLE_BYTES:
            with contextlib.suppress(OSError, http.client.HTTPException):
                self.response.read()
        if not self.response.isclosed():
            self.drop()

    def drop(self) -> None:
        """Leave the body and the connection with it."""
        self.response.close()
        self.connection.close()


def tag_of(headers: Message) -> str:
    """What tells this content from another at the same address: a strong ETag, or else the time of change; empty without."""
    tag = headers.get("ETag", "")
    if tag and not tag.startswith("W/"):
        return tag
    return headers.get("Last-Modified", "") or tag


class Session:
    """Requests of one thread. A connection is kept for each host. Another thread may `abort` what it waits for."""

    def __init__(self, timeout_s: float) -> None:
        """Wait at most `timeout_s` for a connection, and for each part of an answer."""
        self._timeout_s = timeout_s
        self._kept: dict[tuple[str, str], http.client.HTTPConnection] = {}
        self._aborted = False

    def request(self, method: str, address: str, headers: Mapping[str, str]) -> Answer:
        """Ask, following redirects. Returns an answer of 200, 206, 304 or 416.

        Raises PreparationError for what will not get better (no such file, not allowed, a circle of redirects), and
        Transient for what may.
        """
        way = [address]
        while True:
            answer = self._ask(method, way[-1], headers, own=_host(way[-1]) == _host(address))
            if answer.status in {200, 206, 304, 416}:
                return answer
            if answer.status in _REDIRECTS and "Location" in answer.headers:
                answer.skip()
                way.append(_next(way, urljoin(way[-1], answer.headers["Location"])))
                continue
            answer.skip()
            raise _refusal(answer, address)

    def close(self) -> None:
        """Close every connection."""
        for connection in self._kept.values():
            connection.close()
        self._kept.clear()

    def abort(self) -> None:
        """Make the thread that waits for an answer fail at once."""
        self._aborted = True
        for connection in list(self._kept.values()):
            if connection.sock is not None:
                with contextlib.suppress(OSError):
                    connection.sock.shutdown(socket.SHUT_RDWR)

    def _ask(self, method: str, address: str, headers: Mapping[str, str], *, own: bool) -> Answer:
        parts = urlsplit(address)
        place = (parts.scheme, parts.netloc)
        sent = {
            "User-Agent": f"tfjob/{__version__}",
            "Accept": "*/*",
            "Accept-Encoding": "identity",
            **(_authorization(parts) if own else {}),
            **headers,
        }
        for attempt in (1, 2):
            was_kept = place in self._kept
            connection = self._kept.get(place) or self._connection(parts)
            self._kept[place] = connection
            if self._aborted:
                raise Transient("stopped")
            target, more = _target(parts)
            try:
                connection.request(method, target, headers={**sent, **more})
                response = connection.getresponse()
                break
            except (OSError, http.client.HTTPException) as error:
                connection.close()
                self._kept.pop(place, None)
                if not was_kept or attempt == 2 or self._aborted:  # a kept connection may have been closed meanwhile
                    raise _in_words(error, address) from error
        has_body = method != "HEAD" and response.status not in {204, 304}
        return Answer(
            address, response.status, response.headers, response, connection, response.length if has_body else 0
        )

    def _connection(self, parts: SplitResult) -> http.client.HTTPConnection:
        proxy = _proxy(parts)
        host, port = parts.hostname or "", parts.port
        if parts.scheme == "http":
            if proxy is not None:
                return http.client.HTTPConnection(proxy.hostname or "", proxy.port, timeout=self._timeout_s)
            return http.client.HTTPConnection(host, port, timeout=self._timeout_s)
        if proxy is None:
            return http.client.HTTPSConnection(host, port, timeout=self._timeout_s, context=_tls())
        tunnel = http.client.HTTPSConnection(proxy.hostname or "", proxy.port, timeout=self._timeout_s, context=_tls())
        tunnel.set_tunnel(host, port, headers=_proxy_authorization(proxy))
        return tunnel


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
    if isinstance(error, socket.gaierror):
        return Transient(f"the host {host} is not known: {error.strerror}")
    if isinstance(error, http.client.HTTPException):
        return Transient(f"{host} gave an answer that is none: {type(error).__name__} {error}".rstrip())
    return Transient(f"the connection to {host} broke: {getattr(error, 'strerror', None) or error}")


def _next(way: list[str], address: str) -> str:
    """Where a redirect leads. Raises PreparationError for a circle, for too many, and for what is not to be followed."""
    start = shown_address(way[0])
    parts = urlsplit(address)
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
    reason = answer.response.reason or http.client.responses.get(status, "")
    if status in _BUSY:
        return Transient(f"the server answered {status} {reason}".rstrip(), _wait_s(answer.headers.get("Retry-After")))
    if status in {404, 410}:
        return PreparationError(f"there is no file {shown} ({status} {reason})", "Check the address.")
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


def _host(address: str) -> tuple[str, str]:
    parts = urlsplit(address)
    return parts.scheme, parts.netloc


def _target(parts: SplitResult) -> tuple[str, dict[str, str]]:
    """The request's target, and headers that go with it: for a proxy the whole address (RFC 9112, 3.2.2)."""
    path = quote(parts.path or "/", safe="/%:@!$&'()*+,;=~-._")
    query = quote(parts.query, safe="/%:@!$&'()*+,;=~-._?[]")
    target = f"{path}?{query}" if query else path
    proxy = _proxy(parts) if parts.scheme == "http" else None
    if proxy is None:
        return target, {}
    return f"http://{parts.netloc.rpartition('@')[2]}{target}", _proxy_authorization(proxy)


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
    found = _netrc().get(parts.hostname or "")
    return {"Authorization": _basic(*found)} if found else {}


@functools.cache
def _netrc() -> dict[str, tuple[str, str]]:
    path = os.environ.get("NETRC") or os.path.expanduser("~/.netrc")
    try:
        hosts: dict[str, Any] = netrc.netrc(path).hosts
    except FileNotFoundError:
        return {}
    except (OSError, netrc.NetrcParseError) as error:
        raise PreparationError(f"{path} can't be used: {error}", "Repair it, or remove it.") from error
    return {host: (login or "", password or "") for host, (login, _, password) in hosts.items() if host != "default"}


def _basic(name: str, password: str) -> str:
    return "Basic " + base64.b64encode(f"{name}:{password}".encode()).decode()


@functools.cache
def _tls() -> ssl.SSLContext:
    return ssl.create_default_context()
