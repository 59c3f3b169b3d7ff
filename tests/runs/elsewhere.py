"""A supervisor whose engine has its tasks elsewhere: processes all the same, but brought to their place by the engine.

python elsewhere.py RUN_DIRECTORY     go on with the run, as a supervisor does

`bring` in the run directory says what happens while things are brought: "wait" until it is changed, "lose" a node once; with
"fail" the tasks can't be ended for sure. `environment`, where it is there, says what making the environment comes to: "wait"
until it is changed, "fail", or anything else for one that is made.
"""

from __future__ import annotations

import json
import os
import sys
import time
from pathlib import Path
from typing import Any

from tfjob.datasets.cache import Cache
from tfjob.datasets.wanted import Settings
from tfjob.engines.base import Allocation, Prepared, Waiting, tell_nobody
from tfjob.engines.process import ProcessEngine
from tfjob.errors import NodeLost, PreparationError
from tfjob.planning.plan import Plan
from tfjob.rundir import RunDirectory
from tfjob.runs.data import RunData
from tfjob.runs.supervision import Supervision
from tfjob.targets.target import Node
from tfjob.values import decode


class ElsewhereEngine(ProcessEngine):
    """Processes whose working directories are the engine's business."""

    shares_run_directory = False  # type: ignore[misc]  # that is the point

    def start(
        self,
        plan: Plan,
        run: RunDirectory,
        allocation: Allocation,
        prepared: Prepared,
        told: Waiting = tell_nobody,
    ) -> Any:
        bring = run.path / "bring"
        while bring.read_text() == "wait":
            told("bringing code to node far")
            time.sleep(0.02)
        if bring.read_text() == "lose":
            bring.write_text("")
            raise NodeLost("node far can't be reached any more")
        for task in plan.all_tasks:
            run.work(task.name).mkdir(parents=True, exist_ok=True)
        return super().start(plan, run, allocation, prepared, told)

    def stop(self, handle: Any, grace_s: float) -> None:
        super().stop(handle, grace_s)
        if (handle.run.path / "bring").read_text() == "fail":
            raise ConnectionError("the node does not answer")


def make_environment(run: RunDirectory) -> Prepared:
    file = run.path / "environment"
    while (asked := file.read_text() if file.exists() else "made") in ("wait", ""):  # empty: it is just being written
        time.sleep(0.02)
    if asked == "fail":
        raise PreparationError("there is no such package")
    return Prepared(None, {"environment.path": os.environ["PATH"]})


def main(directory: str) -> None:
    run = RunDirectory(Path(directory))
    plan = decode(Plan, json.loads(run.plan.read_bytes()))
    (run.path / "leases").mkdir(exist_ok=True)
    Supervision(
        run,
        plan,
        engine=ElsewhereEngine(Node("far", "127.0.0.1"), environ=os.environ, lease_directory=run.path / "leases"),
        prepare=lambda _: make_environment(run),
        snapshots=run.path / "snapshots",
        data=RunData(plan, run, Cache(run.path / "cache"), 1.0, run.path / "registry", Settings(), here=False),
    ).go()


if __name__ == "__main__":
    main(sys.argv[1])
