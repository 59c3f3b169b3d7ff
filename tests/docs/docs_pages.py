"""The pages of the documentation, read as blocks that must be true, and a player that makes sure they are.

The convention for blocks is written down for people in docs/contributing.md, section "Blocks in the documentation".
"""

from __future__ import annotations

import fcntl
import os
import platform
import pty
import re
import shlex
import shutil
import struct
import subprocess
import sys
import termios
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import typer.main
import yaml
from support import REPOSITORY, environ_of_users

from tfjob.cli.main import COMMANDS, GROUPS
from tfjob.cli.parser import app
from tfjob.errors import InvalidFile
from tfjob.spec import conda
from tfjob.spec.load import load_text
from tfjob.targets.file import load as load_target

__all__ = ["PAGES", "Block", "Player", "blocks", "check_commands", "is_known"]

PAGES = sorted([REPOSITORY / "README.md", REPOSITORY / "CHANGELOG.md", *(REPOSITORY / "docs").rglob("*.md")])
KINDS = {
    "yaml": ("", "part", "environment", "target", "wrong", "other"),
    "console": ("", "real", "docker"),
    "sh": ("", "check"),
    "python": ("",),
    "json": ("",),
    "text": ("",),
}
OTHER_PROGRAMS = {"cd", "docker", "git", "pipx", "sudo", "apt-get", "source", "export"}
_FENCE = re.compile(r"^```(\S*)[ ]*(.*)$")
_TITLE = re.compile(r"title=(\S+)")
_REDIRECTION = re.compile(r"\s[12]?>{1,2}\s*[\w./&-]+")


@dataclass(frozen=True)
class Block:
    """A fenced block: its language, its kind (the word after the language), the file it is if it is one, its text."""

    page: Path
    line: int
    language: str
    kind: str
    title: str | None
    text: str

    def __str__(self) -> str:
        return f"{self.page.relative_to(REPOSITORY)}:{self.line}"


def blocks(page: Path) -> list[Block]:
    """The fenced blocks of a page, in order."""
    found: list[Block] = []
    opened: tuple[int, str, str] | None = None
    lines: list[str] = []
    for number, line in enumerate(page.read_text(encoding="utf-8").splitlines(), start=1):
        fence = _FENCE.match(line)
        if opened is None and fence:
            opened, lines = (number, fence[1], fence[2]), []
        elif opened is not None and line == "```":
            start, language, words = opened
            title = _TITLE.search(words)
            kind = _TITLE.sub("", words).strip()
            found.append(Block(page, start, language, kind, title[1] if title else None, "\n".join(lines) + "\n"))
            opened = None
        elif opened is not None:
            lines.append(line)
    assert opened is None, f"{page}: a block is not closed"
    return found


def is_known(block: Block) -> bool:
    """Whether the block follows the convention; one that does not would be skipped in silence."""
    return block.kind in KINDS.get(block.language, ())


