"""Slurm's accounting on a test cluster: a database and a slurmdbd on the head node, for as long as a test wants them."""

from __future__ import annotations

import contextlib
import os
import shutil
from dataclasses import replace
from typing import TYPE_CHECKING

from docker_parts import install, wait_for

if TYPE_CHECKING:
    from collections.abc import Iterator

    from cluster.slurm import Slurm

__all__ = ["accounting", "find_accounting"]

PACKAGES = {"mariadbd": "mariadb-server-core", "slurmdbd": "slurmdbd"}
READY_S = 90
DATABASE = "/run/lab/slurm/db"
WITH_MACHINE = "/run/lab/bin/with-machine"
# Nobody but this node's own processes reaches it: it listens on the loopback of the node's network.
MARIADB = f"mariadbd --no-defaults --user=root --datadir={DATABASE} --socket={DATABASE}/socket --skip-grant-tables"
MARIADB += (
    f" --bind-address=127.0.0.1 --pid-file={DATABASE}/pid --innodb-buffer-pool-size=16M --innodb-log-file-size=8M"
)
# What mariadb-install-db does, without the packages that it needs: slurmdbd keeps procedures, which are in a table.
TABLES = "echo 'CREATE DATABASE mysql;'; echo 'USE mysql;'; cat /usr/share/mysql/mysql_system_tables.sql"
SLURMDBD = """\
AuthType=auth/munge
AuthInfo=socket={socket}
DbdHost={head}
DbdAddr={address}
SlurmUser=root
StorageType=accounting_storage/mysql
StorageHost=127.0.0.1
StorageUser=root
StoragePass=none
PidFile=/run/slurmdbd.pid
LogFile=/run/lab/slurm/log/slurmdbd.log
"""


def find_accounting() -> None:
    """Make sure that a database and slurmdbd are there. Raises CannotRunError with what is missing."""
    path = f"{os.environ.get('PATH', os.defpath)}:/usr/sbin:/sbin"
    missing = [package for program, package in PACKAGES.items() if shutil.which(program, path=path) is None]
    if missing:
        install(*missing, "slurm-wlm-mysql-plugin")


@contextlib.contextmanager
def accounting(slurm: Slurm) -> Iterator[Slurm]:
    """Slurm with accounting. Its controller is started anew before and after; jobs go on."""
    directory = slurm.directory / "db"
    shutil.rmtree(directory, ignore_errors=True)
    directory.mkdir()
    with_it = replace(
        slurm,
        options={
            **slurm.options,
            "AccountingStorageType": "accounting_storage/slurmdbd",
            "AccountingStorageHost": slurm.head.address,
            "AccountingStoragePass": str(slurm.socket),  # with munge, where its socket is (slurm.conf(5))
        },
    )
    config = slurm.directory / "etc" / "slurmdbd.conf"
    config.write_text(
        SLURMDBD.format(socket=slurm.socket, head=slurm.head.name, address=slurm.head.address), encoding="utf-8"
    )
    config.chmod(0o600)  # it must not be another's to read
    try:
        slurm.head.exec([WITH_MACHINE, "sh", "-c", f"({TABLES}) | {MARIADB} --bootstrap >{DATABASE}/made 2>&1"])
        slurm.head.exec([WITH_MACHINE, "sh", "-c", f"setsid {MARIADB} >{DATABASE}/log 2>&1 </dev/null &"])
        assert wait_for((directory / "socket").is_socket, READY_S), "no database"
        slurm.head.exec([WITH_MACHINE, "slurmdbd"])
        slurm.stop_daemon(slurm.head, "slurmctld")
        with_it._write()

        def answers() -> bool:
            try:
                with_it.run("sacctmgr", "-n", "show", "cluster")
            except AssertionError:
                return False
            return True

        assert wait_for(answers, READY_S), "no slurmdbd"
        added = wait_for(lambda: "tfjob" in with_it.run("sacctmgr", "-ni", "show", "cluster", check=False), 3)
        if not added:
            with_it.run("sacctmgr", "-i", "add", "cluster", "tfjob")
        with_it.start()
        yield with_it
    finally:
        slurm.stop_daemon(slurm.head, "slurmctld")
        for name in ("slurmdbd", "mariadbd"):
            slurm.stop_daemon(slurm.head, name)
        slurm._write()
        slurm.start()
