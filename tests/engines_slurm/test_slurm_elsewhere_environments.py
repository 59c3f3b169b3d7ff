"""Environments of runs that are submitted from elsewhere to a real Slurm: made here, sent once, and used by its nodes."""

from __future__ import annotations

import os
import shutil
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from conda_channel import PYTHON, channel
from docker_parts import docker_daemon, docker_engine, program, test_base  # noqa: F401  # fixtures
from engines_slurm.test_slurm_containers import SETTINGS, STORAGE
from engines_slurm.test_slurm_elsewhere import Site, site
from environment_parts import Packages

if TYPE_CHECKING:
    from collections.abc import Iterator

    from docker_parts import Daemon

__all__ = ["site"]

pytestmark = [pytest.mark.root, pytest.mark.xdist_group("cluster")]

ASKS = "python -c 'import sample, sys; print(sample.VERSION, sys.prefix, sys.flags.optimize)'; which tool"


@pytest.fixture(autouse=True)
def nothing_kept(site: Site) -> Iterator[None]:
    """The cluster keeps nothing of another session's, and of an image not longer than the test."""
    shutil.rmtree(site.directory, ignore_errors=True)
    yield
    shutil.rmtree(site.directory, ignore_errors=True)


@pytest.fixture
def packages(site: Site, tmp_path: Path) -> Packages:  # the fixture
    """A folder of packages, with the package sample; the only one that is known. The store is the test's own."""
    for name in [one for one in site.tfjob.environ if one.startswith(("PIP_", "UV_"))]:
        del site.tfjob.environ[name]
    folder = tmp_path / "packages"
    site.tfjob.environ.update(PIP_CONFIG_FILE=os.devnull, PIP_NO_INDEX="1", PIP_FIND_LINKS=str(folder))
    site.tfjob.environ["TFJOB_STORE"] = str(tmp_path / "store")
    made = Packages(folder)
    tool = {"sample-1.0.data/scripts/tool": "#!python\nprint('tool')\n"}
    made.wheel("sample", files={"sample/__init__.py": "VERSION = '1.0'\n", **tool})
    return made


def kept(site: Site, kind: str) -> list[Path]:  # the fixture's value
    """What the cluster keeps of a kind, and what is there beside it: nothing that is half."""
    found = list((site.directory / "kept" / kind).iterdir())
    assert not [one for one in found if one.name.endswith(".part")]
    return sorted(one for one in found if one.is_dir())


@pytest.mark.usefixtures("packages")
def test_packages_are_sent_once(site: Site) -> None:
    site.tfjob.write("environment.yml", "dependencies: [{pip: [sample]}]\n")
    locked = site.tfjob("env", "lock", "environment.yml", "--target", "far").stdout
    assert locked.startswith("environment.lock: Python 3.")
    run = site.submit(ASKS, environment={"conda_file": "environment.yml"})
    record = site.ended(run)
    [prefix] = kept(site, "prefixes")
    assert record["environment_key"] == prefix.name
    assert site.here(run, "environment.lock") == (site.tfjob.directory / "environment.lock").read_text()
    assert site.here(run, "logs/main.log") == f"1.0 {prefix} 0\n{prefix}/bin/tool\n"
    assert (prefix / "bin" / "python").readlink().is_relative_to("/usr/bin")
    before = prefix.stat()
    shutil.rmtree(Path(site.tfjob.environ["TFJOB_STORE"]) / "prefixes")  # here it is only made
    again = site.tfjob("rerun", "--detach", run).stdout.strip()
    assert site.ended(again)["environment_key"] == prefix.name
    assert site.here(again, "logs/main.log") == site.here(run, "logs/main.log")
    assert kept(site, "prefixes") == [prefix]
    assert prefix.stat() == before
    (prefix / "bin" / "mine").touch()
    failure = site.ended(site.tfjob("rerun", "--detach", run).stdout.strip(), exit_code=4)["failure"]
    assert failure["message"].endswith("have changed since they were sent: something was written to bin")
    (prefix / "bin" / "python").unlink()
    (prefix / "bin" / "python").symlink_to("/usr/bin/python3.0")
    failure = site.ended(site.tfjob("rerun", "--detach", run).stdout.strip(), exit_code=4)["failure"]
    assert f"the Python of the packages in {prefix} on ssh://root@head does not start: " in failure["message"]
    assert site.left() == []


