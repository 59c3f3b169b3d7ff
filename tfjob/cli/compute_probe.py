"""`tfjob compute test`: what the nodes of a target are like now, and what to do about what is wrong."""

from __future__ import annotations

import shutil
import sys
import textwrap
from collections import Counter
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from tfjob.cli.options import TableFormat, TableOutput, TargetName
from tfjob.cli.output import colored, plural, print_document, print_table, size
from tfjob.errors import ExitCode
from tfjob.workspace import default_config, find_workspace

if TYPE_CHECKING:
    from collections.abc import Sequence

    from tfjob.targets.definition import ClusterDefinition, SlurmDefinition
    from tfjob.targets.report import NodeReport, Note

__all__ = ["probe_target"]

_STYLES = {"ok": "green", "unusable": "red", "error": "red", "warning": "yellow", "note": "dim"}


def probe_target(
    target: TargetName,
    wait: Annotated[
        float | None,
        typer.Option(
            min=0,
            metavar="SECONDS",
            help="How long to wait for a node that does not answer. [default: wait_s of the target]",
            show_default=False,
        ),
    ] = None,
    output: TableOutput = TableFormat.table,
) -> None:
    """Ask every node of a target what it is like now. Ends with 5 if one can't be used."""
    from tfjob.targets.registered import Targets  # noqa: PLC0415  # not for `tfjob compute --help`

    if target == "local":
        from tfjob.cli.setup import doctor  # noqa: PLC0415  # which looks at this machine

        doctor(output)
        return
    workspace = find_workspace()
    definition = Targets(workspace.compute if workspace else None).get(target).definition
    if definition.kind == "slurm":
        _test_slurm(definition, output)
        return
    config = workspace.config if workspace else default_config()
    reports = _asked(definition, (config.cpu_image, config.gpu_image), wait)
    usable = sum(report.is_usable for report in reports)
    is_usable = usable == len(reports)
    if output is not TableFormat.table:
        print_document(
            {"name": target, "kind": "docker", "usable": is_usable, "nodes": [*map(_document, reports)]}, output
        )
    else:
        _print(reports)
        if not is_usable:
            print(f"\n{usable} of {plural(len(reports), 'node')} can be used.")
            if usable < definition.least_nodes:
                print(f"The target needs {definition.least_nodes} (least_nodes): no job can run there now.")
    if not is_usable:
        raise typer.Exit(ExitCode.TARGET_FAILED)


def _test_slurm(definition: SlurmDefinition, output: TableFormat) -> None:
    from tfjob.cli.building import building  # noqa: PLC0415  # only where something is waited for
    from tfjob.cli.compute_slurm import print_slurm, slurm_document  # noqa: PLC0415
    from tfjob.targets.slurm_probing import probe_slurm  # noqa: PLC0415

    with building(f"Testing {definition.name}") as screen:
        report = probe_slurm(definition, workspace=str(Path.cwd()), progress=screen.progress)
    if output is not TableFormat.table:
        print_document(slurm_document(report), output)
    else:
        print_slurm(report)
        if report.version and report.notes:
            print()
        _print_notes([(definition.name, note) for note in report.notes])
    if not report.is_usable:
        raise typer.Exit(ExitCode.TARGET_FAILED)


def _asked(definition: ClusterDefinition, images: tuple[str, ...], wait_s: float | None) -> tuple[NodeReport, ...]:
    from tfjob.cli.building import building  # noqa: PLC0415  # only where something is waited for
    from tfjob.targets.probing import probe  # noqa: PLC0415

    with building(f"Testing {definition.name}") as screen:
        return probe(definition, images=images, wait_s=wait_s, progress=screen.progress)


def _print(reports: tuple[NodeReport, ...]) -> None:
    heads: tuple[str, ...] = ("NODE", "STATE", "ENGINE", "GPUS", "DRIVER", "DISK FREE", "CLOCK", "PEERS")
    rows = [_row(report) for report in reports]
    kept = [column for column in range(len(heads)) if column < 4 or any(row[column] for row in rows)]
    rows = [tuple(row[column] for column in kept) for row in rows]
    heads = tuple(heads[column] for column in kept)
    needed = sum(max(len(row[column]) for row in (heads, *rows)) + 2 for column in range(len(heads))) - 2
    if sys.stdout.isatty() and needed > shutil.get_terminal_size().columns:
        _print_stacked(heads, rows)
    else:
        print_table(heads, rows, styles=_STYLES)
    notes = [(report.name, note) for report in reports for note in report.notes]
    if notes:
        print()
    _print_notes(notes)


def _print_stacked(heads: tuple[str, ...], rows: list[tuple[str, ...]]) -> None:
    """A block for each node, where the terminal is too narrow for a table."""
    for name, state, *rest in rows:
        print(f"{colored(name, 'bold', sys.stdout)}  {colored(state, _STYLES[state], sys.stdout)}")
        for head, text in zip(heads[2:], rest, strict=True):
            if text:
                print(f"  {head.lower().replace('gpus', 'GPUs').ljust(9)}  {text}")


def _print_notes(notes: Sequence[tuple[str, Note]]) -> None:
    """What is to be known of nodes; what several have in common once, with their names."""
    nodes: dict[tuple[str, str, str], list[str]] = {}
    for name, note in notes:
        nodes.setdefault((note.severity, note.message, note.hint), []).append(name)
    room = max(shutil.get_terminal_size().columns, 40) if sys.stdout.isatty() else 10_000
    order = {"error": 0, "warning": 1, "note": 2}
    for (severity, message, hint), names in sorted(nodes.items(), key=lambda item: order[item[0][0]]):
        start = f"{severity}: {', '.join(names)}: "
        first, *rest = textwrap.wrap(start + message, room, subsequent_indent="  ", break_long_words=False)
        print(first.replace(severity, colored(severity, _STYLES[severity], sys.stdout), 1))
        for line in (
            *rest,
            *textwrap.wrap(hint, room - 2, initial_indent="  ", subsequent_indent="  ", break_long_words=False),
        ):
            print(line)


def _row(report: NodeReport) -> tuple[str, ...]:
    peers = [peer.reached for peer in report.peers]
    return (
        report.name,
        "ok" if report.is_usable else "unusable",
        report.version.partition("+")[0],
        _gpus(report),
        report.driver,
        "" if report.disk_free_bytes is None else size(report.disk_free_bytes),
        _clock(report),
        "" if not peers else "not checked" if set(peers) == {None} else f"{peers.count(True)} of {len(peers)}",
    )


def _gpus(report: NodeReport) -> str:
    if not report.gpus:
        return f"{report.declared_gpus} declared" if report.declared_gpus else "0" if report.version else ""
    models = Counter(
        f"{gpu.model} ({gpu.memory_mib / 1024:.0f} GiB)" if gpu.memory_mib else gpu.model for gpu in report.gpus
    )
    return ", ".join(f"{count} x {model}" for model, count in models.items())


def _clock(report: NodeReport) -> str:
    if report.clock is None:
        return ""
    seconds, error_s = report.clock
    return "in step" if abs(seconds) <= error_s + 0.1 else f"{seconds:+.1f} s"


def _document(report: NodeReport) -> dict[str, Any]:
    from tfjob.values import encode  # noqa: PLC0415

    document: dict[str, Any] = encode(report)
    clock = report.clock
    document["clock"] = None if clock is None else {"ahead_s": clock.seconds, "error_s": clock.error_s}
    document["peers"] = [peer._asdict() for peer in report.peers]
    del document["unanswered"]
    return {"name": report.name, "usable": report.is_usable, **document}
