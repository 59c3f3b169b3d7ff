"""Addresses of engines, in all their forms; what is said when nobody is there."""

from __future__ import annotations

import hashlib
import json
import socket
import stat
import tempfile
from pathlib import Path

import pytest
from web_server import web_server

from tfjob.dockerapi.api import DockerApi
from tfjob.dockerapi.reach import engine_at, host_of, transport_to
from tfjob.dockerapi.ssh import SshHost, SshTransport
from tfjob.dockerapi.transport import TcpTransport, UnixTransport
from tfjob.errors import TargetError, TargetRefused


def context(config: Path, name: str, host: str, *, tls: bool = False) -> None:
    digest = hashlib.sha256(name.encode()).hexdigest()
    place = config / "contexts/meta" / digest
    place.mkdir(parents=True)
    (place / "meta.json").write_text(json.dumps({"Name": name, "Endpoints": {"docker": {"Host": host}}}))
    if tls:
        (config / "contexts/tls" / digest / "docker").mkdir(parents=True)


def test_every_form_of_an_address(tmp_path: Path) -> None:
    context(tmp_path, "far", "tcp://gpu1:2376", tls=True)
    context(tmp_path, "near", "ssh://anna@gpu2")
    environ = {"DOCKER_CONFIG": str(tmp_path), "DOCKER_HOST": "unix:///run/other.sock", "HOME": str(tmp_path)}
    assert transport_to("local", environ=environ) == UnixTransport("unix:///run/other.sock")
    assert transport_to("local", environ={}) == UnixTransport("unix:///var/run/docker.sock")
    assert transport_to("unix:///a/b", environ={}) == UnixTransport("unix:///a/b")
    assert transport_to("tcp://gpu1", environ={}) == TcpTransport("tcp://gpu1", "gpu1", 2375)
    certified = transport_to("tcp://gpu1", tls="/certs", environ={})
    assert certified == TcpTransport("tcp://gpu1", "gpu1", 2376, Path("/certs"))
    far = transport_to("context:far", environ=environ)
    assert isinstance(far, TcpTransport)
    assert (far.port, far.tls is not None and far.tls.parent.parent.parent) == (2376, tmp_path / "contexts")
    assert isinstance(transport_to("context:near", environ=environ), SshTransport)
    assert host_of("context:far", environ) == "gpu1"
    assert host_of("tcp://gpu1:2375") == "gpu1"
    assert host_of("local") is None
    DockerApi(far).close()


@pytest.mark.parametrize(
    "address", ["http://x", "gpu1", "tcp://", "ssh://", "tcp://x:port", "ssh://-oProxyCommand=x", ""]
)
def test_what_is_no_address(address: str) -> None:
    with pytest.raises(TargetRefused) as raised:
        transport_to(address, environ={})
    assert "ssh://user@host" in raised.value.hint


@pytest.mark.parametrize("text", [None, "{", "{}", "[]"])
def test_a_context_that_is_none(tmp_path: Path, text: str | None) -> None:
    if text is not None:
        place = tmp_path / "contexts/meta" / hashlib.sha256(b"x").hexdigest()
        place.mkdir(parents=True)
        (place / "meta.json").write_text(text)
    with pytest.raises(TargetRefused, match="Docker context x"):
        transport_to("context:x", environ={"DOCKER_CONFIG": str(tmp_path)})


@pytest.mark.parametrize(
    ("address", "host"),
    [
        ("ssh://gpu1", ("gpu1", None, None, "/var/run/docker.sock")),
        ("ssh://anna@GPU1:2222/run/user/1000/docker.sock", ("GPU1", "anna", 2222, "/run/user/1000/docker.sock")),
        ("ssh://anna@[fd00::1]:2222", ("fd00::1", "anna", 2222, "/var/run/docker.sock")),
    ],
)
def test_hosts_behind_ssh(address: str, host: tuple[str, str | None, int | None, str]) -> None:
    found = SshHost.of(address)
    assert (found.host, found.user, found.port, found.socket) == host
    assert found.arguments()[-2:] == ["--", found.host]