@pytest.mark.usefixtures("packages")
def test_a_python_from_a_channel_stands_where_it_is_used(site: Site) -> None:
    dependencies = [f"python={PYTHON}", "greet", {"pip": ["sample"]}]
    run = site.submit(
        f"{ASKS}; greet", environment={"conda": {"channels": [channel().as_uri()], "dependencies": dependencies}}
    )
    site.ended(run)
    [prefix] = kept(site, "prefixes")
    first, tool, *greeting = site.here(run, "logs/main.log").splitlines()
    assert (first, tool) == (f"1.0 {prefix} 0", f"{prefix}/bin/tool")
    assert greeting
    assert not (prefix / "bin" / "python").resolve().is_relative_to("/usr")
    assert f"{prefix}/bin/python" in (prefix / "bin" / "tool").read_text()


@pytest.mark.usefixtures("packages")
def test_an_image_is_sent_once_and_packages_are_mounted_in_it(
    site: Site,
    docker_engine: Daemon,  # noqa: F811  # the fixture
    test_base: str,  # noqa: F811  # the fixture
) -> None:
    program("podman", "podman")
    program("runc", "runc")
    storage, settings = site.directory / "storage.conf", site.directory / "containers.conf"
    site.directory.mkdir(parents=True)
    storage.write_text(STORAGE)
    settings.write_text(SETTINGS)
    site.target(runtime="podman", setup=[f"export CONTAINERS_STORAGE_CONF={storage} CONTAINERS_CONF={settings}"])
    site.tfjob.environ["DOCKER_HOST"] = docker_engine.host
    site.tfjob.write("image/Dockerfile", f"FROM {test_base}\nRUN echo made >/made\n")
    run = site.submit("test ! -e /run/lab; cat /made; id -u", environment={"dockerfile": "image/Dockerfile"})
    assert site.ended(run)["state"] == "Completed"
    assert site.here(run, "logs/main.log") == "made\n0\n"
    [image] = kept(site, "images")
    before = (image / "image.tar").stat()
    wanted = {"conda": {"dependencies": [{"pip": ["sample"]}]}, "base": f"sha256:{image.name}"}
    mounted = site.submit(f"cat /made; {ASKS}", environment=wanted, compute={"target": "far", "runtime": "docker"})
    key = site.ended(mounted)["environment_key"]
    assert site.here(mounted, "logs/main.log") == "made\n1.0 /opt/env 0\n/opt/env/bin/tool\n"
    assert [prefix.name for prefix in kept(site, "prefixes")] == [key]
    assert [kept(site, "images"), (image / "image.tar").stat()] == [[image], before]
    assert site.left() == []


@pytest.mark.usefixtures("slurm")
def test_without_a_docker_engine_a_dockerfile_is_refused_in_words(site: Site) -> None:
    site.tfjob.environ["DOCKER_HOST"] = "unix:///nowhere.sock"
    site.tfjob.write("Dockerfile", "FROM debian:12\n")
    run = site.submit("true", environment={"dockerfile": "Dockerfile"})
    failure = site.ended(run, exit_code=5)["failure"]
    assert "made here, and sent to the cluster" in failure["message"]
    assert "submit from a login node" in failure["hint"]
    assert not site.directory.exists()


def test_what_a_job_says_that_does_not_start_is_told(site: Site) -> None:
    site.target(setup=["echo no such module >&2; exit 3"])
    failure = site.ended(site.submit("true"), exit_code=1)["failure"]
    assert failure["message"].endswith("; no such module")
