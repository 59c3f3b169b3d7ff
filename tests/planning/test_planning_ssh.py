from __future__ import annotations

import subprocess
from pathlib import Path

from docker_parts import program

from tfjob.planning.ssh import SshHost, known_hosts, ssh_config

HOSTS = [
    SshHost("10.0.0.11", 20001, "root", "ssh-ed25519 AAAA11 root@gpu1\n"),
    SshHost("10.0.0.12", 31999, "anna", "ssh-ed25519 AAAA12"),
]


def test_each_host_has_its_key_under_its_port() -> None:
    assert known_hosts(HOSTS) == "[10.0.0.11]:20001 ssh-ed25519 AAAA11\n[10.0.0.12]:31999 ssh-ed25519 AAAA12\n"


def test_ssh_reads_what_is_meant(tmp_path: Path) -> None:
    ssh = program("ssh", "openssh-client")
    odd = tmp_path / "a %h b"
    odd.mkdir()
    file = odd / "config"
    file.write_text(ssh_config(HOSTS, identity=str(odd / "id"), known_hosts=str(odd / "known")))
    for host in HOSTS:
        done = subprocess.run([ssh, "-G", "-F", file, host.address], capture_output=True, text=True, check=True)
        said = dict(line.split(" ", 1) for line in done.stdout.splitlines() if " " in line)
        assert (said["hostname"], said["port"], said["user"]) == (host.address, str(host.port), host.user)
        assert said["stricthostkeychecking"] in {"yes", "true"}
        assert (said["batchmode"], said["identitiesonly"], said["globalknownhostsfile"]) == ("yes", "yes", "/dev/null")
        assert said["userknownhostsfile"].replace("%%", "%").strip('"') == str(odd / "known")
        assert said["identityfile"].replace("%%", "%").strip('"') == str(odd / "id")
