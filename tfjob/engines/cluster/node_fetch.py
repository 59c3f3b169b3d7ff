"""The program that fetches a dataset's files on a node, in a container there. Standard library only; any Python from 3.8.

    python -I node_fetch.py DIRECTORY

Its stdin has one line of JSON: ``files``, a list of [address, name, bytes or -1, SHA-256, whether the address is signed],
``connections`` at once, ``timeout_s`` to wait for an answer, ``tries`` and the first ``pause_s`` between them, and ``beat_s``.
Addresses may be signed: they are in no argument and no variable. Then a line comes now and then, empty or with ``addresses``, the
same ones signed anew from the ``first`` of them on, for what is asked for from then on. When there has been no line for
``beat_s``, or stdin ends, before it is done, so does this program.

It says a line of JSON each: {"done": files, "bytes": received} now and then; at the end {"end": "done"}, or
{"end": "sum" | "full" | "failed", "index": of the file, "message": why}. A file has its name only when all of it is there
and has its SHA-256; what broke off is gone on with by a range request.
"""

from __future__ import annotations

import errno
import hashlib
import http.client
import json
import os
import queue
import re
import select
import shutil
import signal
import socket
import ssl
import sys
import threading
import time
import urllib.error
import urllib.request

TYPE_CHECKING = False  # typing.TYPE_CHECKING, without importing typing
if TYPE_CHECKING:
    from typing import Any

PIECE = 1 << 18
PARTS = ".tfjob-parts"
LAPSED = (400, 401, 403)  # what stores answer to an address whose signature, or whose credentials, have run out
FRESH_S = 60.0  # what is refused sooner after it was signed has not run out
ANEW_S = 3600.0  # so long after an address came, another is waited for
BUSY = (408, 425, 429, 500, 502, 503, 504)
SLOWEST = 1024  # bytes that must come within the time that an answer is waited for
TELL_S = 0.5
ORDER_S = 60.0
TRIES_IN_VAIN = 2  # where nobody answers: the files can be sent instead
IN_VAIN_S = 20.0
FULL = (errno.ENOSPC, errno.EDQUOT)
RANGE = re.compile(r"bytes (\d{1,18})-(\d{1,18})/(\d{1,18}|\*)$")


class Broken(Exception):
    """A failure that may be over at the next try, in words."""


class Lapsed(Broken):
    """An address has run out: another will come."""


class Refused(Exception):
    """What no other try will mend: `kind` as this program says it, and why."""

    def __init__(self, kind: str, message: str) -> None:
        super().__init__(message)
        self.kind = kind
        self.message = message


class SameKind(urllib.request.HTTPRedirectHandler):
    """Follows redirects, but not from https to http, where anybody can change the file."""

    def redirect_request(  # noqa: PLR0917  # as the standard library has it
        self, req: Any, fp: Any, code: int, msg: str, headers: Any, newurl: str
    ) -> Any:
        """Make the next request."""
        if req.full_url.startswith("https:") and not newurl.startswith("https:"):
            raise Refused("failed", "it redirects from https to http")
        return super().redirect_request(req, fp, code, msg, headers, newurl)


