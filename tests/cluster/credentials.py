"""Keys and certificates of a test cluster: SSH with host keys that are known, a Docker Engine with TLS, an SSH client's settings.

They are made once for a checkout, by ssh-keygen and openssl, and kept in ``.cache/cluster/etc``.
"""

from __future__ import annotations

import shutil
import subprocess
from collections.abc import Mapping
from pathlib import Path

from cluster.layout import USER, USER_ID, Layout
from docker_parts import CannotRunError

__all__ = ["make_credentials"]

DAYS = "3650"
SSHD = """\
AuthorizedKeysFile /run/lab/etc/authorized_keys
PermitRootLogin yes
PasswordAuthentication no
StrictModes no
UsePAM no
UseDNS no
MaxStartups 100
MaxSessions 100
PidFile none
Subsystem sftp internal-sftp
SetEnv PATH=/run/lab/bin:/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin
"""


def make_credentials(layout: Layout, addresses: Mapping[str, str], *, tls: str) -> None:
    """Make what is not there yet, for nodes by name and address; the node `tls` gets a server's certificate."""
    etc = layout.etc
    said = f"{layout.repository}\n{sorted(addresses.items())}\n{tls}\nsubuid\n"  # the last: what is made, when that changes
    stamp = etc / "made-for"
    if stamp.exists() and stamp.read_text(encoding="utf-8") == said:
        return
    shutil.rmtree(etc, ignore_errors=True)
    etc.mkdir(parents=True, mode=0o755)
    _ssh(etc, addresses)
    _tls(etc / "tls", tls, addresses[tls])
    _system(etc, addresses)
    stamp.write_text(said, encoding="utf-8")


def _ssh(etc: Path, addresses: Mapping[str, str]) -> None:
    known = []
    for name in ("id", *addresses):
        _run(["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-C", name, "-f", str(etc / name)])
        if name in addresses:
            kind, key = (etc / f"{name}.pub").read_text(encoding="utf-8").split()[:2]
            known.append(f"{name},{addresses[name]} {kind} {key}\n")
    (etc / "known_hosts").write_text("".join(known), encoding="utf-8")
    shutil.copyfile(etc / "id.pub", etc / "authorized_keys")
    (etc / "authorized_keys").chmod(0o644)
    (etc / "sshd_config").write_text(SSHD, encoding="utf-8")
    hosts = "".join(f"Host {name}\n  HostName {address}\n" for name, address in addresses.items())
    config = f"""\
{hosts}
Host {" ".join([*addresses, *addresses.values()])}
  IdentityFile "{etc / "id"}"
  IdentitiesOnly yes
  UserKnownHostsFile "{etc / "known_hosts"}"
  GlobalKnownHostsFile /dev/null
  StrictHostKeyChecking yes
  BatchMode yes
"""
    (etc / "ssh_config").write_text(config, encoding="utf-8")


def _tls(directory: Path, name: str, address: str) -> None:
    """A certificate authority, the server's certificate, and a client's as Docker names them: ca.pem, cert.pem, key.pem."""
    directory.mkdir()
    new = ["openssl", "req", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes"]
    _run(
        [*new, "-x509", "-days", DAYS, "-subj", "/CN=tfjob test cluster", "-keyout", "ca-key.pem", "-out", "ca.pem"],
        directory,
    )
    usages = {
        "server-": f"extendedKeyUsage=serverAuth\nsubjectAltName=DNS:{name},IP:{address}\n",
        "": "extendedKeyUsage=clientAuth\n",
    }
    for prefix, extensions in usages.items():
        (directory / "extensions").write_text(extensions, encoding="utf-8")
        subject = f"/CN={name if prefix else 'client'}"
        _run([*new, "-subj", subject, "-keyout", f"{prefix}key.pem", "-out", "request.pem"], directory)
        signed = [
            "openssl",
            "x509",
            "-req",
            "-days",
            DAYS,
            "-in",
            "request.pem",
            "-CA",
            "ca.pem",
            "-CAkey",
            "ca-key.pem",
        ]
        _run([*signed, "-CAcreateserial", "-extfile", "extensions", "-out", f"{prefix}cert.pem"], directory)


def _system(etc: Path, addresses: Mapping[str, str]) -> None:
    """The nodes' own /etc/hosts, and their users: the machine's, and one without privileges that may use Docker."""
    lines = ["127.0.0.1 localhost", *(f"{address} {name}" for name, address in addresses.items())]
    (etc / "hosts").write_text("\n".join(lines) + "\n", encoding="utf-8")
    (etc / "daemon.json").write_text("{}\n", encoding="utf-8")
    own = {
        "passwd": f"{USER}:x:{USER_ID}:{USER_ID}::/home/{USER}:/bin/sh",
        "shadow": f"{USER}:*:19000:0:99999:7:::",
        "group": f"{USER}:x:{USER_ID}:",
    }
    for name, line in own.items():
        there = [
            one for one in Path("/etc", name).read_text(encoding="utf-8").splitlines() if not one.startswith(f"{USER}:")
        ]
        if name == "group":
            there = [_with_member(one) if one.startswith("docker:") else one for one in there]
            if not any(one.startswith("docker:") for one in there):
                there.append(f"docker:x:{USER_ID + 1}:{USER}")
        (etc / name).write_text("\n".join([*there, line]) + "\n", encoding="utf-8")
        (etc / name).chmod(0o600 if name == "shadow" else 0o644)
    for name in ("subuid", "subgid"):  # for containers of the user's own (subuid(5))
        (etc / name).write_text(f"{USER}:200000:65536\n", encoding="utf-8")


def _with_member(group: str) -> str:
    return group + ("" if group.endswith(":") else ",") + USER


def _run(command: list[str], directory: Path | None = None) -> None:
    try:
        done = subprocess.run(command, cwd=directory, check=False, capture_output=True, text=True)
    except FileNotFoundError as error:
        raise CannotRunError(f"{command[0]} is not installed") from error
    if done.returncode != 0:
        raise CannotRunError(f"{command[0]}: {done.stderr.strip()[-300:]}")
