"""Names and words that the terminal's encoding does not have, or that a terminal would obey."""

from __future__ import annotations

import json
import os
import subprocess
from typing import TYPE_CHECKING

import pytest
from support import PROGRAM

from tfjob.cli.escaping import in_line, in_lines

if TYPE_CHECKING:
    from support import Tfjob

POSIX = {"LC_ALL": "POSIX", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"}


def printed(tfjob: Tfjob, *arguments: str, **environ: str) -> bytes:
    done = subprocess.run(
        [*PROGRAM, *arguments], cwd=tfjob.directory, env={**tfjob.environ, **environ}, capture_output=True, check=False
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.mark.parametrize("environ", [{"PYTHONIOENCODING": "latin-1"}, {"PYTHONIOENCODING": "ascii"}, POSIX])
def test_what_an_encoding_lacks_is_replaced(tfjob: Tfjob, environ: dict[str, str]) -> None:
    assert b"show, prune ...\n" in printed(tfjob, "--help", **environ)
    tfjob.write("job.yml", "name: job\ncommand: touch 'outputs/\u2211 m.txt'")
    assert b"Completed" not in printed(tfjob, "submit", "job.yml", **environ)
    name = b"\\xe2\\x88\\x91" if environ is POSIX else b"\\u2211"  # there, every name is bytes
    assert b"\n%s m.txt  0 B\n" % name in printed(tfjob, "show", "latest", **environ)
    record = json.loads(printed(tfjob, "show", "latest", "-o", "json", **environ).decode("ascii"))
    assert os.fsencode(record["outputs"][0]["path"]) == "\u2211 m.txt".encode()


def test_names_that_are_no_text_and_names_that_break_lines(tfjob: Tfjob) -> None:
    data = tfjob.directory / "data"
    data.mkdir()
    names = (b"\xff.txt", b"a\nb\x1b[31m.txt", "\xfc".encode())
    for name in names:
        (data / os.fsdecode(name)).write_text("x")
    tfjob("dataset", "create", "--name", "odd", "--path", "data")
    for environ in ({}, POSIX, {"PYTHONIOENCODING": "utf-8"}):
        rows = json.loads(printed(tfjob, "dataset", "files", "odd", "-o", "json", **environ).decode("utf-8", "strict"))
        assert {os.fsencode(row["path"]) for row in rows} == set(names)
        lines = printed(tfjob, "dataset", "files", "odd", **environ).splitlines()
        assert [line.split()[0] for line in lines[1:3]] == [
            rb"a\nb\x1b[31m.txt",
            b"\\xfc" if environ is POSIX else b"\xc3\xbc",
        ]
        assert lines[3].split()[0] == rb"\xff.txt"
    tfjob.write("job.yml", "name: job\ncommand: printf x > \"$(printf 'outputs/a\\n\\033[31mb')\"")
    tfjob("submit", "job.yml")
    assert "\na\\n\\x1b[31mb  1 B\n" in tfjob("show", "latest").stdout


def test_what_a_terminal_would_obey_is_escaped() -> None:
    assert in_line("a\tb\nc\x1b[0m\x9b\u202e\udcff é\u2026") == "a\\tb\\nc\\x1b[0m\\x9b\\u202e\\xff é\u2026"
    assert in_lines("a\tb\nc\x1b\r") == "a\tb\nc\\x1b\\r"
