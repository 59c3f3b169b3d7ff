"""What is put into a node's container, without a container."""

from __future__ import annotations

import io
import json
import subprocess
import sys
import tarfile
from pathlib import Path

from tfjob.engines.cluster import agent
from tfjob.engines.cluster.container import AGENT, ENTRYPOINT, UNPACK, archive_of, bundle_of
from tfjob.engines.submitter import Submitter
from tfjob.rundir import RunDirectory


def test_a_bundle_becomes_directories_and_programs_and_the_last_one_hears_the_rest(tmp_path: Path) -> None:
    program = "import os, sys; print(sys.argv[1:], __file__, os.read(0, 100).decode())"
    bundle = json.dumps(
        {
            "directories": [[f"{tmp_path}/a", 0o755], [f"{tmp_path}/a/ssh", 0o700]],
            "programs": [[f"{tmp_path}/p", program]],
        }
    ).encode()
    for _ in range(2):  # a second time, because the connection broke, it does no harm
        done = subprocess.run(
            [sys.executable, "-I", "-S", "-c", UNPACK, str(len(bundle)), f"{tmp_path}/p", "x", "y"],
            input=bundle + b"an order",
            capture_output=True,
            check=True,
        )
        assert done.stdout.decode() == f"['x', 'y'] {tmp_path}/p an order\n"
    assert (tmp_path / "a/ssh").stat().st_mode & 0o777 == 0o700


def test_a_bundle_that_is_cut_off_starts_nothing(tmp_path: Path) -> None:
    command = [sys.executable, "-I", "-S", "-c", UNPACK, "100", f"{tmp_path}/p"]
    done = subprocess.run(command, input=b"{", capture_output=True, check=False)
    assert done.returncode == 1
    assert b"ended too early" in done.stderr


def test_archive_and_bundle_have_the_same_in_them() -> None:
    run = RunDirectory(Path("/runs/some-run"))
    who = Submitter(1234, 1234, "somebody")
    with tarfile.open(fileobj=io.BytesIO(archive_of(run, who, frozenset(), [("passwd", "all")]))) as tar:
        members = {f"/{one.name}": one for one in tar}
    bundle = json.loads(bundle_of(run))
    programs = {path for path, _ in bundle["programs"]}
    modules = Path(agent.__file__).parent.glob("agent*.py")
    named = ["run_files.py", *(file.name for file in modules)]
    assert programs == {*(AGENT.replace("agent.py", name) for name in named), ENTRYPOINT}
    assert {*(path for path, _ in bundle["directories"]), *programs} <= {*members}
    assert {*members} - {path for path, _ in bundle["directories"]} == {"/tfjob", *programs, "/etc/passwd"}
    assert (members[f"/tfjob/{run.id}/outputs"].uid, members[AGENT].uid, members["/etc/passwd"].uid) == (1234, 0, 0)