class Player:
    """Plays the blocks of one page, in order, in a folder that starts as a copy of specs/ under the name `digits`.

    There, training takes a third of the epochs, and pages are read as if they said so.
    """

    def __init__(self, folder: Path, *, kinds: tuple[str, ...], base: str = "") -> None:
        """`kinds` are those of console blocks that are run; `base` is the image that `base: cpu` stands for."""
        self.folder = folder / "digits"
        self._kinds = kinds
        self._environ = environ_of_users()
        programs = folder / "programs"
        programs.mkdir()
        (programs / "timeout").write_text(_TIMEOUT.format(python=sys.executable), encoding="utf-8")
        (programs / "timeout").chmod(0o755)
        self._environ["PATH"] = f"{programs}:{Path(sys.executable).parent}:{self._environ['PATH']}"
        if kinds == ("",):  # no packages are needed, and nobody else fetches data while the cache is pruned
            self._environ["TFJOB_STORE"] = str(folder / "store")
        self._environ["TERM"] = "xterm-256color"
        self._refused = ""
        shutil.copytree(REPOSITORY / "specs", self.folder, ignore=shutil.ignore_patterns(".tfjob", "__pycache__"))
        script = self.folder / "digits" / "digits.py"
        text = script.read_text(encoding="utf-8")
        assert all(text.count(default) == 1 for default in _SHORTER)
        for default, shorter in _SHORTER.items():
            text = text.replace(default, shorter)
        script.write_text(text, encoding="utf-8")
        if base:
            self._run("tfjob init")
            (self.folder / ".tfjob" / "config.yml").write_text(f"images: {{cpu: {base}}}\n", encoding="utf-8")

    def play(self, block: Block) -> None:
        """Do what the block says, and compare what it shows."""
        if block.title:
            file = self.folder / block.title
            file.parent.mkdir(parents=True, exist_ok=True)
            file.write_text(block.text, encoding="utf-8")
        getattr(self, f"_play_{block.language}")(block)

    def close(self) -> None:
        """End what the page left running."""
        for run in (self.folder / ".tfjob" / "runs").glob("*-*"):
            self._run(f"tfjob cancel {run.name} >/dev/null 2>&1")

    def _play_yaml(self, block: Block) -> None:
        name = block.title or "job.yml"
        if block.kind == "environment":
            file = self.folder / (block.title or "shown-environment.yml")
            file.write_text(block.text, encoding="utf-8")
            conda.load(file)
        elif block.kind == "target":
            file = self.folder / (block.title or "shown-target.yml")
            file.write_text(block.text, encoding="utf-8")
            load_target(file, name="shown")
        elif block.kind == "other":
            yaml.safe_load(block.text)
        elif block.kind == "wrong":
            try:
                self._load(block.text, name)
            except InvalidFile as error:
                self._refused = "".join(f"{problem}\n" for problem in error.problems)
            else:
                raise AssertionError(f"{block}: this file is fine")
        else:
            text = block.text
            if block.kind == "part" and not re.search(r"^(script|command):", text, re.MULTILINE):
                text += 'command: "true"\n'
            if block.kind == "part" and "script:" in text and "code:" not in text:
                text += "code: digits\n"
            self._load(text, name)

    def _load(self, text: str, name: str) -> None:
        load_text(text, file=name, base_dir=self.folder, environ={**self._environ, "API_TOKEN": "secret"})

    def _play_python(self, block: Block) -> None:
        compile(block.text, str(block), "exec")
        if block.title is None:
            done = self._run(f"python - <<'END OF PYTHON'\n{block.text}END OF PYTHON")
            assert done.returncode == 0, f"{block}\n{done.stdout}"

    def _play_json(self, block: Block) -> None:
        yaml.safe_load(block.text)

    def _play_text(self, block: Block) -> None:
        """Words, but not commands; after a refused file, its problems."""
        assert not re.search(r"^(\$ |tfjob )", block.text, re.MULTILINE), f"{block}: commands belong in console or sh"
        if self._refused:
            assert self._plain(block.text) == self._plain(self._refused), f"{block}\n{self._refused}"
            self._refused = ""

    def _play_sh(self, block: Block) -> None:
        check_commands(block.text.splitlines(), block)
        if block.kind != "check":
            done = self._run(f"set -e\n{block.text}")
            assert done.returncode == 0, f"{block}\n{done.stdout}"

    def _play_console(self, block: Block) -> None:
        steps = _steps(block)
        check_commands([command for command, _ in steps], block)
        if block.kind not in self._kinds:
            return
        script = "".join(f"printf '\\n@@@\\n'; (exit $last)\n{command}\nlast=$?\n" for command, _ in steps)
        printed = self._on_terminal(f"last=0\n{script}").split("@@@\n")[1:]
        assert len(printed) == len(steps), f"{block}\n{printed}"
        for (command, expected), shown in zip(steps, printed, strict=True):
            actual = shown.rstrip("\n") + "\n" if shown.strip() else ""
            assert self._is_like(expected, actual), f"{block}\n$ {command}\n{actual}"

    def _is_like(self, expected: list[str], actual: str) -> bool:
        pattern = ""
        for line in map(self._plain, expected):
            pattern += r"(?:.*\n)*?" if line == "..." else re.escape(line).replace("…", ".*") + r"\n"
        lines = [self._plain(line) for line in actual.splitlines()]
        return re.fullmatch(pattern, "".join(f"{line}\n" for line in lines)) is not None

    def _plain(self, text: str) -> str:
        """Text without what differs from run to run and from machine to machine."""
        text = text.replace(str(self.folder), "~/digits").replace(str(REPOSITORY), "~/tfjob")
        text = re.sub(rf"\b{re.escape(platform.node())}\b", "laptop", text)
        for pattern, replacement in _VARYING:
            text = re.sub(pattern, replacement, text)
        return text.strip()

    def _run(self, script: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            ["bash", "-c", script],
            cwd=self.folder,
            env=self._environ,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            timeout=240,
            check=False,
        )

    def _on_terminal(self, script: str) -> str:
        """What a person would see of the script on a wide terminal."""
        ours, theirs = pty.openpty()
        fcntl.ioctl(theirs, termios.TIOCSWINSZ, struct.pack("HHHH", 50, 250, 0, 0))
        process = subprocess.Popen(
            ["bash", "-c", script], cwd=self.folder, env=self._environ, stdin=theirs, stdout=theirs, stderr=theirs
        )
        os.close(theirs)
        data = b""
        while True:
            try:
                piece = os.read(ours, 65536)
            except OSError:  # the other side is closed
                break
            if not piece:
                break
            data += piece
        os.close(ours)
        process.wait(timeout=60)
        return _screen(data.decode("utf-8", "replace"))


_TIMEOUT = """\
#!{python}
import glob, signal, subprocess, sys, time

started = set(glob.glob(".tfjob/runs/*/tasks/*/started.json"))
name, seconds, *command = sys.argv[sys.argv.index("-s") + 1 :]
process = subprocess.Popen(command)
while process.poll() is None and set(glob.glob(".tfjob/runs/*/tasks/*/started.json")) <= started:
    time.sleep(0.05)
time.sleep(float(seconds))
process.send_signal(signal.Signals["SIG" + name])
code = process.wait()
sys.exit(code if "--preserve-status" in sys.argv else 124)
"""
"""timeout(1), but for its time, which begins when a task does: on a busy machine that may be late."""