class Connections:
    """What one thread asks with: a connection that is kept for each server; urllib, with one for each request, where that is not all."""

    def __init__(self) -> None:
        self.opener = urllib.request.build_opener(SameKind())
        self.kept: dict[Any, http.client.HTTPConnection] = {}
        self.used: tuple[Any, http.client.HTTPConnection] | None = None
        self.others: set[Any] = set()  # servers that redirect, or refuse
        self.is_direct = not urllib.request.getproxies()

    def open(self, request: urllib.request.Request, timeout_s: float) -> Any:
        """The answer to a request. Raises what urllib raises."""
        if self.used is not None:  # what came over it last was not read to its end
            self.used[1].close()
            self.used = None
        key = request.type, request.host
        answer = self.ask(key, request, timeout_s) if self.is_direct and key not in self.others else None
        return answer or self.opener.open(request, timeout=timeout_s)

    def ask(self, key: Any, request: urllib.request.Request, timeout_s: float) -> Any:
        """The answer of a server that has the file at this very address; None for any other."""
        connection = self.kept.pop(key, None)
        is_new = connection is None
        if connection is None:
            kind = http.client.HTTPSConnection if request.type == "https" else http.client.HTTPConnection
            connection = kind(request.host, timeout=timeout_s)
        else:
            connection.sock.settimeout(timeout_s)
        try:
            connection.request("GET", request.selector, headers=dict(request.header_items()))
            answer = connection.getresponse()
        except (OSError, http.client.HTTPException):
            connection.close()
            if is_new:
                raise
            return None  # servers close connections that were used: another is made
        if answer.status not in (200, 206):
            connection.close()
            self.others.add(key)
            return None
        if not answer.will_close:
            self.used = key, connection
        return answer

    def keep(self) -> None:
        """Keep the connection that was used last: all that came over it was read."""
        if self.used is not None:
            self.kept[self.used[0]] = self.used[1]
            self.used = None


class Files:
    """The files that are fetched into one directory, by several threads."""

    def __init__(self, directory: str, order: dict[str, Any]) -> None:
        self.directory = directory
        self.order = order
        self.received = 0
        self.done = 0
        self.index = 0  # of the file that failed
        self.lock = threading.Lock()
        self.waiting: queue.Queue[tuple[int, list[Any]]] = queue.Queue()
        self.ended: queue.Queue[Refused | None] = queue.Queue()
        self.heard = b""
        self.came = [time.monotonic()] * len(order["files"])  # when the address of each did
        for row in enumerate(order["files"]):
            self.waiting.put(row)

    def hear(self, data: bytes) -> None:
        """Take what stdin says: addresses in the place of those that were signed long ago."""
        *lines, self.heard = (self.heard + data).split(b"\n")
        for line in filter(None, lines):
            facts = json.loads(line)
            for index, address in enumerate(facts["addresses"], facts["first"]):
                self.order["files"][index][0] = address
                self.came[index] = time.monotonic()

    def wait_for_another(self, index: int, asked: float, error: Lapsed) -> None:
        """Wait until the address of a file is another than the one that came at `asked`. Raises Refused when none comes."""
        while self.came[index] == asked:
            if time.monotonic() - asked > ANEW_S:
                raise Refused("failed", str(error)) from error
            time.sleep(TELL_S)

    def fetch(self) -> Refused | None:
        """Fetch all of them; what kept one from being fetched is returned."""
        os.makedirs(os.path.join(self.directory, PARTS), exist_ok=True)
        left = max(1, min(self.order["connections"], len(self.order["files"])))
        for _ in range(left):
            threading.Thread(target=self.work, daemon=True).start()
        while left:
            try:
                failure = self.ended.get(timeout=TELL_S)
            except queue.Empty:
                say(done=self.done, bytes=self.received)
                continue
            if failure is not None:
                return failure
            left -= 1
        shutil.rmtree(os.path.join(self.directory, PARTS))
        say(done=self.done, bytes=self.received)
        return None

    def work(self) -> None:
        """Fetch one file after the other, until there are none."""
        opener = Connections()
        while True:
            try:
                index, row = self.waiting.get_nowait()
            except queue.Empty:
                self.ended.put(None)
                return
            try:
                self.one(opener, index, row)
            except Exception as error:  # noqa: BLE001  # whatever it is, tfjob has to hear of it
                failure = error if isinstance(error, Refused) else Refused(kind_of(error), in_words(error))
                self.index = index
                self.ended.put(failure)
                return
            with self.lock:
                self.done += 1

    def one(self, opener: Connections, index: int, row: list[Any]) -> None:
        """Fetch one file, again where that may help. What brings it further does not count as a failure."""
        name, expected = row[1], row[3]
        if os.path.isabs(name) or ".." in name.split("/"):
            raise Refused("failed", "a file may not be named " + ascii(name))
        path = os.path.join(self.directory, PARTS, str(index))
        failures, furthest = 0, 0
        with open(path, "wb") as file:
            part = Part(self, file, row, index)
            while True:
                try:
                    if part.take(opener):
                        break
                except Lapsed as error:
                    self.wait_for_another(index, part.asked, error)
                except Broken as error:
                    reached = file.tell()
                    failures = 1 if reached > furthest else failures + 1
                    furthest = max(furthest, reached)
                    tries = self.order["tries"] if part.was_answered else min(TRIES_IN_VAIN, self.order["tries"])
                    if failures >= tries:
                        raise Refused("failed", f"{error} (tried {failures} times)") from error
                    time.sleep(self.order["pause_s"] * 2 ** (failures - 1))
        actual = digest(path)
        if actual != expected:
            raise Refused("sum", f"its SHA-256 is {actual}")
        target = os.path.join(self.directory, name)
        os.makedirs(os.path.dirname(target), exist_ok=True)
        os.chmod(path, 0o644)
        os.rename(path, target)

    def count(self, received: int) -> None:
        """Note bytes that came."""
        with self.lock:
            self.received += received


