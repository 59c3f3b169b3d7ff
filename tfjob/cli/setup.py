"""Commands for the ground a job stands on: init, doctor."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from tfjob.cli.options import TableFormat, TableOutput
from tfjob.cli.output import colored, print_document
from tfjob.errors import ExitCode
from tfjob.workspace import make_workspace

__all__ = ["doctor", "init"]

_STYLES = {"ok": "green", "missing": "yellow", "broken": "red"}


def init(
    directory: Annotated[Path, typer.Argument(help="Where to make it.")] = Path(),
) -> None:
    """Make a workspace: the directory .tfjob, which keeps runs and their outputs."""
    directory.mkdir(parents=True, exist_ok=True)
    workspace, is_new = make_workspace(directory)
    print(f"{'Made a workspace' if is_new else 'There is a workspace already'}: {workspace.root}")


def doctor(output: TableOutput = TableFormat.table) -> None:
    """Say what works on this machine, what does not, and what to do about it."""
    import shutil  # noqa: PLC0415  # only for this
    import sys  # noqa: PLC0415
    import textwrap  # noqa: PLC0415

    from tfjob.cli.checks import run_checks  # noqa: PLC0415

    findings = run_checks()
    if output is not TableFormat.table:
        print_document([finding._asdict() for finding in findings], output)
    else:
        width = max(len(finding.name) for finding in findings)
        for finding in findings:
            status = colored(finding.status.ljust(8), _STYLES[finding.status], sys.stdout)
            room = max(shutil.get_terminal_size().columns - width - 11, 20) if sys.stdout.isatty() else 10_000
            first, *rest = [*textwrap.wrap(finding.found, room), *textwrap.wrap(finding.what_to_do, room)]
            print(f"{status} {finding.name.ljust(width)}  {first}")
            for line in rest:
                print(f"{' ' * (10 + width)} {line}")
    if any(finding.status == "broken" for finding in findings):
        raise typer.Exit(ExitCode.TARGET_FAILED)
