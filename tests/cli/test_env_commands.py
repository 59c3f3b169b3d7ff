"""`tfjob env …` as people type it, with real packages of the tests' own."""

from __future__ import annotations

import hashlib
import json
import os
from typing import TYPE_CHECKING

import pytest
from environment_parts import packages  # noqa: F401  # a fixture
from support import Tfjob, eventually, has_ended

if TYPE_CHECKING:
    from pathlib import Path

    from environment_parts import Packages

CONDA = """
name: small
dependencies:
  - python=3.11
  - pip: [small-thing==1.0]
"""


@pytest.fixture
def env(packages: Packages, tmp_path: Path) -> Tfjob:  # noqa: F811  # the fixture
    packages.wheel("small_thing", "1.0")
    packages.wheel("small_thing", "2.0")
    directory = tmp_path / "project"
    directory.mkdir()
    made = Tfjob(directory, {**os.environ, "TFJOB_STORE": str(tmp_path / "store"), "DOCKER_HOST": "unix:///nowhere"})
    made.write("small.yml", CONDA)
    return made


def test_a_registered_environment_has_versions_and_a_job_names_it(env: Tfjob) -> None:
    assert env("env", "create", "-f", "small.yml").stdout == "Registered small@1\n"
    assert env("env", "create", "-f", "small.yml").stdout == "Unchanged: small@1\n"
    env.write("small.yml", CONDA.replace("1.0", "2.0"))
    refused = env("env", "create", "-f", "small.yml", exit_code=2).stderr
    assert "small-thing==1.0" in refused
    assert "--new-version" in refused
    assert env("env", "create", "-f", "small.yml", "--new-version").stdout == "Registered small@2\n"
    for name, version in (("small", "2.0"), ("small@1", "1.0")):
        job = f"name: job\ncommand: python -c 'import small_thing; print(small_thing.VERSION)'\nenvironment: {name}\n"
        env.write("job.yml", job)
        assert env("submit", "job.yml").stdout == f"{version}\n"
    plan = json.loads(env("plan", "job.yml", "-o", "json").stdout)
    assert plan["environment"]["name"] == "small@1"


def test_names_that_are_not_there_are_told_with_the_one_that_was_meant(env: Tfjob) -> None:
    env("env", "create", "-f", "small.yml")
    env.write("job.yml", "command: 'true'\nenvironment: smal\n")
    assert "small" in env("submit", "job.yml", exit_code=3).stderr
    assert "small" in env("env", "show", "smal", exit_code=3).stderr
    assert "tfjob's own" in env("env", "create", "-f", "small.yml", "--name", "tfjob-mine", exit_code=2).stderr


def test_cloned_listed_and_removed(env: Tfjob) -> None:
    env("env", "clone", "tfjob-tensorflow-2.15-cpu", "mine")
    listed = json.loads(env("env", "list", "-o", "json").stdout)
    names = [one["name"] for one in listed]
    assert names[0] == "mine"
    assert "tfjob-tensorflow-2.15-cpu" in names
    assert env("env", "remove", "mine").stdout == "Removed mine@1\n"
    for version in ("1", "2"):
        env.write("small.yml", CONDA.replace("1.0", f"{version}.0"))
        env("env", "create", "-f", "small.yml", "--new-version")
    assert "small@2" in env("env", "remove", "small", exit_code=2).stderr
    assert env("env", "remove", "small", "--all-versions").stdout == "Removed small@1\nRemoved small@2\n"
    assert "mine" not in env("env", "list").stdout
    assert "can't be removed" in env("env", "remove", "tfjob-tensorflow-2.15-cpu", exit_code=2).stderr


def test_a_lock_is_written_beside_the_file_and_followed(env: Tfjob) -> None:
    env.write("small.yml", CONDA.replace("==1.0", ""))
    assert "Python 3.11" in env("env", "lock", "small.yml").stdout
    lock = env.directory / "small.lock"
    text = lock.read_text()
    assert "small-thing==2.0" in text
    job = "name: job\ncommand: python -c 'import small_thing; print(small_thing.VERSION)'\nenvironment: {conda_file: small.yml}\n"
    env.write("job.yml", job)
    assert env("submit", "job.yml").stdout == "2.0\n"
    run = env.show()["id"]
    assert (env.run_directory(run) / "environment.lock").read_text() == text
    env.write("small.yml", CONDA)  # the lock is of something else now
    refused = env("submit", "job.yml", exit_code=None)
    assert refused.returncode in {2, 4}
    assert "small.lock" in refused.stderr or "tfjob env lock" in refused.stderr


def test_built_ahead_an_environment_is_found_by_the_submit(env: Tfjob) -> None:
    built = json.loads(env("env", "build", "small.yml", "-o", "json").stdout)
    env.write("job.yml", "name: job\ncommand: python -c pass\nenvironment: {conda_file: small.yml}\n")
    env("submit", "job.yml")
    assert env.show()["environment_key"] == built["key"]
    shown = json.loads(env("env", "show", "small.yml", "-o", "json").stdout)
    assert shown["built"][0]["key"] == built["key"]
    assert shown["built"][0]["versions"] == {"small-thing": "1.0"}
    assert "small-thing  1.0" in env("env", "show", "job.yml").stdout