class Part:
    """What came of one file so far."""

    def __init__(self, files: Files, file: Any, row: list[Any], index: int) -> None:
        self.files = files
        self.file = file
        self.row = row  # whose address may be another at the next try
        self.index = index
        self.size = row[2]
        self.asked, self.worked = 0.0, -1.0  # when the addresses came: the last, and the last that brought something
        self.tag = ""  # what the server calls the content
        self.was_answered = False

    def take(self, opener: Connections) -> bool:
        """Fetch what is missing; whether all is there. Raises Broken and Refused, and OSError when it can't be written."""
        start = self.file.tell() if self.tag else self.again()
        headers = {"User-Agent": "tfjob", "Accept-Encoding": "identity"}
        if start:
            headers.update({"Range": f"bytes={start}-", "If-Range": self.tag})
        self.asked = self.files.came[self.index]
        request = urllib.request.Request(self.row[0], headers=headers)  # noqa: S310  # tfjob says http or https
        timeout_s = self.files.order["timeout_s"]
        try:
            answer = opener.open(request, timeout_s if self.was_answered else min(timeout_s, IN_VAIN_S))
        except urllib.error.HTTPError as error:
            self.was_answered = True
            with error:
                raise self.refusal(error) from error
        except (OSError, http.client.HTTPException, ValueError) as error:
            raise explained(error) from error
        self.was_answered, self.worked = True, self.asked
        with answer:
            is_part = answer.status == 206
            if not is_part:
                start = self.again()
                tag = answer.headers.get("ETag") or answer.headers.get("Last-Modified") or ""
                self.tag = "" if tag.startswith("W/") else tag
            end, total = self.ends(answer, start)
            if self.size >= 0 and total >= 0 and total != self.size:
                raise Refused("sum", f"it has {total} bytes, not {self.size}")
            total = max(self.size, total)
            self.receive(answer, end if is_part else total)
        if total < 0 and digest(self.file.name) != self.row[3]:  # nobody says where it ends: it may have been cut
            self.again()
            raise Broken("it ended early, or has another content")
        opener.keep()
        return not is_part or self.file.tell() >= total  # a server may give less than it was asked for

    def ends(self, answer: Any, start: int) -> tuple[int, int]:
        """Where an answer ends, and the bytes of the file; -1 where it is not told. Raises Broken for a part that was not asked for."""
        length = answer.headers.get("Content-Length")
        end = start + int(length) if length else -1
        if answer.status != 206:
            return end, end
        told = RANGE.match(answer.headers.get("Content-Range", ""))
        if not start or not told or int(told[1]) != start or int(told[2]) < start or end not in (-1, int(told[2]) + 1):
            self.again()
            raise Broken("the server gave another part of the file than it was asked for")
        return int(told[2]) + 1, -1 if told[3] == "*" else int(told[3])

    def receive(self, answer: Any, total: int) -> None:
        """Write what comes, until it ends."""
        patience_s = self.files.order["timeout_s"]
        window, received = time.monotonic(), 0
        while True:
            try:
                data = answer.read1(PIECE)
            except (OSError, http.client.HTTPException) as error:
                raise explained(error) from error
            if not data:
                break
            self.file.write(data)
            self.file.flush()  # a full disk shows here, and not at the end
            self.files.count(len(data))
            received += len(data)
            if time.monotonic() - window > patience_s:
                if received < SLOWEST:
                    raise Broken(f"only {received} bytes came in {patience_s:g} s")
                window, received = time.monotonic(), 0
        if total >= 0 and self.file.tell() != total:
            raise Broken(f"the answer ended after {self.file.tell()} of {total} bytes")

    def again(self) -> int:
        """Begin the file again."""
        self.file.seek(0)
        self.file.truncate(0)
        return 0

    def refusal(self, error: urllib.error.HTTPError) -> Exception:
        """The error for a status that brings no file."""
        message = f"the server answered {error.code} {error.reason}"
        if error.code == 416:
            self.again()
        has_run_out = self.worked == self.asked or time.monotonic() - self.asked > FRESH_S
        if self.row[4] and error.code in LAPSED and has_run_out:
            return Lapsed(message)
        return Broken(message) if error.code in (*BUSY, 416) else Refused("failed", message)


