"""The supervisor's process: detached, one a run, and the only writer of the run's record.

It outlives the terminal that submitted the run. If it is killed, its lock is free, and the next tfjob command that
looks at the run starts another (`tfjob.runs.starting.recover`), which goes on from what the run directory says: it
redoes what was not finished, and adopts tasks that still run.

    python -P -m tfjob.runs.supervisor < SOCKET     the socket brings the run directory, its lock and its log;
                                                    before that, it may say what is to be loaded
"""

from __future__ import annotations

import gc
import json
import os
import signal
import socket
import time
import traceback
from collections.abc import Callable
from contextlib import suppress
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from tfjob import entrypoint
from tfjob.durable import replace_json
from tfjob.engines.base import Engine, Prepared
from tfjob.engines.inherited import inherited_environment
from tfjob.engines.marked import sweep
from tfjob.errors import ExitCode, PreparationError, TargetError, TfjobError, UsageError
from tfjob.planning.plan import Plan
from tfjob.rundir import RunDirectory
from tfjob.runs.choice import engine_of
from tfjob.runs.fetched import with_fetched
from tfjob.runs.prepare import prepare_environment
from tfjob.runs.record import Failure, iso, read_record, write_record
from tfjob.runs.run import request_cancel
from tfjob.runs.starting import DATA, MANY_FILES, SEVERAL_MACHINES
from tfjob.runs.supervision import Supervision
from tfjob.targets.definition import ClusterDefinition
from tfjob.values import decode
from tfjob.workspace import Workspace

if TYPE_CHECKING:
    from tfjob.datasets.standby import Standby
    from tfjob.engines.cluster.logins import Logins
    from tfjob.engines.slurm.elsewhere import ElsewhereEngine
    from tfjob.runs.data import RunData

_PATH_BYTES = 8192
_FOR_THE_SUPERVISOR = (
    "CUDA_VISIBLE_DEVICES",
    "SLURM_CONF",
    "CONDA_OVERRIDE_CUDA",
    *("SSH_AUTH_SOCK", "TFJOB_SSH_CONFIG"),
    *("DOCKER_HOST", "DOCKER_CONFIG", "DOCKER_CERT_PATH", "DOCKER_TLS_VERIFY", "DOCKER_CONTEXT"),
)
"""Variables of the submitting shell that say what the run may use; tasks do not inherit them."""


def main() -> None:
    """Wait for a run, then take it to its end. Whatever keeps this from being done is in the run's record."""
    gc.set_threshold(100_000)  # a dataset may have tens of thousands of rows: looked through for garbage, there is none
    run, begun = _receive()
    if run is None:
        if begun.standby is not None:
            begun.standby.end()
        if begun.logins is not None:
            os.dup2(os.open(os.devnull, os.O_WRONLY), 2)  # whoever reads what the command says shall not wait for nodes
            begun.logins.close()
        return
    entrypoint.prctl(entrypoint.PR_SET_CHILD_SUBREAPER, 1)  # what escapes from a killed task comes here
    try:
        _supervision(run, begun).go()
    except BaseException as error:  # noqa: BLE001  # the last boundary: nobody sees this process
        traceback.print_exc()
        _give_up(run, error)
    entrypoint.kill_leftovers()


class _Begun(NamedTuple):
    """What was begun before there was a run: logins to nodes, and processes that fetch files."""

    logins: Logins | None = None
    standby: Standby | None = None


def _supervision(run: RunDirectory, begun: _Begun) -> Supervision:
    plan = with_fetched(decode(Plan, json.loads(run.plan.read_bytes())), run)
    workspace = Workspace(run.path.parent.parent)
    environ = _inherited(run, plan.secrets)
    record = read_record(run)
    engine = engine_of(plan, workspace, environ, soon=record.supervisor is None, logins=begun.logins)
    shared = _shared(plan)
    store = (
        shared / "store" if shared else workspace.config.store
    )  # after the engine, which may log in to nodes meanwhile
    if key := record.environment_key:  # of an earlier supervisor's; see `prepare_environment`
        from tfjob.environments.store import Store  # noqa: PLC0415

        Store(store).hold(key)
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, partial(_ask_to_cancel, run))
    signal.signal(signal.SIGHUP, signal.SIG_IGN)

    def prepare(progress: Callable[[str], None]) -> Prepared:
        missing = [name for name in plan.secrets if name not in environ]
        if missing:
            raise PreparationError(
                f"the secrets {', '.join(missing)} went with the supervisor that died", "Submit the job again."
            )
        if plan.cluster is not None:
            _borrow_engine(plan, engine)
        return prepare_environment(plan, run, store, environ, progress, elsewhere=_elsewhere(plan, engine))

    here = engine.shares_run_directory and (plan.slurm is None or plan.slurm.login is None)
    is_first = record.supervisor is None
    data = _data(plan, run, workspace, here=here, is_first=is_first, standby=begun.standby) if plan.datasets else None
    if plan.slurm is not None:
        from tfjob.engines.slurm.engine import SlurmEngine  # noqa: PLC0415  # only for its targets
        from tfjob.runs.slurm import SlurmSupervision  # noqa: PLC0415  # the same

        assert isinstance(engine, SlurmEngine)  # noqa: S101  # the plan says so to both
        return SlurmSupervision(run, plan, engine=engine, prepare=prepare, snapshots=workspace.snapshots, data=data)
    return Supervision(run, plan, engine=engine, prepare=prepare, snapshots=workspace.snapshots, data=data)


