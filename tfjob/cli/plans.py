"""Reading the plan that a run keeps, which somebody may have damaged."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from tfjob.errors import NotFound
from tfjob.rundir import RunDirectory

__all__ = ["reading_plan"]


@contextmanager
def reading_plan(run: RunDirectory) -> Iterator[None]:
    """Around what reads a run's plan and nothing else: raises NotFound, naming the file, when it is not there or no plan."""
    try:
        yield
    except (ValueError, KeyError, TypeError, AttributeError, FileNotFoundError) as error:
        why = (
            "is not there"
            if isinstance(error, FileNotFoundError)
            else f"can't be read: {type(error).__name__}: {error}"
        )
        raise NotFound(
            f"the plan of run {run.id} {why}", f"It should be in {run.plan}; submit the job again."
        ) from error
