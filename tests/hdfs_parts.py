"""An HDFS of the tests' own, on loopback: Hadoop's NameNode and DataNode, each a Java process.

The jars are those that the package pyspark has with it: up to 3.0.2 they are Hadoop 2.7's, servers and all. What is needed of
them is kept in ``.cache/hadoop`` (30 MB of 205), with the directory of a NameNode that has been formatted.
"""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import re
import shutil
import subprocess
import sys
import tarfile
import tempfile
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from xml.sax.saxutils import escape

import pytest
from docker_parts import locked, program
from support import REPOSITORY, eventually, free_ports

__all__ = ["Hdfs", "hdfs"]

PACKAGE = "pyspark==3.0.2"
JARS = frozenset(
    {
        "commons-cli",
        "commons-codec",
        "commons-collections",
        "commons-configuration",
        "commons-io",
        "commons-lang",
        "commons-logging",
        "guava",
        "hadoop-annotations",
        "hadoop-auth",
        "hadoop-common",
        "hadoop-hdfs",
        "htrace-core",
        "jackson-core-asl",
        "jackson-mapper-asl",
        "jakarta.ws.rs-api",
        "javax.servlet-api",
        "jetty",
        "jetty-sslengine",
        "jetty-util",
        "log4j",
        "netty-all",
        "protobuf-java",
        "slf4j-api",
        "slf4j-log4j12",
        "xercesImpl",
    }
)
CACHE = REPOSITORY / ".cache" / "hadoop" / hashlib.sha256(" ".join([PACKAGE, *sorted(JARS)]).encode()).hexdigest()[:12]
JAVA = ("-Xmx128m", "-XX:+UseSerialGC", "-XX:TieredStopAtLevel=1")
SERVERS = "org.apache.hadoop.hdfs.server"
LOG = """\
log4j.rootLogger=INFO, out
log4j.appender.out=org.apache.log4j.ConsoleAppender
log4j.appender.out.layout=org.apache.log4j.PatternLayout
log4j.appender.out.layout.ConversionPattern=%d %p %c{1}: %m%n
"""


@dataclass(frozen=True)
class Hdfs:
    """One that runs: ``127.0.0.1:PORT`` of its NameNode, its DataNode's process, and the directory of its configuration."""

    place: str
    configuration: Path
    data_node: subprocess.Popen[bytes]

    def put(self, files: Mapping[str, bytes]) -> None:
        """Write files, over those that are there."""
        from hdfs_native import WriteOptions  # noqa: PLC0415  # it may be missing

        client = self.client
        for path, content in files.items():
            client.mkdirs(path.rpartition("/")[0] or "/", 0o755, create_parent=True)
            with client.create(path, WriteOptions(overwrite=True)) as file:
                file.write(content)

    @property
    def client(self) -> Any:
        """A client of the superuser's."""
        from hdfs_native import Client  # noqa: PLC0415  # it may be missing

        return Client(f"hdfs://{self.place}")


@contextlib.contextmanager
def hdfs(directory: Path) -> Iterator[Hdfs]:
    """Have an HDFS with nothing in it; skips with the reason where none can be."""
    pytest.importorskip("hdfs_native", reason="hdfs-native is missing: pip install hdfs-native")
    java = program("java", "openjdk-17-jre-headless")
    jars = _jars(java)
    [port] = free_ports(1)
    place = f"127.0.0.1:{port}"
    shutil.copytree(CACHE / "formatted", directory / "name")
    configuration = _configuration(directory, place)
    name_node, data_node = (
        _started(java, jars, configuration, f"{SERVERS}.{kind}", directory)
        for kind in ("namenode.NameNode", "datanode.DataNode")
    )
    logs = [directory / "namenode.NameNode.log", directory / "datanode.DataNode.log"]
    try:
        eventually(
            lambda: (
                name_node.poll() is not None
                or data_node.poll() is not None
                or "BLOCK* processReport" in _text(logs[0])  # before, it knows of no storage to write to
            ),
            "the DataNode has told the NameNode of its storage",
        )
        for process, its_log in zip((name_node, data_node), logs, strict=True):
            if process.poll() is not None:
                pytest.fail(f"{its_log.stem} ended: {_text(its_log)[-1000:]}")
        yield Hdfs(place, configuration, data_node)
    finally:
        for process in (data_node, name_node):
            process.kill()
            process.wait(60)