_SHORTER = {"default=40": "default=12", "default=0.95": "default=0.9"}
"""Defaults of the training scripts, and those that they have here."""

_VARYING = (
    (r"\b([A-Za-z][A-Za-z0-9_.]*(?:-[a-z]+)*)-[0-9a-hjkmnp-tv-z]{6}\b", r"\1-ID"),
    (r"\b(?:[0-9a-f]{12}|[0-9a-f]{32}|[0-9a-f]{64})\b", "DIGEST"),
    (r"\d{4}-\d\d-\d\d[T ]\d\d:\d\d(?::\d\d(?:\.\d+Z)?)?", "TIME"),
    (r"\b\d+ min \d+ s\b|\b\d+(?:\.\d+)? s\b", "LONG"),
    (r"\b\d+(?:\.\d+)? (?:KiB|MiB|GiB|[kMG]B)\b", "SIZE"),
    (r"127\.0\.0\.1:\d+", "ADDRESS"),
    (r"Python 3\.\d+\.\d+, \d+ packages", "PACKAGES"),
    (r"(loss|accuracy) \d\.\d+", r"\1 NUMBER"),
    (r"epoch (\d+)/\1\b", "epoch LAST"),
    (r"epoch (\d+)/\d+", r"epoch \1"),
    (r"identical on", "identical on"),
    (r"\s+", " "),
)


def check_commands(commands: list[str], block: Block) -> None:
    """Every program must be one we know, every tfjob command must exist and take its options."""
    for command in commands:
        if not command.strip() or command.startswith("#"):
            continue
        lexer = shlex.shlex(_REDIRECTION.sub("", command), posix=True, punctuation_chars="|&;<>()")
        lexer.whitespace_split = True
        words: list[str] = []
        for word in [*lexer, ";"]:
            if set(word) <= set("|&;()"):
                _check_one(words, block)
                words = []
            else:
                words.append(word)


def _check_one(words: list[str], block: Block) -> None:
    while words and re.fullmatch(r"[A-Za-z_]+=.*|!|then|do|if|while", words[0]):
        words = words[1:]
    if not words:
        return
    program, *arguments = words
    if program == "timeout":
        _check_one(words[next(i for i, word in enumerate(words) if word == "tfjob") :], block)
    elif program == "make":
        targets = re.findall(r"^([a-z-]+):", (REPOSITORY / "Makefile").read_text(encoding="utf-8"), re.MULTILINE)
        assert set(arguments) <= set(targets), f"{block}: no such target: make {' '.join(arguments)}"
    elif program == "tfjob":
        _check_options(arguments, block)
    elif program not in OTHER_PROGRAMS:
        beside = REPOSITORY / program if "/" in program else Path(sys.executable).with_name(program)
        builtin = subprocess.run(["bash", "-c", f"type {shlex.quote(program)}"], capture_output=True, check=False)
        assert beside.exists() or builtin.returncode == 0, f"{block}: no such program: {program}"


def _check_options(arguments: list[str], block: Block) -> None:
    command: Any = typer.main.get_command(app)
    if not arguments or arguments[0].startswith("-"):
        command.make_context("tfjob", arguments, resilient_parsing=True)
        return
    rest, typed, known = arguments, "", COMMANDS
    while rest and not rest[0].startswith("-"):
        name, *rest = rest
        assert name in known, f"{block}: no such command: tfjob {typed} {name}"
        command = command.get_command(command.make_context("tfjob", [], resilient_parsing=True), name)
        typed = f"{typed} {name}".strip()
        if typed not in GROUPS:
            break
        known = GROUPS[typed]
    try:
        command.make_context(f"tfjob {typed}", rest, resilient_parsing=typed in GROUPS)
    except Exception as error:
        raise AssertionError(f"{block}: tfjob {' '.join(arguments)}: {error}") from error


def _steps(block: Block) -> list[tuple[str, list[str]]]:
    """The commands of a console block, each with what it prints."""
    steps: list[tuple[str, list[str]]] = []
    for line in block.text.splitlines():
        if line.startswith("$ "):
            steps.append((line[2:], []))
        else:
            assert steps, f"{block}: output before the first command"
            steps[-1][1].append(line)
    for _, expected in steps:
        while expected and not expected[-1]:
            expected.pop()
    return steps


def _screen(data: str) -> str:
    """What stays on a terminal after the data: carriage returns, erased lines and moves up are followed, colors are not."""
    lines, row, column = [""], 0, 0
    for piece in re.findall(r"\x1b\[[0-9;?]*[A-Za-z]|\r|\n|[^\x1b\r\n]+|\x1b", data):
        if piece == "\r":
            column = 0
        elif piece == "\n":
            row, column = row + 1, 0
            lines += [""] * (row >= len(lines))
        elif piece.startswith("\x1b"):
            if piece.endswith("A"):
                row = max(row - int(piece[2:-1] or 1), 0)
            elif piece.endswith("K"):
                lines[row] = ""
        else:
            lines[row] = lines[row][:column].ljust(column) + piece + lines[row][column + len(piece) :]
            column += len(piece)
    return "\n".join(lines)