def test_a_rerun_follows_the_lock_of_its_run(env: Tfjob, packages: Packages) -> None:  # noqa: F811  # the fixture
    env.write("small.yml", CONDA.replace("==1.0", ""))
    job = "name: job\ncommand: python -c 'import small_thing; print(small_thing.VERSION)'\nenvironment: {conda_file: small.yml}\n"
    env.write("job.yml", job)
    assert env("submit", "job.yml").stdout == "2.0\n"
    packages.wheel("small_thing", "3.0")
    elsewhere = Tfjob(env.directory, {**env.environ, "TFJOB_STORE": f"{env.environ['TFJOB_STORE']}-other"})
    assert elsewhere("rerun", "latest").stdout == "2.0\n"
    assert elsewhere("submit", "job.yml").stdout == "3.0\n"


def test_what_has_no_packages_has_no_lock(env: Tfjob) -> None:
    env.write("image.yml", "name: image\nimage: some/image:1\n")
    assert "has no list of packages" in env("env", "lock", "image.yml", exit_code=2).stderr
    env.write("job.yml", "command: 'true'\n")
    assert "has no `environment`" in env("env", "build", "job.yml", exit_code=2).stderr
    assert "no file" in env("env", "build", "nothing.yml", exit_code=3).stderr


def test_the_group_has_help_and_near_misses(env: Tfjob) -> None:
    assert "Usage: tfjob env COMMAND" in env("env").stdout
    assert "Did you mean env list?" in env("env", "lits", exit_code=2).stderr


def test_what_a_run_uses_is_not_pruned(env: Tfjob) -> None:
    env.write("job.yml", "name: job\ncommand: sleep 300\nenvironment: {conda_file: small.yml}\n")
    run = env.submit("job.yml")
    eventually(lambda: env.record(run)["state"] == "Running", "it runs")
    key = env.record(run)["environment_key"]
    elsewhere = Tfjob(env.directory.parent, env.environ)  # another workspace, or none
    kept = json.loads(elsewhere("env", "prune", "--unused-days", "0", "-o", "json").stdout)
    assert [(one["key"], one["freed"]) for one in kept["prefixes"]] == [(key, False)]
    env("cancel", run)
    supervisor = env.record(run)["supervisor"]["pid"]  # it holds what its run uses, and has a little to do yet
    eventually(lambda: has_ended(supervisor), "the end of its supervisor")
    gone = json.loads(elsewhere("env", "prune", "--unused-days", "0", "-o", "json").stdout)
    assert [(one["key"], one["freed"]) for one in gone["prefixes"]] == [(key, True)]
    assert gone["freed_bytes"] > 0
    assert "0 environments" in elsewhere("env", "prune", "--unused-days", "0").stdout


def test_stores_of_slurm_targets_are_pruned_but_for_what_runs_wait_for(env: Tfjob, tmp_path: Path) -> None:
    shared = tmp_path / "shared"
    env.write("lab.yml", f"kind: slurm\nname: lab\ndirectory: {shared}\n")
    env("compute", "create", "-f", "lab.yml")
    env.write("far.yml", f"kind: slurm\nname: far\nlogin: ssh://me@login\ndirectory: {tmp_path}/far\n")
    env("compute", "create", "-f", "far.yml")
    of_login_node = (
        tmp_path / "far" / "store" / "images" / "key"
    )  # a file system that is mounted here at the same place
    of_login_node.mkdir(parents=True)
    os.utime(of_login_node, (0, 0))
    images = shared / "store" / "images"
    named = "named-" + hashlib.sha256(b"some/image:1").hexdigest()[:32]
    for name in ("waits", "over", named):
        (images / name).mkdir(parents=True)
        (images / name / "image.tar").write_bytes(b"x" * 10_000)
        os.utime(images / name, (0, 0))
    fetched = {"archive": None, "reference": "some/image:1", "directory": str(images)}
    written = [
        {"archive": str(images / name / "image.tar"), "directory": str(images / name)} for name in ("waits", "over")
    ]
    for container, ended in zip((fetched, *written), (None, None, "2026-01-01T00:00:00Z"), strict=True):
        env.write("job.yml", "name: job\ncommand: 'true'\n")
        env("submit", "job.yml")
        run = env.run_directory(str(json.loads(env("list", "-o", "json").stdout)[0]["id"]))
        (run / "slurm").mkdir()
        (run / "slurm" / "gang.json").write_text(json.dumps({"container": container}))
        record = json.loads((run / "record.json").read_text())
        (run / "record.json").write_text(json.dumps({**record, "ended": ended}))
    said = env("env", "prune").stdout
    assert sorted(path.name for path in images.iterdir()) == sorted(["waits", named])
    assert f"in {shared}/store: 0 environments" in said
    assert of_login_node.is_dir()


def test_a_lock_for_a_target_is_for_one_that_is_used_from_elsewhere(env: Tfjob) -> None:
    env.write("near.yml", "kind: slurm\nname: near\n")
    env("compute", "create", "-f", "near.yml")
    refused = env("env", "lock", "small.yml", "--target", "near", exit_code=2).stderr
    assert "target near is no Slurm cluster with `login` and `directory`" in refused