def explained(error: Exception) -> Exception:
    """What a connection raised: Broken, or Refused where no other try will help."""
    reason = getattr(error, "reason", None)
    reason = reason if isinstance(reason, Exception) else error
    if isinstance(reason, ssl.SSLCertVerificationError):
        return Refused("failed", f"its host can't prove who it is: {reason.verify_message}")
    return Broken(in_words(reason))


def kind_of(error: Exception) -> str:
    """How this program calls an error."""
    return "full" if isinstance(error, OSError) and error.errno in FULL else "failed"


def in_words(error: Exception) -> str:
    """An error, without an address: that may be signed."""
    if isinstance(error, socket.timeout):
        return "nothing comes"
    if isinstance(error, socket.gaierror):
        return f"its host is not known there: {error.strerror}"
    if isinstance(error, OSError):
        return error.strerror or type(error).__name__
    return type(error).__name__


def digest(path: str) -> str:
    """The SHA-256 of a file."""
    found = hashlib.sha256()
    with open(path, "rb") as file:
        for data in iter(lambda: file.read(PIECE), b""):
            found.update(data)
    return found.hexdigest()


def say(**facts: Any) -> None:
    """Say one thing to tfjob."""
    os.write(1, json.dumps(facts).encode("ascii") + b"\n")


def heard(within_s: float) -> bytes:
    """What stdin says; nothing when it has ended, or has been silent for so long."""
    return os.read(0, PIECE) if select.select([0], [], [], within_s)[0] else b""


def end_with_stdin(files: Files, beat_s: float) -> None:
    """Hear stdin. End when nobody listens any more, and the container with it: as long as it runs, the run is taken to live."""
    data = heard(beat_s)
    while data:
        files.hear(data)
        data = heard(beat_s)
    if os.getppid() == 0:  # started by an engine, beside the container's first process
        os.kill(1, signal.SIGTERM)
    os._exit(1)


def main() -> None:
    """Do what stdin says."""
    order = b""
    while not order.endswith(b"\n"):
        data = heard(ORDER_S)
        if not data:
            sys.exit(1)
        order += data
    facts = json.loads(order)
    files = Files(sys.argv[1], facts)
    threading.Thread(target=end_with_stdin, args=(files, facts["beat_s"]), daemon=True).start()
    failure = files.fetch()
    if failure is None:
        say(end="done")
    else:
        say(end=failure.kind, index=files.index, message=failure.message)
    os._exit(0)


if __name__ == "__main__":
    main()
