"""Streams of frames, over a socket and over TLS, while another thread writes."""

from __future__ import annotations

import socket
import ssl
import subprocess
import threading
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import BinaryIO, cast

import pytest
from docker_parts import program

from tfjob.dockerapi.stream import STDERR, STDOUT, Hijacked


def frame(stream: int, data: bytes) -> bytes:
    return bytes([stream, 0, 0, 0]) + len(data).to_bytes(4, "big") + data


class Answer:
    """What is left of the HTTP answer: a file that may have read ahead."""

    def __init__(self, connection: socket.socket) -> None:
        self.fp = connection.makefile("rb")


def hijacked(connection: socket.socket) -> Hijacked:
    return Hijacked(connection, cast("BinaryIO", Answer(connection)))


@pytest.fixture(scope="module")
def certificate(tmp_path_factory: pytest.TempPathFactory) -> Path:
    openssl = program("openssl", "openssl")
    file = tmp_path_factory.mktemp("tls") / "both.pem"
    command = [openssl, "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-days", "1", "-subj", "/CN=localhost"]
    command += ["-addext", "subjectAltName=DNS:localhost", "-keyout", str(file), "-out", str(file) + ".crt"]
    subprocess.run(command, check=True, capture_output=True)
    return file


@pytest.fixture(params=["plain", "tls"])
def pair(request: pytest.FixtureRequest) -> Iterator[tuple[socket.socket, socket.socket]]:
    """Our end and the other one."""
    ours, theirs = socket.socketpair()
    if request.param == "tls":
        file = request.getfixturevalue("certificate")
        server = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        server.load_cert_chain(f"{file}.crt", file)
        client = ssl.create_default_context(cafile=f"{file}.crt")
        found: list[socket.socket] = []
        thread = threading.Thread(target=lambda: found.append(server.wrap_socket(theirs, server_side=True)))
        thread.start()
        ours = client.wrap_socket(ours, server_hostname="localhost")
        thread.join()
        (theirs,) = found
    ours.settimeout(60)
    theirs.settimeout(60)
    yield ours, theirs
    ours.close()
    theirs.close()


def test_frames_come_whole_however_they_are_cut(pair: tuple[socket.socket, socket.socket]) -> None:
    ours, theirs = pair
    stream = hijacked(ours)
    data = frame(STDOUT, b"one") + frame(STDERR, b"") + frame(STDOUT, bytes(range(256)) * 300)

    def send() -> None:
        for start in range(0, len(data), 1000):
            theirs.sendall(data[start : start + 1000])
        theirs.sendall(frame(STDOUT, b"half")[:10])
        theirs.shutdown(socket.SHUT_WR)

    thread = threading.Thread(target=send)
    thread.start()
    assert stream.read_frame() == (STDOUT, b"one")
    assert stream.read_frame() == (STDERR, b"")
    assert stream.read_frame() == (STDOUT, bytes(range(256)) * 300)
    assert stream.read_frame() is None
    thread.join()


def test_what_was_read_ahead_is_not_lost(pair: tuple[socket.socket, socket.socket]) -> None:
    ours, theirs = pair
    answer = Answer(ours)
    theirs.sendall(b"HTTP/1.1 101 UPGRADED\r\n\r\n" + frame(STDOUT, b"at once"))
    assert answer.fp.readline().startswith(b"HTTP")
    assert answer.fp.readline() == b"\r\n"
    stream = Hijacked(ours, cast("BinaryIO", answer))
    theirs.sendall(frame(STDOUT, b"later"))
    assert [stream.read_frame(), stream.read_frame()] == [(STDOUT, b"at once"), (STDOUT, b"later")]


def test_one_writes_while_another_reads(pair: tuple[socket.socket, socket.socket]) -> None:
    ours, theirs = pair
    stream = hijacked(ours)
    count, size = 300, 20_000

    def echo() -> None:
        left = count * size
        while left:
            data = theirs.recv(1 << 16)
            left -= len(data)
            theirs.sendall(frame(STDOUT, data))

    def write() -> None:
        for number in range(count):
            stream.write(bytes([number % 251]) * size)

    threads = [threading.Thread(target=echo), threading.Thread(target=write)]
    for thread in threads:
        thread.start()
    got = bytearray()
    while len(got) < count * size:
        found = stream.read_frame()
        assert found is not None
        got += found[1]
    for thread in threads:
        thread.join()
    assert bytes(got) == b"".join(bytes([number % 251]) * size for number in range(count))


def test_silence_and_an_end_of_our_own(pair: tuple[socket.socket, socket.socket]) -> None:
    ours, _ = pair
    stream = hijacked(ours)
    stream.settimeout(0.05)
    with pytest.raises(TimeoutError):
        stream.read_frame()
    stream = hijacked(ours)
    stream.settimeout(60)
    ended = threading.Event()

    def read() -> None:
        with suppress(OSError, ValueError):
            stream.read_frame()
        ended.set()

    thread = threading.Thread(target=read)
    thread.start()
    stream.close()
    assert ended.wait(60)
    thread.join()