def _borrow_engine(plan: Plan, engine: Engine) -> None:
    """Let images be found and made on a node where this machine has no Docker Engine, as far as that can be."""
    from tfjob.engines.cluster.engine import ClusterEngine  # noqa: PLC0415  # only for its targets

    assert isinstance(engine, ClusterEngine)  # noqa: S101  # the plan says so to both
    lent = engine.lend(lambda _: None)
    if lent and plan.environment is not None and plan.environment.definition is not None:
        raise TargetError(
            "this machine has no Docker Engine that answers, and the packages of a job are put into an image here",
            "Start Docker on this machine, or give the job a finished image: environment.image.",
        )
    for name in ("DOCKER_HOST", "DOCKER_TLS_VERIFY", "DOCKER_CERT_PATH", "DOCKER_CONTEXT") if lent else ():
        os.environ.pop(name, None)
    os.environ.update(lent)


def _elsewhere(plan: Plan, engine: Engine) -> ElsewhereEngine | None:
    """The engine, where it is that of a cluster used from elsewhere."""
    if plan.slurm is None or plan.slurm.login is None:
        return None
    from tfjob.engines.slurm.elsewhere import ElsewhereEngine  # noqa: PLC0415  # only for its targets

    assert isinstance(engine, ElsewhereEngine)  # noqa: S101  # the plan says so to both
    return engine


def _shared(plan: Plan) -> Path | None:
    """Where environments and datasets are kept for Slurm's nodes, if the target says which file system they share."""
    here = plan.slurm is not None and plan.slurm.login is None
    directory = plan.slurm.directory if plan.slurm is not None and here else None
    return Path(directory) if directory is not None else None


def _data(
    plan: Plan, run: RunDirectory, workspace: Workspace, *, here: bool, is_first: bool, standby: Standby | None
) -> RunData:
    from tfjob.datasets.cache import Cache  # noqa: PLC0415  # only jobs with data pay for it
    from tfjob.datasets.standby import Standby  # noqa: PLC0415  # the same
    from tfjob.datasets.wanted import Settings  # noqa: PLC0415
    from tfjob.runs.data import RunData  # noqa: PLC0415

    config, shared = workspace.config, _shared(plan)
    data = RunData(
        plan,
        run,
        Cache(shared / "datasets" if shared else config.dataset_cache),
        config.cache_limit_gib,
        workspace.datasets,
        Settings(connections=config.connections, timeout_s=config.timeout_s),
        here=here,
        nodes_fetch=plan.cluster is not None,
        standby=standby or Standby(),
    )
    if is_first and standby is None:  # another may have nothing to fetch
        data.foresee()
    return data


def _of_this_shell() -> dict[str, str]:
    """What tasks and tfjob's own tools have of the shell that submits."""
    own = {name: os.environ[name] for name in _FOR_THE_SUPERVISOR if name in os.environ}
    return {**inherited_environment(os.environ, ()), **own}


def _inherited(run: RunDirectory, secrets: tuple[str, ...]) -> dict[str, str]:
    """What the run's tasks inherit: from the shell that submitted it, also for a supervisor that another shell started.

    Secrets are never written down: only the first supervisor, or one whose shell has them too, knows them.
    """
    try:
        kept: dict[str, str] = json.loads(run.inherited.read_bytes())
    except FileNotFoundError:
        kept = _of_this_shell()
        replace_json(run.inherited, kept, force=False)
    for name in _FOR_THE_SUPERVISOR:  # what images are built and pulled by looks here
        if name in kept:
            os.environ[name] = kept[name]
        else:
            os.environ.pop(name, None)
    return {**kept, **{name: os.environ[name] for name in secrets if name in os.environ}}


