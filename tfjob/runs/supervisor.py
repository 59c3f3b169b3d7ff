"""The supervisor's process: detached, one a run, and the only writer of the run's record.

It outlives the terminal that submitted the run. If it is killed, its lock is free, and the next tfjob command that
looks at the run starts another (`tfjob.runs.starting.recover`), which goes on from what the run directory says: it
redoes what was not finished, and adopts tasks that still run.

    python -P -m tfjob.runs.supervisor < SOCKET     the socket brings the run directory, its lock and its log
"""

from __future__ import annotations

import json
import os
import signal
import socket
from functools import partial
from pathlib import Path

from tfjob.engines.process import ProcessEngine
from tfjob.planning.plan import Plan
from tfjob.rundir import RunDirectory
from tfjob.runs.prepare import prepare_environment
from tfjob.runs.supervision import Supervision
from tfjob.targets.local import local_target
from tfjob.values import decode
from tfjob.workspace import Workspace

_PATH_BYTES = 8192


def main() -> None:
    """Wait for a run, then take it to its end."""
    run = _receive()
    if run is None:
        return
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


def _receive() -> RunDirectory | None:
    """The run this process is for, or None if whoever started it has changed its mind.

    The lock stays open to the end and is not inherited: tasks must not hold it. The log takes the place of the outputs.
    """
    with socket.socket(fileno=os.dup(0)) as door:
        path, descriptors, _, _ = socket.recv_fds(door, _PATH_BYTES, 2)
    if not path:
        return None
    lock, log = descriptors
    os.set_inheritable(lock, False)
    nothing = os.open(os.devnull, os.O_RDONLY)
    for descriptor, standard in ((nothing, 0), (log, 1), (log, 2)):
        os.dup2(descriptor, standard)
    os.close(nothing)
    os.close(log)
    return RunDirectory(Path(os.fsdecode(path)))


def _ask_to_cancel(run: RunDirectory, number: int, _frame: object) -> None:
    reason = f"the supervisor was told to stop by {signal.Signals(number).name}"
    run.cancel_request.write_text(f"{reason}\n", encoding="utf-8")


if __name__ == "__main__":
    main()
