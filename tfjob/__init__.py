"""tfjob: submit TensorFlow training jobs to your own machines.

>>> import tfjob
>>> job = tfjob.load("specs/digits.yml")             # doctest: +SKIP (a file of the repository)
>>> tfjob.plan(job).tasks[0].argv[:2]                # doctest: +SKIP
('python3', 'train.py')
>>> tfjob.submit(job).wait().state                   # doctest: +SKIP (trains a model)
'Completed'
"""

from __future__ import annotations

from tfjob.version import __version__ as __version__

TYPE_CHECKING = False  # typing.TYPE_CHECKING, without importing typing: processes that fetch are to start quickly
if TYPE_CHECKING:
    from tfjob.errors import TfjobError as TfjobError
    from tfjob.planning.plan import Plan as Plan
    from tfjob.runs.run import Run as Run
    from tfjob.spec.job import JobSpec as JobSpec
    from tfjob.spec.load import load as load
    from tfjob.submission import plan as plan
    from tfjob.submission import submit as submit

__all__ = ["JobSpec", "Plan", "Run", "TfjobError", "load", "plan", "submit"]

_HOMES = {
    "JobSpec": "tfjob.spec.job",
    "Plan": "tfjob.planning.plan",
    "Run": "tfjob.runs.run",
    "TfjobError": "tfjob.errors",
    "load": "tfjob.spec.load",
    "plan": "tfjob.submission",
    "submit": "tfjob.submission",
}


def __getattr__(name: str) -> object:
    """Import a public name when it is first used: `tfjob --help` must not wait for all of them."""
    if name not in _HOMES:
        raise AttributeError(f"module 'tfjob' has no attribute {name!r}")
    from importlib import import_module  # noqa: PLC0415  # only when something is asked for

    return getattr(import_module(_HOMES[name]), name)
