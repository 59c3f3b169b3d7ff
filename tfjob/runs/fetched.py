"""What is kept of a run's datasets: the plan with what was fetched, and what the record says."""

from __future__ import annotations

import json
from dataclasses import replace

from tfjob.planning.plan import DatasetPlan, Plan
from tfjob.rundir import RunDirectory
from tfjob.runs.record import DatasetRecord
from tfjob.values import decode, encode

__all__ = ["dataset_records", "dataset_text", "with_fetched"]


def with_fetched(plan: Plan, run: RunDirectory) -> Plan:
    """The plan with its datasets as the run has fetched them; as it was where it has fetched nothing (yet)."""
    try:
        rows = json.loads(run.fetched.read_bytes())
    except FileNotFoundError:
        return plan
    return replace(plan, datasets=tuple(decode(DatasetPlan, row) for row in rows))


def dataset_records(plan: Plan) -> tuple[DatasetRecord, ...]:
    """What a run's record says of its datasets."""
    return tuple(
        DatasetRecord(one.name, one.registered, one.digest, one.file_count, one.size_bytes) for one in plan.datasets
    )


def dataset_text(dataset: DatasetPlan) -> str:
    """The JSON of a dataset. Its files are rows of plain values, which need no encoding one by one."""
    encoded = encode(replace(dataset, files=(), marks=()))
    return json.dumps({**encoded, "files": dataset.files, "marks": dataset.marks})
