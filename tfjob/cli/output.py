"""How things are printed: tables and documents on stdout, plain where nobody looks at a terminal.

What is shown while a run goes on is in live.py.
"""

from __future__ import annotations

import json
import os
import shutil
import sys
from collections.abc import Sequence
from contextlib import suppress
from typing import TYPE_CHECKING, Any, TextIO

from tfjob.cli.escaping import in_line, in_lines

if TYPE_CHECKING:
    from tfjob.foresight.pairings import Finding

__all__ = [
    "colored",
    "duration",
    "plural",
    "print_document",
    "print_findings",
    "print_table",
    "shown_path",
    "size",
    "step_of",
    "uses_color",
]

STATE_STYLES = {"Completed": "green", "Failed": "red", "Canceled": "yellow"}
_CODES = {
    "green": "32",
    "red": "31",
    "yellow": "33",
    "blue": "34",
    "magenta": "35",
    "cyan": "36",
    "dim": "2",
    "bold": "1",
}


def uses_color(stream: TextIO) -> bool:
    """Whether to write colors: on a terminal that can, unless NO_COLOR is set (no-color.org)."""
    return stream.isatty() and not os.environ.get("NO_COLOR") and os.environ.get("TERM") != "dumb"


def colored(text: str, style: str, stream: TextIO) -> str:
    """The text in a color, if the stream takes colors."""
    return f"\x1b[{_CODES[style]}m{text}\x1b[0m" if style in _CODES and uses_color(stream) else text


def step_of(message: str) -> str:
    """A progress message without its counts: two of the same step differ in nothing else."""
    return "".join(letter for letter in message if not letter.isdigit())


def print_document(value: Any, kind: str) -> None:
    """One document on stdout, and nothing else; `kind` is json or yaml."""
    if kind == "json":
        print(_json(value))
        return
    import yaml  # noqa: PLC0415  # 18 ms that JSON and tables need not pay

    class Dumper(yaml.SafeDumper):
        """Texts of several lines as they are: scripts are to be read."""

    def text(dumper: yaml.SafeDumper, value: str) -> yaml.ScalarNode:
        return dumper.represent_scalar("tag:yaml.org,2002:str", value, style="|" if "\n" in value else None)

    Dumper.add_representer(str, text)
    print(yaml.dump(value, Dumper=Dumper, sort_keys=False, allow_unicode=_writes_utf8(), width=120), end="")


def _json(value: Any) -> str:
    """The value as JSON that any program reads: letters as they are if stdout is UTF-8 and all of them have one there."""
    text = json.dumps(value, indent=2, ensure_ascii=False)
    try:
        if _writes_utf8() and text.encode():
            return text
    except UnicodeEncodeError:  # a name of a file that is no UTF-8
        pass
    return json.dumps(value, indent=2)


def _writes_utf8() -> bool:
    return (sys.stdout.encoding or "").lower().replace("-", "") == "utf8"


def print_findings(findings: Sequence[Finding]) -> None:
    """What is known to fail, on stderr, before anything is started: what, the way out, and where that is known from."""
    for one in findings:
        with suppress(OSError):
            print(colored("Warning:", "yellow", sys.stderr), in_lines(one.message), file=sys.stderr)
            for line in (one.way_out, one.source and f"Known from {one.source}."):
                if line:
                    print(f"  {in_lines(line)}", file=sys.stderr)


def print_table(
    headers: Sequence[str],
    rows: Sequence[Sequence[str]],
    *,
    styles: dict[str, str] | None = None,
    fits: bool = False,
) -> None:
    """Columns on stdout, as wide as they need to be; nothing is cut, so that names can be copied and piped.

    A row is one line, whatever is in it. With `fits`, the last column is prose, and on a terminal no line is longer than it is wide.
    """
    table = [list(headers), *[[*row[:-1], " ".join(row[-1].split())] if fits else list(row) for row in rows]]
    table = [[in_line(cell) for cell in row] for row in table]
    widths = [max(len(row[column]) for row in table) for column in range(len(headers))]
    if fits and sys.stdout.isatty():
        room = max(shutil.get_terminal_size().columns - sum(widths[:-1]) - 2 * len(widths[:-1]), 0)
        for row in table:
            row[-1] = row[-1] if len(row[-1]) <= room else f"{row[-1][: room - 1]}…" if room > 3 else ""
        widths[-1] = min(widths[-1], room)
    for number, row in enumerate(table):
        cells = [cell.ljust(width) for cell, width in zip(row, widths, strict=True)]
        if number == 0:
            print(colored("  ".join(cells).rstrip(), "bold", sys.stdout))
            continue
        painted = [
            colored(cell, (styles or {}).get(text, ""), sys.stdout) for cell, text in zip(cells, row, strict=True)
        ]
        print("  ".join(painted).rstrip())


def duration(seconds_taken: float) -> str:
    """A length of time for people: 0.4 s, 12.3 s, 4 min 05 s, 2 h 03 min."""
    if seconds_taken < 99.95:
        return f"{max(seconds_taken, 0):.1f} s"
    minutes, secs = divmod(round(seconds_taken), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours} h {minutes:02} min" if hours else f"{minutes} min {secs:02} s"


def shown_path(path: str | os.PathLike[str]) -> str:
    """A path for people: from the current folder if it is below that, else with ~ for the home directory, else as it is."""
    text = in_line(os.fspath(path))
    try:
        here = os.getcwd()
    except OSError:  # it was removed
        here = ""
    if text == here:
        return "."
    if here and text.startswith(f"{here.rstrip('/')}/"):
        return text[len(here.rstrip("/")) + 1 :]
    home = os.path.expanduser("~").rstrip("/")  # stays ~ where there is none
    return f"~{text[len(home) :]}" if home.startswith("/") and f"{text}/".startswith(f"{home}/") else text


def plural(count: int, noun: str) -> str:
    """A count and its noun: 1 file, 3 files."""
    return f"{count} {noun}" if count == 1 else f"{count} {noun}s"


def size(count: int) -> str:
    """Bytes for people: 512 B, 1.2 MiB."""
    amount = float(count)
    for unit in ("B", "KiB", "MiB", "GiB"):
        if amount < 1024:
            return f"{amount:.0f} {unit}" if unit == "B" else f"{amount:.1f} {unit}"
        amount /= 1024
    return f"{amount:.1f} TiB"
