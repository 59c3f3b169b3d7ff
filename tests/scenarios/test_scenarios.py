"""Runs the terminal sessions in this folder and compares what they print, line by line.

A `.session` file has a first line that says what it shows, then files (`--- NAME`, contents), then `--- session`:
commands after `$ `, what they print (stdout and stderr together), and `[exit N]` where N is not 0. In what is printed,
`...` alone on a line stands for any lines, `[..]` for any text within a line. Commands run in bash, in an empty folder.
"""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import pytest

if TYPE_CHECKING:
    from support import Tfjob

SESSIONS = sorted(Path(__file__).parent.glob("*.session"))


class Step(NamedTuple):
    command: str
    expected: list[str]
    exit_code: int


def read(path: Path) -> tuple[dict[str, str], list[Step]]:
    _, *parts = re.split(r"^--- (.+)\n", path.read_text(encoding="utf-8"), flags=re.MULTILINE)
    files = dict(zip(parts[::2], parts[1::2], strict=True))
    steps: list[Step] = []
    for line in files.pop("session").splitlines():
        if line.startswith("$ "):
            steps.append(Step(line[2:], [], 0))
        elif ended := re.fullmatch(r"\[exit (\d+)\]", line):
            steps[-1] = steps[-1]._replace(exit_code=int(ended[1]))
        elif steps:
            steps[-1].expected.append(line)
    return files, steps


def matches(expected: list[str], printed: list[str]) -> bool:
    if not expected:
        return not printed
    if expected[0] == "...":
        return any(matches(expected[1:], printed[start:]) for start in range(len(printed) + 1))
    if not printed:
        return False
    pattern = ".*".join(map(re.escape, expected[0].split("[..]")))
    return re.fullmatch(pattern, printed[0]) is not None and matches(expected[1:], printed[1:])


@pytest.mark.parametrize("path", SESSIONS, ids=lambda path: path.stem)
def test_session(path: Path, tfjob: Tfjob) -> None:
    files, steps = read(path)
    assert steps
    for name, text in files.items():
        tfjob.write(name, text)
    binaries = str(Path(sys.executable).parent)
    environ = {**tfjob.environ, "PATH": f"{binaries}:{tfjob.environ['PATH']}", "COLUMNS": "100"}
    for step in steps:
        done = subprocess.run(
            ["bash", "-c", step.command],
            cwd=tfjob.directory,
            env=environ,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            timeout=120,
            check=False,
        )
        printed = done.stdout.splitlines()
        expected = step.expected
        while expected and not expected[-1]:
            expected.pop()
        assert matches(expected, printed), f"$ {step.command}\n{done.stdout}"
        assert done.returncode == step.exit_code, f"$ {step.command}\n{done.stdout}"
