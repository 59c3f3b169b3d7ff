"""How a node prepares its container: the real program, with commands of enroot's that are scripts."""

from __future__ import annotations

import fcntl
import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from engines_slurm.slurm_commands import commands
from engines_slurm.test_slurm_runtimes import archive, module, programs_on_the_path, spec
from support import eventually

import tfjob.engines.slurm.program
from tfjob.engines.slurm.gang import FLAGS

__all__ = ["programs_on_the_path"]

START = Path(tfjob.engines.slurm.program.__file__).parent / "start.py"
SLEEPS = "echo $$ >{0}/pid.new; mv {0}/pid.new {0}/pid; touch $2; sleep 1000"


@dataclass
class Node:
    """The program on a node, as it prepares a container."""

    directory: Path
    process: subprocess.Popen[bytes]

    @property
    def words(self) -> list[dict[str, Any]]:
        """What it has said to batch.py so far."""
        *lines, _ = (self.directory / "words").read_bytes().split(b"\n")
        return [json.loads(line) for line in lines]

    def has_said(self, key: str, text: str = "") -> bool:
        return any(text in str(word[key]) for word in self.words if key in word)

    def ends(self) -> None:
        eventually(lambda: self.process.poll() is not None, "the program's end")
        assert self.process.returncode == 0

    @property
    def left(self) -> list[str]:
        """What is there beside the archive and the lock."""
        made = [path.name for path in (self.directory / "image").iterdir()]
        return [name for name in made if name not in ("image.tar", "image.sqsh.lock")] + os.listdir(
            self.directory / "tmp"
        )


Starts = Callable[..., Node]


@pytest.fixture
def node(tmp_path: Path) -> Iterator[Starts]:
    """Start the program: `node(mksquashfs="exit 1")`; other keys are of what gang.json says of containers."""
    started = []

    def start(mksquashfs: str = 'touch "$2"', **keys: Any) -> Node:
        run, images = tmp_path / "run", tmp_path / "image"
        for path in (run / "slurm", images, tmp_path / "tmp"):
            path.mkdir(parents=True, exist_ok=True)
        image = images / "image.tar"
        if not image.exists():
            archive(image, {"etc": None, "etc/a": b"1"})
        made = {**spec(runtime="pyxis"), "archive": str(image), "directory": str(images), **keys}
        (run / "slurm" / "gang.json").write_text(json.dumps({"run": "r-1", "container": made}))
        commands(tmp_path / "bin", enroot="true", squeue="true", mksquashfs=mksquashfs.format(tmp_path))
        environ = {
            "PATH": f"{tmp_path}/bin:{os.environ['PATH']}",
            "TMPDIR": str(tmp_path / "tmp"),
            "SLURM_NODEID": "0",
            "SLURM_JOB_ID": "7",
        }
        with (tmp_path / "words").open("wb") as words, (tmp_path / "errors").open("wb") as errors:
            argv = [sys.executable, *FLAGS, str(START), "container", str(run), str(run), "7.0"]
            process = subprocess.Popen(argv, env=environ, bufsize=0, stdin=subprocess.PIPE, stdout=words, stderr=errors)
        started.append(process)
        return Node(tmp_path, process)

    yield start
    for process in started:
        process.kill()
        process.wait()
        assert process.stdin is not None
        process.stdin.close()


