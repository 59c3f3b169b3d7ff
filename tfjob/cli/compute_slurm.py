"""What `tfjob compute test` prints of a Slurm cluster."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from tfjob.cli.output import print_table

if TYPE_CHECKING:
    from tfjob.targets.slurm_probing import SlurmReport

__all__ = ["print_slurm", "slurm_document"]


def print_slurm(report: SlurmReport) -> None:
    """Print what the cluster has, partition by partition."""
    if not report.version:
        return
    facts = (
        ("Slurm", report.version),
        ("login", report.login),
        ("runtimes", ", ".join(report.runtimes) or "none on the login node"),
        ("directory", f"{report.directory} ({report.file_system})" if report.file_system else report.directory),
    )
    for name, text in facts:
        if text:
            print(f"  {name.ljust(10)} {text}")
    print()
    rows = [
        (
            f"{one.name}{' (default)' if one.is_default else ''}",
            one.state,
            str(one.nodes),
            str(one.idle),
            one.gpus,
            one.time_limit,
            one.features,
        )
        for one in report.partitions
    ]
    heads = ("PARTITION", "STATE", "NODES", "IDLE", "GPUS EACH", "TIME LIMIT", "FEATURES")
    kept = [column for column in range(len(heads)) if column != 6 or any(row[column] for row in rows)]
    print_table(
        [heads[column] for column in kept],
        [[row[column] for column in kept] for row in rows],
        styles={"up": "green", "down": "red"},
    )


def slurm_document(report: SlurmReport) -> dict[str, Any]:
    """Return the report for programs."""
    from tfjob.values import encode  # noqa: PLC0415

    document: dict[str, Any] = encode(report)
    return {"name": report.name, "kind": "slurm", "usable": report.is_usable, **document}
