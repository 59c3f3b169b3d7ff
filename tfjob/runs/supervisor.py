"""The supervisor of one run: a detached process that takes the run through its phases and is the only writer of its record.

It outlives the terminal that submitted the run. If it is killed, its lock is free, and the next tfjob command that
looks at the run starts another (`recover`), which goes on from what the run directory says: it redoes what was not
finished, and adopts tasks that still run.

    python -P -m tfjob.runs.supervisor RUN_DIRECTORY LOCK_DESCRIPTOR
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from functools import partial
from pathlib import Path

from tfjob.durable import try_lock
from tfjob.planning.plan import Plan
from tfjob.rundir import RunDirectory
from tfjob.runs.record import Record
from tfjob.values import decode

__all__ = ["recover", "start_supervisor"]


def start_supervisor(run: RunDirectory, lock: int) -> None:
    """Start the supervisor in a session of its own and hand it the run's lock, which this process lets go of.

    `lock` is a descriptor that holds the run's supervisor lock: there is no moment in which nobody holds it.
    """
    package_parent = str(Path(__file__).resolve().parents[2])
    with run.supervisor_log.open("ab") as log:
        subprocess.Popen(
            [sys.executable, "-P", "-m", "tfjob.runs.supervisor", str(run.path), str(lock)],
            env={**os.environ, "PYTHONPATH": package_parent},
            cwd="/",
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=log,
            start_new_session=True,
            pass_fds=[lock],
        )
    os.close(lock)


def recover(run: RunDirectory, record: Record) -> bool:
    """Give a run whose supervisor has died another one. Returns whether it did.

    Nothing is done for a run that is over, is watched over, or was watched over from another host
    (whose processes can't be seen from here).
    """
    if record.is_over:
        return False
    if record.supervisor is not None and record.supervisor.host != os.uname().nodename:
        return False
    lock = try_lock(run.supervisor_lock)
    if lock is None:
        return False
    start_supervisor(run, lock)
    return True


def main(arguments: list[str]) -> None:
    """The supervisor process: put its parts together and go."""
    from tfjob.engines.process import ProcessEngine  # noqa: PLC0415  # what `start_supervisor` alone does not need
    from tfjob.runs.prepare import prepare_environment  # noqa: PLC0415
    from tfjob.runs.supervision import Supervision  # noqa: PLC0415
    from tfjob.targets.local import local_target  # noqa: PLC0415
    from tfjob.workspace import Workspace  # noqa: PLC0415

    run = RunDirectory(Path(arguments[0]))
    os.set_inheritable(int(arguments[1]), False)  # the lock is the supervisor's alone: tasks must not hold it
    plan = decode(Plan, json.loads(run.plan.read_bytes()))
    workspace = Workspace(run.path.parent.parent)
    config = workspace.config
    environ = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    target = local_target(
        declared_gpus=config.local_gpus if plan.gpus_per_node else 0,
        cuda_visible_devices=environ.get("CUDA_VISIBLE_DEVICES"),
    )
    signal.signal(signal.SIGTERM, partial(_ask_to_cancel, run))
    signal.signal(signal.SIGINT, partial(_ask_to_cancel, run))
    signal.signal(signal.SIGHUP, signal.SIG_IGN)
    Supervision(
        run,
        plan,
        engine=ProcessEngine(target.nodes[0], environ=environ),
        prepare=partial(prepare_environment, plan, run, config.store, environ),
        snapshots=workspace.snapshots,
    ).go()


def _ask_to_cancel(run: RunDirectory, number: int, _frame: object) -> None:
    run.cancel_request.write_text(
        f"the supervisor was told to stop by {signal.Signals(number).name}\n", encoding="utf-8"
    )


if __name__ == "__main__":
    main(sys.argv[1:])