def is_alive(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except (FileNotFoundError, ProcessLookupError):  # it ends as it is asked about
        return False


@pytest.mark.parametrize("how", ["end of input", "SIGTERM"])
def test_what_is_given_up_leaves_nothing(node: Starts, tmp_path: Path, how: str) -> None:
    made = node(mksquashfs=SLEEPS)
    eventually((tmp_path / "pid").exists, "the command")
    assert made.left
    assert made.process.stdin is not None
    made.process.stdin.write(b'"beat"\n')
    if how == "SIGTERM":
        made.process.send_signal(signal.SIGTERM)
    else:
        made.process.stdin.close()
    made.ends()
    assert made.left == []
    eventually(lambda: not is_alive(int((tmp_path / "pid").read_text())), "the end of the command")
    assert made.has_said("signal") == (how == "SIGTERM")
    assert not made.has_said("broken")  # it would be told as the reason


def test_another_job_that_makes_the_same_is_told_and_waited_for(node: Starts, tmp_path: Path) -> None:
    (tmp_path / "image").mkdir()
    with (tmp_path / "image" / "image.sqsh.lock").open("wb") as lock:
        fcntl.lockf(lock, fcntl.LOCK_EX)
        made = node()
        eventually(lambda: made.has_said("preparing", "another job makes enroot's file"), "its word")
    eventually(lambda: made.has_said("preparing", "enroot unpacks the image"), "the image")
    assert "image.sqsh" in made.left


def test_another_job_is_not_waited_for_without_end(tmp_path: Path) -> None:
    lock = module("image").Lock(str(tmp_path / "lock"), lambda _: pytest.fail("nobody has it"))
    waits: list[float] = []

    def wait(waited_s: float) -> None:
        waits.append(waited_s)
        if len(waits) > 2:
            raise module("image").Trouble("too long")

    script = (
        f"import fcntl; f = open({str(tmp_path / 'lock')!r}, 'ab'); fcntl.lockf(f, fcntl.LOCK_EX); print(); input()"
    )
    with subprocess.Popen([sys.executable, "-c", script], stdin=subprocess.PIPE, stdout=subprocess.PIPE) as other:
        assert other.stdout is not None
        other.stdout.readline()
        with pytest.raises(module("image").Trouble, match="too long"), module("image").Lock(lock.path, wait):
            pytest.fail("it was taken")
        other.communicate(b"\n")
    assert waits[0] == 0 < waits[1] < waits[2]
    with lock:
        pass


def test_what_killed_ones_left_is_removed(node: Starts, tmp_path: Path) -> None:
    """Another node may have the same TMPDIR, and processes of its own that cannot be seen here."""
    gone = subprocess.Popen(["true"])
    gone.wait()
    here = os.uname().nodename
    for path in ("tmp/tfjob-image-{}.{}-a", "image/image.sqsh.{}.{}"):
        for host, pid in ((here, gone.pid), (here, os.getpid()), ("another", gone.pid)):
            made = tmp_path / path.format(host, pid)
            (made if "tmp/" in path else made.parent).mkdir(parents=True, exist_ok=True)
            (made / "file" if "tmp/" in path else made).touch()
    started = node()
    eventually(lambda: started.has_said("preparing", "enroot unpacks"), "the image")
    live = [(here, os.getpid()), ("another", gone.pid)]
    kept = [
        "image.sqsh",
        *(
            f"{start}{host}.{pid}{end}"
            for start, end in (("image.sqsh.", ""), ("tfjob-image-", "-a"))
            for host, pid in live
        ),
    ]
    eventually(lambda: sorted(started.left) == sorted(kept), "only what is in use is left")


@pytest.mark.parametrize(
    ("keys", "said"),
    [
        ({"archive": "damaged.tar"}, "is damaged"),
        ({"reference": 7, "archive": None}, "encode"),  # nothing that anybody thought of
    ],
)
def test_whatever_goes_wrong_is_said(node: Starts, tmp_path: Path, keys: dict[str, Any], said: str) -> None:
    (tmp_path / "damaged.tar").write_bytes(b"no archive")
    if keys.get("archive"):
        keys = {"archive": str(tmp_path / keys["archive"])}
    made = node(**keys)
    made.ends()
    assert made.has_said("broken", f"{os.uname().nodename}: ")
    assert made.has_said("broken", said)


def test_a_command_is_ended_at_its_limit_with_all_it_started(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    image = module("image")
    monkeypatch.setattr(image, "LIMIT_S", 0.0)
    monkeypatch.setattr(image, "GRACE_S", 0.1)

    def begun() -> None:
        eventually((tmp_path / "pid").exists, "what it starts")  # so that the limit is over once that is there

    made = image.Images("podman", "podman", spec={}, environ=dict(os.environ), tell=print, check=begun)
    script = f"trap '' TERM; sleep 1000 & echo $! >{tmp_path}/new; mv {tmp_path}/new {tmp_path}/pid; wait"
    with pytest.raises(image.Trouble, match="could not: it took longer than 0 h"):
        made.run(["sh", "-c", script], "could not")
    eventually(lambda: not is_alive(int((tmp_path / "pid").read_text())), "the end of what it started")