@pytest.mark.parametrize(
    "address", ["ssh://anna:secret@gpu1", "ssh://-oProxyCommand=x", "ssh://-l@x", "tcp://x", "ssh:///x"]
)
def test_hosts_that_are_none(address: str) -> None:
    with pytest.raises(ValueError, match=r"ssh://|no user"):
        SshHost.of(address)


def test_nobody_is_there(tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port = listener.getsockname()[1]
    with pytest.raises(TargetError, match=rf"no Docker Engine answers at tcp://127.0.0.1:{port}: Connection refused"):
        engine_at(f"tcp://127.0.0.1:{port}", environ={}).check()
    with pytest.raises(TargetError, match="no Docker Engine answers at unix:///nowhere"):
        engine_at("unix:///nowhere", environ={}).check()
    with pytest.raises(TargetRefused, match=r"the certificates in .* can't be used"):
        engine_at(f"tcp://127.0.0.1:{port}", tls=str(tmp_path), environ={}).check()


def test_somebody_who_says_nothing_is_not_waited_for() -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port = listener.getsockname()[1]
        with pytest.raises(TargetError, match=r"did not answer within 0.2 s"):
            engine_at(f"tcp://127.0.0.1:{port}", environ={}).check(0.2)


def test_a_login_that_finds_no_room_here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "nowhere"))
    with pytest.raises(TargetError, match="no login to gpu1 can be begun from this machine: No such file") as caught:
        engine_at("ssh://gpu1").check()
    assert not isinstance(caught.value, TargetRefused)  # it may be tried again


def test_a_machine_without_ssh(tmp_path: Path) -> None:
    environ = {"PATH": str(tmp_path)}
    with pytest.raises(TargetRefused, match="this machine has no ssh"):
        engine_at("ssh://gpu1", environ=environ).check()
    with pytest.raises(TargetRefused, match="this machine has no ssh"):
        host_of("ssh://gpu1", environ)


@pytest.mark.parametrize(
    ("said", "message", "kind"),
    [
        ("Host key verification failed.", "the host key of gpu1 is not known", TargetRefused),
        ("@ WARNING: REMOTE HOST IDENTIFICATION HAS CHANGED! @", "the host key of gpu1 has changed", TargetRefused),
        ("anna@gpu1: Permission denied (publickey).", "gpu1 refuses the login", TargetRefused),
        ("ssh: Could not resolve hostname gpu1: Name or service not known", "there is no host gpu1", TargetRefused),
        ("No user exists for uid 1234", "ssh refuses to work for a user without a name", TargetRefused),
        ("ssh: connect to host gpu1 port 22: Connection refused", "gpu1 takes no ssh connections", TargetError),
        ("ssh: connect to host gpu1 port 22: No route to host", "gpu1 can't be reached", TargetError),
    ],
)
def test_what_ssh_says_is_told_in_words(tmp_path: Path, said: str, message: str, kind: type[TargetError]) -> None:
    """ssh's own words, by a program of its name: on real machines, see test_dockerapi_ssh.py."""
    program = tmp_path / "ssh"
    program.write_text(f"#!/bin/sh\necho '{said}' >&2\nexit 255\n")
    program.chmod(program.stat().st_mode | stat.S_IXUSR)
    with pytest.raises(TargetError) as raised:
        engine_at("ssh://gpu1", environ={"PATH": f"{tmp_path}:/usr/bin:/bin"}).check()
    assert raised.value.message.startswith(message)
    assert raised.value.hint
    assert type(raised.value) is kind


@pytest.mark.parametrize("answer", [b"<html><p>It works!</html>", b"", b"{}", b"[]", b"null"])
def test_a_web_server_at_the_engines_address_is_told_as_such(answer: bytes) -> None:
    with web_server() as server:
        server.put("_ping", answer)
        server.put("v1.41/info", answer)
        api = engine_at(f"tcp://{server.address.removeprefix('http://')}", environ={})
        with pytest.raises(TargetRefused, match="is no Docker Engine: it answered") as raised:
            api.check(5)
        assert "the Docker Engine itself" in raised.value.hint