def _text(path: Path) -> str:
    return path.read_text(encoding="utf-8", errors="replace")


def _command(java: str, jars: Path, configuration: Path, *main: str) -> list[str]:
    return [java, *JAVA, "-cp", f"{configuration}:{jars}/*", *main]


def _started(java: str, jars: Path, configuration: Path, main: str, directory: Path) -> subprocess.Popen[bytes]:
    log = directory / f"{main.removeprefix(SERVERS)[1:]}.log"
    with log.open("wb") as out:
        return subprocess.Popen(
            _command(java, jars, configuration, main),
            cwd=directory,
            stdin=subprocess.DEVNULL,
            stdout=out,
            stderr=subprocess.STDOUT,
        )


def _configuration(directory: Path, place: str) -> Path:
    """The files of Hadoop for servers and clients: the NameNode `place` is the usual one, and the name service ``lab``."""
    made = directory / "conf"
    for folder in ("hdfs", "datanode", "static"):  # of their web pages, which are nowhere else here
        (made / "webapps" / folder).mkdir(parents=True)
    anywhere = "127.0.0.1:0"
    _xml(made / "core-site.xml", {"fs.defaultFS": f"hdfs://{place}"})
    _xml(
        made / "hdfs-site.xml",
        {
            "dfs.replication": "1",
            "dfs.webhdfs.enabled": "false",
            "dfs.ha.namenodes.lab": "one",
            "dfs.namenode.rpc-address.lab.one": place,
            "dfs.namenode.name.dir": f"{directory}/name",
            "dfs.datanode.data.dir": f"{directory}/data",
            "dfs.namenode.http-address": anywhere,
            "dfs.datanode.address": anywhere,
            "dfs.datanode.http.address": anywhere,
            "dfs.datanode.ipc.address": anywhere,
        },
    )
    (made / "log4j.properties").write_text(LOG)
    return made


def _xml(path: Path, settings: Mapping[str, str]) -> None:
    rows = [
        f"<property><name>{name}</name><value>{escape(value)}</value></property>" for name, value in settings.items()
    ]
    path.write_text("\n".join(["<configuration>", *rows, "</configuration>\n"]))


def _jars(java: str) -> Path:
    """Hadoop's jars, and a formatted NameNode beside them: fetched once into the checkout."""
    jars = CACHE / "jars"
    with locked(CACHE / "lock", fcntl.LOCK_EX):
        if not (CACHE / "formatted").exists():
            shutil.rmtree(jars, ignore_errors=True)
            with tempfile.TemporaryDirectory(dir=CACHE) as folder:
                _unpack(_fetched(Path(folder)), jars)
                configuration = _configuration(Path(folder), "127.0.0.1:8020")
                command = _command(
                    java, jars, configuration, f"{SERVERS}.namenode.NameNode", "-format", "-nonInteractive"
                )
                done = subprocess.run(command, check=False, capture_output=True, text=True, cwd=folder)
                if done.returncode:
                    pytest.fail(f"the NameNode can't be formatted: {done.stdout[-1000:]}")
                (Path(folder) / "name").rename(CACHE / "formatted")
    return jars


def _fetched(folder: Path) -> Path:
    command = [sys.executable, "-m", "pip", "--disable-pip-version-check", "download", "--quiet", "--no-deps"]
    command += ["--no-binary", ":all:", "--dest", str(folder), PACKAGE]
    done = subprocess.run(command, check=False, capture_output=True, text=True)
    if done.returncode:
        pytest.skip(f"Hadoop's jars are missing: pip could not fetch {PACKAGE}: {done.stderr.strip()[-300:]}")
    return next(folder.glob("pyspark-*.tar.gz"))


def _unpack(archive: Path, jars: Path) -> None:
    jars.mkdir(parents=True)
    with tarfile.open(archive, "r|gz") as members:
        for member in members:
            folder, _, name = member.name.rpartition("/")
            content = members.extractfile(member) if folder.endswith("/deps/jars") else None
            if content is not None and re.split(r"-\d", name)[0] in JARS:
                with (jars / name).open("wb") as file:
                    shutil.copyfileobj(content, file)