def _give_up(run: RunDirectory, error: BaseException) -> None:
    """Record that the run can't be watched over, and end what is left of it. How it ends may have been decided before: that stands."""
    sweep(run.id)
    _end_tasks(run)
    message = error.message if isinstance(error, TfjobError) else f"tfjob itself failed: {error!r}"
    failure = Failure(None, None, None, None, f"{message}; see {run.supervisor_log}")
    record = read_record(run)
    if record.is_over:
        return
    ended = iso(time.time())
    if record.outcome is not None:
        write_record(run, replace(record, state=record.outcome, ended=ended, notes=(*record.notes, failure.message)))
        return
    code = int(ExitCode.RUN_FAILED)
    write_record(run, replace(record, state="Failed", failure=failure, exit_code=code, ended=ended))


def _end_tasks(run: RunDirectory) -> None:
    """End the run's tasks wherever they are, as far as that can be: what it failed of may keep this from working too."""
    try:
        plan = decode(Plan, json.loads(run.plan.read_bytes()))
        if plan.runtime != "process" or plan.slurm or plan.cluster:
            engine = engine_of(plan, Workspace(run.path.parent.parent), os.environ)
            engine.stop(engine.adopt(plan, run), 0)
    except Exception:  # noqa: BLE001  # it is said in the supervisor's log, and the record comes next
        traceback.print_exc()


def _receive() -> tuple[RunDirectory | None, _Begun]:
    """The run this process is for, or None if whoever started it has changed its mind; and what was begun meanwhile.

    The lock stays open to the end and is not inherited: tasks must not hold it. The log takes the place of the outputs.
    """
    logins = standby = None
    with socket.socket(fileno=os.dup(0)) as door:
        path, descriptors, _, _ = socket.recv_fds(door, _PATH_BYTES, 2)
        if path == DATA:
            _load_for_data()
            path, descriptors, _, _ = socket.recv_fds(door, _PATH_BYTES, 2)
        if path.startswith(SEVERAL_MACHINES):
            directory, _, name = path.removeprefix(SEVERAL_MACHINES).partition(b"\0")
            logins = _begin_on_several_machines(Path(os.fsdecode(directory)), name.decode())
            path, descriptors, _, _ = socket.recv_fds(door, _PATH_BYTES, 2)
        if path.startswith(MANY_FILES):
            standby = _start_what_fetches(int(path.removeprefix(MANY_FILES)))
            path, descriptors, _, _ = socket.recv_fds(door, _PATH_BYTES, 2)
    begun = _Begun(logins, standby)
    if not path:
        return None, begun
    lock, log = descriptors
    os.set_inheritable(lock, False)
    nothing = os.open(os.devnull, os.O_RDONLY)
    for descriptor, standard in ((nothing, 0), (log, 1), (log, 2)):
        os.dup2(descriptor, standard)
    os.close(nothing)
    os.close(log)
    return RunDirectory(Path(os.fsdecode(path))), begun


def _load_for_data() -> None:
    """Load what fetches data now, while the run is being made."""
    import tfjob.datasets.eviction  # noqa: PLC0415  # only for those who have data
    import tfjob.datasets.fetch  # noqa: PLC0415  # the same
    import tfjob.datasets.workers  # noqa: PLC0415  # the same
    import tfjob.runs.data  # noqa: F401, PLC0415  # the same


def _start_what_fetches(count: int) -> Standby:
    """Start what fetches very many small files now, while the run is being made. What there is too many of is ended again."""
    from tfjob.datasets.standby import Standby, process_count  # noqa: PLC0415  # only for those who have so much data
    from tfjob.datasets.wanted import Settings  # noqa: PLC0415  # the same

    standby = Standby()
    standby.start(process_count(count, Settings()))
    return standby


def _begin_on_several_machines(targets: Path, name: str) -> Logins | None:
    """Log in to a target's nodes now, while the run is being made, and load what one on several machines needs."""
    from tfjob.engines.cluster.logins import Logins  # noqa: PLC0415  # only for those who have several machines
    from tfjob.targets.registered import Targets  # noqa: PLC0415  # the same

    logins = None
    with suppress(UsageError):  # who reads the job file will say so
        known = Targets(targets).find(name)
        if known is not None and isinstance(known.definition, ClusterDefinition):
            logins = Logins(known.definition, _of_this_shell())
    import tfjob.engines.cluster.engine  # noqa: PLC0415  # only for those who have several machines
    import tfjob.spec.config  # noqa: F401, PLC0415  # whose parser takes longer than the rest

    return logins


def _ask_to_cancel(run: RunDirectory, number: int, _frame: object) -> None:
    request_cancel(run, f"the supervisor was told to stop by {signal.Signals(number).name}")


if __name__ == "__main__":
    main()
